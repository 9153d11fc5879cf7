"""Embeddings on disk: what NumPy and a JSON parser read of them, and what is left when something goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clipmlu.classify.embedding_file import EmbeddingFile
from clipmlu.errors import OutputError

ROWS = np.random.default_rng(0).standard_normal((7, 5), dtype=np.float32)
IDS = [f'photo "{number}" ü.jpg' for number in range(7)]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_what_was_appended_is_read_back(tmp_path: Path, count: int) -> None:
    with EmbeddingFile(tmp_path / "sub" / "out.npy", 5) as file:
        for start in range(0, count, 3):
            stop = min(start + 3, count)
            file.append(ROWS[start:stop], IDS[start:stop])
        assert file.rows == count
        assert file.publish() == tmp_path / "sub" / "out.npy"
    loaded = np.load(tmp_path / "sub" / "out.npy", allow_pickle=False)
    assert loaded.dtype == np.float32
    assert loaded.shape == (count, 5)
    np.testing.assert_array_equal(loaded, ROWS[:count])
    assert json.loads((tmp_path / "sub" / "out.ids.json").read_text(encoding="utf-8")) == IDS[:count]
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["out.ids.json", "out.npy"]


def test_nothing_is_left_of_what_was_not_published(tmp_path: Path) -> None:
    (tmp_path / "out.npy").write_bytes(b"before")
    with EmbeddingFile(tmp_path / "out.npy", 5) as file:
        file.append(ROWS, IDS)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]
    assert (tmp_path / "out.npy").read_bytes() == b"before"


def test_partial_result_replaces_nothing_whole(tmp_path: Path) -> None:
    (tmp_path / "out.npy").write_bytes(b"before")
    with EmbeddingFile(tmp_path / "out.npy", 5) as file:
        file.append(ROWS[:2], IDS[:2])
        assert file.publish(partial=True) == tmp_path / "out.partial.npy"
    assert (tmp_path / "out.npy").read_bytes() == b"before"
    np.testing.assert_array_equal(np.load(tmp_path / "out.partial.npy"), ROWS[:2])
    assert json.loads((tmp_path / "out.partial.ids.json").read_text(encoding="utf-8")) == IDS[:2]


def test_path_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"Cannot write '.*out\.npy'"):
        EmbeddingFile(tmp_path / "file" / "out.npy", 5)
    (tmp_path / "out.ids.json").mkdir()
    with EmbeddingFile(tmp_path / "out.npy", 5) as file, pytest.raises(OutputError, match="is a directory"):
        file.publish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out.ids.json"]


def test_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with EmbeddingFile(tmp_path / "out.npy", 512) as file:
        file._array.close()
        file._array = full.open("wb")
        with pytest.raises(OutputError, match="No space left on the disk"):
            file.append(np.zeros((100, 512), np.float32), ["x"] * 100)
    assert list(tmp_path.iterdir()) == []
