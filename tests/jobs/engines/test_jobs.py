"""One job on every engine: the same files, byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipmlu.bundle.directory import CompiledBundle
from clipmlu.cli import main


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(23):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / "07.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def serial(compiled: CompiledBundle, images: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of the job computed in this process."""
    return _run(compiled, images, tmp_path / "serial")


def _run(bundle: CompiledBundle, images: Path, output: Path, *options: str) -> dict[str, bytes]:
    arguments = ["embed", str(bundle.path), str(images), "-o", str(output), "--shard-size", "4", "--batch-size", "2"]
    assert main([*arguments, *options]) == 1  # one image cannot be read
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_two_processes_write_the_files_of_one(
    compiled: CompiledBundle, images: Path, serial: dict[str, bytes], tmp_path: Path
) -> None:
    assert len([name for name in serial if name.startswith("shards/")]) == 6
    assert b"07.png" in serial["errors.jsonl"]
    assert _run(compiled, images, tmp_path / "processes", "--processes", "2") == serial
