"""Building and updating an index."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import clipmlu
import support
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.errors import InputError, OptionError, OutputError, OutputExistsError
from clipmlu.index import build
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.run import run_job
from index.conftest import make_job

IDS = [f"photos/{number}.png" for number in range(8) if number != 3]


def rows_of(index: clipmlu.VectorIndex) -> dict[str, np.ndarray]:
    """All rows by id, read from the files of the index with NumPy and json alone."""
    found = {}
    for segment in index.manifest.segments():
        path = index.path / "segments" / f"{segment.name}.npy"
        ids = json.loads(path.with_suffix(".ids.json").read_text())
        found.update(zip(ids, np.load(path), strict=True))
    return found


def expected_rows(ids: list[str] = IDS) -> dict[str, np.ndarray]:
    with clipmlu.load("tiny-cpu") as model:
        return {name: model.embed_images(name) for name in ids}


def counts(report: clipmlu.IndexReport) -> tuple[int, int, int, int]:
    return report.added, report.changed, report.removed, report.kept


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], atol: float = 1e-6) -> None:
    assert list(found) == list(expected)
    for name, row in expected.items():
        np.testing.assert_allclose(found[name], row, rtol=0, atol=atol)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("shard_format", "dtype"),
    [
        pytest.param("npy", "float16", marks=pytest.mark.slow),
        ("parquet", "float32"),
        pytest.param("csv", "float32", marks=pytest.mark.slow),
        pytest.param("jsonl", "float16", marks=pytest.mark.slow),
    ],
)
def test_rows_of_every_format_are_indexed_without_broken_images(shard_format: str, dtype: str) -> None:
    if shard_format == "parquet":
        pytest.importorskip("pyarrow")
    make_job("other", shard_format=shard_format, dtype=dtype)
    report = clipmlu.build_index("other")
    assert report.path == str(Path("other", "index"))
    assert (report.rows, report.left_out, report.dtype) == (7, 1, "float32")
    same(rows_of(clipmlu.open_index("other")), expected_rows(), atol=1e-6 if dtype == "float32" else 5e-4)


@pytest.mark.usefixtures("place")
def test_a_second_run_reads_nothing_and_writes_nothing() -> None:
    assert counts(clipmlu.build_index("job")) == (3, 0, 0, 0)
    files = {path: path.stat().st_mtime_ns for path in Path("job/index").rglob("*")}
    for segment in Path("job/shards").iterdir():
        segment.chmod(0o600)
    assert counts(clipmlu.build_index("job")) == (0, 0, 0, 3)
    assert counts(clipmlu.build_index(output="job/index")) == (0, 0, 0, 3)
    assert {path: path.stat().st_mtime_ns for path in Path("job/index").rglob("*")} == files


@pytest.mark.usefixtures("place")
def test_new_shards_are_added_and_the_others_are_not_written_again() -> None:
    clipmlu.build_index("job", "all")
    before = {path.name: path.stat().st_ino for path in Path("all/segments").iterdir()}
    support.picture(20).save("photos/9.png")
    make_job("second", "photos/9.png")
    report = clipmlu.build_index("second", "all")
    assert (counts(report), report.rows, report.sources) == ((1, 0, 0, 0), 8, 2)
    after = {path.name: path.stat().st_ino for path in Path("all/segments").iterdir()}
    assert before.items() <= after.items()
    same(rows_of(clipmlu.open_index("all")), expected_rows([*IDS, "photos/9.png"]))


@pytest.mark.usefixtures("place")
def test_changed_and_removed_shards_of_a_job_that_was_run_again_are_noticed() -> None:
    clipmlu.build_index("job")
    old = {path.name for path in Path("job/index/segments").iterdir()}
    support.picture(30).save("photos/7.png")  # in the last shard
    clipmlu.run_job(
        "tiny-cpu",
        ["photos"],
        "job",
        clipmlu.JobOptions(shard_size=3, shard_format="npy", batch_size=4, overwrite=True),
    )
    assert counts(clipmlu.build_index("job")) == (0, 1, 0, 2)
    same(rows_of(clipmlu.open_index("job")), expected_rows())
    names = {path.name for path in Path("job/index/segments").iterdir()}
    assert len(names) == len(old) == 6
    assert len(names & old) == 4
    Path("photos/7.png").unlink()
    Path("photos/6.png").unlink()
    clipmlu.run_job(
        "tiny-cpu",
        ["photos"],
        "job",
        clipmlu.JobOptions(shard_size=3, shard_format="npy", batch_size=4, overwrite=True),
    )
    assert counts(clipmlu.build_index("job")) == (0, 0, 1, 2)
    same(rows_of(clipmlu.open_index("job")), expected_rows(IDS[:5]))


@pytest.mark.usefixtures("place")
def test_a_shard_whose_bytes_were_altered_is_an_error_and_the_index_stays() -> None:
    clipmlu.build_index("job")
    before = Path("job/index/index.json").read_bytes()
    shard = Path("job/shards/part-00000001.npy")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"part-00000001.npy' was changed: its SHA-256.*clipmlu job .*job --repair"):
        clipmlu.build_index("job")
    assert Path("job/index/index.json").read_bytes() == before
    os.utime(
        shard, ns=(1, next(iter(clipmlu.open_index("job").manifest.sources[0].segments[1].times.values())).mtime_ns)
    )
    with pytest.raises(InputError, match="was changed"):  # the time is as before, and a verification compares digests
        clipmlu.build_index("job", verify=True)


@pytest.mark.usefixtures("place")
def test_damaged_files_of_the_index_are_named_when_it_is_opened_and_mended_by_the_same_call() -> None:
    clipmlu.build_index("job")
    path = next(Path("job/index/segments").glob("*.npy"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(InputError, match=rf"{path.name}': it has \d+ bytes; its shape needs \d+.*mends it"):
        clipmlu.open_index("job")
    assert counts(clipmlu.build_index("job")) == (0, 1, 0, 2)
    assert path.read_bytes() == whole
    path.unlink()
    with pytest.raises(InputError, match=rf"damaged: '.*{path.name}' is missing.*mends it"):
        clipmlu.open_index("job")
    clipmlu.build_index("job")
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert counts(clipmlu.build_index("job", verify=True)) == (0, 1, 0, 2)
    assert path.read_bytes() == whole


def test_rows_without_a_direction_are_left_out_and_others_get_unit_norm(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((6, 5)) * 3
    rows[1], rows[2, 3], rows[4] = np.nan, np.inf, 0
    rows[5] *= 1e-30
    np.save(tmp_path / "rows.npy", rows)
    report = clipmlu.build_index(tmp_path / "rows.npy")
    assert report.path == str(tmp_path / "rows.index")
    assert (report.rows, report.left_out, report.normalised) == (3, 3, 3)
    found = rows_of(clipmlu.open_index(tmp_path / "rows.index"))
    good = rows[[0, 3, 5]]
    same(
        found,
        dict(
            zip(
                ["rows.npy#0", "rows.npy#3", "rows.npy#5"],
                good / np.linalg.norm(good, axis=1, keepdims=True),
                strict=True,
            )
        ),
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.zeros((3, 4), np.int32), "not an array of float16"),
        (np.zeros(3, np.float32), r"has the shape \(3,\)"),
        (np.zeros((3, 0), np.float32), r"has the shape \(3, 0\)"),
        (np.array([{}]), "Python objects"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, content: np.ndarray, reason: str) -> None:
    np.save(tmp_path / "rows.npy", content)
    with pytest.raises(InputError, match=reason):
        clipmlu.build_index(tmp_path / "rows.npy")
    assert not (tmp_path / "rows.index").exists()


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_floats_of_any_order_of_bytes_and_axes_are_read(tmp_path: Path, dtype: str, order: Literal["C", "F"]) -> None:
    rows = np.eye(3, 5)[[2, 0, 1]]
    np.save(tmp_path / "rows.npy", rows.astype(dtype, order=order))
    names = [str(tmp_path / "rows.npy")] * 2
    assert clipmlu.build_index(names, tmp_path / "all").added == 1
    same(
        rows_of(clipmlu.open_index(tmp_path / "all")),
        dict(zip(["rows.npy#0", "rows.npy#1", "rows.npy#2"], rows, strict=True)),
    )


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.ones((30, 4), np.float32))
    content = (tmp_path / "rows.npy").read_bytes()
    for size in (len(content) - 1, 100, 3, 0):
        (tmp_path / "rows.npy").write_bytes(content[:size])
        with pytest.raises(InputError, match=r"Cannot read '.*rows.npy'"):
            clipmlu.build_index(tmp_path / "rows.npy")


def test_an_index_without_rows_is_found_nothing_in(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((0, 4), np.float32))
    assert clipmlu.build_index(tmp_path / "rows.npy").rows == 0
    assert clipmlu.open_index(tmp_path / "rows.index").search(np.ones((2, 4))) == [(), ()]


@pytest.mark.usefixtures("place")
def test_a_job_and_its_index_may_be_moved_together_and_a_job_alone() -> None:
    clipmlu.build_index("job")
    clipmlu.build_index("job", "all")
    Path("job").rename("moved")
    notes: list[str] = []
    assert counts(clipmlu.build_index("moved", on_note=notes.append)) == (0, 0, 0, 3)
    report = clipmlu.build_index("moved", "all", on_note=notes.append)
    assert (counts(report), report.sources) == ((0, 0, 0, 3), 1)
    (note,) = notes
    assert re.fullmatch(r"'.*/moved' was at '.*/job' before", note)
    shutil.rmtree("moved")
    report = clipmlu.build_index(output="all", on_note=notes.append)
    assert (counts(report), report.rows) == ((0, 0, 0, 0), 7)
    assert notes[1].endswith("moved' is gone; its rows stay in the index")


@pytest.mark.usefixtures("place")
def test_a_source_and_a_link_to_it_are_one() -> None:
    Path("link").symlink_to("job")
    report = clipmlu.build_index(["job", "link"], "all")
    assert (report.sources, report.rows) == (1, 7)
    for source in ("link", "job", "./link"):
        report = clipmlu.build_index(source, "all")
        assert (counts(report), report.sources, report.rows) == ((0, 0, 0, 3), 1, 7)


@pytest.mark.usefixtures("place")
def test_an_index_that_was_copied_away_from_its_job_keeps_its_rows() -> None:
    clipmlu.build_index("job")
    shutil.copytree("job/index", "copy")  # beside it there is another folder, and no job
    notes: list[str] = []
    report = clipmlu.build_index(output="copy", on_note=notes.append)
    assert (counts(report), report.rows, len(notes)) == ((0, 0, 0, 0), 7, 1)
    assert counts(clipmlu.build_index("job", "copy")) == (0, 0, 0, 3)
    assert clipmlu.open_index("copy").rows == 7


@pytest.mark.usefixtures("place")
def test_sources_of_other_models_and_sizes_are_refused() -> None:
    clipmlu.build_index("job", "all")
    compile_bundle(
        support.write_exported(Path("other"), seed=1), Path("other-cpu"), CompileOptions(target="cpu", batch_size=4)
    )
    clipmlu.run_job("other-cpu", ["photos"], "second", clipmlu.JobOptions(shard_format="npy"))
    with pytest.raises(InputError, match=r"second' was computed with another model, 'tiny.*cannot be compared"):
        clipmlu.build_index("second", "all")
    with pytest.raises(InputError, match=r"other-cpu' holds 'tiny.*the job '.*job' was computed with another model"):
        clipmlu.build_index("job", "new", bundle="other-cpu")
    np.save("rows.npy", np.ones((2, 4), np.float32))
    with pytest.raises(InputError, match=r"rows.npy' has vectors of 4, '.*all' of \d+; one index holds one size"):
        clipmlu.build_index("rows.npy", "all")
    with pytest.raises(InputError, match=r"rows.npy' has vectors of 4; bundle 'tiny-cpu' gives"):
        clipmlu.build_index("rows.npy", bundle="tiny-cpu")


@pytest.mark.usefixtures("place")
def test_a_shard_of_a_job_of_another_model_is_not_taken_for_one_of_this_job() -> None:
    """As a copy of one job over the other leaves it that was stopped: the inputs are the same, and the digests fit."""
    clipmlu.build_index("job", "whole")
    expected = rows_of(clipmlu.open_index("whole"))
    compile_bundle(
        support.write_exported(Path("exported"), seed=1), Path("other-cpu"), CompileOptions(target="cpu", batch_size=4)
    )
    run_job("other-cpu", ["photos"], "other", JobOptions(shard_size=3, shard_format="npy", batch_size=4))
    name = "part-00000001"
    for path in [*Path("other/shards").glob(f"{name}*"), Path(f"other/records/{name}.json")]:
        shutil.copy(path, Path("job") / path.relative_to("other"))
    notes: list[str] = []
    report = clipmlu.build_index("job", "all", on_note=notes.append)
    assert (report.rows, report.added) == (5, 2)  # of the images 0 to 2, 6 and 7
    assert any("1 shard(s) of" in note and "are not done" in note for note in notes)
    assert clipmlu.open_job("job").state().damaged_shards == (name,)
    make_job()
    clipmlu.build_index("job", "all")
    found = rows_of(clipmlu.open_index("all"))
    assert found.keys() == expected.keys()
    for each, row in expected.items():
        np.testing.assert_array_equal(found[each], row)


@pytest.mark.usefixtures("place")
def test_a_job_that_was_run_again_with_another_model_replaces_its_rows() -> None:
    clipmlu.build_index("job")
    compile_bundle(
        support.write_exported(Path("other"), seed=1), Path("other-cpu"), CompileOptions(target="cpu", batch_size=4)
    )
    clipmlu.run_job("other-cpu", ["photos"], "job", clipmlu.JobOptions(shard_format="npy", overwrite=True))
    report = clipmlu.build_index("job")
    assert (counts(report), report.rows) == ((0, 1, 2, 0), 7)
    (found,) = clipmlu.search_index("job", "photos/0.png").queries
    assert found.hits[0].id == "photos/0.png"
    assert found.hits[0].score == pytest.approx(1, abs=1e-6)


def test_an_approximate_index_is_advised_above_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "rows.npy", np.eye(3, 4, dtype=np.float32))
    for size, advised in ((48, False), (47, True)):
        monkeypatch.setattr(build, "_ADVISED_BYTES", size)
        notes: list[str] = []
        clipmlu.build_index(tmp_path / "rows.npy", on_note=notes.append)
        assert any("with --approximate" in note for note in notes) is advised


@pytest.mark.usefixtures("place")
def test_wrong_sources_and_outputs_are_named() -> None:
    for given in ([], ["job", "photos"]):
        with pytest.raises(
            OptionError, match=rf"the output is not given, .* not {len(given)}; give the folder of the index \(-o\)"
        ):
            clipmlu.build_index(given)
    assert clipmlu.build_index(["job", "./job"]).path == os.path.join("job", "index")
    with pytest.raises(OptionError, match="no sources"):
        clipmlu.build_index([], "all")
    with pytest.raises(InputError, match="'photos' is not the folder of a job"):
        clipmlu.build_index("photos", "all")
    with pytest.raises(
        InputError, match=r"'photos/0.png' is not the folder of a job, and its name does not end with .npy"
    ):
        clipmlu.build_index("photos/0.png")
    with pytest.raises(InputError, match="'nothing' does not exist"):
        clipmlu.build_index("nothing", "all")
    with pytest.raises(InputError, match=r"nothing.npy' does not exist"):
        clipmlu.build_index("nothing.npy")
    with pytest.raises(OutputExistsError, match="'photos' exists and is not an index"):
        clipmlu.build_index("job", "photos")
    clipmlu.run_job(
        "tiny-cpu",
        ["photos"],
        "classes",
        clipmlu.JobOptions(classification=clipmlu.ClassificationOptions(class_names=["a", "b"])),
    )
    with pytest.raises(OptionError, match=r"'.*classes' stores no embeddings"):
        clipmlu.build_index("classes")
    assert not Path("all").exists()
    clipmlu.build_index("job")
    with pytest.raises(OptionError, match="dtype is float16; the index has float32"):
        clipmlu.build_index("job", dtype="float16")
    assert clipmlu.build_index("job", dtype="float16", overwrite=True).dtype == "float16"
    same(rows_of(clipmlu.open_index("job")), expected_rows(), atol=5e-4)


@pytest.mark.usefixtures("place")
def test_an_update_that_was_killed_is_completed_and_writes_only_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The killed process has published two segments, and no manifest."""
    clipmlu.build_index("job", "whole")
    whole = {path.relative_to("whole"): path.read_bytes() for path in Path("whole").rglob("*") if path.is_file()}
    shutil.copytree("whole/segments", "all/segments")
    names = sorted(path.name.partition(".")[0] for path in Path("all/segments").glob("*.npy"))
    Path(f"all/segments/{names[0]}.ids.json").unlink()
    kept = Path(f"all/segments/{names[1]}.npy").stat().st_ino
    clipmlu.build_index("job", "all")
    assert Path(f"all/segments/{names[1]}.npy").stat().st_ino == kept
    assert {path.relative_to("all"): path.read_bytes() for path in Path("all").rglob("*") if path.is_file()} == whole


@pytest.mark.usefixtures("place")
def test_a_folder_that_cannot_be_written_is_an_error_and_can_be_searched() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    clipmlu.build_index("job")
    Path("job/index").chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Cannot write"):
            clipmlu.build_index("job", overwrite=True, dtype="float16")
        assert clipmlu.open_index("job").rows == 7
    finally:
        Path("job/index").chmod(0o700)


@pytest.mark.usefixtures("place")
def test_a_newer_and_a_damaged_manifest_are_named() -> None:
    clipmlu.build_index("job")
    path = Path("job/index/index.json")
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(InputError, match="has schema 9; this clipmlu reads up to 1"):
        clipmlu.open_index("job")
    path.write_text("{")
    with pytest.raises(InputError, match=r"Cannot read '.*index.json'.*--overwrite"):
        clipmlu.open_index("job")
    with pytest.raises(InputError, match="Cannot read"):
        clipmlu.build_index("job")
    assert counts(clipmlu.build_index("job", overwrite=True)) == (3, 0, 0, 0)


@pytest.mark.usefixtures("place")
def test_images_that_occur_twice_are_kept_twice() -> None:
    shutil.copytree("job", "copy")
    report = clipmlu.build_index(["job", "copy"], "all")
    assert (report.rows, report.sources) == (14, 2)
    assert len(list(Path("all/segments").glob("*.npy"))) == 3
    (hits,) = clipmlu.open_index("all").search(expected_rows()["photos/0.png"], k=2)
    assert [(hit.id, hit.row) for hit in hits] == [("photos/0.png", 0), ("photos/0.png", 7)]
    assert hits[0].score == hits[1].score
