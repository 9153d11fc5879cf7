"""Keywords of images that may show none of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from clipmlu.specs import Probability


class OpenSetKeywords(TypedDict, total=False):
    """Keywords of images that may show none of the classes.

    Attributes:
        none_label: name of the result for such an image; background classes then compete with the classes.
        background: names of the background classes; None for the default ones with a ``none_label``.
        reject_below: an image whose best class has a smaller probability, 0 to 1, shows none of the classes.
    """

    none_label: str | None
    background: str | Sequence[str] | None
    reject_below: Probability | None
