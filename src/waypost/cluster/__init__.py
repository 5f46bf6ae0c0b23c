"""Several machines as one: how servers find each other, agree exactly once, and stay a cluster."""
