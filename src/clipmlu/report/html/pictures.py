"""Pictures inside a page: photos as small JPEG files in ``data:`` addresses, and drawings as SVG."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from clipmlu.host import require

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL_EDGE = 128
"""Pixels of the longer edge of an embedded photo."""
_QUALITY = 80
_BACKGROUND = (255, 255, 255)


def thumbnail_address(image: Image.Image, edge: int = THUMBNAIL_EDGE) -> str:
    """Return a photo as a ``data:`` address for ``src`` of ``<img>``, some 2 to 6 kB long.

    Args:
        image: the photo in any mode; transparent parts become white. It is not changed.
        edge: pixels of the longer edge; a smaller photo keeps its size.

    Returns:
        A JPEG file without metadata; equal pixels give equal text.
    """
    from PIL import Image

    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, _BACKGROUND)
        image.paste(layer, mask=layer.getchannel("A"))
    small = image.convert("RGB")
    small.thumbnail((edge, edge), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    small.save(stream, format="jpeg", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


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
