"""How many images of a job may be unreadable before it stops."""

from __future__ import annotations

import re
from typing import NamedTuple

from clipmlu.errors import InputError, OptionError

JUDGED_IMAGES = 1000
"""A percentage is judged from this number of images on, and at the end."""

_FORM = re.compile(r"([0-9]{1,18})|([0-9]{1,3}(?:\.[0-9]{1,18})?)%")


class TooManyErrorsError(InputError):
    """More images could not be read than the limit allows."""


class ErrorLimit(NamedTuple):
    """The largest number of images, or percentage of the images so far, that cannot be read.

    Attributes:
        text: as given.
        number: number; None for a percentage.
        percent: percentage; None for a number.
    """

    text: str
    number: int | None
    percent: float | None

    def is_exceeded(self, errors: int, images: int, *, at_end: bool) -> bool:
        """Return whether too many images cannot be read.

        Args:
            errors: images that could not be read.
            images: images that were tried.
            at_end: all images were tried.
        """
        if self.number is not None:
            return errors > self.number
        assert self.percent is not None
        return (at_end or images >= JUDGED_IMAGES) and errors * 100 > self.percent * images


def parse_error_limit(given: str | int) -> ErrorLimit:
    """Return the limit of a text such as ``100`` or ``1.5%``.

    Raises:
        OptionError: the text is neither a number nor a percentage up to 100.
    """
    text = str(given)
    match = _FORM.fullmatch(text)
    if match is None or (match[2] is not None and float(match[2]) > 100):
        raise OptionError(
            f"max errors is '{text}'; expected a number of images, such as 100, or a percentage, such as 1%"
        )
    return ErrorLimit(text, None if match[1] is None else int(match[1]), None if match[2] is None else float(match[2]))
