"""The values of nested dictionaries by their paths, for files of weights, whose dictionaries may contain each other."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

_MOST_CHARACTERS = 1 << 24
"""Characters of all paths together: 50 times those of a large model with its optimizer's state."""


def nested_values(content: object) -> Iterator[tuple[str, str, Any]]:
    """Yield (path of the dictionary with a final dot, key, value) of every value that is not a dictionary.

    A dictionary that is stored under several paths is read under each; one that contains itself is read once. Keys that are
    neither texts nor integers, which no name of a weight has, are left out.

    Args:
        content: a dictionary or ``argparse.Namespace``; anything else has no values.

    Raises:
        ValueError: all paths together are longer than in any real file: a small file can describe any number of them.
    """
    characters = 0
    entries = _entries(content)
    reading = [("", id(content), iter(entries.items()))] if entries is not None else []
    above = {id(content)}
    while reading:
        prefix, owner, rest = reading[-1]
        entry = next(rest, None)
        if entry is None:
            reading.pop()
            above.discard(owner)
            continue
        key, value = entry
        if not isinstance(key, (str, int)):
            continue
        name = str(key)
        characters += len(prefix) + len(name) + 1
        if characters > _MOST_CHARACTERS:
            raise ValueError(f"the names in it take more than {_MOST_CHARACTERS:,} characters")
        entries = _entries(value)
        if entries is None:
            yield prefix, name, value
        elif id(value) not in above:
            above.add(id(value))
            reading.append((f"{prefix}{name}.", id(value), iter(entries.items())))


def _entries(value: object) -> Mapping[Any, Any] | None:
    entries = vars(value) if isinstance(value, argparse.Namespace) else value
    return entries if isinstance(entries, Mapping) else None
