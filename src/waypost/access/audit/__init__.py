"""The audit log: who did what, when, and allowed by which binding."""
