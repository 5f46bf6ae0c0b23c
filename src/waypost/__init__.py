"""Service discovery, load balancing and access control for a handful of machines."""

__version__ = "0.1.0"
