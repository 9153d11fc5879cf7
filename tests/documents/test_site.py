"""The built site: its search finds Chinese and English words, and its anchors and languages are those that the other tests assume."""

from __future__ import annotations

import contextlib
import functools
import http.server
import re
import shutil
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Chromium
from conftest import REPOSITORY
from pages import DOCS, anchors, name_of

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as ``make docs`` builds it, from a copy of what it reads."""
    program = shutil.which("zensical", path=REPOSITORY / ".venv-lint" / "bin") or shutil.which("zensical")
    if program is None:
        pytest.skip("needs zensical, which `make docs` installs into .venv-lint")
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "tools"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for path in (REPOSITORY / "mkdocs.yml", *REPOSITORY.glob("*.md")):
        shutil.copy(path, folder)
    subprocess.run([program, "build", "--strict"], cwd=folder, check=True, capture_output=True)
    return folder / "build" / "site"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Print nothing."""


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The address of a server of the files of a folder."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize(
    ("word", "page"),
    [
        ("校准", "zh/howto/calibrate"),
        ("厂商示例", "zh/migration"),
        ("calibration", "quantisation"),
        ("emulated", "concepts/emulation"),
    ],
)
def test_search_finds_words_of_both_languages(site: Path, chromium: Chromium, word: str, page: str, size: Any) -> None:
    with _served(site) as address:
        opened = chromium.open(f"{address}zh/index.html", size)
        opened.page.locator(".md-search__button:visible, label.md-header__button[for=__search]:visible").first.click()
        opened.page.get_by_role("combobox").fill(word)
        opened.page.get_by_role("option").first.wait_for()
        links = [link.get_attribute("href") for link in opened.page.get_by_role("option").all()]
        found = [urllib.parse.urlparse(link).path.strip("/") for link in links]
        assert f"{page}.html" in found
        assert all(word in (site / name).read_text(encoding="utf-8").lower() for name in found)
        assert (opened.problems, opened.outside_requests()) == ([], [])


def test_anchors_are_those_by_which_links_are_checked(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        built = (site / page.relative_to(DOCS)).with_suffix(".html").read_text(encoding="utf-8")
        found = set(re.findall(r'<h[1-6] id="([^"]+)"', built))
        assert anchors(page) <= found, name_of(page)


def test_pages_say_their_language(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS)
        built = (site / name).with_suffix(".html").read_text(encoding="utf-8")
        assert re.findall(r"<html[^>]* lang=\"?([\w-]+)", built) == ["zh" if name.parts[0] == "zh" else "en"], name


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_chinese_pages_fit_and_their_anchors_work(site: Path, chromium: Chromium, size: Any) -> None:
    for page in (DOCS / "zh").rglob("*.md"):
        path = (site / page.relative_to(DOCS)).with_suffix(".html")
        last = re.findall(r'<h[1-6] id="([^"]+)"', path.read_text(encoding="utf-8"))[-1]
        opened = chromium.open(f"{path.as_uri()}#{urllib.parse.quote(last)}", size)
        assert opened.page.locator(":target").get_attribute("id") == last
        assert opened.page.locator(":target").evaluate("it => it.getBoundingClientRect().top < innerHeight")
        assert opened.sideways_scroll() <= 0, name_of(page)
        chromium.close_pages()
