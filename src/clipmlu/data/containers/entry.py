"""An image inside a container file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from clipmlu.data.images import ImageSource
from clipmlu.errors import InputError


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image inside a container file, or a part of the file that cannot be read.

    Attributes:
        name: its id in results: valid Unicode in one line.
        load: returns the image's bytes or path, or raises ``InputError``; any thread may call it.
    """

    name: str
    load: Callable[[], ImageSource]


def unreadable(name: str, reason: str) -> Entry:
    """Return an entry whose ``load`` raises ``InputError``: ``name`` and why it cannot be read."""
    error = InputError(f"Cannot read '{name}': {reason}")

    def load() -> ImageSource:
        raise error

    return Entry(name, load)
