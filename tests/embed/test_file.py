"""Embeddings on disk: what NumPy and a JSON parser read of them, and what is left when something goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipmlu.embed.file import EmbeddingFile
from clipmlu.errors import OptionError, OutputError, OutputExistsError

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
    with EmbeddingFile(tmp_path / "out.npy", 5, overwrite=True) as file:
        file.append(ROWS, IDS)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]
    assert (tmp_path / "out.npy").read_bytes() == b"before"


def test_partial_result_replaces_nothing_whole(tmp_path: Path) -> None:
    (tmp_path / "out.npy").write_bytes(b"before")
    with EmbeddingFile(tmp_path / "out.npy", 5, overwrite=True) as file:
        file.append(ROWS[:2], IDS[:2])
        assert file.publish(partial=True) == tmp_path / "out.partial.npy"
    assert (tmp_path / "out.npy").read_bytes() == b"before"
    np.testing.assert_array_equal(np.load(tmp_path / "out.partial.npy"), ROWS[:2])
    assert json.loads((tmp_path / "out.partial.ids.json").read_text(encoding="utf-8")) == IDS[:2]


def test_partial_result_replaces_no_earlier_one_unasked(tmp_path: Path) -> None:
    for rows, name in ((3, "out.partial.npy"), (1, "out.partial-2.npy"), (2, "out.partial-3.npy")):
        with EmbeddingFile(tmp_path / "out.npy", 5) as file:
            file.append(ROWS[:rows], IDS[:rows])
            assert file.publish(partial=True) == tmp_path / name
        np.testing.assert_array_equal(np.load(tmp_path / name), ROWS[:rows])
    np.testing.assert_array_equal(np.load(tmp_path / "out.partial.npy"), ROWS[:3])
    with EmbeddingFile(tmp_path / "out.npy", 5, overwrite=True) as file:
        file.append(ROWS[:1], IDS[:1])
        assert file.publish(partial=True) == tmp_path / "out.partial.npy"
    np.testing.assert_array_equal(np.load(tmp_path / "out.partial.npy"), ROWS[:1])
    assert json.loads((tmp_path / "out.partial.ids.json").read_text(encoding="utf-8")) == IDS[:1]


def test_path_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"Cannot write '.*out\.npy'"):
        EmbeddingFile(tmp_path / "file" / "out.npy", 5)
    (tmp_path / "out.ids.json").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        EmbeddingFile(tmp_path / "out.npy", 5, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out.ids.json"]


@pytest.mark.parametrize("name", ["feats.part1", "emb.parquet", "emb"])
def test_name_of_another_format_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "emb.npy").write_bytes(b"before")
    with pytest.raises(OptionError, match=rf"output is '.*{name}'; expected a name that ends in \.npy"):
        EmbeddingFile(tmp_path / name, 5, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["emb.npy"]


@pytest.mark.parametrize("taken", ["out.npy", "out.ids.json"])
def test_what_is_there_is_kept_unless_overwriting_is_asked_for(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_bytes(b"before")
    with pytest.raises(OutputExistsError, match=f"{taken}' exists"):
        EmbeddingFile(tmp_path / "out.npy", 5)
    with EmbeddingFile(tmp_path / "out.npy", 5, overwrite=True) as file:
        file.append(ROWS, IDS)
        file.publish()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), ROWS)
    assert json.loads((tmp_path / "out.ids.json").read_text(encoding="utf-8")) == IDS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ids.json", "out.npy"]


def test_name_that_was_taken_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with EmbeddingFile(tmp_path / "out.npy", 5) as file:
        file.append(ROWS, IDS)
        (tmp_path / "out.ids.json").write_bytes(b"somebody else's")
        with pytest.raises(OutputExistsError, match=r"out\.ids\.json' exists"):
            file.publish()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.ids.json", b"somebody else's")]


def test_disk_that_fills_up_leaves_the_finished_rows_whole(tmp_path: Path) -> None:
    """The limit on the size of files stands in for the disk; it is reached in the middle of the second append."""
    code = (
        "import resource, sys; from pathlib import Path; import numpy as np\n"
        "from clipmlu.embed.file import EmbeddingFile; from clipmlu.errors import OptionError, OutputError, OutputExistsError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "rows = np.arange(1024, dtype=np.float32).reshape(2, 512)\n"
        "with EmbeddingFile(Path(sys.argv[1]), 512) as file:\n"
        "    file.append(rows, ['a', 'b'])\n"
        "    try:\n"
        "        file.append(rows, ['c', 'd'])\n"
        "    except OutputError as error:\n"
        "        print(error)\n"
        "    file.publish(partial=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out.npy")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "larger than the file size limit" in result.stdout
    expected = np.arange(1024, dtype=np.float32).reshape(2, 512)
    np.testing.assert_array_equal(np.load(tmp_path / "out.partial.npy"), expected)
    assert json.loads((tmp_path / "out.partial.ids.json").read_text()) == ["a", "b"]
