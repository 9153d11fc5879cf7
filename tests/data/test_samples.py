"""Pictures and labels to try the commands with."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from clipmlu.data.datasets.samples import write_samples
from clipmlu.data.pairs.reading import PairChoice
from clipmlu.errors import OutputExistsError


def test_each_picture_is_named_in_the_list(tmp_path: Path) -> None:
    photos, labels = write_samples(tmp_path)
    names = labels.read_text().splitlines()
    assert len(set(names)) == 10
    assert {path.stem.replace("-", " ") for path in photos.iterdir()} == set(names)
    for path in photos.iterdir():
        with Image.open(path) as picture:
            assert picture.convert("RGB").getextrema() != ((0, 0), (0, 0), (0, 0))
    assert len({path.read_bytes() for path in photos.iterdir()}) == 10


def test_each_picture_has_two_captions_with_its_name(tmp_path: Path) -> None:
    photos, _labels = write_samples(tmp_path)
    found = PairChoice(paths=(tmp_path / "captions.csv",)).open()
    assert {image.load() for image in found.images} == set(photos.iterdir())
    for image in found.images:
        name = Path(image.name).stem.replace("-", " ")
        assert image.texts == (f"a {name}", f"a drawing of a {name}")


def test_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("mine\n")
    with pytest.raises(OutputExistsError, match=r"labels\.txt"):
        write_samples(tmp_path)
    assert (tmp_path / "labels.txt").read_text() == "mine\n"
    assert not (tmp_path / "photos").exists()


def test_samples_are_replaced_on_request_and_other_files_stay(tmp_path: Path) -> None:
    photos, labels = write_samples(tmp_path)
    expected = labels.read_bytes()
    labels.write_text("mine\n")
    (photos / "mine.png").write_bytes(b"x")
    assert write_samples(tmp_path, overwrite=True) == (photos, labels)
    assert labels.read_bytes() == expected
    assert (photos / "mine.png").read_bytes() == b"x"
