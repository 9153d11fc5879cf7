"""The contact sheet in headless Chromium, at desktop and phone width."""

from __future__ import annotations

import base64
import io
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

import clipmlu
from browser import VIEWS, Chromium, Scheme, Size
from clipmlu.errors import MissingDependencyError, OptionError, OutputExistsError

ODD = 'photos/<b>"x"&\u202e.png'


@pytest.fixture
def sheet(place: Path) -> Path:
    """A contact sheet of all images, of which one has gone since, one is damaged, and one has a name that is HTML."""
    shutil.copy("photos/7.png", ODD)
    clipmlu.embed_to_file("tiny-cpu", "rows.npy", "photos")
    clipmlu.build_index("rows.npy", bundle="tiny-cpu")
    Path("photos/5.png").unlink()
    Path("photos/6.png").write_bytes(b"no image any more")
    clipmlu.search_index("rows.index", ["a red dog", "photos/0.png"], html="found.html")
    return place / "found.html"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(("size", "scheme"), VIEWS)
def test_the_sheet_shows_the_images_and_says_which_are_gone(
    sheet: Path, chromium: Chromium, size: Size, scheme: Scheme
) -> None:
    opened = chromium.open(sheet, size, scheme)
    opened.picture(f"contact-sheet-{size}-{scheme}")
    assert opened.problems == []
    assert opened.outside_requests() == []
    assert opened.sideways_scroll() == 0
    assert opened.accessibility_violations() == []
    page = opened.page
    assert page.locator(".card").count() == 16
    assert page.locator(".card img").count() == 12
    assert page.locator("b").count() == 0
    gone = page.locator(".card", has_text="photos/5.png").first
    assert "No such file" in gone.inner_text()
    damaged = page.locator(".card", has_text="photos/6.png").first
    assert "6.png" in damaged.locator(".no-picture").inner_text()
    loaded = page.eval_on_selector_all("img", "all => all.every(each => each.complete && each.naturalWidth > 0)")
    assert loaded


def test_pictures_are_in_the_file_and_nothing_is_replaced_unasked(sheet: Path) -> None:
    text = sheet.read_text(encoding="utf-8")
    data = text.partition("data:image/jpeg;base64,")[2].partition('"')[0]
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.format == "JPEG"
    assert "&lt;b&gt;&#34;x&#34;&amp;" in text
    with pytest.raises(OutputExistsError, match=r"found.html' exists"):
        clipmlu.search_index("rows.index", "a red dog", html=sheet)
    clipmlu.search_index("rows.index", "a red dog", html=sheet, overwrite=True, images_folder="/nowhere")
    assert "data:image" not in sheet.read_text(encoding="utf-8")
    with pytest.raises(OptionError, match="overwrite is for a contact sheet"):
        clipmlu.search_index("rows.index", "a red dog", overwrite=True)


@pytest.mark.usefixtures("sheet")
def test_a_missing_package_is_named_before_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r"A contact sheet needs 'jinja2'.*clipmlu\[search\]"):
        clipmlu.search_index("nothing", "a red dog", html="other.html")
