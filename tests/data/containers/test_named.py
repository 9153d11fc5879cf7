"""Finding one image by its name in the results of a job: in folders, archives and tables."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import support
from clipmlu.data.containers import named
from clipmlu.data.containers.named import find_by_name
from clipmlu.errors import InputError


def png(number: int) -> bytes:
    stream = io.BytesIO()
    support.picture(number).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the images 0 to 5 as a file, in archives and in tables."""
    (tmp_path / "0.png").write_bytes(png(0))
    with tarfile.open(tmp_path / "a#1.tar", "w") as archive:
        for number in (1, 2):
            header = tarfile.TarInfo(f"./dir::x/{number}.png")
            header.size = len(png(number))
            archive.addfile(header, io.BytesIO(png(number)))
    (tmp_path / "b.tgz").write_bytes(gzip.compress((tmp_path / "a#1.tar").read_bytes()))
    table = pa.table({"image": [png(number) for number in (3, 4, 5)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    with pa.OSFile(os.fspath(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("0.png", 0),
        ("a#1.tar::./dir::x/1.png", 1),
        ("a#1.tar::./dir::x/2.png", 2),
        ("b.tgz::./dir::x/2.png", 2),
        ("t.parquet#0", 3),
        ("t.parquet#2", 5),
        ("t.arrow#1", 4),
        ("t.arrow#2", 5),
    ],
)
def test_each_image_is_found(place: Path, name: str, number: int) -> None:
    found = find_by_name(f"{place}/{name}")
    content = found.read_bytes() if isinstance(found, Path) else found
    assert content == png(number)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("9.png", "No such file: it was moved or removed"),
        ("c.tar::1.png", "No such file"),
        ("0.png::1.png", "No such file"),
        ("a#1.tar#0", "No such file"),
        ("a#1.tar::9.png", "is not among the images of its file"),
        ("t.parquet#3", "is not among the images of its file"),
        ("t.parquet#-1", "is not among the images of its file"),
        ("t.parquet#01", "is not among the images of its file"),
    ],
)
def test_other_names_are_errors(place: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_by_name(f"{place}/{name}")


def test_the_search_is_bounded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "_MOST_IMAGES", 1)
    assert find_by_name(f"{place}/a#1.tar::./dir::x/1.png") == png(1)
    with pytest.raises(InputError, match="that can be searched"):
        find_by_name(f"{place}/a#1.tar::./dir::x/2.png")
    monkeypatch.setattr(named, "_MOST_BYTES", 100)
    with pytest.raises(InputError, match="that can be searched"):
        find_by_name(f"{place}/b.tgz::./dir::x/1.png")
    assert find_by_name(f"{place}/t.parquet#2") == png(5)
    with pytest.raises(InputError, match="of its row group lie before it"):
        find_by_name(f"{place}/t.parquet#1")


@pytest.mark.parametrize("suffix", ["tar", "tgz"])
def test_what_is_no_image_is_bounded_too(place: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in (("1.png", png(1)), ("a.txt", bytes(1 << 16)), ("b.txt", b""), ("2.png", png(2))):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    content = stream.getvalue()
    (place / f"m.{suffix}").write_bytes(content if suffix == "tar" else gzip.compress(content))
    assert find_by_name(f"{place}/m.{suffix}::2.png") == png(2)
    monkeypatch.setattr(named, "_MOST_BYTES" if suffix == "tgz" else "_MOST_MEMBERS", 1 << 16 if suffix == "tgz" else 3)
    assert find_by_name(f"{place}/m.{suffix}::1.png") == png(1)
    with pytest.raises(InputError, match="that can be searched"):
        find_by_name(f"{place}/m.{suffix}::2.png")
