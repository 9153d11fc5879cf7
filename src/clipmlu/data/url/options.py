"""Limits for images that are fetched by URL."""

from __future__ import annotations

from typing import Annotated

import msgspec

from clipmlu.arguments import check_fields
from clipmlu.specs import NaturalInt, PositiveInt, Spec


class UrlOptions(Spec, frozen=True, kw_only=True):
    """Limits for the images that are fetched by URL.

    Attributes:
        max_bytes: largest file; checked while it is received, and again while it is decompressed.
        timeout_s: seconds for one image: names, connections, redirects, repeated attempts and content together.
        max_redirects: redirects that are followed for one image; each is checked like the first URL.
        allow_private: also connect to addresses that are not on the public internet, such as 127.0.0.1 and 10.0.0.1.

    Raises:
        OptionError: a field has another type or is out of range.
    """

    max_bytes: PositiveInt = 64 << 20
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    max_redirects: NaturalInt = 5
    allow_private: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
