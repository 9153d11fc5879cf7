"""Pictures inside a page: photos as small JPEG files in ``data:`` addresses, and drawings as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipmlu.data.thumbnails import jpeg_address, jpeg_thumbnail
from clipmlu.host import require

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL_EDGE = 128
"""Pixels of the longer edge of an embedded photo."""


def thumbnail_address(image: Image.Image, edge: int = THUMBNAIL_EDGE) -> str:
    """Return a photo as a ``data:`` address for ``src`` of ``<img>``, some 2 to 6 kB long.

    Args:
        image: the photo in any mode; transparent parts become white. It is not changed.
        edge: pixels of the longer edge; a smaller photo keeps its size.

    Returns:
        A JPEG file without metadata; equal pixels give equal text.
    """
    return jpeg_address(jpeg_thumbnail(image, edge))


def inline_svg(drawing: str, label: str, *, purpose: str = "Writing an HTML page", extra: str = "report") -> str:
    """Return an SVG drawing as HTML that a template prints unescaped, with a name for screen readers.

    Args:
        drawing: SVG file that this package drew, never one of a user. What stands before ``<svg`` is left out.
        label: one sentence that says what the drawing shows.
        purpose: what needs it, as the subject of a message.
        extra: the extra of clipmlu that the message names.

    Returns:
        ``Markup``.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    markup = require("markupsafe", extra, purpose).Markup
    element = drawing[drawing.index("<svg") :].strip()
    named: str = markup('<svg role="img" aria-label="{}"').format(label) + markup(element.removeprefix("<svg"))
    return named
