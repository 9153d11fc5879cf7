"""A killed job that is run again ends as if it had not been killed; ``kill_campaign.py`` does the same with whole commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipmlu.bundle.directory import CompiledBundle
from support import picture

HERE = Path(__file__).parent


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder in memory if there is one: on a disk, waiting for each written file takes most of the time."""
    root = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=root if os.access(root, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.mark.slow  # test_crashes kills at fewer steps
def test_a_job_that_is_killed_at_any_step_ends_as_undisturbed(compiled: CompiledBundle, in_memory: Path) -> None:
    images = in_memory / "images"
    images.mkdir()
    for number in range(11):
        picture(number).save(images / f"{number:02}.png")
    (images / "05.png").write_bytes(b"damaged")
    command = [sys.executable, str(HERE / "killing_job.py"), str(compiled.path), str(images.parent), "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["kills"] >= 90
    assert outcome["wrong"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_commands_that_are_killed_at_random_moments_end_as_undisturbed(tmp_path: Path, engine: str) -> None:
    size = ("--kills", "5", "--images", "200", "--shard-size", "10", "--seed", "1")
    command = [
        sys.executable,
        str(HERE / "kill_campaign.py"),
        "--engine",
        engine,
        *size,
        "--work",
        str(tmp_path / "work"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
