"""Inputs of jobs: folders with archives and tables, datasets, lists; each image once, in any process."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import multiprocessing
import os
import sys
import tarfile
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import clipmlu
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.data.datasets import open_dataset
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.data.finding import SkippedFiles
from clipmlu.data.images import load_image, read_source
from clipmlu.errors import InputError, MissingDependencyError, OptionError
from clipmlu.jobs.engines.options import EngineOptions
from clipmlu.jobs.inputs import JobInput, cut_inputs, cut_rows
from clipmlu.jobs.opening import open_piece
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.pieces import DatasetPiece, FilesPiece, Piece, RowsPiece, TarPiece, decode_piece
from clipmlu.jobs.run import run_job


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def write_saved_dataset(folder: Path, shards: list[list[bytes]]) -> None:
    """A folder as ``Dataset.save_to_disk`` writes it."""
    folder.mkdir()
    names = [f"data-{number:05}-of-{len(shards):05}.arrow" for number in range(len(shards))]
    for name, images in zip(names, shards, strict=True):
        table = pa.table({"image": [{"bytes": image, "path": None} for image in images]})
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with images 0 to 24 in every kind of file, in this order, and files that are none."""
    root = tmp_path / "mixed"
    root.mkdir()
    for number in (0, 1, 2):
        (root / f"a{number}.png").write_bytes(picture(number))
    write_tar(root / "b.tar", {f"{number}.png": picture(number) for number in (3, 4, 5)})
    write_tar(root / "c.tar.gz", {f"{number}.png": picture(number) for number in (6, 7)}, "w:gz")
    table = pa.table({"image": [picture(number) for number in range(8, 17)], "key": [f"key {n}" for n in range(8, 17)]})
    pq.write_table(table, root / "d.parquet", row_group_size=2)
    (root / "e.png").write_bytes(picture(17))
    (root / "notes.txt").write_text("x")
    write_saved_dataset(root / "saved", [[picture(n) for n in (18, 19, 20)], [picture(n) for n in (21, 22)]])
    (root / "saved" / "cache-123.arrow").write_bytes(b"a cached file of the package datasets")
    (root / "z").mkdir()
    for number in (23, 24):
        (root / "z" / f"{number}.png").write_bytes(picture(number))
    return root


def cut(*paths: Path | str, size: int = 4, skipped: SkippedFiles | None = None, **options: object) -> list[Piece]:
    inputs = JobInput(paths=[str(path) for path in paths], **options)  # type: ignore[arg-type]
    return list(cut_inputs(inputs, size, skipped or SkippedFiles()))


def load(pieces: list[Piece]) -> list[tuple[str, bytes | str]]:
    """The id of each item, and its content or the message of its error."""
    found: list[tuple[str, bytes | str]] = []
    for item in itertools.chain.from_iterable(map(open_piece, pieces)):
        try:
            content = read_source(item.load())
        except InputError as error:
            found.append((item.id, str(error)))
        else:
            assert isinstance(content, bytes)
            found.append((item.id, content))
    return found


def test_a_mixed_folder_gives_every_image_once_in_its_order(mixed: Path) -> None:
    skipped = SkippedFiles()
    pieces = cut(mixed, skipped=skipped)
    assert [content for _, content in load(pieces)] == [picture(number) for number in range(25)]
    assert skipped.suffixes == {".txt": 1, ".json": 1, ".arrow": 1}
    assert [(type(piece).__name__, piece.images) for piece in pieces] == [
        ("FilesPiece", 3),
        ("TarPiece", None),
        ("TarPiece", None),
        ("RowsPiece", 4),
        ("RowsPiece", 4),
        ("RowsPiece", 1),
        ("FilesPiece", 1),
        ("RowsPiece", 3),
        ("RowsPiece", 2),
        ("FilesPiece", 2),
    ]


def _load_encoded(lines: list[bytes]) -> list[tuple[str, bytes | str]]:
    return load([decode_piece(line) for line in lines])


def test_another_process_opens_the_same_items_from_the_written_pieces(mixed: Path) -> None:
    pieces = cut(mixed, size=3)
    lines = [msgspec.json.encode(piece) for piece in pieces]
    assert [decode_piece(line) for line in lines] == pieces
    assert [msgspec.json.encode(piece) for piece in cut(mixed, size=3)] == lines
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_load_encoded, (lines,)) == load(pieces)


def test_a_changed_archive_or_table_changes_its_pieces(mixed: Path) -> None:
    before = cut(mixed)
    for name in ("b.tar", "d.parquet", "saved/data-00000-of-00002.arrow"):
        os.utime(mixed / name, ns=(0, 0))
        after = cut(mixed)
        changed = {piece.name for old, piece in zip(before, after, strict=True) if old != piece}  # type: ignore[union-attr]
        assert changed == {str(mixed / name)}
        before = after


def test_an_archive_or_table_that_changes_during_the_job_ends_it(mixed: Path) -> None:
    pieces = {type(piece): piece for piece in cut(mixed)}
    for kind, name in ((TarPiece, "c.tar.gz"), (RowsPiece, "saved/data-00001-of-00002.arrow")):
        with (mixed / name).open("ab") as file:
            file.write(b"more")
        with pytest.raises(
            InputError, match=rf"'.*{name}' has changed since the job began: it has .* bytes, not .*--overwrite"
        ):
            load([pieces[kind]])


def test_damaged_files_in_a_folder_cost_their_own_images(mixed: Path) -> None:
    (mixed / "b.tar").write_bytes((mixed / "b.tar").read_bytes()[:1600])
    (mixed / "c.tar.gz").write_bytes(b"")
    (mixed / "d.parquet").write_bytes((mixed / "d.parquet").read_bytes()[:-20])
    (mixed / "saved" / "data-00001-of-00002.arrow").unlink()
    found = load(cut(mixed))
    good = [content for _, content in found if isinstance(content, bytes)]
    assert good == [picture(number) for number in range(25) if number not in {3, 4, 5, 6, 7, *range(8, 17), 21, 22}]
    errors = [name for name, content in found if isinstance(content, str)]
    names = ("b.tar::3.png", "b.tar", "c.tar.gz", "d.parquet", "saved/data-00001-of-00002.arrow")
    assert errors == [str(mixed / name) for name in names]


def test_a_state_that_cannot_be_read_is_an_error_and_none_of_its_files_is_guessed(mixed: Path) -> None:
    (mixed / "saved" / "state.json").write_text('{"_data_files": [{"filename": "data-')
    found = load(cut(mixed / "saved"))
    assert [name for name, _ in found] == [str(mixed / "saved" / "state.json")]
    (mixed / "saved" / "state.json").write_text('{"_data_files": [], "_indices_data_files": [{"filename": "x.arrow"}]}')
    assert "a file of indices" in str(load(cut(mixed / "saved"))[0][1])
    (mixed / "saved" / "state.json").write_text('{"of": "another program"}')
    (mixed / "saved" / "cache-123.arrow").unlink()
    assert len(load(cut(mixed / "saved"))) == 5


def test_tables_that_describe_the_images_beside_them_are_left_out_and_counted(tmp_path: Path) -> None:
    """As img2dataset writes its shards, as archives and as folders, and as Hugging Face's ImageFolder has its metadata."""
    table = pa.table({"url": ["https://example.org/1.jpg"], "caption": ["a"], "key": ["000000000"]})
    for folder in ("shards", "folders/00000", "images", "tables"):
        (tmp_path / folder).mkdir(parents=True)
    write_tar(tmp_path / "shards" / "00000.tar", {"000000000.jpg": picture(1), "000000000.json": b"{}"})
    (tmp_path / "folders" / "00000" / "000000000.jpg").write_bytes(picture(2))
    (tmp_path / "images" / "a.png").write_bytes(picture(3))
    names = ("shards/00000.parquet", "folders/00000.parquet", "images/metadata.parquet", "tables/metadata.parquet")
    for name in names:
        pq.write_table(table, tmp_path / name)
    skipped = SkippedFiles()
    found = load(cut(tmp_path, skipped=skipped))
    assert [content for _, content in found[:-1]] == [picture(2), picture(3), picture(1)]
    assert found[-1][0] == f"{tmp_path}/tables/metadata.parquet#0"
    assert skipped.note() == "Left out: 3 Parquet file(s) about the images beside them."
    assert len(load(cut(tmp_path / "shards" / "00000.parquet"))) == 1


def test_columns_are_chosen_for_all_tables(mixed: Path) -> None:
    found = load(cut(mixed / "d.parquet", image_column="image", id_column="key"))
    assert [name for name, _ in found] == [f"key {number}" for number in range(8, 17)]
    with pytest.raises(OptionError, match="has the type binary; expected ids"):
        cut(mixed / "d.parquet", image_column="image", id_column="image")
    ((_, message),) = load(cut(mixed / "d.parquet", image_column="none"))
    assert "has no column 'none'" in str(message)


@pytest.mark.parametrize("groups", [[3, 3, 3], [10], [4, 1, 25, 2, 2], [1] * 17, [0, 5, 0, 7], [4, 4], [5, 4, 1]])
@pytest.mark.parametrize("size", [1, 4, 5, 100])
def test_rows_are_cut_at_group_borders_and_within_groups_that_are_too_large(groups: list[int], size: int) -> None:
    pieces = list(cut_rows(groups, size))
    assert [row for first, count in pieces for row in range(first, first + count)] == list(range(sum(groups)))
    assert all(0 < count <= size for _, count in pieces)
    borders = set(itertools.accumulate(groups, initial=0))
    inside = [first for first, _ in pieces if first not in borders]
    large = [
        range(start, start + group)
        for start, group in zip(itertools.accumulate(groups, initial=0), groups, strict=False)
        if group > size
    ]
    assert all(any(first in rows for rows in large) for first in inside)


def test_a_list_in_a_file_is_read_by_lines_or_zeros_and_after_the_inputs(mixed: Path, tmp_path: Path) -> None:
    paths = [mixed / "a0.png", mixed / "b.tar", tmp_path / "none.png"]
    listed = tmp_path / "list"
    for separator in ("\n", "\0", "\r\n"):
        listed.write_bytes(separator.join(map(str, paths)).encode())
        found = load(cut(mixed / "e.png", files_from=str(listed)))
        assert [content for _, content in found[:-1]] == [picture(number) for number in (17, 0, 3, 4, 5)]
        assert found[-1][0] == str(tmp_path / "none.png")
    listed.write_bytes(b"\n\n")
    assert "the list has no paths" in str(load(cut(files_from=str(listed)))[0][1])
    assert "No such file" in str(load(cut(files_from=str(tmp_path / "no list")))[0][1])


def test_a_dataset_is_cut_by_indices(tmp_path: Path) -> None:
    choice = DatasetChoice(name="demo", size=10, seed=3)
    pieces = cut(dataset=choice)
    assert [(piece.first, piece.images) for piece in pieces if isinstance(piece, DatasetPiece)] == [
        (0, 4),
        (4, 4),
        (8, 2),
    ]
    dataset = open_dataset("demo", size=10, seed=3)
    items = list(itertools.chain.from_iterable(map(open_piece, pieces)))
    assert [item.id for item in items] == [dataset.key(index) for index in range(10)]
    for index, item in enumerate(items):
        assert load_image(item.load()).tobytes() == dataset.image(index).tobytes()


def test_a_folder_of_classes_may_have_any_names_and_a_change_is_noticed(tmp_path: Path) -> None:
    for name in ("n01440764", "n01443537"):
        (tmp_path / name).mkdir()
        for number in (1, 2):
            (tmp_path / name / f"{number}.png").write_bytes(picture(number))
    pieces = cut(dataset=DatasetChoice(name=f"imagefolder:{tmp_path}"), size=3)
    assert [name for name, _ in load(pieces)] == [
        f"{name}/{n}.png" for name in ("n01440764", "n01443537") for n in (1, 2)
    ]
    (tmp_path / "n01440764" / "0.png").write_bytes(picture(0))
    from clipmlu.jobs import dataset_input

    dataset_input._open_again.cache_clear()
    with pytest.raises(InputError, match="has changed since the job began"):
        load(pieces)
    for name in ("train", "val"):
        (tmp_path / "splits" / name / "n1").mkdir(parents=True)
    with pytest.raises(OptionError, match="Say which one: --split"):
        cut(dataset=DatasetChoice(name=f"imagefolder:{tmp_path / 'splits'}"))


def test_a_job_over_a_mixed_folder_has_the_embeddings_of_its_images(
    compiled: CompiledBundle, mixed: Path, tmp_path: Path
) -> None:
    (mixed / "a1.png").write_bytes(b"")
    header = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + picture(1)[24:29]  # of a PNG of 400 megapixels
    large = picture(1)[:12] + header + zlib.crc32(header).to_bytes(4, "big") + picture(1)[33:]
    write_tar(mixed / "y.tar", {"large.png": large, "zero.png": b"", "good.png": picture(30)})
    report = run_job(compiled.path, [mixed], tmp_path / "job", JobOptions(shard_size=4))
    rows = [
        row
        for path in sorted((tmp_path / "job" / "shards").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(rows) == report.images == 28
    images = [*range(18), None, None, 30, *range(18, 25)]
    with clipmlu.load(compiled.path) as model:
        for row, number in zip(rows, images, strict=True):
            if number in (None, 1):
                assert row["error"]
                continue
            (expected,) = model.embed_images([picture(number)])
            np.testing.assert_allclose(row["embedding"], expected, atol=1e-6, err_msg=row["id"])
    errors = (tmp_path / "job" / "errors.jsonl").read_text()
    assert [json.loads(line)["id"] for line in errors.splitlines()] == [
        str(mixed / name) for name in ("a1.png", "y.tar::large.png", "y.tar::zero.png")
    ]
    assert "400,000,000 pixels" in errors


def test_damages_of_every_kind_in_one_job_are_listed_and_cost_their_own_rows(
    compiled: CompiledBundle, tmp_path: Path
) -> None:
    root = tmp_path / "damaged"
    root.mkdir()
    (root / "a.png").write_bytes(picture(1))
    header = b"IHDR" + (10_000).to_bytes(4, "big") + (10_001).to_bytes(4, "big") + picture(1)[24:29]
    (root / "b-large.png").write_bytes(
        picture(1)[:12] + header + zlib.crc32(header).to_bytes(4, "big") + picture(1)[33:]
    )
    (root / "c-zero.png").write_bytes(b"")
    write_tar(
        root / "d.tar", {"good.png": picture(2), "corrupt.png": picture(3)[:100] + bytes(400), "last.png": picture(4)}
    )
    pq.write_table(pa.table({"image": [picture(number) for number in (5, 6)]}), root / "e.parquet")
    (root / "f.parquet").write_bytes((root / "e.parquet").read_bytes()[:-30])
    contents = []
    for processes in (1, 2):
        job = tmp_path / f"job-{processes}"
        options = JobOptions(shard_size=4, max_pixels=100_000_000)
        report = run_job(compiled.path, [root], job, options, engine=EngineOptions(processes=processes))
        assert (report.images, report.errors) == (9, 4)
        contents.append({str(path.relative_to(job)): path.read_bytes() for path in job.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]
    lines = [json.loads(line) for line in contents[0]["errors.jsonl"].splitlines()]
    reasons = {Path(line["id"]).name: line["reason"] for line in lines}
    assert list(reasons) == ["b-large.png", "c-zero.png", "d.tar::corrupt.png", "f.parquet"]
    for name, text in zip(reasons, ("100,010,000 pixels", "empty", "corrupt.png", "f.parquet"), strict=True):
        assert text in reasons[name]
    rows = [
        row for part in sorted((tmp_path / "job-2" / "shards").iterdir()) for row in pq.read_table(part).to_pylist()
    ]
    good = [row["embedding"] for row in rows if row["error"] is None]
    with clipmlu.load(compiled.path) as model:
        np.testing.assert_allclose(good, model.embed_images([picture(number) for number in (1, 2, 4, 5, 6)]), atol=1e-6)


@contextlib.contextmanager
def traced_peak() -> Iterator[list[int]]:
    peaks: list[int] = []
    tracemalloc.start()
    try:
        yield peaks
        peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["tar.gz", "parquet"])
def test_items_that_are_kept_hold_no_content_after_it_was_loaded(tmp_path: Path, kind: str) -> None:
    images = {f"{number}.png": os.urandom(1 << 18) for number in range(64)}
    path = tmp_path / f"a.{kind}"
    if kind == "tar.gz":
        write_tar(path, images, "w:gz")
    else:
        pq.write_table(pa.table({"image": list(images.values())}), path, row_group_size=8, use_dictionary=False)
    before = pa.total_allocated_bytes()
    with traced_peak() as peaks:
        kept = []
        (*pieces,) = cut(path, size=64)
        for item in itertools.chain.from_iterable(map(open_piece, pieces)):
            item.load()
            kept.append(item)
    assert len(kept) == 64
    assert peaks[0] + pa.total_allocated_bytes() - before < 6 << 20  # of 16 MB


def test_planning_holds_no_more_than_a_shard(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3000):
        os.link(__file__, folder / f"{number}.png") if number else (folder / "0.png").write_bytes(b"")
    listed = tmp_path / "list"
    listed.write_text("".join(f"{folder / str(number)}.png\n" for number in range(3000)))
    with traced_peak() as peaks:
        inputs = JobInput(files_from=str(listed))
        count = sum(piece.images or 0 for piece in cut_inputs(inputs, 10, SkippedFiles()))
    assert count == 3000
    assert peaks[0] < 1 << 19


def test_a_table_without_pyarrow_names_the_extra(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"'pyarrow'.*pip install 'clipmlu\[bulk\]'"):
        cut(mixed)
    assert len(load(cut(mixed / "b.tar"))) == 3


def test_kinds_of_pieces_are_told_apart_when_read() -> None:
    assert {FilesPiece, TarPiece, RowsPiece, DatasetPiece} == set(Piece.__args__)  # type: ignore[attr-defined]
    with pytest.raises(msgspec.DecodeError):
        decode_piece(b'{"type": "other"}')


def test_a_job_on_a_table_of_relative_paths_goes_on_in_its_own_folder_only(
    compiled: CompiledBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another folder the same paths may be other images."""
    for name, first in (("here", 0), ("there", 2)):
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.png").write_bytes(picture(first + number))
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "images.parquet"
    pq.write_table(pa.table({"path": ["0.png", "1.png"]}), table)
    contents = tmp_path / "tables" / "contents.parquet"
    pq.write_table(pa.table({"image": [picture(0), picture(1)]}), contents)
    options = JobOptions(shard_size=1, shard_format="npy")

    def run(folder: str, source: Path) -> int:
        monkeypatch.chdir(tmp_path / folder)
        return run_job(compiled.path, [source], tmp_path / f"job-{source.stem}", options).computed_shards

    assert run("here", table) == 2
    message = (
        f"another current folder, in which the rows of '{table}' look up relative paths: '{tmp_path}/here' then, "
        f"'{tmp_path}/there' now"
    )
    with pytest.raises(OptionError) as caught:
        run("there", table)
    assert message in str(caught.value)
    assert run("here", table) == 0
    assert (run("here", contents), run("there", contents)) == (2, 0)
