"""An update that is killed at any step, or finds no room, leaves an index that can be searched, and the next one completes it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import clipmlu
from clipmlu.errors import OutputError

HERE = Path(__file__).parent


@pytest.mark.parametrize("distance", [47, pytest.param(1, marks=pytest.mark.slow)])
def test_an_update_that_is_killed_is_completed_by_the_next(tmp_path: Path, distance: int) -> None:
    command = [sys.executable, str(HERE / "killing_index.py"), str(tmp_path), str(distance)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["kills"] == -(-outcome["steps"] // distance)
    assert outcome["wrong"] == {}


def test_without_room_the_index_stays_and_nothing_is_left(tmp_path: Path) -> None:
    """A limit of the size of files stands for a full disk: the system refuses the write in the same place."""
    rows = np.random.default_rng(0).standard_normal((400, 32)).astype(np.float32)
    np.save(tmp_path / "first.npy", rows[:50])
    np.save(tmp_path / "second.npy", rows)
    clipmlu.build_index(tmp_path / "first.npy", tmp_path / "all")
    before = {path: path.read_bytes() for path in (tmp_path / "all").rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="larger than the file size limit; nothing was written"):
            clipmlu.build_index(tmp_path / "second.npy", tmp_path / "all")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in (tmp_path / "all").rglob("*") if path.is_file()} == before
    assert clipmlu.build_index(tmp_path / "second.npy", tmp_path / "all").rows == 450
