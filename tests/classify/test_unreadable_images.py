"""Images that cannot be read: the call ends, or the reason stands at their place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.classify.results import Prediction, Predictions
from clipmlu.embed.items import ImageEmbeddings
from clipmlu.errors import InputError, OptionError
from clipmlu.model import Model, load


@pytest.fixture
def model(compiled: CompiledBundle) -> Iterator[Model]:
    with load(compiled.path) as opened:
        yield opened


def test_each_unreadable_image_keeps_its_place_in_the_predictions(model: Model, tmp_path: Path) -> None:
    classifier = model.classifier(["ant", "bee", "cat"])
    good = [support.picture(seed) for seed in range(9)]
    expected = classifier.predict(good)
    assert isinstance(expected, Predictions)
    mixed = [good[0], tmp_path / "missing.jpg", *good[1:7], b"no image", b"", *good[7:]]
    found = classifier.predict(mixed, on_error="skip")
    assert isinstance(found, Predictions)
    assert [each.error is None for each in found] == [True, False, *[True] * 6, False, False, True, True]
    read = [each for each in found if each.error is None]
    assert [each.class_names for each in read] == [each.class_names for each in expected]
    np.testing.assert_allclose([each.scores for each in read], [each.scores for each in expected], atol=1e-6)
    assert list(found.errors) == [1, 8, 9]
    assert "there is no such file" in found.errors[1]
    failed = found[1]
    assert failed.source == str(tmp_path / "missing.jpg")
    assert failed.class_names == failed.indices == failed.scores == ()
    assert failed.to_dict() == {"source": failed.source, "error": failed.error, "predictions": []}
    assert "no such file" in repr(failed)
    assert "no such file" in found._repr_html_()
    for attribute in ("class_name", "score"):
        with pytest.raises(InputError, match="no such file"):
            getattr(failed, attribute)


def test_a_single_unreadable_image_gives_one_prediction(model: Model) -> None:
    found = model.classifier(["ant", "bee"]).predict(b"no image", on_error="skip")
    assert isinstance(found, Prediction)
    assert found.error is not None
    assert "not a supported image format" in found.error


def test_embeddings_of_unreadable_images_are_nan_with_a_reason(model: Model, tmp_path: Path) -> None:
    good = [support.picture(seed) for seed in range(3)]
    reference = support.embed_images(np.stack([support.preprocess(each) for each in good]))
    found = model.embed_images([good[0], tmp_path, good[1], good[2], b"?"], on_error="skip")
    assert isinstance(found, ImageEmbeddings)
    rows, errors = found
    np.testing.assert_allclose(rows[[0, 2, 3]], reference, atol=1e-6)
    assert np.isnan(rows[[1, 4]]).all()
    assert list(errors) == [1, 4]
    assert "it is a directory" in errors[1]
    classifier = model.classifier(["ant", "bee"])
    with pytest.raises(InputError, match="Row 1 holds NaN"):
        classifier.logits(rows)
    single = model.embed_images(b"?", on_error="skip")
    assert single.rows.shape == (support.DIM,)
    assert list(single.errors) == [0]


@pytest.mark.parametrize("value", ["ignore", None, True])
def test_another_value_of_on_error_is_refused(model: Model, value: object) -> None:
    message = r"on_error is .*; expected one of raise, skip"
    with pytest.raises(OptionError, match=message):
        model.embed_images([], on_error=value)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match=message):
        model.classifier(["ant"]).predict([], on_error=value)  # type: ignore[arg-type]
