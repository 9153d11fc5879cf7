"""Pages: escaped, complete, without anything from outside, and the same bytes each time."""

from __future__ import annotations

import base64
import html.parser
import io

import jinja2
import pytest
from markupsafe import Markup
from PIL import Image

from clipmlu.errors import MissingDependencyError
from clipmlu.report.html.pages import render
from clipmlu.report.html.pictures import inline_svg, thumbnail_address

VALUES = {"title": "A page", "emulated": False, "generator": "clipmlu 1"}
ATTACK = "<script>alert(1)</script>\"'&\x1b[31m\n\udcff"


class _Elements(html.parser.HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_texts_are_escaped_and_control_characters_are_visible() -> None:
    page = render("base.html", **{**VALUES, "title": ATTACK})
    assert "script" not in {tag for tag, _attributes in _Elements(page).found}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;\\x1b[31m \\xff" in page
    page.encode()


def test_a_missing_value_and_none_are_errors() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'generator' is undefined"):
        render("base.html", title="A page", emulated=False)
    with pytest.raises(TypeError, match="prints None"):
        render("base.html", **{**VALUES, "title": None})


def test_nothing_comes_from_outside_and_nothing_runs() -> None:
    elements = _Elements(render("base.html", **VALUES)).found
    policies = [each["content"] for _tag, each in elements if each.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert (policies[0] or "").startswith("default-src 'none'; ")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _attributes in elements}
    assert not [each for _tag, each in elements if {"src", "href", "srcset"} & each.keys()]


def test_emulated_results_are_marked_above_the_page_and_in_its_title() -> None:
    page = render("base.html", **{**VALUES, "emulated": True})
    assert "<title>A page (emulated)</title>" in page
    assert '<aside class="emulated-banner"' in page
    assert "emulated" not in render("base.html", **VALUES).partition("</style>")[2]


def test_equal_values_give_equal_pages() -> None:
    assert render("base.html", **VALUES) == render("base.html", **VALUES)


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(
        MissingDependencyError, match=r"^A contact sheet needs 'jinja2'.*pip install 'clipmlu\[search\]'"
    ):
        render("base.html", purpose="A contact sheet", extra="search", **VALUES)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "I;16"])
def test_a_photo_becomes_a_small_jpeg_in_an_address(mode: str) -> None:
    image = Image.new(mode, (600, 300))
    address = thumbnail_address(image)
    head, _, data = address.partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert (small.format, small.size, small.mode) == ("JPEG", (128, 64), "RGB")
    assert image.size == (600, 300)


def test_transparent_parts_of_a_photo_become_white() -> None:
    address = thumbnail_address(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as small:
        assert small.getpixel((4, 4)) == (255, 255, 255)


def test_a_drawing_has_a_name_and_stays_markup() -> None:
    found = inline_svg(
        '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg width="1"><text>a</text></svg>\n', 'two "classes" <b>'
    )
    assert isinstance(found, Markup)
    assert found == '<svg role="img" aria-label="two &#34;classes&#34; &lt;b&gt;" width="1"><text>a</text></svg>'
