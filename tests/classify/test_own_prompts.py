"""Classes with prompts of their own, against the tiny model's towers in NumPy."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas
import polars
import pytest

import clipmlu
import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.classify.classifier_file import ClassifierHeader
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.data.class_prompts import ClassLabels, resolve_labels
from clipmlu.errors import InputError, OptionError
from clipmlu.jobs.options import ClassificationOptions, JobOptions
from clipmlu.jobs.run import run_job
from clipmlu.model import Model, load

OWN: dict[str, list[str]] = {
    "ant": ["an ant.", "many small ants"],
    "bee": ["a bee"],
    "cat": ["a {} that sleeps", "a tabby", "a black {}", "{} and {}"],
}
PROMPTS = {
    "ant": ["an ant.", "many small ants"],
    "bee": ["a bee"],
    "cat": ["a cat that sleeps", "a tabby", "a black cat", "cat and cat"],
}


@pytest.fixture
def model(compiled: CompiledBundle) -> Iterator[Model]:
    with load(compiled.path) as opened:
        yield opened


def _means(model: Model, prompts: Mapping[str, Sequence[str]]) -> support.FloatArray:
    rows = [
        support.embed_tokens(model.tokenizer(list(each))).astype(np.float64).mean(axis=0) for each in prompts.values()
    ]
    return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


def _texts_computed(model: Model) -> int:
    totals = model.device_clock("text").totals()
    return totals["compute"].items if totals else 0


def test_class_embeddings_are_the_means_of_each_class_own_prompts(model: Model) -> None:
    classifier = clipmlu.pipeline(model.bundle, OWN, quiet=True)
    assert classifier.class_names == ("ant", "bee", "cat")
    assert classifier.templates == ()
    assert {name: list(prompts) for name, prompts in classifier.prompts.items()} == PROMPTS
    np.testing.assert_allclose(classifier.class_embeddings, _means(model, PROMPTS), atol=1e-6)
    assert "own prompts" in repr(classifier)
    single = model.classifier({"ant": "an ant.", "bee": "a bee"})
    np.testing.assert_allclose(
        single.class_embeddings, _means(model, {"ant": ["an ant."], "bee": ["a bee"]}), atol=1e-6
    )


def test_many_prompts_are_encoded_in_several_runs(model: Model) -> None:
    own = {f"c{number}": [f"c{number} {copy}" for copy in range(1 + number % 70)] for number in range(80)}
    np.testing.assert_allclose(model.classifier(own, cache=False).class_embeddings, _means(model, own), atol=1e-6)


def test_the_cache_knows_prompts_by_value(model: Model) -> None:
    first = model.classifier(OWN)
    computed = _texts_computed(model)
    again = model.classifier({name: tuple(prompts) for name, prompts in PROMPTS.items()})
    assert _texts_computed(model) == computed
    np.testing.assert_array_equal(first.class_embeddings, again.class_embeddings)
    assert again.prompts == first.prompts
    changed = {**PROMPTS, "bee": ["a wasp"]}
    np.testing.assert_allclose(model.classifier(changed).class_embeddings, _means(model, changed), atol=1e-6)
    turned = dict(reversed(PROMPTS.items()))
    assert model.classifier(turned).class_names == ("cat", "bee", "ant")
    np.testing.assert_allclose(model.classifier(turned).class_embeddings, _means(model, turned), atol=1e-6)
    assert model.classifier(["ant", "bee", "cat"]).prompts == {}
    with_templates = {name: [f"a photo of a {name}."] for name in OWN}
    np.testing.assert_allclose(
        model.classifier(["ant", "bee", "cat"]).class_embeddings, _means(model, with_templates), atol=1e-6
    )


def test_classifier_files_and_copies_keep_the_prompts(model: Model, tmp_path: Path) -> None:
    classifier = model.classifier(OWN)
    classifier.save(tmp_path / "own.clf")
    for copy in (
        model.load_classifier(tmp_path / "own.clf"),
        pickle.loads(pickle.dumps(classifier)),
        classifier.detach().attach(model),
    ):
        assert copy.prompts == classifier.prompts
        np.testing.assert_array_equal(copy.class_embeddings, classifier.class_embeddings)
    header = classifier.detach().header
    assert header.schema_version == 2
    assert model.classifier(["ant"]).detach().header.schema_version == 1


def test_a_classifier_file_whose_prompts_are_of_other_classes_is_damaged(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = model.classifier(OWN)
    for prompts in ({"ant": ("x",)}, {"ant": (), "bee": ("x",), "cat": ("y",)}):
        monkeypatch.setattr(classifier, "_header", classifier.detach().header.with_prompts(prompts))
        classifier.save(tmp_path / "own.clf", overwrite=True)
        with pytest.raises(InputError, match="damaged: it does not have prompts for each class"):
            model.load_classifier(tmp_path / "own.clf")
    assert isinstance(classifier.detach().header, ClassifierHeader)


def test_background_classes_take_the_templates(model: Model) -> None:
    classifier = model.classifier(OWN, ["one {}", "{}"], none_label="none", background=["sky"])
    expected = _means(model, {**PROMPTS, "sky": ["one sky", "sky"]})
    np.testing.assert_allclose(classifier.scorer.class_embeddings, expected, atol=1e-6)


def test_the_fused_graph_takes_one_prompt_for_each_class(tmp_path: Path) -> None:
    source = support.write_exported(tmp_path / "joint", layout="joint")
    bundle = compile_bundle(source, tmp_path / "compiled", CompileOptions(target="cpu", batch_size=3, max_batch=3))
    own = {"ant": "an ant.", "bee": ["a bee"], "cat": "a tabby"}
    with load(bundle.path) as model:
        classifier = model.classifier(own)
        pixels = np.stack([support.preprocess(support.picture(number)) for number in range(3)])
        expected = support.joint_logits(pixels, model.tokenizer(["an ant.", "a bee", "a tabby"]), None)
        np.testing.assert_allclose(classifier.logits(classifier.scorer.submit(pixels).result()), expected, atol=1e-4)
        with pytest.raises(
            OptionError, match=r"The 2 prompts of class 'ant' need the mean .* give one prompt for each"
        ):
            model.classifier(OWN)


@pytest.mark.parametrize("layout", ["towers", "joint"])
def test_jobs_classify_with_own_prompts_and_resume_with_equal_ones_only(tmp_path: Path, layout: str) -> None:
    source = support.write_exported(tmp_path / "source", layout=layout)  # type: ignore[arg-type]
    bundle = compile_bundle(source, tmp_path / "compiled", CompileOptions(target="cpu", batch_size=3, max_batch=3))
    images = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(images):
        support.picture(number).save(path)
    own = {"bee": "a bee", "ant": ["an ant."]}

    def options(prompts: Mapping[str, str | list[str]]) -> JobOptions:
        return JobOptions(shard_format="npy", classification=ClassificationOptions(class_names=prompts, top_k=2))

    run_job(bundle.path, images, tmp_path / "job", options(own))
    lines = [
        json.loads(line) for path in (tmp_path / "job/shards").glob("*.jsonl") for line in path.read_text().splitlines()
    ]
    with load(bundle.path) as model:
        pixels = np.stack([support.preprocess(support.picture(number)) for number in range(3)])
        texts = support.embed_tokens(model.tokenizer(["a bee", "an ant."]))
    logits = support.LOGIT_SCALE * support.embed_images(pixels).astype(np.float64) @ texts.T
    for line, row in zip(lines, logits, strict=True):
        assert line["classes"] == [("bee", "ant")[index] for index in np.argsort(-row)]
    equal = {"bee": ["a bee"], "ant": "an ant."}
    report = clipmlu.classify_images(bundle.path, images, tmp_path / "job", equal, shard_format="npy", top_k=2)
    assert report.computed_shards == 0
    with pytest.raises(OptionError, match="was begun with prompts"):
        run_job(bundle.path, images, tmp_path / "job", options({"bee": "a wasp", "ant": "an ant."}))


LABELS: dict[str, ClassLabels] = {
    "list": ["ant", "bee", "cat"],
    "tuple": ("ant", "bee", "cat"),
    "text": "ant, bee,cat",
    "generator": (name for name in ("ant", "bee", "cat")),
    "names with positions": {"cat": 2, "ant": 0, "bee": 1},
    "positions with names": {2: "cat", 0: "ant", 1: "bee"},
    "array": np.array(["ant", "bee", "cat"]),
    "array of objects": np.array(["ant", "bee", "cat"], object),
    "pandas": pandas.Series(["ant", "bee", "cat"], index=[5, 3, 4]),
    "pandas: categories": pandas.Series(["ant", "bee", "cat"], dtype="category"),
    "pandas: index": pandas.Index(["ant", "bee", "cat"]),
    "polars": polars.Series(["ant", "bee", "cat"]),
    "keys": dict.fromkeys(["ant", "bee", "cat"]).keys(),
}


@pytest.mark.parametrize("form", LABELS)
def test_class_names_come_in_many_forms(form: str) -> None:
    names = resolve_labels(LABELS[form])
    assert names == ("ant", "bee", "cat")
    assert {type(name) for name in names} <= {str}


def test_labels_that_were_resolved_stay_what_they_are() -> None:
    own = resolve_labels(OWN)
    assert resolve_labels(own) == own
