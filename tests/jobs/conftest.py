"""The command line for tests of jobs."""

from cli.conftest import run

__all__ = ["run"]
