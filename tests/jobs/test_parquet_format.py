"""Shards in Parquet, read by pyarrow itself."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.errors import OptionError
from clipmlu.jobs.formats import FORMATS
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.rows import EmbeddingDtype, RowSchema, ShardRows
from clipmlu.jobs.run import run_job
from jobs.shard_samples import DISTINCT, FAILED, IDS, assert_same_rows, make_provenance, make_rows, make_schema

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def _write(path: Path, schema: RowSchema, *rows: ShardRows, emulated: bool = False) -> Path:
    with FORMATS["parquet"].open(schema, make_provenance(emulated=emulated), [path]) as append:
        for each in rows:
            append(each)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_columns_have_their_types_and_values(tmp_path: Path, dtype: EmbeddingDtype) -> None:
    schema = make_schema(dtype=dtype)
    rows = make_rows(schema)
    table = pq.read_table(_write(tmp_path / "a.parquet", schema, rows))
    assert table["id"].to_pylist() == list(IDS)
    assert table.schema.field("embedding").type.list_size == 6
    assert table.schema.field("embedding").type.value_type == {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    found = np.array(table["embedding"].to_pylist())
    assert rows.embeddings is not None
    np.testing.assert_array_equal(found.astype(dtype), rows.embeddings)
    assert np.isnan(found[list(FAILED)]).all()
    for place in range(len(IDS)):
        row = table.slice(place, 1).to_pylist()[0]
        if place in FAILED:
            assert (row["classes"], row["scores"], row["width"], row["height"]) == (None, None, None, None)
            assert "broken" in row["error"]
        else:
            assert rows.classes is not None
            assert rows.scores is not None
            assert row["classes"] == [DISTINCT[index] for index in rows.classes[place]]
            assert row["scores"] == rows.scores[place].tolist()
            assert (row["width"], row["height"], row["error"]) == (10 + place, 20 + place, None)


def test_equal_rows_give_equal_bytes_and_the_file_says_what_computed_it(tmp_path: Path) -> None:
    schema = make_schema()
    first, second = (_write(tmp_path / name, schema, make_rows(schema)) for name in ("a.parquet", "b.parquet"))
    assert first.read_bytes() == second.read_bytes()
    other = _write(tmp_path / "c.parquet", schema, make_rows(schema), emulated=True)
    for path, emulated in ((first, b"false"), (other, b"true")):
        facts = pq.read_schema(path).metadata
        assert facts[b"clipmlu.model"] == b"demo"
        assert facts[b"clipmlu.bundle_digest"] == b"ab" * 32
        assert facts[b"clipmlu.precision"] == b"force_float32"
        assert facts[b"clipmlu.version"] == b"9.8.7"
        assert facts[b"clipmlu.emulated"] == emulated


@pytest.mark.parametrize(("embeds", "classifies"), [(True, True), (True, False), (False, True)])
def test_the_reader_returns_what_was_written(tmp_path: Path, embeds: bool, classifies: bool) -> None:
    schema = make_schema(embeds=embeds, classifies=classifies)
    rows = make_rows(schema)
    path = _write(tmp_path / "a.parquet", schema, rows)
    assert_same_rows(FORMATS["parquet"].read(schema, [path]), rows)
    names = {"id", "width", "height", "error"}
    names |= {"embedding"} if embeds else set()
    names |= {"classes", "scores"} if classifies else set()
    assert set(pq.read_schema(path).names) == names


def test_texts_that_are_no_unicode_are_escaped(tmp_path: Path) -> None:
    schema = make_schema(classifies=False)
    path = _write(tmp_path / "a.parquet", schema, make_rows(schema, ("good\udc80\ud800.png",)))
    assert pq.read_table(path)["id"].to_pylist() == ["good\\udc80\\ud800.png"]


def test_the_files_of_a_job_are_one_dataset(tmp_path: Path) -> None:
    dataset = pytest.importorskip("pyarrow.dataset")
    schema = make_schema()
    for number in range(2):
        _write(tmp_path / f"part-{number}.parquet", schema, make_rows(schema, (f"{number}.png",), seed=number))
    assert dataset.dataset(tmp_path).to_table()["id"].to_pylist() == ["0.png", "1.png"]


def test_a_job_is_not_continued_with_another_version_of_pyarrow(
    compiled: CompiledBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    support.picture(1).save(tmp_path / "0.png")
    for shard_format in ("npy", "parquet"):
        run_job(compiled.path, [tmp_path / "0.png"], tmp_path / shard_format, JobOptions(shard_format=shard_format))
    current = pa.__version__
    monkeypatch.setattr(pa, "__version__", "1.2.3")
    run_job(compiled.path, [tmp_path / "0.png"], tmp_path / "npy", JobOptions(shard_format="npy"))
    with pytest.raises(OptionError, match=rf"was begun with version of pyarrow {re.escape(current)}, not 1\.2\.3"):
        run_job(compiled.path, [tmp_path / "0.png"], tmp_path / "parquet", JobOptions())
