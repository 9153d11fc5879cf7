"""Limits of the texts of a request: a tokenizer reads all of a text, of which a model uses a few hundred bytes."""

from __future__ import annotations

from collections.abc import Iterable

from clipmlu.serve.refusal import Refusal

LONGEST_TEXT = 1 << 16
"""Most characters of a text; in KServe requests, bytes."""
LONGEST_TEXTS = 1 << 20
"""Most characters of all texts of a request; the tokenizer reads about a million in a second."""


def check_lengths(lengths: Iterable[int]) -> None:
    """Check the numbers of characters of the texts of a request.

    Raises:
        Refusal: one text is too long, or all together are.
    """
    total = 0
    for length in lengths:
        if length > LONGEST_TEXT:
            raise Refusal("too_large", f"A text has {length:,} characters; this server takes {LONGEST_TEXT:,} at most.")
        total += length
    if total > LONGEST_TEXTS:
        raise Refusal(
            "too_large", f"The texts have {total:,} characters; this server takes {LONGEST_TEXTS:,} in one request."
        )
