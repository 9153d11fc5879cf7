"""Why an image cannot be fetched; an error inside the package."""

from __future__ import annotations


class UrlError(Exception):
    """An image cannot be fetched; the message is the reason, and may be followed by advice in a further sentence."""


class PrivateAddressError(UrlError):
    """The host has no public address; the message names those that it has."""


class CutError(UrlError):
    """The connection ended before the whole image; another attempt may succeed."""
