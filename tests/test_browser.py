"""The browser of the tests sees what is wrong with a page, and reaches nothing outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser import Chromium

pytestmark = pytest.mark.browser
GOOD = '<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>t</title><main><h1>Text</h1>{}</main>'


def _write(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "page.html"
    path.write_text(GOOD.format(content), encoding="utf-8")
    return path


def test_a_good_file_has_nothing_to_report(chromium: Chromium, tmp_path: Path) -> None:
    opened = chromium.open(_write(tmp_path, "<p>Words"), "phone")
    assert opened.page.inner_text("p") == "Words"
    assert opened.page.viewport_size == {"width": 390, "height": 844}
    assert (opened.problems, opened.outside_requests(), opened.accessibility_violations()) == ([], [], [])
    assert opened.sideways_scroll() == 0


def test_faults_of_a_file_are_found(chromium: Chromium, tmp_path: Path) -> None:
    faults = (
        '<img src="https://example.com/a.png"><p style="width: 700px; color: #aaa; background: #fff">Pale</p>'
        '<script>throw new Error("wrong")</script>'
    )
    opened = chromium.open(_write(tmp_path, faults), "phone", "dark")
    assert opened.outside_requests() == ["https://example.com/a.png"]
    assert any("ERR_NAME_NOT_RESOLVED" in problem for problem in opened.problems)
    assert any("wrong" in problem for problem in opened.problems)
    assert {line.split(":")[0] for line in opened.accessibility_violations()} == {"image-alt", "color-contrast"}
    assert opened.sideways_scroll() > 300


def test_scripts_can_be_forbidden(chromium: Chromium, tmp_path: Path) -> None:
    path = _write(tmp_path, '<p>Words</p><script>document.querySelector("p").textContent = "changed"</script>')
    assert chromium.open(path, script=False).page.inner_text("p") == "Words"
    assert chromium.open(path).page.inner_text("p") == "changed"
