"""Which data calibration hands over: the train split through the model's own preprocessing, in full batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import support
from clipmlu.bundle import ExportedBundle
from clipmlu.compile.calibration import CalibrationOptions, CalibrationSet
from clipmlu.data.datasets import open_dataset
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.errors import InputError, OptionError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures of two classes in ``train``, and others beside it."""
    for split, first in (("train", 0), ("test", 50)):
        for number in range(7):
            place = tmp_path / "folder" / split / ("cat" if number < 3 else "red circle")
            place.mkdir(parents=True, exist_ok=True)
            support.picture(first + number).save(place / f"{number}.png")
    return tmp_path / "folder"


def options(folder: Path, **changes: int) -> CalibrationOptions:
    return CalibrationOptions(dataset=f"imagefolder:{folder}", **changes)


def test_images_are_those_of_the_train_split_each_once_then_from_the_front(
    exported: ExportedBundle, folder: Path
) -> None:
    data = CalibrationSet(exported, options(folder, samples=100))
    (source,) = data.feeds("image", 4, 100).values()
    rows = np.concatenate([np.asarray(batch) for batch in source.batches])
    assert [len(batch) for batch in source.batches] == [4, 4]  # type: ignore[arg-type]
    expected = [support.preprocess(support.picture(number)) for number in range(7)]
    found = [next(i for i, image in enumerate(expected) if np.array_equal(image, row)) for row in rows]
    assert sorted(found[:7]) == list(range(7))
    assert found[7] == found[0], "filled up from the front"
    assert data.record.samples == 7
    assert data.record.texts == 2


def test_seed_decides_the_choice(exported: ExportedBundle, folder: Path) -> None:
    def first(seed: int) -> list[object]:
        (source,) = CalibrationSet(exported, options(folder, samples=3, seed=seed)).feeds("image", 3, 1).values()
        return [np.asarray(batch).tobytes() for batch in source.batches]

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_texts_are_the_prompts_of_the_classes(exported: ExportedBundle, folder: Path) -> None:
    data = CalibrationSet(exported, options(folder))
    tokenizer = Tokenizer.load(exported.tokenizer_path, exported.manifest.tokenizer)
    prompts = tokenizer(["a photo of a cat.", "a photo of a red circle."])
    (source,) = data.feeds("text", 2, 100).values()
    np.testing.assert_array_equal(np.asarray(source.batches[0]), prompts)
    joint = data.feeds("joint", 4, 3)
    assert joint["input_ids"].repeat
    np.testing.assert_array_equal(np.asarray(joint["input_ids"].batches[0]), prompts[[0, 1, 0]])
    assert len(joint["pixel_values"].batches) == 2


def test_cifar_calibrates_with_its_train_split(exported: ExportedBundle, data_dir: Path) -> None:
    """The vendor's sample calibrates with the images that it evaluates; none of them may be in here."""
    given = CalibrationOptions(dataset="cifar100", samples=64, data_dir=data_dir / "cifar-100-python", download=False)
    data = CalibrationSet(exported, given)
    assert (data.record.split, data.record.samples, data.record.texts) == ("train", 64, 100)
    test = open_dataset("cifar100", "test", data_dir=data_dir / "cifar-100-python", download=False)
    held_out = {test.image(index).tobytes() for index in range(len(test))}
    train = data._dataset
    assert not [index for index in data._chosen if train.image(int(index)).tobytes() in held_out]


def test_what_cannot_be_is_refused(exported: ExportedBundle, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="calibration samples are 0"):
        CalibrationOptions(dataset="demo", samples=0)
    with pytest.raises(OptionError, match="calibration seed is -1"):
        CalibrationOptions(dataset="demo", seed=-1)
    with pytest.raises(InputError):
        CalibrationSet(exported, CalibrationOptions(dataset=f"imagefolder:{tmp_path / 'absent'}"))
