"""Who may do what: authorizers, the policy they read, and what people ask about it."""
