"""Paths of any bytes: every command takes them or says in one line that it cannot, and none of them steers a terminal."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import support
from cli.conftest import Run
from clipmlu.file_names import name_from_path

pytestmark = pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")

ODD = ["esc\x1b[31m\n\ttab [b] (c) #?%20: x\\y", "-lead", "[red]x[/red]:smile:", "n" * 250]
NO_TEXT = "a\udcffb"


def check(streams: tuple[str, ...]) -> None:
    for text in streams:
        text.encode()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), text


@pytest.mark.parametrize("odd", ODD)
def test_bundle_of_any_name_goes_through_all_commands(odd: str, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / odd
    exported = support.write_exported(folder / "exported").path
    compiled, found = folder / "compiled", folder / "photos"
    found.mkdir()
    support.picture(0).save(found / "one.png")
    images = ("--dataset", "demo", "--samples", 2)
    for arguments in (
        ("info", exported),
        ("compile", exported, "--target", "cpu", "--batch-size", 2, "-o", compiled),
        ("info", compiled, "--json"),
        ("classify", compiled, found, "--labels", "cat,dog"),
        ("embed", compiled, found, "-o", folder / "e.npy"),
        ("eval", compiled, *images),
        ("compare", compiled, exported, *images),
        ("calibrate", exported, "--calib", "demo", "--calib-samples", 2, "-o", folder / "set"),
        ("worker", "--write", folder / "worker.py"),
    ):
        code, out, err = run(*arguments)
        assert code == 0, err
        check((out, err))
        assert "\n\t" not in out + err, "a name is one line"


def test_bundle_whose_path_is_no_text_is_one_line(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / NO_TEXT
    exported = support.write_exported(folder / "exported").path
    sweep = ("--precision", "force_float32", "--batch-size", 1, "--duration", 5, "--dataset", "demo", "--samples", 2)
    for arguments, expected in (
        (("info", exported), 0),
        (("info", exported, "--json"), 0),
        (("compile", exported, "--target", "cpu", "-o", tmp_path / "compiled"), 1),
        (("calibrate", exported, "--calib", "demo", "--calib-samples", 2, "-o", folder / "set"), 0),
        (("sweep", exported, "--target", "cpu", *sweep, "-o", folder / "sweep"), 1),
        (("worker", "--write", folder / "worker.py"), 0),
    ):
        code, out, err = run(*arguments)
        assert code == expected, err
        check((out, err))
        if expected:
            assert "is no UTF-8, which the runtimes cannot open" in err
    assert name_from_path(folder) in err or name_from_path(folder) in out
