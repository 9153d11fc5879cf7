"""Options for images that are fetched by URL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipmlu.cli._groups import Option, OptionGroup
from clipmlu.cli._options import Integer, Number
from clipmlu.errors import OptionError

if TYPE_CHECKING:
    from clipmlu.data.url.options import UrlOptions

_allow_option = Option("--allow-urls", is_flag=True, help="Fetch inputs that are http or https URLs.")
_LIMIT_OPTIONS = {
    "allow_private": Option(
        "--allow-private-urls",
        is_flag=True,
        default=None,
        help="Fetch URLs of private addresses too, such as 127.0.0.1 and 10.0.0.1.",
    ),
    "timeout_s": Option(
        "--url-timeout",
        type=Number(min=0, min_open=True, max=3600),
        help="Seconds for each URL, in total. [default: 30]",
    ),
    "max_bytes": Option("--url-max-bytes", type=Integer(min=1), help="Largest file of a URL. [default: 67108864]"),
}


def _choice(given: Mapping[str, Any]) -> UrlOptions | None:
    limits = {field: given[option.name] for field, option in _LIMIT_OPTIONS.items() if given[option.name] is not None}
    if not given[_allow_option.name]:
        for field in limits:
            raise OptionError(
                f"--{_LIMIT_OPTIONS[field].name.replace('_', '-')} is for URLs; give --allow-urls with it"
            )
        return None
    from clipmlu.data.url.options import UrlOptions

    return UrlOptions(**limits)


url_options = OptionGroup("urls", (_allow_option, *_LIMIT_OPTIONS.values()), _choice, heading="URLs")
"""Adds the options for URLs; the command gets ``urls``, a ``UrlOptions``, or None if URLs are not allowed."""
