"""Shards in every format: values by independent readers, equal bytes, and damaged files."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path

import numpy as np
import pytest

from clipmlu.errors import InputError
from clipmlu.jobs.formats import FORMATS, FormatName
from clipmlu.jobs.rows import EmbeddingDtype, RowSchema, ShardRows
from jobs.shard_samples import DISTINCT, FAILED, IDS, assert_same_rows, make_provenance, make_rows, make_schema

NAMES = tuple(FORMATS)


def write(folder: Path, name: FormatName, schema: RowSchema, *rows: ShardRows, emulated: bool = False) -> list[Path]:
    paths = [folder / f"shard{suffix}" for suffix in FORMATS[name].suffixes]
    with FORMATS[name].open(schema, make_provenance(emulated=emulated), paths) as append:
        for each in rows:
            append(each)
    return paths


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> FormatName:
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("embeds", "classifies"), [(True, True), (True, False), (False, True)])
def test_the_reader_returns_what_was_written(
    tmp_path: Path, name: FormatName, embeds: bool, classifies: bool, dtype: EmbeddingDtype
) -> None:
    schema = make_schema(embeds=embeds, classifies=classifies, dtype=dtype)
    rows = make_rows(schema)
    for emulated in (False, True):
        assert_same_rows(FORMATS[name].read(schema, write(tmp_path, name, schema, rows, emulated=emulated)), rows)


def test_appended_rows_follow_one_another_and_equal_rows_give_equal_bytes(tmp_path: Path, name: FormatName) -> None:
    schema = make_schema()
    first, second = make_rows(schema), make_rows(schema, ("x.png",), seed=1)
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        paths = write(folder, name, schema, first, second)
        contents.append([path.read_bytes() for path in paths])
        found = FORMATS[name].read(schema, paths)
        assert found.ids == [*IDS, "x.png"]
        assert found.embeddings is not None
        assert second.embeddings is not None
        np.testing.assert_array_equal(found.embeddings[-1:], second.embeddings)
    assert contents[0] == contents[1]


def test_no_rows_are_read_back(tmp_path: Path, name: FormatName) -> None:
    schema = make_schema()
    assert_same_rows(FORMATS[name].read(schema, write(tmp_path, name, schema)), make_rows(schema, ()))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_csv_by_the_csv_module(tmp_path: Path, dtype: EmbeddingDtype) -> None:
    schema = make_schema(dtype=dtype)
    rows = make_rows(schema)
    (path,) = write(tmp_path, "csv", schema, rows, emulated=True)
    with path.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream, strict=True))
    assert list(lines[0]) == (
        [
            "id",
            "width",
            "height",
            "error",
            "emulated",
            "class_1",
            "score_1",
            "class_2",
            "score_2",
            "class_3",
            "score_3",
            "e0",
            "e1",
            "e2",
            "e3",
            "e4",
            "e5",
        ]
    )
    assert [line["id"] for line in lines] == list(IDS)
    assert rows.embeddings is not None
    assert rows.classes is not None
    assert rows.scores is not None
    for place, line in enumerate(lines):
        if place in FAILED:
            assert "broken" in line["error"]
            assert {line[key] for key in list(line)[5:]} == {""}
            continue
        assert (line["width"], line["height"], line["error"]) == (str(10 + place), str(20 + place), "")
        assert line["emulated"] == "true"
        assert [line[f"class_{rank}"] for rank in (1, 2, 3)] == [DISTINCT[index] for index in rows.classes[place]]
        assert [np.float32(line[f"score_{rank}"]) for rank in (1, 2, 3)] == rows.scores[place].tolist()
        assert [np.dtype(dtype).type(line[f"e{each}"]) for each in range(6)] == rows.embeddings[place].tolist()


def test_lines_of_csv_end_as_the_standard_says(tmp_path: Path) -> None:
    schema = make_schema(embeds=False)
    (path,) = write(tmp_path, "csv", schema, make_rows(schema, ("a.png",)))
    content = path.read_bytes()
    assert content.count(b"\r\n") == 2
    assert content.endswith(b"\r\n")


@pytest.mark.parametrize("name", ["npy", "jsonl"])
def test_npy_and_lines_by_numpy_and_json(tmp_path: Path, name: FormatName) -> None:
    schema = make_schema(dtype="float16")
    rows = make_rows(schema)
    paths = write(tmp_path, name, schema, rows, emulated=True)
    lines = [json.loads(line) for line in paths[-1].read_bytes().split(b"\n")[:-1]]
    assert rows.classes is not None
    assert rows.scores is not None
    assert rows.embeddings is not None
    assert [line["id"] for line in lines] == list(IDS)
    for place, line in enumerate(lines):
        assert line["emulated"] is True
        if place in FAILED:
            assert line.keys() == {"id", "width", "height", "error", "emulated"}
            continue
        assert line["classes"] == [DISTINCT[index] for index in rows.classes[place]]
        assert line["scores"] == rows.scores[place].tolist()
        if name == "jsonl":
            assert line["embedding"] == rows.embeddings[place].tolist()
    if name == "npy":
        found = np.load(paths[0])
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, rows.embeddings)


def test_a_file_of_another_schema_is_refused(tmp_path: Path, name: FormatName) -> None:
    schema = make_schema()
    paths = write(tmp_path, name, schema, make_rows(schema))
    for other in (
        make_schema(classifies=False),
        RowSchema(embedding_dim=7, class_names=schema.class_names, top_k=3),
        RowSchema(embedding_dim=6, class_names=("another", *"bcde"), top_k=3),
        RowSchema(embedding_dim=6, class_names=schema.class_names, top_k=2),
    ):
        with pytest.raises(InputError, match=r"Cannot read '.*shard\..*': .*"):
            FORMATS[name].read(other, paths)


def test_foreign_and_missing_files_are_refused(tmp_path: Path, name: FormatName) -> None:
    schema = make_schema()
    paths = write(tmp_path, name, schema, make_rows(schema))
    for path in paths:
        good = path.read_bytes()
        for content in (
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\x93NUMPY\x01\x00\x10\x00{'descr': [[[[",
            b"PAR1PAR1",
            b"{}\n",
            b'"\r\n',
        ):
            path.write_bytes(content)
            if name == "jsonl" and not content:  # a file without rows
                continue
            with pytest.raises(InputError, match="Cannot read"):
                FORMATS[name].read(schema, paths)
        path.unlink()
        with pytest.raises(InputError, match="No such file"):
            FORMATS[name].read(schema, paths)
        path.mkdir()
        with pytest.raises(InputError, match="directory"):
            FORMATS[name].read(schema, paths)
        path.rmdir()
        path.write_bytes(good)


def test_truncated_files_are_refused(tmp_path: Path, name: FormatName) -> None:
    """CSV and JSON lines that end between two rows have fewer rows, which the record of the shard shows."""
    schema = make_schema()
    paths = write(tmp_path, name, schema, make_rows(schema))
    for path in paths:
        good = path.read_bytes()
        for size in range(0, len(good), 11):
            path.write_bytes(good[:size])
            try:
                found = FORMATS[name].read(schema, paths)
            except InputError:
                continue
            assert name in ("csv", "jsonl")
            assert size == 0 or good[:size].endswith(b"\n")
            assert found.ids == list(IDS[: len(found.ids)])
            assert len(found.ids) < len(IDS)
        path.write_bytes(good)


def test_altered_bytes_give_rows_or_an_input_error(tmp_path: Path, name: FormatName) -> None:
    schema = make_schema()
    rows = make_rows(schema)
    paths = write(tmp_path, name, schema, rows)
    random = np.random.default_rng(7)
    for path in paths:
        good = path.read_bytes()
        positions = random.permutation(len(good))[:150]
        for position, mask in zip(positions.tolist(), random.integers(1, 256, len(positions)).tolist(), strict=True):
            path.write_bytes(good[:position] + bytes([good[position] ^ mask]) + good[position + 1 :])
            with contextlib.suppress(InputError):
                found = FORMATS[name].read(schema, paths)
                assert len(found.errors) == len(found.ids)
                if name == "parquet":  # its pages have checksums; what else is read decides no value
                    assert_same_rows(found, rows)
        path.write_bytes(good)
