"""`waypost demo`: the whole platform at work on this machine, with sample services, and everything removed at the end."""

from waypost.cli.demo.command import COMMAND, SUMMARY, run

__all__ = ["COMMAND", "SUMMARY", "run"]
