"""The drawn shapes: reproducible, balanced, and with pairs that the train split never shows."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.data.datasets.demo import CLASS_NAMES, COLOURS, HELD_OUT, SHAPES, DemoDataset, draw, draw_shape
from clipmlu.errors import OptionError


def _pixels(dataset: DemoDataset, index: int) -> np.ndarray:
    return np.asarray(dataset.image(index))


def test_images_are_reproducible_and_do_not_depend_on_the_size() -> None:
    small, large = DemoDataset("test", size=20, seed=3), DemoDataset("test", size=1_000_000, seed=3)
    for index in (19, 0, 7):
        assert np.array_equal(_pixels(small, index), _pixels(large, index))
        assert small.label(index) == large.label(index)
        assert small.key(index) == large.key(index)
    assert large.image(999_999).size == (96, 96)
    assert large.image(999_999).mode == "RGB"


def test_a_choice_opens_the_images_that_it_names() -> None:
    chosen = DatasetChoice(name="demo", split="train", size=5, seed=3).open()
    assert len(chosen) == 5
    assert np.array_equal(np.asarray(chosen.image(4)), _pixels(DemoDataset("train", size=5, seed=3), 4))
    with pytest.raises(OptionError, match="size is 0"):
        DatasetChoice(name="demo", size=0)


def test_seeds_and_splits_give_different_images() -> None:
    variants = [DemoDataset(split, size=3, seed=seed) for split in ("train", "test") for seed in (0, 1)]
    images = {_pixels(dataset, index).tobytes() for dataset in variants for index in range(3)}
    assert len(images) == 12
    # The same class drawn for the same place of both splits would differ too: the splits have seeds of their own.
    assert len({dataset.key(2) for dataset in variants}) == 4
    assert DemoDataset("test", size=18).key(17) == "demo/test/0/000017"


def test_held_out_pairs_are_in_the_test_split_only() -> None:
    def names(split: str) -> set[str]:
        dataset = DemoDataset(split, size=500)
        assert dataset.class_names == CLASS_NAMES
        return {dataset.class_names[dataset.label(index)] for index in range(len(dataset))}

    assert names("test") == HELD_OUT
    assert names("train") == set(CLASS_NAMES) - HELD_OUT
    assert len(HELD_OUT) == len(CLASS_NAMES) / 4


def test_every_colour_and_every_shape_is_still_seen_in_training() -> None:
    seen = [name.split() for name in CLASS_NAMES if name not in HELD_OUT]
    assert set(collections.Counter(colour for colour, _ in seen).values()) == {6}
    assert set(collections.Counter(shape for _, shape in seen).values()) == {6}
    assert {colour for colour, _ in seen} == set(COLOURS)
    assert {shape for _, shape in seen} == set(SHAPES)


def test_labels_are_balanced() -> None:
    dataset = DemoDataset("test", size=160)
    assert set(collections.Counter(dataset.label(index) for index in range(160)).values()) == {10}


@pytest.mark.parametrize("colour", COLOURS)
def test_the_colour_covers_the_shape_and_no_other_colour_does(colour: str) -> None:
    palette = np.array(list(COLOURS.values()), dtype=float)
    for number, shape in enumerate(SHAPES):
        image = np.asarray(draw(f"{colour} {shape}", seed=100 + number)).astype(float)
        distance = np.linalg.norm(image[:, :, None] - palette, axis=-1)
        close = (distance.min(axis=-1) < 45)[..., None] & (distance == distance.min(axis=-1, keepdims=True))
        covered = dict(zip(COLOURS, close.mean(axis=(0, 1)), strict=True))
        own = covered.pop(colour)
        assert own > 0.02, f"{colour} {shape}"
        assert max(covered.values()) < own / 5, f"{colour} {shape}: {covered}"


@pytest.mark.parametrize("side", [16, 64, 97])
def test_any_side_is_drawn(side: int) -> None:
    assert draw("red ring", seed=1, side=side).size == (side, side)


def test_two_classes_with_one_seed_share_their_background() -> None:
    difference = np.asarray(draw("red circle", seed=5)) != np.asarray(draw("blue circle", seed=5))
    assert 0.05 < difference.any(axis=-1).mean() < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "no split 'validation'; it has train, test"),
        ({"size": 0}, "cannot have 0 images"),
        ({"seed": -1}, "cannot have the seed -1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DemoDataset(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [-1, 10])
def test_indices_outside_are_refused(index: int) -> None:
    dataset = DemoDataset(size=10)
    for method in (dataset.image, dataset.label, dataset.key):
        with pytest.raises(IndexError, match=r"expected 0\.\.9"):
            method(index)


def test_drawing_names_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="No class 'red banana'"):
        draw("red banana", seed=0)
    with pytest.raises(ValueError, match="No shape 'banana'"):
        draw_shape("banana", (0, 0, 0), seed=0)
    with pytest.raises(ValueError, match="side 8"):
        draw("red circle", seed=0, side=8)
