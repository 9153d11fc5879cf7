"""Images through a model: every image in its place, and those that cannot be read apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.image_graph import ImageTower
from clipmlu.errors import InputError
from clipmlu.measure.accuracy.evaluate import evaluate
from clipmlu.measure.ranking import EmbeddedImages, IndexGroup, embed_dataset, embed_groups, rank_images
from clipmlu.measure.statistics import count_changes
from clipmlu.model import load
from support import Pictures

INDICES = [9, 3, 11, 0, 4, 7, 2]
GOOD = (9, 11, 0, 4, 2)
BROKEN = frozenset({3, 7})


@pytest.fixture
def encoder(compiled: CompiledBundle) -> Iterator[Encoder]:
    with load(compiled.path) as opened:
        yield opened


def _check_rows(found: EmbeddedImages, dataset: Pictures) -> None:
    pixels = np.stack([support.preprocess(support.picture(index)) for index in found.indices])
    assert np.allclose(found.rows, support.embed_images(pixels), atol=1e-6)
    assert found.labels.tolist() == [dataset.labels[index] for index in found.indices]


def test_unreadable_images_are_listed_and_all_others_keep_their_order(encoder: Encoder) -> None:
    dataset = Pictures(12, broken=BROKEN)
    found = embed_dataset(ImageTower(encoder), dataset, INDICES, batch_size=2)
    assert found.indices == GOOD
    assert [(image.id, image.reason) for image in found.skipped] == [
        ("pictures/3", "Image '3' is broken"),
        ("pictures/7", "Image '7' is broken"),
    ]
    assert found.taken == len(INDICES)
    _check_rows(found, dataset)


def test_batches_hold_what_the_whole_holds(encoder: Encoder) -> None:
    dataset = Pictures(12, broken=BROKEN)
    groups = [IndexGroup(INDICES[:3]), IndexGroup(INDICES[3:6]), IndexGroup(INDICES[6:])]
    batches = list(embed_groups(ImageTower(encoder), dataset, groups, batch_size=3))
    assert [batch.taken for batch in batches] == [3, 3, 1]
    assert [index for batch in batches for index in batch.indices] == list(GOOD)
    assert [image.id for batch in batches for image in batch.skipped] == ["pictures/3", "pictures/7"]
    for batch in batches:
        _check_rows(batch, dataset)


def test_an_unreadable_image_is_an_error_where_none_may_be_skipped(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="Image '3' is broken"):
        embed_dataset(ImageTower(encoder), Pictures(12, broken=BROKEN), INDICES, skip_unreadable=False)


def test_ranks_are_those_of_the_similarities(encoder: Encoder) -> None:
    dataset = Pictures(9)
    classifier = encoder.classifier(dataset.class_names)
    found = embed_dataset(classifier.scorer, dataset, range(9))
    texts = support.embed_tokens(encoder.tokenizer([f"a photo of a {name}." for name in dataset.class_names]))
    ranked = rank_images(classifier, found.rows, 3)
    expected = np.argsort(-(found.rows.astype(np.float64) @ texts.astype(np.float64).T), axis=1)
    assert np.array_equal(ranked.ranked, expected[:, :3])
    assert np.array_equal(ranked.predicted, expected[:, 0])


def test_a_dataset_without_images_is_refused(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="'pictures' has no images in its split 'test'"):
        evaluate(encoder, Pictures(0))


def test_changes_are_counted_in_both_directions() -> None:
    before = np.array([True, True, True, False, False, False])
    after = np.array([True, False, False, True, False, False])
    assert count_changes(before, after) == (2, 1)
