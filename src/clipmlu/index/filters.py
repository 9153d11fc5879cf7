"""Filters of images by name: glob patterns that include and exclude."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence

from clipmlu.arguments import as_texts
from clipmlu.errors import OptionError


class NameFilter:
    """Selects names by glob patterns, in which ``*`` also stands for ``/``.

    A pattern is compared with the whole name; one without ``/`` also with its last part.

    Args:
        include: names that match one of them pass; empty for all.
        exclude: names that match one of them do not pass.

    Raises:
        OptionError: they are no texts, or one is empty.
    """

    def __init__(self, include: str | Sequence[str] = (), exclude: str | Sequence[str] = ()) -> None:
        self.include = tuple(_patterns(include, "include"))
        self.exclude = tuple(_patterns(exclude, "exclude"))

    @property
    def selects_all(self) -> bool:
        """Whether every name passes."""
        return not self.include and not self.exclude

    def compile(self) -> Callable[[str], bool]:
        """Return a function that says whether a name passes."""
        included, excluded = _matcher(self.include), _matcher(self.exclude)
        return lambda name: (not self.include or included(name)) and not excluded(name)


def _patterns(given: str | Sequence[str], what: str) -> list[str]:
    patterns = as_texts(given, what)
    if "" in patterns:
        raise OptionError(f"{what} has an empty pattern; expected one such as 'beach/*' or '*.png'")
    return patterns


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    whole = [fnmatch.translate(pattern) for pattern in patterns]
    last = [f"(?s:.*/){fnmatch.translate(pattern)}" for pattern in patterns if "/" not in pattern]
    if not whole:
        return lambda _name: False
    match = re.compile("|".join(f"(?:{each})" for each in whole + last)).match
    return lambda name: match(name) is not None
