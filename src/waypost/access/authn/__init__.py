"""From a request to an actor: authenticators, the chain that joins them, impersonation."""

from waypost.access.authn.local import anonymous, is_loopback, unix_peer

__all__ = ["anonymous", "is_loopback", "unix_peer"]
