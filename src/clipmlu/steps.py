"""Steps of long functions: how a function tells its caller what it is doing, and how far it is.

A function with the argument ``on_step`` calls it at the beginning of each step that may take seconds::

    with on_step("calibrating", total=len(batches), unit="batches") as step:
        for batch in batches:
            ...
            step.advance()

Steps may be nested, and threads may advance one together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

SECONDS = "s"
"""Unit of a step whose ``total`` is its duration in seconds: time advances it, not calls of ``advance``."""

BYTES = "B"
"""Unit of a step that counts bytes."""

Item = TypeVar("Item")


class Step(Protocol):
    """A step that has begun."""

    def advance(self, count: int = 1) -> None:
        """Count ``count`` finished units; any thread may call it."""


class StartStep(Protocol):
    """What ``on_step`` is: begins a step, which ends with the returned context, also if an error leaves it."""

    def __call__(
        self, label: str, *, total: float | None = None, unit: str = ""
    ) -> contextlib.AbstractContextManager[Step]:
        """Begin a step.

        Args:
            label: what is done, such as ``calibrating the image tower``; the beginning of a sentence in lower case.
            total: number of units, or None if the length is not known.
            unit: what is counted, in the plural, such as ``batches``; or ``SECONDS``, or ``BYTES``.
        """


class _SilentStep:
    def advance(self, count: int = 1) -> None:
        """Do nothing."""


_SILENT = contextlib.nullcontext(_SilentStep())


def no_steps(label: str, *, total: float | None = None, unit: str = "") -> contextlib.AbstractContextManager[Step]:
    """Show nothing: the default of every ``on_step``."""
    return _SILENT


def counted(items: Iterable[Item], step: Step) -> Iterator[Item]:
    """Yield items, and advance a step by one after each."""
    for item in items:
        yield item
        step.advance()
