"""A report in the browser: readable on a desktop, a phone and paper, in light and dark, without network, script or errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

import report_samples as samples
from browser import VIEWS, Chromium, Scheme, Size
from clipmlu import write_report
from clipmlu.files.publish import encode_json
from clipmlu.measure.accuracy.report import ConfidenceBin

pytest.importorskip("jinja2", reason="needs the report extra")
pytest.importorskip("matplotlib", reason="needs the report extra")
pytestmark = pytest.mark.browser
KINDS = (
    samples.accuracy,
    samples.speed,
    samples.sweep,
    samples.tool,
    samples.comparison,
    samples.search,
    samples.retrieval,
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one report of each kind, with a very long name and figures of all kinds."""
    folder = tmp_path_factory.mktemp("report")
    for number, make in enumerate(KINDS):
        (folder / f"{number}.json").write_bytes(encode_json(_with_figures(make())))
    write_report(folder, folder / "page.html", title="A title that is " + "very" * 60 + " long")
    return folder / "page.html"


def _with_figures(report: Any) -> Any:
    if type(report).__name__ == "AccuracyReport":
        bins = tuple(
            ConfidenceBin(
                low=n / 15, high=(n + 1) / 15, images=n, correct=n // 2, mean_confidence=(n + 0.5) / 15 if n else None
            )
            for n in range(15)
        )
        return msgspec.structs.replace(report, confidence_bins=bins)
    return report


_QUICK = ("phone", "dark")


@pytest.mark.parametrize(
    ("size", "scheme"),
    [pytest.param(*view, marks=() if view == _QUICK else pytest.mark.slow, id="-".join(view)) for view in VIEWS],
)
def test_the_page_is_accessible_and_silent_in_every_view(
    chromium: Chromium, page: Path, size: Size, scheme: Scheme
) -> None:
    opened = chromium.open(page, size, scheme)
    opened.picture(f"report-{size}-{scheme}")
    for folded in opened.page.query_selector_all("details"):
        folded.evaluate("each => each.open = true")
    assert opened.accessibility_violations() == []
    assert (opened.problems, opened.outside_requests()) == ([], [])
    assert [address for address in opened.requests if not address.startswith("data:")] == [page.resolve().as_uri()]
    assert opened.sideways_scroll() == 0
    assert opened.page.evaluate("getComputedStyle(document.querySelector('.emulated-banner')).position") == "sticky"


@pytest.mark.slow
def test_figures_follow_the_colours_of_the_page(chromium: Chromium, page: Path) -> None:
    colours = []
    for scheme in ("light", "dark"):
        opened = chromium.open(page, "desktop", scheme)  # type: ignore[arg-type]
        colours.append(opened.page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill"))
    assert colours == ["rgb(27, 31, 36)", "rgb(230, 233, 236)"]


@pytest.mark.slow
def test_everything_is_on_paper(chromium: Chromium, page: Path, tmp_path: Path) -> None:
    opened = chromium.open(page, "desktop", "dark", script=False)
    opened.page.emulate_media(media="print")
    opened.page.set_viewport_size({"width": 718, "height": 1000})  # A4 without the margins
    opened.picture("report-print")
    assert opened.page.inner_text("figure details td") != "", "folded numbers are shown"
    opened.page.pdf(path=str(tmp_path / "page.pdf"), format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")
    assert opened.page.locator("figure details table").first.is_visible()
