"""Jobs that classify: classes and scores equal those of NumPy, and all workers use the stored class embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipmlu
import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.errors import OptionError
from clipmlu.jobs.options import ClassificationOptions, JobOptions
from clipmlu.jobs.run import run_job

NAMES = [f"thing {number}" for number in range(7)]
TEMPLATES = ["a photo of a {}.", "one {}."]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{number}.png" for number in range(8)]
    for number, path in enumerate(paths):
        support.picture(number).save(path)
    paths[2].write_bytes(b"no image")
    return paths


def options(**given: Any) -> JobOptions:
    classification = ClassificationOptions(**{"class_names": NAMES, "templates": TEMPLATES, "top_k": 3, **given})
    return JobOptions(shard_size=5, shard_format="npy", classification=classification)


def lines_of(job: Path) -> list[dict[str, Any]]:
    paths = sorted((job / "shards").glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def check_classes(
    lines: list[dict[str, Any]], embeddings: Any, class_embeddings: Any, scale: float, *, top_k: int = 3
) -> None:
    """Compare with softmax and sorting in float64."""
    logits = scale * embeddings.astype(np.float64) @ class_embeddings.astype(np.float64).T
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    for line, row in zip(lines, scores, strict=True):
        best = np.argsort(-row, kind="stable")[:top_k]
        assert line["classes"] == [NAMES[index] for index in best]
        np.testing.assert_allclose(line["scores"], row[best], rtol=1e-4)


@pytest.mark.parametrize("embeddings", [False, True])
def test_rows_hold_the_best_classes(
    compiled: CompiledBundle, images: list[Path], tmp_path: Path, embeddings: bool
) -> None:
    job = tmp_path / "job"
    run_job(compiled.path, images, job, options(embeddings=embeddings))
    lines = lines_of(job)
    assert [line["error"] is None for line in lines] == [number != 2 for number in range(8)]
    good = [number for number in range(8) if number != 2]
    with clipmlu.load(compiled.path) as model:
        expected = model.embed_images([images[number] for number in good])
        class_embeddings = model.classifier(NAMES, TEMPLATES, cache=False).class_embeddings
    check_classes([lines[number] for number in good], expected, class_embeddings, support.LOGIT_SCALE)
    stored = np.concatenate([np.load(path) for path in sorted((job / "shards").glob("*.npy"))])
    if embeddings:
        np.testing.assert_allclose(stored[good], expected, atol=1e-6)
    else:
        assert stored.shape == (8, 0)


def test_classifier_file_gives_the_same_rows_without_the_text_tower(
    compiled: CompiledBundle, images: list[Path], tmp_path: Path
) -> None:
    run_job(compiled.path, images, tmp_path / "names", options())
    file = tmp_path / "names" / "classifier.clf"
    for path in compiled.path.glob("text*"):
        path.unlink()
    given = ClassificationOptions(classifier=file, top_k=3)
    run_job(
        compiled.path, images, tmp_path / "file", JobOptions(shard_size=5, shard_format="npy", classification=given)
    )
    assert lines_of(tmp_path / "file") == lines_of(tmp_path / "names")


def test_job_resumes_with_the_stored_class_embeddings(
    compiled: CompiledBundle, images: list[Path], tmp_path: Path
) -> None:
    job = tmp_path / "job"
    run_job(compiled.path, images, job, options())
    undisturbed = lines_of(job)
    for path in compiled.path.glob("text*"):
        path.unlink()  # nothing is left to compute them with
    (job / "records" / "part-00000001.json").unlink()
    assert run_job(compiled.path, images, job, options()).computed_shards == 1
    assert lines_of(job) == undisturbed


def test_other_classes_are_refused(compiled: CompiledBundle, images: list[Path], tmp_path: Path) -> None:
    run_job(compiled.path, images, tmp_path / "job", options())
    for given, message in (
        (
            {"class_names": "a,b,c,d"},
            "was begun with other labels. Give",
        ),
        ({"templates": "a {}"}, "was begun with templates a photo of a {}., one {}., not a {}. Give"),
        ({"top_k": 2}, "was begun with top k 3, not 2. Give"),
        ({"embeddings": True}, "was begun with embedding size none, not 12. Give"),
    ):
        with pytest.raises(OptionError) as caught:
            run_job(compiled.path, images, tmp_path / "job", options(**given))
        assert message in str(caught.value)


def test_embedding_job_after_a_classifying_one_keeps_no_classifier(
    compiled: CompiledBundle, images: list[Path], tmp_path: Path
) -> None:
    run_job(compiled.path, images, tmp_path / "job", options())
    run_job(compiled.path, images, tmp_path / "job", JobOptions(shard_format="npy", overwrite=True))
    assert not (tmp_path / "job" / "classifier.clf").exists()


def test_joint_layout_gives_the_classes_of_two_towers(
    compiled: CompiledBundle, images: list[Path], tmp_path: Path
) -> None:
    source = support.write_exported(tmp_path / "joint", layout="joint")
    joint = compile_bundle(source, tmp_path / "joint-cpu", CompileOptions(target="cpu", batch_size=4, max_batch=8))
    one = options(templates="a photo of a {}.")
    run_job(compiled.path, images, tmp_path / "towers-job", one)
    run_job(joint.path, images, tmp_path / "joint-job", one)
    for towers, fused in zip(lines_of(tmp_path / "towers-job"), lines_of(tmp_path / "joint-job"), strict=True):
        assert (towers["id"], towers["error"]) == (fused["id"], fused["error"])
        if towers["error"] is None:
            assert towers["classes"] == fused["classes"]
            np.testing.assert_allclose(towers["scores"], fused["scores"], rtol=1e-4)
    with pytest.raises(OptionError, match=r"embeddings cannot be stored: bundle '.*' has the layout 'joint'"):
        run_job(joint.path, images, tmp_path / "no", options(templates="a {}", embeddings=True))
    with pytest.raises(OptionError, match="2 templates need the mean of their text embeddings"):
        run_job(joint.path, images, tmp_path / "no", options())
    assert not (tmp_path / "no").exists()
