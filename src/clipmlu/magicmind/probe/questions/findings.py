"""What one case of a probe found."""

from __future__ import annotations

import collections
from typing import Any, Dict, List

import numpy as np

ANSWERED, CRASHED, TIMED_OUT, NOT_TRIED = "answered", "crashed", "timed out", "not tried"


NOT_REACHED = "not reached"


Array = np.ndarray


Fields = Dict[str, Any]


Details = Dict[str, Fields]


Arrays = List[Array]


class NotReachedError(Exception):
    """What had to work before the question could be asked did not."""


class Finding:
    """What one case showed.

    Args:
        text: a short text.
        raw: the facts behind it, JSON-able.
    """

    def __init__(self, text: str, **raw: Any) -> None:
        self.text = text
        self.raw = raw


def list_findings(details: Details) -> str:
    """``case / case: finding`` for all cases; a finding alone where there is one case without a name."""
    grouped: dict[str, list[str]] = collections.OrderedDict()
    for case, fields in details.items():
        grouped.setdefault(fields["found"], []).append(case)
    return "; ".join(text if cases == [""] else f"{' / '.join(cases)}: {text}" for text, cases in grouped.items())


def shorten(text: str) -> str:
    """One line of at most 200 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:197] + "..."
