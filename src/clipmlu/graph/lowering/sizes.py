"""Sizes as polynomials of a graph's dynamic axes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Size:
    """A size, or an integer computed from sizes: a polynomial of the dynamic axes, linear in each.

    Attributes:
        terms: pairs of axes (sorted names) and nonzero factor; the constant has the key ``()``.
    """

    terms: tuple[tuple[tuple[str, ...], int], ...]

    @property
    def constant(self) -> int | None:
        """The number, or None if the size depends on an axis."""
        if not self.terms:
            return 0
        return self.terms[0][1] if len(self.terms) == 1 and not self.terms[0][0] else None

    @property
    def axis(self) -> str | None:
        """The axis, or None if the size is not that of one axis."""
        if len(self.terms) != 1 or len(self.terms[0][0]) != 1 or self.terms[0][1] != 1:
            return None
        return self.terms[0][0][0]

    def __str__(self) -> str:
        return " + ".join(self._term(axes, factor) for axes, factor in self.terms) or "0"

    @staticmethod
    def _term(axes: tuple[str, ...], factor: int) -> str:
        names = "*".join(axes)
        if not names:
            return str(factor)
        return names if factor == 1 else f"{factor}*{names}"


def fit_size(axes: Sequence[str], points: Sequence[Mapping[str, int]], numbers: Sequence[int]) -> Size | None:
    """Return the polynomial, linear in each axis, that has these values at these points, or None."""
    if len(set(numbers)) == 1:
        return Size(((((), int(numbers[0]))),) if numbers[0] else ())
    monomials = [tuple(each) for count in range(len(axes) + 1) for each in itertools.combinations(sorted(axes), count)]
    table = np.array([[np.prod([point[axis] for axis in each], initial=1.0) for each in monomials] for point in points])
    solution = np.rint(np.linalg.lstsq(table, np.array(numbers, np.float64), rcond=None)[0]).astype(np.int64)
    if not np.array_equal(table.astype(np.int64) @ solution, np.array(numbers, np.int64)):
        return None
    return Size(tuple((each, int(factor)) for each, factor in zip(monomials, solution, strict=True) if factor))
