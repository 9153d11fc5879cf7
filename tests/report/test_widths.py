"""Every report on terminals of 40, 60, 80 and 120 columns: all its numbers, marks and paths can be read unbroken."""

from __future__ import annotations

from typing import Any

import click
import pytest

from clipmlu.bundle.directory import CompiledBundle
from clipmlu.classify.results import Prediction
from clipmlu.cli import main
from clipmlu.model import load
from clipmlu.report.accuracy import show_accuracy
from clipmlu.report.bundle import show_bundle
from clipmlu.report.comparison import show_comparison
from clipmlu.report.job import show_state
from clipmlu.report.predictions import FORMATS
from clipmlu.report.speed import show_speed, show_tool
from clipmlu.report.sweep import show_sweep
from report_samples import LONG_CLASS, PATH, accuracy, comparison, job, speed, sweep, tool
from screen import WIDTHS, missing, on_terminal

ACCURACY = [
    *("1,000 classes", "49991", "0.6341", "0.6299", "0.6383", "0.8876", "0.8848", "0.8903", "0.6340", "0.0512"),
    *("1234.6 images/s (emulated)", "12345", "0.0123", "7", "0.1429", "98765", "0.6543", "+0.0202", "0.015"),
    "qint8_mixed_float16 (emulated)",
]


SPEED = [
    *("p90 10.333 ms", "54322.0 samples/s", "54322.0", "10.111", "10.222", "10.333", "10.444", "10.555", "10.666"),
    *("80.111", "80.666", "20000.1", "20000.7", "123456 x 64", "12.346 s", "98.765 s", "1.235 s"),
    *("3072 MiB", "5120 MiB (emulated)", "batch 256", "2 in flight", "128 CPUs", "31.5", "64 cores", "2.10GHz"),
    *(
        "1024.8 queries/s",
        "p99 13.875 ms",
        "12.5 ms",
        "99999 queries",
        "12.346",
        "1012.346",
        "17%",
        "876543.2",
        "76.543",
    ),
    *("single-stream (emulated)", "server (emulated)", "offline (emulated)", "post process (emulated)"),
    *("2345.7 images/s", "65,536 images (emulated)", "3456.7 images/s", "92 %", "6.52 ms", "13.58 ms", "16 workers"),
]


SWEEP = [
    *("qint16_mixed_float32 (emulated)", "qint8_mixed_float16 (emulated)", "1024", "12345.7", "12111.2", "12999.9"),
    *("1234.568", "0.6123", "1234.00/5678.00", "10,000 images", "1000 ms", "87.5 %", "95 %", "128 CPUs"),
]


TOOL = [
    *("1.125", "987.625", "12.375", "12.25", "13.5", "14.75", "15.875", "320.5", "1282.0 images/s", "320.51 batches/s"),
    *("batch 4",),
]


COMPARISON = [
    *("0.98765", "23.5", "12", "-123..568", "-98.7..65.4", "3.5 %", "7", "0.998765", "0.912345", "31.3 dB", "512 rows"),
    *("144", "34.6 %", "0.991234", "+0.004321", "0.9765", "0.6432", "+0.0099", "0.012", "0.9688", "0.6133", "0.6211"),
    *("10 right", "6 wrong", "11 to", "p = 0.455", "1.230%", "0.987654", "qint8_mixed_float16 (emulated)", "13 left"),
    *(f"{PATH}/1.jpg", f"{PATH}:"),
]


JOB = [
    *("1152 float16", "1,000,000 classes", "1,234 of 4,567 done", "987,654,321", "1,234,567,890 done", "80.0 %"),
    *("12,345.7 MB", PATH, "qint8_mixed_float16 (emulated)"),
]


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize(
    ("show", "texts"),
    [
        (lambda: show_accuracy(accuracy(), per_class=False), ACCURACY),
        (lambda: show_speed(speed()), SPEED),
        (lambda: show_sweep(sweep()), SWEEP),
        (lambda: show_tool(tool()), TOOL),
        (lambda: show_comparison(comparison(), show_all=True), COMPARISON),
        (lambda: show_state(job(), as_json=False), JOB),
    ],
    ids=["eval", "bench", "sweep", "mm_run", "compare", "job"],
)
def test_all_numbers_marks_and_paths_are_unbroken(show: Any, texts: list[str], columns: int) -> None:
    lines = on_terminal(columns, show)
    assert not missing(texts, lines), "\n".join(lines)
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("columns", WIDTHS)
def test_facts_of_a_bundle_are_unbroken(compiled: CompiledBundle, columns: int) -> None:
    lines = on_terminal(columns, lambda: show_bundle(compiled, as_json=False, verbose=True))
    shapes = ["float32 (batch, 3, 8, 8)", "int64 (batch, 32)", "float32 (batch, 12)"]
    texts = [f"{compiled.size_bytes / 1e3:.1f} kB", "8 x 8 pixels", "32 tokens", "20.0000"]
    assert not missing([*texts, *(shapes if columns > 40 else ())], lines)
    digest = compiled.digest
    assert columns < 70 or any(line.endswith(digest) for line in lines)
    assert digest in "".join(line.strip() for line in lines)


@pytest.mark.parametrize("columns", WIDTHS)
def test_predictions_show_the_path_and_every_score_unbroken(compiled: CompiledBundle, columns: int) -> None:
    names = [LONG_CLASS, "dog 🐕", "ant"]
    with load(compiled.path) as model:
        table = FORMATS["table"](model.classifier(names), 3)
        found = Prediction(f"{PATH}/1.jpg", tuple(names), (0, 1, 2), (0.98765, 0.01, 0.00235))
        lines = on_terminal(columns, lambda: click.echo(table.row(found), nl=False))
    assert not missing([f"{PATH}/1.jpg", "98.8%", "1.0%", "0.2%", "dog 🐕", "ant"], lines)
    assert LONG_CLASS.replace(" ", "") in "".join(lines).replace(" ", "")


@pytest.mark.parametrize("columns", WIDTHS)
def test_commands_that_list_print_through_the_same_tables(columns: int) -> None:
    lines = on_terminal(columns, lambda: main(["datasets"]))
    assert not missing(["cifar100", "32 x 32 photos", "imagefolder:PATH"], lines)
