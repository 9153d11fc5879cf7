"""``clipmlu sweep`` from its options to its table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from clipmlu.bundle.directory import ExportedBundle

Run = Callable[..., tuple[int, str, str]]


def test_command_from_end_to_end_on_the_emulated_card(run: Run, exported: ExportedBundle, tmp_path: Path) -> None:
    """Nothing replaced: real runs of the tiny model, in both ways to give several values."""
    output = tmp_path / "out"
    arguments = ("sweep", exported.path, "-o", output, "--target", "emulated-mlu", "--text-target", "cpu")
    chosen = ("--precision", "force_float32,force_float16", "--batch-size", 1, "--batch-size", 4)
    quick = ("--repetitions", 1, "--duration", 5, "--dataset", "demo", "--samples", 12)
    code, out, err = run(*arguments, *chosen, *quick)
    assert code == 0, err
    rows = [line for line in out.splitlines() if line.startswith("force_")]
    assert len(rows) == 4
    assert all("(emulated)" in line for line in rows)
    assert "says nothing about any card" in out
    code, out, err = run(*arguments, *chosen, *quick, "--json")
    assert code == 0, err
    assert "reusing 4 repetition(s)" in err
    report = json.loads(out)
    assert report == json.loads((output / "sweep.json").read_text())
    assert all(row["emulated"] and row["images_per_second"] > 0 < row["latency_ms"] for row in report["rows"])
    assert any(row["on_front"] for row in report["rows"])
    assert "emulated" in (output / "sweep.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int9"], "precision is 'int9'; expected one of fp32, fp16, bf16, int8,"),
        (["--precision", "force_float32", "--batch-size", "x"], "batch size is 'x'"),
        (["--precision", "force_float32", "--samples", "5"], "give a --dataset too"),
        (["--precision", "force_float32", "--calib", "demo"], "none of the precisions quantises"),
        ([], "Missing option '--precision'"),
    ],
)
def test_wrong_usage_is_told_at_once(
    run: Run, exported: ExportedBundle, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, _, err = run("sweep", exported.path, "-o", tmp_path / "out", *arguments)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()
