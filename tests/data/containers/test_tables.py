"""Images in Parquet and Arrow files: which columns, which rows, and damage at any byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmlu.data.containers.arrow import arrow_entries, read_arrow_counts
from clipmlu.data.containers.columns import Columns
from clipmlu.data.containers.entry import Entry
from clipmlu.data.containers.parquet import parquet_entries, read_parquet_footer
from clipmlu.data.containers.table import Groups
from clipmlu.data.url.options import UrlOptions
from clipmlu.errors import InputError, OptionError
from image_server import content as answer
from image_server import serving

Loaded = list[tuple[str, object]]


def write_parquet(path: Path, table: pa.Table, group: int = 1 << 20) -> Path:
    pq.write_table(table, path, row_group_size=group)
    return path


def write_stream(path: Path, table: pa.Table, group: int = 1 << 20) -> Path:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=group)
    return path


def write_file(path: Path, table: pa.Table, group: int = 1 << 20) -> Path:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=group)
    return path


Write = Callable[..., Path]
KINDS = pytest.mark.parametrize("write", [write_parquet, write_stream, write_file])


def plan(path: Path, image: str | None = None, id_column: str | None = None) -> tuple[Columns, Groups]:
    read = read_arrow_counts if path.suffix == ".arrow" else read_parquet_footer
    return read(path, image, id_column)


def entries(path: Path, columns: Columns, first: int, count: int, urls: UrlOptions | None = None) -> Iterator[Entry]:
    read = arrow_entries if path.suffix == ".arrow" else parquet_entries
    return read(path, columns, first, count, urls)


def load(found: Iterator[Entry]) -> Loaded:
    loaded: Loaded = []
    for entry in found:
        try:
            loaded.append((entry.name, entry.load()))
        except InputError as error:
            loaded.append((entry.name, error))
    return loaded


def read_all(path: Path, image: str | None = None, id_column: str | None = None) -> Loaded:
    columns, groups = plan(path, image, id_column)
    return load(entries(path, columns, 0, sum(groups.counts)))


def name_for(write: Write, folder: Path) -> Path:
    return folder / ("t.parquet" if write is write_parquet else "t.arrow")


@KINDS
@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())]
)
def test_bytes_come_row_by_row_and_a_null_is_an_error(tmp_path: Path, write: Write, kind: pa.DataType) -> None:
    if write is write_parquet and kind == pa.binary_view():
        pytest.skip("not written by pyarrow")
    values = [b"one", b"", None, b"one"]
    path = write(
        name_for(write, tmp_path), pa.table({"image": pa.array(values, pa.binary()).cast(kind), "x": [1, 2, 3, 4]})
    )
    loaded = read_all(path)
    assert [name for name, _ in loaded] == [f"{path}#{row}" for row in range(4)]
    assert [value for _, value in loaded[:2]] == [b"one", b""]
    assert str(loaded[2][1]) == f"Cannot read '{path}#2': its row holds no image (null)."
    assert loaded[3][1] == b"one"


@KINDS
def test_hugging_faces_images_are_bytes_or_else_paths(tmp_path: Path, write: Write) -> None:
    (tmp_path / "b.png").write_bytes(b"b")
    rows = [{"bytes": b"a", "path": "no.png"}, {"bytes": None, "path": "b.png"}, {"bytes": None, "path": None}, None]
    path = write(name_for(write, tmp_path), pa.table({"label": [0, 1, 2, 3], "image": rows}))
    loaded = read_all(path)
    assert [value for _, value in loaded[:2]] == [b"a", tmp_path / "b.png"]
    assert [isinstance(value, InputError) for _, value in loaded] == [False, False, True, True]


@KINDS
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_paths_are_looked_up_beside_the_file_and_then_in_the_current_folder(
    tmp_path: Path, write: Write, kind: pa.DataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, here = tmp_path / "data", tmp_path / "here"
    for folder, names in ((data, ["both.png", "data.png"]), (here, ["both.png", "here.png"])):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"x")
    monkeypatch.chdir(here)
    absolute = str(data / "data.png")
    paths = pa.array(["both.png", "data.png", "here.png", absolute, "none.png", "s3://a/b.png", ""], pa.string()).cast(
        kind
    )
    loaded = read_all(write(name_for(write, data), pa.table({"caption": ["t"] * 7, "Path": paths})))
    assert [value for _, value in loaded[:4]] == [
        data / "both.png",
        data / "data.png",
        Path("here.png"),
        Path(absolute),
    ]
    messages = [str(value) for _, value in loaded[4:]]
    assert f"there is no file '{data}/none.png' or 'none.png'" in messages[0]
    assert "'s3://a/b.png', which is neither a path nor an http or https URL" in messages[1]
    assert "holds the path ''" in messages[2]


@KINDS
def test_urls_are_fetched_only_when_that_is_allowed(tmp_path: Path, write: Write) -> None:
    with serving() as server:
        server.answers["/a.png"] = answer(b"of the server")
        urls = [server.url("/a.png"), server.url("/b.png?key=k")]
        path = write(name_for(write, tmp_path), pa.table({"caption": ["a", "b"], "url": urls}))
        columns, _ = plan(path)
        (_, refused), _ = load(entries(path, columns, 0, 2))
        assert str(refused).startswith(
            f"Cannot read image '{server.url('/a.png')}': URLs are not fetched unless that is"
        )
        assert server.heads == []
        (name, fetched), (_, missing) = load(entries(path, columns, 0, 2, UrlOptions(allow_private=True)))
        assert (name, fetched) == (f"{path}#0", b"of the server")
        assert str(missing) == f"Cannot read image '{server.url('/b.png')}?key=***': its server answers 404 Not Found."


@KINDS
def test_paths_need_not_be_utf8(tmp_path: Path, write: Write) -> None:
    raw = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(raw, "wb") as file:
        file.write(b"x")
    content = pa.array([b"caf\xe9.png"], pa.binary())
    names = pa.Array.from_buffers(pa.string(), 1, content.buffers())
    ((_, value),) = read_all(write(name_for(write, tmp_path), pa.table({"path": names})))
    assert os.fsencode(value) == raw  # type: ignore[call-overload]


@KINDS
def test_ids_come_from_their_column_and_a_null_falls_back_to_the_row(tmp_path: Path, write: Write) -> None:
    table = pa.table({"image": [b"0", b"1", b"2"], "key": ["a\nb", None, "ü"], "number": [7, 8, 9]})
    path = write(name_for(write, tmp_path), table)
    assert [name for name, _ in read_all(path, None, "key")] == ["a\\x0ab", f"{path}#1", "ü"]
    assert [name for name, _ in read_all(path, None, "number")] == ["7", "8", "9"]


@KINDS
def test_a_field_of_a_struct_and_a_name_with_a_full_stop_can_be_chosen(tmp_path: Path, write: Write) -> None:
    table = pa.table({"sample": [{"a": {"bytes": b"1"}, "key": "k"}], "x.y": [b"2"], "x": [{"y": b"3"}]})
    path = write(name_for(write, tmp_path), table)
    assert read_all(path, "sample.a", "sample.key") == [("k", b"1")]
    assert read_all(path, "x.y") == [(f"{path}#0", b"2")]


@KINDS
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"x": [1], "only": ["a"]}, "only"),
        ({"caption": ["a"], "other": ["b"], "raw": [b"x"]}, "raw"),
        ({"path": ["a"], "IMAGE": [b"x"]}, "IMAGE"),
        ({"url": ["a"], "jpg": [b"x"], "caption": ["c"]}, "jpg"),
        ({"image": [3], "file": ["a"]}, "file"),
    ],
)
def test_the_image_column_is_found_by_name_or_type(
    tmp_path: Path, write: Write, columns: dict[str, list[object]], expected: str
) -> None:
    assert plan(write(name_for(write, tmp_path), pa.table(columns)))[0] == Columns(expected)


@KINDS
@pytest.mark.parametrize(
    ("columns", "image", "id_column", "kind", "message"),
    [
        (
            {"a": ["x"], "b": ["y"]},
            None,
            None,
            InputError,
            r"several columns.*'a' \(string\), 'b' \(string\).*--image-column",
        ),
        ({"a": [1]}, None, None, InputError, "no column of paths or of image bytes"),
        ({"a": ["x"]}, "b", None, InputError, r"no column 'b'; it has 'a' \(string\)"),
        (
            {"a": ["x"], "b": [1]},
            "b",
            None,
            OptionError,
            "column 'b' of '.*' has the type int64; expected paths, bytes",
        ),
        ({"a": ["x"], "b": [1.5]}, "a", "b", OptionError, "column 'b' of '.*' has the type double; expected ids"),
        ({"a": [{"b": b"x"}]}, "a.c", None, InputError, "has no field 'c'"),
        ({"a": [[b"x"]]}, "a", None, OptionError, "list"),
        ({"a": pa.array([], pa.string())}, None, None, InputError, "it holds no rows"),
    ],
)
def test_a_column_that_does_not_fit_is_an_error(
    tmp_path: Path,
    write: Write,
    columns: dict[str, object],
    image: str,
    id_column: str,
    kind: type[Exception],
    message: str,
) -> None:
    path = write(name_for(write, tmp_path), pa.table(columns))
    with pytest.raises(kind, match=message):
        plan(path, image, id_column)


@KINDS
@pytest.mark.parametrize("group", [1, 7, 10, 100])
def test_any_range_of_rows_gives_the_rows_of_the_whole(tmp_path: Path, write: Write, group: int) -> None:
    path = write(name_for(write, tmp_path), pa.table({"image": [str(row).encode() for row in range(30)]}), group)
    columns, groups = plan(path)
    assert sum(groups.counts) == 30
    assert max(groups.counts) == min(group, 30)
    for first in range(0, 30, 4):
        for count in (1, 5, 30 - first):
            expected = [(f"{path}#{row}", str(row).encode()) for row in range(first, min(30, first + count))]
            assert load(entries(path, columns, first, min(count, 30 - first))) == expected


@KINDS
def test_rows_that_the_file_no_longer_has_are_errors(tmp_path: Path, write: Write) -> None:
    path = write(name_for(write, tmp_path), pa.table({"image": [b"x"] * 3}), 2)
    loaded = load(entries(path, Columns("image"), 1, 5))
    assert [name for name, _ in loaded] == [f"{path}#{row}" for row in range(1, 6)]
    assert [isinstance(value, InputError) for _, value in loaded] == [False, False, True, True, True]
    path.unlink()
    assert all("no such file" in str(value).lower() for _, value in load(entries(path, Columns("image"), 0, 2)))


VALUES = [f"image {row} ".encode() * (row + 1) for row in range(40)]


def damaged_copies(content: bytes, step: int) -> Iterator[bytes]:
    for position in range(0, len(content), step):
        yield content[:position]
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(content)
            changed[position] ^= flip
            yield bytes(changed)
        yield content[:position] + bytes(min(64, len(content) - position)) + content[position + 64 :]


@KINDS
@pytest.mark.parametrize("checksums", [False, True])
def test_damage_anywhere_gives_each_row_once_or_one_clear_error(tmp_path: Path, write: Write, checksums: bool) -> None:
    path = name_for(write, tmp_path)
    table = pa.table({"image": VALUES, "key": [f"k{row}" for row in range(len(VALUES))]})
    if write is write_parquet:
        pq.write_table(
            table, path, row_group_size=10, data_page_size=64, write_batch_size=2, write_page_checksum=checksums
        )
    elif not checksums:
        write(path, table, 10)
    else:
        pytest.skip("Arrow files have no checksums")
    whole = path.read_bytes()
    for content in damaged_copies(whole, 211 if write is write_parquet else 313):
        path.write_bytes(content)
        try:
            columns, groups = plan(path)
        except InputError as error:
            message = str(error)
        else:
            message = ""
        assert not message or (str(path) in message and "\n" not in message)
        if message:
            continue
        count = sum(groups.counts)
        loaded = load(entries(path, columns, 0, count))
        assert [name for name, _ in loaded] == [f"{path}#{row}" for row in range(count)]
        assert count == len(VALUES) or groups.error is not None
        if (
            checksums and columns.image == "image"
        ):  # what is not reported is right; else a changed index is another image
            assert all(isinstance(value, InputError) or value == VALUES[row] for row, (_, value) in enumerate(loaded))


def test_damage_in_a_row_group_costs_no_other_group(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": VALUES}), path, row_group_size=10, write_page_checksum=True, use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 20] ^= 0xFF  # its header is at the beginning
    path.write_bytes(content)
    loaded = read_all(path)
    assert [isinstance(value, InputError) for _, value in loaded] == [False] * 10 + [True] * 10 + [False] * 20
    assert "row group 1 is damaged" in str(loaded[10][1])


@KINDS
def test_what_is_no_table_is_one_error(tmp_path: Path, write: Write) -> None:
    path = name_for(write, tmp_path)
    for content in (b"", b"x", b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", os.urandom(5000), b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(InputError, match=str(path)):
            plan(path)
    path.unlink()
    with pytest.raises(InputError, match="there is no such file"):
        plan(path)
    path.mkdir()
    with pytest.raises(InputError, match="it is a directory"):
        plan(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(InputError, match="pipe"):
        plan(path)


def test_a_stream_that_was_cut_between_two_batches_is_known_to_be_cut(tmp_path: Path) -> None:
    path = write_stream(tmp_path / "t.arrow", pa.table({"image": VALUES}), 10)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    _, groups = plan(path)
    assert groups.counts == (10, 10, 10, 10)
    assert "ends without an end mark; the rows after it are lost" in str(groups.error)
    path.write_bytes(whole + whole)
    assert "more data follow its end mark" in str(plan(path)[1].error)
    path.write_bytes(whole)
    assert plan(path)[1].error is None


def test_planning_and_reading_need_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    body = os.urandom(1 << 18)
    table = pa.table({"image": [body] * 256})
    pq.write_table(table, path, use_dictionary=False, write_batch_size=4, row_group_size=256)
    del table
    before, peak = pa.total_allocated_bytes(), 0
    columns, groups = plan(path)
    for entry in entries(path, columns, 0, 256):
        assert entry.load() == body
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert groups.counts == (256,)
    assert peak < 24 << 20  # of 64 MB


def test_declared_numbers_are_not_trusted(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", pa.table({"image": pa.array([None] * 100_000, pa.string())}))
    with pytest.raises(InputError, match="declares 100,000 rows in"):
        plan(path)
