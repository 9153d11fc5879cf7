"""Calls of the SDK: what they return or raise is recorded as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .findings import Finding, NotReachedError, shorten


class Attempt:
    """One call and its outcome.

    Attributes:
        text: ``OK``, ``None``, a type's name, ``bad Status '...'`` or ``raises ...``.
        value: what it returned.
        good: it neither raised nor answered with a bad Status.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        self.value: Any = None
        try:
            self.value = function(*arguments, **keywords)
        except Exception as error:
            self.good = False
            named = "" if isinstance(error, NotReachedError) else f"raises {type(error).__name__}: "
            self.text = shorten(f"{named}{error}")
        else:
            self.good = not is_status(self.value) or bool(self.value.ok())
            self.text = describe(self.value)


class CallLog:
    """A sequence of calls and their outcomes; after a call that fails no more are made."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.good = True

    @property
    def text(self) -> str:
        """All calls and their outcomes."""
        return "; ".join(self.steps)

    def call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Make a call, unless an earlier one failed; returns its value or None."""
        if not self.good:
            return None
        attempt = Attempt(function, *arguments)
        self.steps.append(f"{name}: {attempt.text}")
        self.good = attempt.good
        return attempt.value

    def make(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Make a call that returns an object; None counts as a failure."""
        value = self.call(name, function, *arguments)
        self.good = self.good and value is not None
        return value

    def note(self, text: str) -> None:
        """Add a remark, unless an earlier call failed."""
        if self.good:
            self.steps.append(text)

    def finding(self, **raw: Any) -> Finding:
        """The finding that lists all calls and whether they succeeded."""
        return Finding(self.text, good=self.good, **raw)


def need(call: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Make a call that the probe needs but does not test.

    Raises:
        NotReachedError: it failed or returned None.
    """
    attempt = Attempt(function, *arguments)
    if not attempt.good or attempt.value is None:
        raise NotReachedError(f"{call}: {attempt.text}")
    return attempt.value


def is_status(value: Any) -> bool:
    """Whether this is a Status: it has the two methods that public code calls (api 2.1)."""
    return callable(getattr(value, "ok", None)) and callable(getattr(value, "error_message", None))


def describe(value: Any) -> str:
    """A returned value as text: ``OK``, ``bad Status '...'``, ``None`` or a type's name."""
    if is_status(value):
        return "OK" if value.ok() else f"bad Status '{shorten(str(value))}'"
    return "None" if value is None else type(value).__name__
