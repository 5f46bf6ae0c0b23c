"""The registrator: containers of this machine's Docker become instances in the catalog by themselves."""
