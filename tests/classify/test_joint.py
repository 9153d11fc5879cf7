"""Classifying with the fused graph, against the tiny model's arithmetic in NumPy and against its two towers."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import support
from clipmlu.backends import SessionOptions
from clipmlu.backends.onnxruntime import OnnxRuntimeSession
from clipmlu.bundle.directory import CompiledBundle, open_exported
from clipmlu.classify.classifier import ZeroShotClassifier
from clipmlu.classify.scoring import JointScorer
from clipmlu.compile.checks import Thresholds, check_agreement
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.errors import BundleError, GateError, OptionError, ShapeError
from clipmlu.model import Model, load
from clipmlu.specs import MluBuild, Precision

NAMES = [f"thing {number}" for number in range(7)]
TEMPLATE = "a photo of a {}."

Fused = Callable[..., CompiledBundle]


@pytest.fixture
def fused(tmp_path: Path) -> Fused:
    """``fused(bias=None, **options)``: the tiny model with the joint layout, compiled."""

    def compile_it(bias: float | None = None, **options: Any) -> CompiledBundle:
        path = tmp_path / "joint"
        source = open_exported(path) if path.exists() else support.write_exported(path, logit_bias=bias, layout="joint")
        return compile_bundle(source, tmp_path / "compiled", CompileOptions(**options))

    return compile_it


def _expected(classifier: ZeroShotClassifier, images: int, bias: float | None = None) -> np.ndarray[Any, Any]:
    pixels = np.stack([support.preprocess(support.picture(number)) for number in range(images)])
    prompts = [TEMPLATE.format(name) for name in classifier.class_names]
    return support.joint_logits(pixels, classifier.encoder.tokenizer(prompts), bias)


SHAPES = {
    "any number": {"target": "cpu", "batch_size": 3, "max_batch": 3},
    "static": {"target": "cpu", "batch_size": 3, "dynamic_shape": False},
    "pixels": {"target": "cpu", "batch_size": 3, "max_batch": 3, "uint8_input": True},
    "pieces": {"target": "emulated-mlu", "batch_size": 3, "max_batch": 3, "mlu": MluBuild(text_rows=3)},
    "padded": {"target": "emulated-mlu", "batch_size": 3, "dynamic_shape": False, "mlu": MluBuild(text_rows=9)},
}


@pytest.mark.parametrize("bias", [None, -8.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_those_of_all_classes_together_however_the_texts_are_cut(
    fused: Fused, shape: str, bias: float | None
) -> None:
    bundle = fused(bias, **SHAPES[shape])
    with load(bundle.path) as encoder:
        classifier = encoder.classifier(NAMES, TEMPLATE)
        predictions = classifier.predict([support.picture(number) for number in range(7)], top_k=4)
    logits = _expected(classifier, 7, bias)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) if bias is None else 1 / (1 + np.exp(-logits))
    for prediction, row in zip(predictions, scores, strict=True):
        best = np.argsort(-row)[:4]
        assert prediction.indices == tuple(best)
        np.testing.assert_allclose(prediction.scores, row[best], rtol=1e-4)
        assert prediction.class_names == tuple(NAMES[index] for index in best)


def test_more_classes_than_a_piece_where_any_number_of_texts_is_taken(fused: Fused) -> None:
    names = [f"thing {number}" for number in range(230)]  # pieces of 100, 100 and 30
    with load(fused(target="cpu").path) as encoder:
        classifier = encoder.classifier(names, TEMPLATE)
        prediction = classifier.predict(support.picture(0), top_k=230)
    logits = _expected(classifier, 1)[0]
    found = np.empty(230)
    found[list(prediction.indices)] = np.log(prediction.scores)  # type: ignore[union-attr]
    np.testing.assert_allclose(found - found[0], logits - logits[0], atol=1e-4)


def test_equal_prompts_are_run_once_and_the_first_of_equal_classes_comes_first(fused: Fused) -> None:
    with load(fused(target="cpu").path) as encoder:
        scorer = encoder.classifier(NAMES, TEMPLATE).scorer
        pixels = support.preprocess(support.picture(0))[None]
        alone = scorer.submit(pixels).result()
        twice = JointScorer(encoder, [*NAMES, *NAMES], [TEMPLATE]).submit(pixels).result()
    np.testing.assert_array_equal(twice, np.concatenate([alone, alone], axis=1))


def test_several_templates_are_refused_with_the_next_step(fused: Fused) -> None:
    with (
        load(fused(target="cpu").path) as encoder,
        pytest.raises(OptionError, match=r"2 templates .* mean .* one template"),
    ):
        encoder.classifier(NAMES, [TEMPLATE, "a drawing of a {}."])


def test_embeddings_and_classifier_files_are_refused_with_the_next_step(fused: Fused, tmp_path: Path) -> None:
    advice = "without '--layout joint'"
    with load(fused(target="cpu").path) as encoder:
        classifier = encoder.classifier(NAMES)
        calls: list[Callable[[], object]] = [
            lambda: encoder.embed_images([support.picture(0)]),
            lambda: encoder.embed_images([]),
            lambda: encoder.embed_texts("a cat"),
            lambda: encoder.embed_texts([]),
            lambda: encoder.encode_images(np.zeros((0, 3, support.SIDE, support.SIDE), np.float32)),
            lambda: encoder.load_classifier(tmp_path / "absent.clf"),
            lambda: classifier.save(tmp_path / "x.clf"),
            lambda: classifier.class_embeddings,
        ]
        for call in calls:
            with pytest.raises(BundleError, match=advice):
                call()
    assert not (tmp_path / "x.clf").exists()


def test_classifier_is_pickled_by_the_bundles_path(fused: Fused) -> None:
    with load(fused(target="cpu").path) as encoder:
        classifier = encoder.classifier(NAMES)
        again = pickle.loads(pickle.dumps(classifier))
        picture = support.picture(3)
        with again.encoder:
            assert again.predict(picture) == classifier.predict(picture)


def test_two_towers_take_no_pairs(compiled: CompiledBundle) -> None:
    with load(compiled.path) as encoder, pytest.raises(BundleError, match="no fused graph"):
        encoder.submit_pairs(np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, support.CONTEXT), np.int64))


def test_batches_and_texts_that_do_not_fit_are_refused(fused: Fused) -> None:
    bundle = fused(target="emulated-mlu", batch_size=2, max_batch=2, mlu=MluBuild(text_rows=3))
    pixels = np.zeros((3, 3, support.SIDE, support.SIDE), np.float32)
    ids = np.zeros((4, support.CONTEXT), np.int64)
    with load(bundle.path) as encoder:
        with pytest.raises(ShapeError, match=r"Batch of 3 is outside 1\.\.2"):
            encoder.submit_pairs(pixels, ids[:3])
        with pytest.raises(ShapeError, match=r"4 texts.* exactly 3"):
            encoder.submit_pairs(pixels[:2], ids)


def test_static_texts_are_as_many_as_a_build_for_cards_has_in_every_mode(fused: Fused) -> None:
    for precision in (Precision.FORCE_FLOAT32, Precision.FORCE_FLOAT16):
        bundle = fused(target="cpu", batch_size=2, dynamic_shape=False, precision=precision, overwrite=True)
        assert [tensor.shape[0] for tensor in bundle.tower("joint").inputs] == [2, 100]
        assert bundle.tower("joint").outputs[0].shape == (2, 100)


@pytest.mark.parametrize("floor", [None, 0.9])
def test_a_compiled_graph_that_chooses_other_classes_is_refused(tmp_path: Path, floor: float | None) -> None:
    """The tolerance of the logits alone would let it pass; a trained model's own threshold and a given one do not."""
    source = support.write_exported(tmp_path / "joint", layout="joint")
    if floor is None:
        support.edit_manifest(source.path, model={"name": "tiny"})
    other = compile_bundle(source.path, tmp_path / "good", CompileOptions(target="cpu"))
    assert other.compilation.agreement == 1.0
    turned = support.write_exported(tmp_path / "turned", seed=1, layout="joint")
    session = OnnxRuntimeSession(
        turned.tower("joint"), turned.tower_path("joint"), "turned", SessionOptions(busy_wait=False)
    )
    with pytest.raises(GateError, match=r"same class .* for 0\.\d+ of the checked images; required:"):
        check_agreement(
            open_exported(source.path),
            other,
            lambda _name: session,
            {"joint": Precision.QINT8_MIXED_FLOAT16},
            None,
            Thresholds(min_cosine=-1.0, min_agreement=floor),
        )


@pytest.mark.parametrize(
    ("shape", "share", "rest"),
    [
        # 144 multiply-accumulates for an image, none for a text: the tiny text tower only looks up and adds.
        ("any number", "all 7 texts are", "3 images, 0.0% of the arithmetic; two towers would take 100.0% of it"),
        (
            "static",
            "all 100 texts (93 of them padding) are",
            "3 images, 0.0% of the arithmetic; two towers would take 100.0%",
        ),
        (
            "pieces",
            "all 9 texts (2 of them padding), in 3 runs of the graph, are",
            "3 images, 0.0% of the arithmetic; two towers would take 33.3%",
        ),
    ],
)
def test_cost_is_counted_of_what_really_runs(fused: Fused, shape: str, share: str, rest: str) -> None:
    with load(fused(**SHAPES[shape]).path) as encoder:
        assert encoder.bundle.compilation.row_macs == {"pixel_values": 144, "input_ids": 0}
        found = encoder.classifier(NAMES).scorer.describe_cost(3)
    assert found is not None
    assert share in found
    assert rest in found
    assert "without '--layout joint'" in found


def test_cost_of_texts_and_images_adds_up(fused: Fused, tmp_path: Path) -> None:
    macs = {"pixel_values": 300, "input_ids": 50}
    bundle = support.with_compilation(fused(target="cpu"), tmp_path / "costly", row_macs=macs)
    with Model(bundle) as encoder:
        found = encoder.classifier([f"thing {number}" for number in range(130)]).scorer.describe_cost(8)
    # Two runs with 8 images each, 100 and 30 texts: 4800 + 6500; two towers take 2400.
    assert found is not None
    assert "57.5% of the arithmetic; two towers would take 21.2% of it" in found


def test_two_towers_cost_nothing_that_could_be_saved(compiled: CompiledBundle) -> None:
    with load(compiled.path) as encoder:
        assert encoder.classifier(NAMES).scorer.describe_cost(8) is None
