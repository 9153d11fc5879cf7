"""The version of clipmlu."""

__version__ = "0.1.0"
