"""What the commands that read images say about odd ones, and that none of them is lost without a word."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three pictures; of the second a fourth is broken, and a fifth a link that leads nowhere."""
    for label in ("cat", "red_circle"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(3):
            support.picture(number + len(label)).save(tmp_path / "data" / label / f"{number}.png")
    (tmp_path / "data" / "red_circle" / "broken.jpg").write_bytes(b"\xff\xd8\xff garbage")
    (tmp_path / "data" / "red_circle" / "gone.png").symlink_to("nowhere")
    (tmp_path / "data" / "red_circle" / "notes.txt").write_text("x")
    return tmp_path / "data"


def commands(compiled: CompiledBundle, exported: ExportedBundle, folder: Path, output: Path) -> dict[str, list[object]]:
    """Every command that reads images, over a folder."""
    dataset = f"imagefolder:{folder}"
    sweep = ["--target", "cpu", "--precision", "force_float32", "--batch-size", "1", "--duration", "1"]
    return {
        "classify": ["classify", compiled.path, folder, "--labels", "a,b"],
        "embed": ["embed", compiled.path, folder, "-o", output / "e.npy"],
        "eval": ["eval", compiled.path, "--dataset", dataset],
        "compare": ["compare", compiled.path, exported.path, "--dataset", dataset, "--tower", "image"],
        "calibrate": ["calibrate", exported.path, "--calib", folder, "-o", output / "set"],
        "bench": ["bench", compiled.path, "--images", folder, "--duration", "1", "--iterations", "1", "--warmup", "0"],
        "sweep": ["sweep", exported.path, "-o", output / "sweep", *sweep, "--repetitions", "1", "--dataset", dataset],
    }


NAMES = ["classify", "embed", "eval", "compare", "calibrate", "bench", "sweep"]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_names_what_it_skips_and_counts_what_it_leaves_out(
    run: Run, compiled: CompiledBundle, exported: ExportedBundle, folder: Path, tmp_path: Path, name: str
) -> None:
    code, _, err = run(*commands(compiled, exported, folder, tmp_path / "out")[name])
    assert code == 1, err
    skipped = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 2, err
    assert any("broken.jpg'" in line for line in skipped)
    assert any("gone.png': it is a link to 'nowhere', which does not exist" in line for line in skipped)
    assert err.count("Left out: 1 file(s) of other types (.txt 1).\n") == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_command_says_how_many_images_lose_their_grey_values(
    run: Run, compiled: CompiledBundle, exported: ExportedBundle, folder: Path, tmp_path: Path, name: str
) -> None:
    for path in (folder / "red_circle" / "broken.jpg", folder / "red_circle" / "gone.png"):
        path.unlink()
    for number in range(2):
        Image.fromarray(np.full((9, 9), 60_000 + number, np.uint16)).save(folder / "cat" / f"deep{number}.png")
    code, _, err = run(*commands(compiled, exported, folder, tmp_path / "out")[name])
    assert code == 0, err
    assert err.count("2 image(s) hold grey values outside 0..255") == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_limit_of_pixels(
    run: Run, compiled: CompiledBundle, exported: ExportedBundle, folder: Path, tmp_path: Path, name: str
) -> None:
    command = commands(compiled, exported, folder, tmp_path / "out")[name]
    code, _, err = run(*command, "--max-pixels", support.SIDE**2 - 1)
    assert code == 1
    assert "8x8 is 64 pixels, more than the limit of 63. If the file is trusted, allow more with --max-pixels" in err


def test_sixteen_bits_of_one_file_are_told_of(run: Run, compiled: CompiledBundle, folder: Path) -> None:
    image = io.BytesIO()
    Image.fromarray(np.full((9, 9), 60_000, np.uint16)).save(image, "TIFF")
    (folder / "deep.tif").write_bytes(image.getvalue())
    code, out, err = run("classify", compiled.path, folder / "deep.tif", "--labels", "a,b", "--format", "json")
    assert (code, len(json.loads(out)["results"])) == (0, 1)
    assert err.startswith("1 image(s) hold grey values outside 0..255 (16-bit, 32-bit or floating point), such as '")


def test_odd_tiff_files_add_no_lines_of_their_own(
    compiled: CompiledBundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Pillow warns of odd tags through Python's warnings and its logger, libtiff on the process's stderr."""
    generator = np.random.default_rng(0)
    for number in range(40):
        stream = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (30, 30, 3), np.uint8)).save(
            stream, "TIFF", compression="tiff_deflate"
        )
        content = bytearray(stream.getvalue())
        for position in generator.integers(8, len(content), 30):
            content[position] = generator.integers(256)
        (tmp_path / f"{number}.tif").write_bytes(bytes(content))
    code = main(["classify", str(compiled.path), str(tmp_path / "*.tif"), "--labels", "a,b", "--format", "jsonl"])
    err = capfd.readouterr().err
    assert code == 1
    *lines, last = [line for line in err.splitlines() if not line.startswith("Left out: ")]
    assert last == f"{len(lines)} image(s) could not be read."
    assert all(line.startswith("skipped: Cannot ") for line in lines)
