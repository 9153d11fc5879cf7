"""The finding of one case, and texts made of findings."""

from __future__ import annotations

import collections
from typing import Any, Dict

import numpy as np

ANSWERED, CRASHED, TIMED_OUT, NOT_TRIED = "answered", "crashed", "timed out", "not tried"


NOT_REACHED = "not reached"


Array = np.ndarray


Fields = Dict[str, Any]


Details = Dict[str, Fields]


class NotReachedError(Exception):
    """A call that had to work before the tested one failed."""


class Finding:
    """The result of one case.

    Args:
        text: the result in a few words.
        raw: values that the text rests on, as JSON can hold them.
    """

    def __init__(self, text: str, **raw: Any) -> None:
        self.text = text
        self.raw = raw


def list_findings(details: Details) -> str:
    """Join the findings of all cases as ``case / case: finding``; cases without a name give the finding alone."""
    grouped: dict[str, list[str]] = collections.OrderedDict()
    for case, fields in details.items():
        grouped.setdefault(fields["found"], []).append(case)
    return "; ".join(text if cases == [""] else f"{' / '.join(cases)}: {text}" for text, cases in grouped.items())


def shorten(text: str) -> str:
    """One line of at most 200 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:197] + "..."
