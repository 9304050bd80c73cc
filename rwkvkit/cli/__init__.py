"""The command line: parse, call, show."""

from rwkvkit.cli.app import main

__all__ = ["main"]
