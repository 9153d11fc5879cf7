"""What ``doctor`` finds, with the machine arranged."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmlu import diagnostics
from clipmlu.cli import main
from clipmlu.diagnostics import Finding, examine


def _findings() -> dict[str, Finding]:
    return {finding.check: finding for finding in examine()}


def test_absent_card_and_extra_are_no_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(diagnostics, "_DEVICES", tmp_path)
    monkeypatch.setattr(diagnostics, "_EXTRAS", {"export": ("no_such_module",)})
    found = _findings()
    assert found["MLU card"].status == "optional"
    assert found["extra export"] == Finding(
        check="extra export",
        status="optional",
        found="absent: no_such_module",
        remedy="needed by 'clipmlu export': pip install 'clipmlu[export]'",
    )
    assert main(["doctor"]) == 0


def test_card_is_found_by_its_device_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cambricon_dev0").touch()
    (tmp_path / "cambricon_ctl").touch()
    monkeypatch.setattr(diagnostics, "_DEVICES", tmp_path)
    assert _findings()["MLU card"].found == "cambricon_dev0"


def test_cache_that_cannot_be_written_is_a_problem_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path / "file" / "cache"))
    finding = _findings()["cache"]
    assert finding.status == "problem"
    assert "CLIPMLU_CACHE_DIR" in finding.remedy
    assert main(["doctor"]) == 1


def test_absent_runtime_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipmlu.backends.onnxruntime.util.find_spec", lambda _name: None)
    assert _findings()["target cpu"].status == "problem"


def test_remedy_is_shown_with_its_brackets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(diagnostics, "_EXTRAS", {"export": ("no_such_module",)})
    main(["doctor"])
    assert "'clipmlu[export]'" in capsys.readouterr().out
