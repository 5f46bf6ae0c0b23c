"""DNS messages and names, without I/O."""
