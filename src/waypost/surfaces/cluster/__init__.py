"""The cluster port: machines among themselves."""
