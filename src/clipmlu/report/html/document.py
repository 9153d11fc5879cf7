"""Documents as HTML pages."""

from __future__ import annotations

import itertools
import re

from clipmlu.report.document.blocks import Document, Figure
from clipmlu.report.html.pages import render
from clipmlu.report.html.pictures import inline_svg


def write_html(document: Document) -> str:
    """Return a document as an HTML page.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    numbers, labels = itertools.count(1), itertools.count(1)

    def drawn(figure: Figure) -> str:
        return inline_svg(_numbered(figure.drawing, next(numbers)), figure.description)

    return render(
        "report.html",
        title=document.title,
        emulated=document.emulated,
        generator=document.generator,
        document=document,
        drawn=drawn,
        new_id=lambda: f"t{next(labels)}",
    )


def _numbered(drawing: str, number: int) -> str:
    """Return a drawing whose identifiers are unlike those of the page's other drawings."""
    return re.sub(r'( id="|url\(#|href="#)', rf"\1f{number}-", drawing)
