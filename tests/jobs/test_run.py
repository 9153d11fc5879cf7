"""Jobs: shards, records, and resuming."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipmlu
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.errors import BundleExistsError, InputError, OptionError
from clipmlu.jobs.engines.options import EngineOptions
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.run import JobStart, run_job
from clipmlu.measure.speed.load import LoadSum, PipelineLoad

GOOD = [number for number in range(7) if number != 3]
NPY = JobOptions(shard_size=3, shard_format="npy")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(7):
        write_image(folder / f"{number}.png", number)
    (folder / "3.png").write_bytes(b"no image")
    return folder


def write_image(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)).save(path)


def lines_of(job: Path) -> list[dict[str, object]]:
    paths = sorted((job / "shards").glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def content(job: Path) -> dict[str, bytes]:
    return {str(path.relative_to(job)): path.read_bytes() for path in sorted(job.rglob("*")) if path.is_file()}


def test_shards_hold_the_embeddings_of_the_images_in_order(
    compiled: CompiledBundle, images: Path, tmp_path: Path
) -> None:
    report = run_job(compiled.path, [images], tmp_path / "job", NPY)
    assert (report.images, report.errors, report.shards, report.computed_shards) == (7, 1, 3, 3)
    found = np.concatenate([np.load(path) for path in sorted((tmp_path / "job" / "shards").glob("*.npy"))])
    lines = lines_of(tmp_path / "job")
    assert [line["id"] for line in lines] == [str(images / f"{number}.png") for number in range(7)]
    assert [line["error"] is None for line in lines] == [number != 3 for number in range(7)]
    assert np.isnan(found[3]).all()
    with clipmlu.load(compiled.path) as model:
        expected = model.embed_images([images / f"{number}.png" for number in GOOD])
    np.testing.assert_allclose(found[GOOD], expected, atol=1e-6)
    (error,) = map(json.loads, (tmp_path / "job" / "errors.jsonl").read_text().splitlines())
    assert error == {"id": str(images / "3.png"), "reason": lines[3]["error"], "shard": "part-00000001"}


def test_float16_is_stored_rounded(compiled: CompiledBundle, images: Path, tmp_path: Path) -> None:
    run_job(compiled.path, [images], tmp_path / "wide", NPY)
    run_job(compiled.path, [images], tmp_path / "job", JobOptions(shard_size=3, shard_format="npy", dtype="float16"))
    for number in range(3):
        wide, narrow = (np.load(tmp_path / name / f"shards/part-{number:08d}.npy") for name in ("wide", "job"))
        assert narrow.dtype == np.float16
        np.testing.assert_array_equal(narrow, wide.astype(np.float16))


def test_only_missing_and_damaged_shards_are_computed_again(
    compiled: CompiledBundle, images: Path, tmp_path: Path
) -> None:
    job = tmp_path / "job"
    run_job(compiled.path, [images], job, NPY)
    undisturbed = content(job)
    shards, records, done = job / "shards", job / "records", list[int]()
    damages: tuple[Callable[[], object], ...] = (
        (shards / "part-00000001.npy").unlink,
        lambda: (shards / "part-00000001.jsonl").write_bytes(b"cut"),
        lambda: (records / "part-00000001.json").write_bytes(b"{"),
        (records / "part-00000001.json").unlink,
    )
    for number, damage in enumerate(damages):
        damage()
        run_job(compiled.path, [images], job, NPY, on_shard=lambda record: done.append(record.number))
        assert done == [1] * (number + 1)
        assert content(job) == undisturbed


def test_a_shard_copied_from_another_job_is_computed_again(
    compiled: CompiledBundle, images: Path, tmp_path: Path
) -> None:
    job, other = tmp_path / "job", tmp_path / "other"
    write_image(images / "0.png", 99)
    run_job(compiled.path, [images], other, NPY)
    write_image(images / "0.png", 0)
    run_job(compiled.path, [images], job, NPY)
    undisturbed = content(job)
    for path in other.rglob("part-00000000*"):
        shutil.copy(path, job / path.relative_to(other))
    assert content(job) != undisturbed
    done: list[int] = []
    run_job(compiled.path, [images], job, NPY, on_shard=lambda record: done.append(record.number))
    assert done == [0]
    assert content(job) == undisturbed


def test_fewer_shards_than_workers_are_noted(compiled: CompiledBundle, images: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    one = JobOptions(shard_size=100, shard_format="npy")
    run_job(compiled.path, [images], tmp_path / "job", one, engine=EngineOptions(processes=2), on_note=notes.append)
    assert notes == [
        "1 of 2 workers have something to do: one worker computes a shard, and the job has 1 of at most 100 images; a new job "
        "with a smaller --shard-size uses all"
    ]


def test_other_options_and_inputs_are_refused_by_name(compiled: CompiledBundle, images: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    run_job(compiled.path, [images], job, NPY)
    undisturbed = content(job)
    other = JobOptions(shard_size=3, shard_format="npy", dtype="float16", batch_size=2, fast_preprocess=True)
    with pytest.raises(OptionError) as caught:
        run_job(compiled.path, [images], job, other)
    assert str(caught.value) == (
        f"job '{job}' was begun with batch size 4, not 2; fast preprocess off, not on; dtype float32, not float16. "
        "Give the same again, choose another output, or replace the job with --overwrite"
    )
    write_image(images / "5.png", 99)
    with pytest.raises(
        OptionError, match=r"other inputs \(7 images then, 7 now; the first that was changed: '.*5\.png'\)"
    ):
        run_job(compiled.path, [images], job, NPY)
    write_image(images / "4b.png", 99)
    with pytest.raises(
        OptionError, match=r"7 images then, 8 now; the first difference: '.*/5.png' then, '.*/4b.png' now"
    ):
        run_job(compiled.path, [images], job, NPY)
    assert content(job) == undisturbed


def test_what_does_not_decide_results_may_change(compiled: CompiledBundle, images: Path, tmp_path: Path) -> None:
    run_job(compiled.path, [images], tmp_path / "job", NPY)
    other = JobOptions(shard_size=3, shard_format="npy", workers=1, threads=1, batch_size=4, overwrite=True)
    assert run_job(compiled.path, [images], tmp_path / "job", other).computed_shards == 0


def test_overwrite_replaces_a_job_and_nothing_else(compiled: CompiledBundle, images: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    run_job(compiled.path, [images], job, JobOptions(shard_size=1, shard_format="npy"))
    (job / "merged.npy").write_bytes(b"mine")
    (job / "shards" / "notes.txt").write_bytes(b"mine")
    run_job(compiled.path, [images], job, JobOptions(shard_size=3, shard_format="npy", overwrite=True))
    run_job(compiled.path, [images], tmp_path / "fresh", NPY)
    mine = {"merged.npy": b"mine", "shards/notes.txt": b"mine"}
    assert content(job) == {**content(tmp_path / "fresh"), **mine}
    with pytest.raises(BundleExistsError, match="exists and is not a job; it is not changed"):
        run_job(compiled.path, [images], images, JobOptions(overwrite=True))


def test_without_readable_images_nothing_is_left(compiled: CompiledBundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"There are no images to read: Cannot read '.*empty': it holds no images\."):
        run_job(compiled.path, [tmp_path / "empty"], tmp_path / "new" / "job", NPY)
    assert not (tmp_path / "new").exists()


def test_an_input_of_broken_images_is_an_error_and_they_are_listed(compiled: CompiledBundle, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"Not one of 1 image\(s\) could be read; see '.*errors\.jsonl'\."):
        run_job(compiled.path, [tmp_path / "broken.png"], tmp_path / "job", NPY)
    assert (tmp_path / "job" / "errors.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("fast", [False, True])
def test_sizes_are_those_of_the_files(compiled: CompiledBundle, tmp_path: Path, fast: bool) -> None:
    """Also if JPEGs are decoded at a reduced scale, by either decoder; no size of what cannot be read."""
    (tmp_path / "images").mkdir()
    sizes = {"a.jpg": (401, 300), "b.jpg": (97, 205), "c.png": (51, 33), "d.jpg": (33, 500), "e.png": None}
    for name, size in sizes.items():
        path = tmp_path / "images" / name
        if size is None:
            path.write_bytes(b"no image")
        else:
            Image.new("L" if name == "d.jpg" else "RGB", size, 99).save(path)  # Pillow decodes grey JPEGs
    options = JobOptions(shard_format="npy", fast_preprocess=fast)
    run_job(compiled.path, [tmp_path / "images"], tmp_path / "job", options)
    found = [(line["width"], line["height"]) for line in lines_of(tmp_path / "job")]
    assert found == [size or (None, None) for size in sizes.values()]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_progress_counts_the_images_of_this_run_and_says_what_limits_it(
    compiled: CompiledBundle, images: Path, tmp_path: Path, processes: int
) -> None:
    started: list[JobStart] = []
    loads: list[PipelineLoad] = []
    options = dataclasses.replace(NPY, batch_size=1)

    def run() -> None:
        engine = EngineOptions(processes=processes)
        run_job(
            compiled.path,
            [images],
            tmp_path / "job",
            options,
            engine=engine,
            on_start=started.append,
            on_load=loads.append,
        )

    run()
    (tmp_path / "job" / "records" / "part-00000001.json").unlink()
    run()
    assert started == [JobStart(7, 0, 3, 0), JobStart(7, 4, 3, 2)]
    assert sum(load.images for load in loads) == 7 + 3
    total = LoadSum()
    for load in loads:
        total.add(load)
        assert load.seconds > 0
    assert (total.describe() or "").startswith(("the CPU: ", "the host prepares: "))
