"""Jobs on disk: state, verification, repair, export and blocks of embeddings."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import clipmlu
import support
from cli.conftest import Run
from clipmlu import open_job
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.errors import InputError, MissingDependencyError, OptionError, OutputExistsError
from clipmlu.jobs.formats import FORMATS, FormatName
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.rows import EmbeddingDtype
from clipmlu.jobs.run import run_job

NAMES = [f"{number}.png" for number in range(7)]
BROKEN = 3


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        support.picture(number).save(folder / name)
    (folder / NAMES[BROKEN]).write_bytes(b"no image")
    return folder


def options(shard_format: FormatName = "npy", dtype: EmbeddingDtype = "float32") -> JobOptions:
    if shard_format == "parquet":
        pytest.importorskip("pyarrow")
    return JobOptions(shard_size=3, shard_format=shard_format, dtype=dtype, batch_size=4)


@pytest.fixture
def job(compiled: CompiledBundle, images: Path, tmp_path: Path) -> Path:
    """A finished job of three shards, of which the second has an unreadable image."""
    run_job(compiled.path, [images], tmp_path / "job", options())
    return tmp_path / "job"


def begin(compiled: CompiledBundle, images: Path, folder: Path) -> Path:
    """Begin a job and interrupt it after its first shard."""

    def interrupt(_record: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(compiled.path, [images], folder, options(), on_shard=interrupt)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip(path: Path, position: int = -1) -> None:
    """Change a byte, and not the size."""
    changed = bytearray(path.read_bytes())
    changed[position] ^= 1
    path.write_bytes(changed)


def test_the_state_of_a_finished_job(job: Path, compiled: CompiledBundle, run: Run) -> None:
    state = open_job(job).state()
    assert (state.finished, state.shards, state.finished_shards) == (True, 3, 3)
    assert (state.images, state.finished_images, state.errors) == (7, 7, 1)
    assert state.damaged_shards == ()
    assert state.size_bytes == sum(path.stat().st_size for path in (job / "shards").iterdir())
    assert state.running is False
    assert state.provenance.bundle_digest == compiled.digest
    code, out, _ = run("job", job, "--json")
    assert code == 0
    assert json.loads(out)["embedding_dim"] == compiled.manifest.embedding_dim
    assert json.loads(out)["finished_shards"] == 3


def test_an_unfinished_job_and_one_that_runs(compiled: CompiledBundle, images: Path, tmp_path: Path, run: Run) -> None:
    job = begin(compiled, images, tmp_path / "job")
    state = open_job(job).state()
    assert (state.finished, state.finished_shards, state.finished_images, state.running) == (False, 1, 3, False)
    code, out, _ = run("job", job)
    assert code == 0
    assert "1 of 3 done (33.3 %)" in out
    assert "the same command goes on" in out
    seen = []
    run_job(
        compiled.path, [images], job, options(), on_shard=lambda record: seen.append((record, open_job(job).state()))
    )
    assert [(state.finished_shards, state.running) for _, state in seen] == [(2, True), (3, True)]


def test_shards_with_missing_or_shorter_files_are_damaged(job: Path) -> None:
    (job / "shards/part-00000000.jsonl").unlink()
    (job / "shards/part-00000002.npy").write_bytes(b"short")
    state = open_job(job).state()
    assert state.damaged_shards == ("part-00000000", "part-00000002")
    assert state.finished_shards == 1


def test_what_is_no_job_is_refused(tmp_path: Path, compiled: CompiledBundle, job: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere' is not a job: there is no such folder\."):
        open_job(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"' is not a job: it holds no job\.json\."):
        open_job(compiled.path)
    (job / "job.json").write_text("{}")
    with pytest.raises(InputError, match=r"Cannot read '.*job\.json'"):
        open_job(job)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_nothing_is_cut_in_a_narrow_terminal(
    compiled: CompiledBundle, job: Path, run: Run, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((job / "job.json").read_text())
    manifest["inputs"]["images"] = 1_234_567_890
    (job / "job.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = re.sub(r"\x1b\[\d*m", "", run("job", job)[1])
    assert max(map(len, out.splitlines())) <= columns
    assert "7 of 1,234,567,890 done (0.0 %)" in out
    assert "3 of 3 done (100.0 %)" in out
    assert compiled.digest in "".join(out.split())
    assert str(job) in "".join(out.split())


@pytest.mark.parametrize("shard_format", list(FORMATS))
def test_a_changed_byte_is_found_repaired_and_computed_again(
    compiled: CompiledBundle, images: Path, tmp_path: Path, run: Run, shard_format: FormatName
) -> None:
    job = tmp_path / "job"
    run_job(compiled.path, [images], job, options(shard_format))
    undisturbed = content(job)
    assert run("job", job, "--verify", "--bundle", compiled.path)[0] == 0
    damaged = job / "shards" / f"part-00000001{FORMATS[shard_format].suffixes[0]}"
    flip(damaged, damaged.stat().st_size // 2)
    code, out, err = run("job", job, "--verify", "--json")
    assert code == 1
    (damage,) = json.loads(out)["damages"]
    assert damage["shard"] == "part-00000001"
    assert "SHA-256 is not the recorded one" in damage["reason"]
    assert "--repair" in err
    with pytest.raises(InputError, match=r"SHA-256 is not.*clipmlu job .*job --repair"):
        list(open_job(job).rows())
    # Resuming looks at sizes only, and repairs nothing.
    assert run_job(compiled.path, [images], job, options(shard_format)).computed_shards == 0
    assert content(job) != undisturbed
    assert run("job", job, "--repair")[0] == 1
    assert open_job(job).state().finished_shards == 2
    assert run_job(compiled.path, [images], job, options(shard_format)).computed_shards == 1
    assert content(job) == undisturbed
    assert run("job", job, "--verify")[0] == 0


def test_an_empty_folder_in_place_of_a_record_is_repaired(job: Path, compiled: CompiledBundle, images: Path) -> None:
    before = content(job)
    record = job / "records" / "part-00000001.json"
    record.unlink()
    record.mkdir()
    assert [damage.shard for damage in clipmlu.open_job(job).repair().damages] == ["part-00000001"]
    run_job(compiled.path, [images], job, options())
    assert content(job) == before


def test_verification_compares_records_with_the_input(job: Path, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(job, undisturbed)

    def reasons() -> list[tuple[str | None, str]]:
        check = open_job(job).verify()
        shutil.rmtree(job)
        shutil.copytree(undisturbed, job)
        return [(damage.shard, damage.reason) for damage in check.damages]

    records = job / "records"
    assert reasons() == []
    (records / "part-00000001.json").write_text("{")
    ((name, reason),) = reasons()
    assert name == "part-00000001"
    assert "Cannot read" in reason
    shutil.copy(records / "part-00000000.json", records / "part-00000002.json")
    ((name, reason),) = reasons()
    assert name == "part-00000002"
    assert "the record of another piece" in reason
    flip(job / "inputs.jsonl", 40)
    ((name, reason),) = reasons()
    assert name is None
    assert "'inputs.jsonl' is missing or changed" in reason
    record = json.loads((records / "part-00000000.json").read_text())
    record["rows"] = 4
    (records / "part-00000000.json").write_text(json.dumps(record))
    ((name, reason),) = reasons()
    assert name == "part-00000000"
    assert "other rows than its record says" in reason
    record["files"]["../job.json"] = record["files"].pop("part-00000000.npy")
    (records / "part-00000000.json").write_text(json.dumps(record))
    ((name, reason),) = reasons()
    assert "lists other files than those of its format" in reason


def test_another_bundle_is_named(job: Path, exported: ExportedBundle, run: Run) -> None:
    code, out, _ = run("job", job, "--verify", "--bundle", exported.path)
    assert code == 1
    assert "the job was computed with another" in out
    assert "3 of 3 finished shard(s) are intact, with 7 rows." in out


@pytest.mark.parametrize("shard_format", ["npy", "parquet"])
def test_the_npy_export_is_the_file_of_embed(
    compiled: CompiledBundle, images: Path, tmp_path: Path, run: Run, shard_format: FormatName
) -> None:
    run_job(compiled.path, [images], tmp_path / "job", options(shard_format))
    assert run("embed", compiled.path, images, "-o", tmp_path / "a.npy", "--batch-size", "3")[0] == 1
    code, _, err = run("job", tmp_path / "job", "--export", tmp_path / "b.npy")
    assert code == 0
    assert "Wrote 6 rows" in err
    assert "left out: 1 image that could not be read" in err
    assert (tmp_path / "a.ids.json").read_bytes() == (tmp_path / "b.ids.json").read_bytes()
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"), atol=1e-6)
    good = [number for number in range(len(NAMES)) if number != BROKEN]
    assert json.loads((tmp_path / "b.ids.json").read_text()) == [str(images / NAMES[number]) for number in good]


def test_the_npy_export_of_equal_batches_is_equal_to_the_byte(
    compiled: CompiledBundle, images: Path, tmp_path: Path, run: Run
) -> None:
    """Batches of another size may round differently, so both runs have the same ones: images one by one."""
    run_job(compiled.path, [images], tmp_path / "job", JobOptions(shard_size=3, shard_format="npy", batch_size=1))
    assert run("embed", compiled.path, images, "-o", tmp_path / "a.npy", "--batch-size", "1")[0] == 1
    assert run("job", tmp_path / "job", "--export", tmp_path / "b.npy")[0] == 0
    for suffix in (".npy", ".ids.json"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_exports_hold_all_rows_in_order(
    compiled: CompiledBundle, images: Path, tmp_path: Path, dtype: EmbeddingDtype
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "job"
    run_job(compiled.path, [images], folder, options("npy", dtype))
    expected = np.concatenate([np.load(path) for path in sorted((folder / "shards").glob("*.npy"))])
    ids = [str(images / name) for name in NAMES]
    job = open_job(folder)
    for suffix in (".parquet", ".csv", ".jsonl", ".npy"):
        report = job.export(tmp_path / f"all{suffix}")
        assert (report.rows, report.left_out) == ((6, 1) if suffix == ".npy" else (7, 0))
    table = parquet.read_table(tmp_path / "all.parquet")
    assert table["id"].to_pylist() == ids
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), dtype), expected)
    assert [error is not None for error in table["error"].to_pylist()] == [number == BROKEN for number in range(7)]
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [line["id"] for line in lines] == ids
    good = np.array([number for number in range(7) if number != BROKEN])
    cells = [[float(rows[number][f"e{place}"]) for place in range(expected.shape[1])] for number in good]
    np.testing.assert_array_equal(np.array(cells).astype(dtype), expected[good])
    np.testing.assert_array_equal(np.array([lines[number]["embedding"] for number in good], dtype), expected[good])
    whole = np.load(tmp_path / "all.npy")
    assert whole.dtype == dtype
    np.testing.assert_array_equal(whole, expected[good])


def test_an_unfinished_job_is_exported_only_if_asked_for(
    compiled: CompiledBundle, images: Path, tmp_path: Path, run: Run
) -> None:
    job = open_job(begin(compiled, images, tmp_path / "job"))
    target = tmp_path / "all.csv"
    with pytest.raises(InputError, match=r"is not finished: 1 of 3 shards are done\..*--partial"):
        job.export(target)
    assert not target.exists()
    code, _, err = run("job", tmp_path / "job", "--export", target, "--partial")
    assert code == 0
    assert "Wrote 3 rows" in err
    assert "2 shard(s) are not done" in err
    with pytest.raises(OutputExistsError, match="--overwrite"):
        job.export(target, partial=True)
    assert job.export(target, partial=True, overwrite=True).missing_shards == 2


def test_a_damaged_shard_is_not_exported(job: Path, tmp_path: Path) -> None:
    flip(job / "shards/part-00000002.npy")
    for suffix in (".npy", ".csv"):
        with pytest.raises(InputError, match="SHA-256"):
            open_job(job).export(tmp_path / f"all{suffix}")
    assert not list(tmp_path.glob("all*"))
    assert not list(tmp_path.glob(".clipmlu*"))
    with pytest.raises(OptionError, match=r"expected a name that ends in \.parquet"):
        open_job(job).export(tmp_path / "all.xlsx")


def test_blocks_are_the_embeddings_of_the_readable_images(job: Path, images: Path) -> None:
    blocks = list(open_job(job).blocks())
    assert [len(block.ids) for block in blocks] == [3, 2, 1]
    assert all(block.embeddings.shape[0] == len(block.ids) for block in blocks)
    assert [Path(name).name for block in blocks for name in block.ids] == [
        name for number, name in enumerate(NAMES) if number != BROKEN
    ]
    expected = np.concatenate([np.load(path) for path in sorted((job / "shards").glob("*.npy"))])
    np.testing.assert_array_equal(
        np.concatenate([block.embeddings for block in blocks]), np.delete(expected, BROKEN, axis=0)
    )


@pytest.mark.parametrize(
    "arguments", [("--partial",), ("--overwrite",), ("--bundle", "x"), ("--verify", "--export", "a.npy")]
)
def test_options_that_do_not_fit_are_refused(job: Path, run: Run, arguments: tuple[str, ...]) -> None:
    assert run("job", job, *arguments)[0] == 2


def test_without_pyarrow_nothing_begins(
    compiled: CompiledBundle, images: Path, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    message = r"Parquet needs 'pyarrow', which is not installed\..*clipmlu\[bulk\]"
    with pytest.raises(MissingDependencyError, match=message):
        run_job(compiled.path, [images], tmp_path / "new", JobOptions())
    assert not (tmp_path / "new").exists()
    with pytest.raises(MissingDependencyError, match=message):
        open_job(job).export(tmp_path / "all.parquet")
    assert open_job(job).export(tmp_path / "all.csv").rows == 7


def test_jobs_of_classes_are_verified_and_exported(
    compiled: CompiledBundle, images: Path, tmp_path: Path, run: Run
) -> None:
    job, target = tmp_path / "classes", tmp_path / "all.csv"
    command = ("classify", compiled.path, images, "--labels", "cat,dog,cat", "--top-k", "2", "-o", job)
    assert run(*command, "--shard-size", "3", "--shard-format", "jsonl")[0] == 1
    code, out, _ = run("job", job)
    assert code == 0
    assert "the best 2 of 3 classes; as jsonl" in out
    assert run("job", job, "--verify")[0] == 0
    assert run("job", job, "--export", target)[0] == 0
    with target.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with clipmlu.load(compiled.path) as model:
        for number, row in enumerate(rows):
            if number == BROKEN:
                assert row["class_1"] == row["score_2"] == ""
                continue
            (best,) = model.classifier(["cat", "dog", "cat"]).predict([images / NAMES[number]], top_k=2)
            assert [row["class_1"], row["class_2"]] == [("cat (0)", "dog", "cat (2)")[index] for index in best.indices]
            np.testing.assert_allclose([float(row["score_1"]), float(row["score_2"])], best.scores, rtol=1e-4)
    assert run("job", job, "--export", tmp_path / "all.npy")[0] == 2
    flip(next(job.glob("*classifier*")))
    code, out, _ = run("job", job, "--verify")
    assert code == 1
    assert "was changed since the job began" in out


def test_results_of_the_emulated_sdk_are_marked(job: Path, tmp_path: Path, run: Run) -> None:
    manifest = json.loads((job / "job.json").read_text())
    manifest["provenance"]["emulated"] = True
    (job / "job.json").write_text(json.dumps(manifest))
    assert "force_float32 (emulated)" in run("job", job)[1]
    assert "all.csv (emulated)" in run("job", job, "--export", tmp_path / "all.csv")[2]
    assert (tmp_path / "all.csv").read_text().splitlines()[1].split(",")[4] == "true"


def test_shards_are_read_when_they_are_needed(job: Path) -> None:
    blocks = open_job(job).blocks()
    assert len(next(blocks).ids) == 3
    flip(job / "shards/part-00000001.npy")
    with pytest.raises(InputError, match="SHA-256"):
        next(blocks)
