"""HTML pages from the templates of this folder: escaped, complete or an error, and the same bytes for the same values."""

from __future__ import annotations

import functools
import re
from typing import Any

from clipmlu.display import EMULATED_MARK
from clipmlu.host import require
from clipmlu.report.document.blocks import Name
from clipmlu.report.wrapping import shown

_PURPOSE = "Writing an HTML page"
_EXTRA = "report"


def check_renderable(purpose: str = _PURPOSE, extra: str = _EXTRA) -> None:
    """Check, before slow work begins, that pages can be written.

    Args:
        purpose: what needs it, as the subject of the message.
        extra: the extra of clipmlu that the message names.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    require("jinja2", extra, purpose)


def render(template: str, *, purpose: str = _PURPOSE, extra: str = _EXTRA, **values: Any) -> str:
    """Return the page of a template.

    Args:
        template: name of a file in ``templates/``, such as ``"report.html"``.
        purpose: what needs the page, as the subject of a message.
        extra: the extra of clipmlu that the message names.
        **values: values of the template. Texts are escaped, and control characters become visible; ``Markup`` is
            HTML already.

    Returns:
        The page, which ends with a line break.

    Raises:
        MissingDependencyError: jinja2 is not installed.
        jinja2.UndefinedError: the template needs a value that is not given.
        TypeError: the template would print None.
    """
    check_renderable(purpose, extra)
    page: str = _environment().get_template(template).render(**values)
    return page


@functools.cache
def _environment() -> Any:
    jinja2 = require("jinja2", _EXTRA, _PURPOSE)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__.rpartition(".")[0]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        cache_size=-1,
        auto_reload=False,
    )
    environment.tests |= {"name": lambda value: isinstance(value, Name), "marked": _is_marked}
    environment.filters |= {"unmarked": lambda value: value.removesuffix(EMULATED_MARK), "anchor": _anchor}
    return environment


def _is_marked(value: object) -> bool:
    """Return whether a text of ours ends with the mark of emulated results; a user's name never does."""
    return isinstance(value, str) and not isinstance(value, Name) and value.endswith(EMULATED_MARK)


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _printed(value: object) -> object:
    """Return a value as a template prints it: text without control characters; ``Markup`` stays HTML.

    Raises:
        TypeError: the value is None, for which the template has no words.
    """
    if value is None:
        raise TypeError("a template prints None; it must say in words that there is no value")
    return value if hasattr(value, "__html__") or not isinstance(value, str) else shown(value)
