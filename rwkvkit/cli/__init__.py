"""The command line: parse, call, show."""

from rwkvkit.cli.boundary import main

__all__ = ["main"]
