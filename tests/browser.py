"""Pages in headless Chromium: opened at desktop or phone width, pictured, and checked for accessibility; nothing outside is reached."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

Size = Literal["desktop", "phone"]
Scheme = Literal["light", "dark"]

VIEWPORTS = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
VIEWS: tuple[tuple[Size, Scheme], ...] = (
    ("desktop", "light"),
    ("desktop", "dark"),
    ("phone", "light"),
    ("phone", "dark"),
)
"""Each size with each colour scheme, for a test that is repeated for all."""
_ONLY_THIS_MACHINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
_PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first has no windows at all, and takes half as long for a page."""
_INSIDE = ("file:", "data:", "blob:", "http://127.0.0.1:")


@dataclasses.dataclass(frozen=True)
class OpenPage:
    """A page in the browser.

    Attributes:
        page: Playwright's ``Page``, to click, type and read.
        problems: messages of the browser: errors on the console, uncaught exceptions, violations of the Content-Security-Policy.
        requests: addresses that the page asked for.
    """

    page: Any
    problems: list[str]
    requests: list[str]

    def outside_requests(self) -> list[str]:
        """Return the addresses outside this machine that the page asked for; they were not reached."""
        return [address for address in self.requests if not address.startswith(_INSIDE)]

    def sideways_scroll(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        root = "document.scrollingElement"
        return int(self.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))

    def accessibility_violations(self) -> list[str]:
        """Return what axe-core finds: a line for each element, with the rule and the reason."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [
            f"{rule['id']}: {node['target']}: {' '.join(node['failureSummary'].split())}"
            for rule in found
            for node in rule["nodes"]
        ]

    def picture(self, name: str, whole: bool = True) -> None:
        """Write ``NAME.png`` into the folder of the variable CLIPMLU_TEST_PICTURES, if it is set.

        Args:
            name: the name of the file.
            whole: the whole height of the page, not that of the window.
        """
        folder = os.environ.get("CLIPMLU_TEST_PICTURES")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            if whole:
                self.page.evaluate(
                    "scrollTo({top: 0, behavior: 'instant'})"
                )  # what sticks to the window is where the page has it
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=whole)


class Chromium:
    """One running browser; every page has a profile of its own."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser

    def open(
        self,
        address: str | Path,
        size: Size = "desktop",
        scheme: Scheme = "light",
        *,
        script: bool = True,
        **context: Any,
    ) -> OpenPage:
        """Open a page.

        Args:
            address: the address, or the path of an HTML file.
            size: the window.
            scheme: what the page's ``prefers-color-scheme`` matches.
            script: False forbids scripts, and then the accessibility check, too.
            context: further arguments of Playwright's ``new_context``, such as ``locale="zh-CN"``.
        """
        made = self._browser.new_context(
            viewport=VIEWPORTS[size],
            color_scheme=scheme,
            java_script_enabled=script,
            has_touch=size == "phone",
            is_mobile=size == "phone",
            **{"locale": "en-US", "reduced_motion": "reduce", **context},
        )
        made.set_default_timeout(60_000)  # as support.wait_until
        opened = OpenPage(made.new_page(), [], [])
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("pageerror", lambda error: opened.problems.append(str(error)))
        opened.page.on("console", lambda line: opened.problems.append(line.text) if line.type == "error" else None)
        opened.page.goto(address.resolve().as_uri() if isinstance(address, Path) else address)
        return opened

    def close_pages(self) -> None:
        """Close all pages and their profiles."""
        for context in self._browser.contexts:
            context.close()


@contextlib.contextmanager
def start() -> Iterator[Chromium]:
    """Start Chromium; skip where it or Playwright is missing.

    While it runs this thread has a running event loop, so ``asyncio.run`` fails: tests that use it belong in other modules.
    """
    reason = "needs the packages playwright and axe-playwright-python"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    pytest.importorskip("axe_playwright_python", reason=reason)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_executable(), args=[_ONLY_THIS_MACHINE, "--disable-gpu"])
        try:
            yield Chromium(browser)
        finally:
            browser.close()


def _executable() -> str:
    """Return the path of Chromium, or skip; Playwright's own browsers are downloads that are not needed."""
    for name in (os.environ.get("CLIPMLU_TEST_CHROMIUM", ""), *_PROGRAMS):
        if name and (found := shutil.which(name)):
            return found
    pytest.skip(
        "needs Chromium (Debian: apt-get install chromium-headless-shell), or its path in CLIPMLU_TEST_CHROMIUM"
    )
