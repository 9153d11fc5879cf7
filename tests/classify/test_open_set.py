"""Images of none of the classes: probabilities, ranks and rejections against NumPy in float64."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.classify.classifier_file import read_classifier
from clipmlu.classify.open_set import DEFAULT_BACKGROUND, DEFAULT_NONE_LABEL
from clipmlu.classify.results import Prediction, Predictions
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.errors import InputError, OptionError
from clipmlu.model import Model, load

NAMES = ("ant", "bee", "cat", "dog")
BACKGROUND = ("person", "sky", "food")
IMAGES = 40


@pytest.fixture
def model(compiled: CompiledBundle) -> Iterator[Model]:
    with load(compiled.path) as opened:
        yield opened


def _logits(model: Model, names: tuple[str, ...], bias: float = 0.0) -> np.ndarray:
    pixels = np.stack([support.preprocess(support.picture(seed)) for seed in range(IMAGES)])
    texts = support.embed_tokens(model.tokenizer([f"a photo of a {name}." for name in names])).astype(np.float64)
    return support.LOGIT_SCALE * support.embed_images(pixels).astype(np.float64) @ texts.T + bias


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _pictures() -> list[Any]:
    return [support.picture(seed) for seed in range(IMAGES)]


@pytest.mark.parametrize("threshold", [None, 0.35])
def test_background_competes_in_the_softmax(model: Model, threshold: float | None) -> None:
    classifier = model.classifier(NAMES, none_label="other", background=BACKGROUND, reject_below=threshold)
    found = classifier.predict(_pictures(), top_k=9)
    assert isinstance(found, Predictions)
    shares = _softmax(_logits(model, NAMES + BACKGROUND))
    none = shares[:, 4:].sum(axis=1)
    best = shares[:, :4].max(axis=1)
    rejected = (none > best) | (best < (threshold or 0.0))
    assert [each.rejected for each in found] == rejected.tolist()
    assert 0 < rejected.sum() < IMAGES, "the test needs images of both kinds"
    for prediction, row, share, is_none in zip(found, shares, none, rejected, strict=True):
        outcomes = [*row[:4], share]
        order = sorted(range(5), key=lambda index: (not (is_none and index == 4), -outcomes[index]))
        assert list(prediction.indices) == order
        assert prediction.class_names == tuple((*NAMES, "other")[index] for index in order)
        np.testing.assert_allclose(prediction.scores, [outcomes[index] for index in order], atol=1e-5)
        assert sum(prediction.scores) == pytest.approx(1.0, abs=1e-5)
        assert (prediction.class_name == "other") is prediction.rejected


def test_threshold_alone_rejects_without_changing_any_other_result(model: Model) -> None:
    closed = model.classifier(NAMES).predict(_pictures(), top_k=3)
    opened = model.classifier(NAMES, reject_below=0.5).predict(_pictures(), top_k=3)
    best = _softmax(_logits(model, NAMES)).max(axis=1)
    assert [each.rejected for each in opened] == (best < 0.5).tolist()  # type: ignore[union-attr]
    assert 0 < (best < 0.5).sum() < IMAGES
    for before, after in zip(closed, opened, strict=True):  # type: ignore[arg-type]
        if not after.rejected:
            assert after == before
        else:
            assert after.class_names == (DEFAULT_NONE_LABEL, *before.class_names[:2])
            assert after.indices == (4, *before.indices[:2])
            assert after.scores[1:] == before.scores[:2]
            assert after.score == pytest.approx(1 - before.score)
            assert after.to_dict()["rejected"] is True


def test_model_with_a_bias_has_the_threshold_alone(tmp_path: Path) -> None:
    exported = support.write_exported(tmp_path / "siglip", logit_bias=-3.0)
    compiled = compile_bundle(exported, tmp_path / "siglip-cpu", CompileOptions(target="cpu"))
    with load(compiled.path) as model:
        found = model.classifier(("ant",), reject_below=0.3).predict(_pictures())
        best = 1 / (1 + np.exp(-_logits(model, ("ant",), -3.0)))[:, 0]
        assert [each.rejected for each in found] == (best < 0.3).tolist()  # type: ignore[union-attr]
        assert 0 < (best < 0.3).sum() < IMAGES
        with pytest.raises(OptionError, match=r"give reject_below .* logit bias"):
            model.classifier(NAMES, none_label="other")
        with pytest.raises(OptionError, match=r"background is \('sky',\), but this model has a logit bias"):
            model.classifier(NAMES, background=("sky",), reject_below=0.3)


def test_joint_layout_ranks_alike(model: Model, tmp_path: Path) -> None:
    exported = support.write_exported(tmp_path / "joint", layout="joint")
    compiled = compile_bundle(exported, tmp_path / "joint-cpu", CompileOptions(target="cpu"))
    rules: dict[str, Any] = {"none_label": "other", "background": BACKGROUND, "reject_below": 0.3}
    expected = model.classifier(NAMES, **rules).predict(_pictures())
    with load(compiled.path) as joint:
        found = joint.classifier(NAMES, **rules).predict(_pictures())
    assert [each.indices for each in found] == [each.indices for each in expected]  # type: ignore[union-attr]


def test_default_background_leaves_out_the_classes(model: Model) -> None:
    classifier = model.classifier(("person", "cat"), none_label="other")
    assert classifier.open_set is not None
    assert classifier.open_set.background == tuple(name for name in DEFAULT_BACKGROUND if name != "person")
    assert classifier.class_embeddings.shape == (2, support.DIM)
    assert classifier.outcomes == ("person", "cat", "other")


def test_no_warning_that_a_single_class_is_always_right(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    model.classifier(["only one"], none_label="other").predict(support.picture(0))
    assert not caplog.messages


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reject_below": 1.5}, r"reject below is 1\.5; expected .*1"),
        ({"reject_below": "0.3"}, r"reject below is '0\.3'; expected a number"),
        ({"none_label": "ant"}, "none label is 'ant', which is also a class; choose another name"),
        ({"none_label": " "}, "none label is ' '; expected a name"),
        ({"none_label": 3}, "none label is 3; expected a text"),
        ({"background": ["sky", "Ant"]}, "background has 'Ant', which is also a class; leave it out"),
        ({"background": [""]}, "background has ''; expected a name"),
        ({"background": [3]}, r"background\[0\] is 3; expected a text"),
        ({"none_label": "x", "background": []}, "none label is 'x' without a rule: give reject_below"),
    ],
)
def test_wrong_rules_are_refused(model: Model, given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        model.classifier(NAMES, **given)


def test_file_keeps_the_rules_and_an_ordinary_file_has_none(model: Model, tmp_path: Path) -> None:
    opened = model.classifier(NAMES, none_label="other", background=BACKGROUND, reject_below=0.4)
    opened.save(tmp_path / "open.clf")
    again = model.load_classifier(tmp_path / "open.clf")
    assert again.open_set == opened.open_set
    assert again.predict(_pictures()) == opened.predict(_pictures())
    model.classifier(NAMES).save(tmp_path / "closed.clf")
    with np.load(tmp_path / "closed.clf") as archive:
        header = json.loads(archive["header"].tobytes())
    assert header["schema_version"] == 1, "earlier versions read it"
    assert "open_set" not in header
    with np.load(tmp_path / "open.clf") as archive:
        header, rows = json.loads(archive["header"].tobytes()), archive["class_embeddings"]
        header["open_set"]["background"].pop()
        with (tmp_path / "damaged.clf").open("wb") as stream:
            np.savez(stream, header=np.frombuffer(json.dumps(header).encode(), np.uint8), class_embeddings=rows)
    assert header["schema_version"] == 2
    with pytest.raises(InputError, match="for 6 classes"):
        read_classifier(tmp_path / "damaged.clf")


def test_the_cache_tells_rules_apart(model: Model) -> None:
    """The second call reads the file that the first one wrote, unless the rules differ."""
    for rules in (
        {"none_label": "a"},
        {"none_label": "b"},
        {"none_label": "b", "reject_below": 0.2},
        {},
        {"none_label": "a"},
    ):
        classifier = model.classifier(NAMES, **rules)  # type: ignore[arg-type]
        label = None if classifier.open_set is None else classifier.open_set.none_label
        assert label == rules.get("none_label")
        assert (None if classifier.open_set is None else classifier.open_set.reject_below) == rules.get("reject_below")


def test_the_rules_of_a_classifier_can_be_changed(model: Model) -> None:
    opened = model.classifier(NAMES, none_label="other", background=BACKGROUND)
    expected = model.classifier(NAMES, none_label="none", background=BACKGROUND, reject_below=0.6)
    changed = opened.rejecting(none_label="none", reject_below=0.6)
    assert changed.open_set == expected.open_set
    assert changed.predict(_pictures()) == expected.predict(_pictures())
    closed = model.classifier(NAMES)
    assert closed.rejecting() is closed
    assert closed.rejecting(reject_below=0.5).predict(_pictures()) == model.classifier(NAMES, reject_below=0.5).predict(
        _pictures()
    )
    with pytest.raises(OptionError, match="none label is 'other' without a rule"):
        closed.rejecting(none_label="other")


def test_many_classes_are_ranked_alike(model: Model) -> None:
    """More classes than are sorted whole."""
    names = tuple(f"class {number}" for number in range(600))
    classifier = model.classifier(names, none_label="other", background=BACKGROUND, reject_below=0.004)
    found = classifier.predict(_pictures()[:8], top_k=3)
    shares = _softmax(_logits(model, names + BACKGROUND))[:8]
    for prediction, row in zip(found, shares, strict=True):  # type: ignore[arg-type]
        assert isinstance(prediction, Prediction)
        outcomes = np.array([*row[:600], row[600:].sum()])
        if row[:600].max() < 0.004:
            outcomes[600] = 2.0
        assert prediction.rejected == (int(outcomes.argmax()) == 600)
        assert prediction.indices[0] == int(outcomes.argmax())
