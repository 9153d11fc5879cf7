"""A folder of images per class."""

from __future__ import annotations

from pathlib import Path

import pytest

import support
from clipmlu.data.datasets import open_dataset
from clipmlu.errors import InputError


def _fill(root: Path) -> None:
    for folder, names in {"b_cat": ["2.png", "1.PNG"], "a_dog": ["sub/x.png"], ".hidden": ["y.png"]}.items():
        for name in names:
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            support.picture(0).save(path)
    (root / "b_cat" / "notes.txt").write_text("x")


def test_sorted_sub_folders_are_the_classes(tmp_path: Path) -> None:
    _fill(tmp_path)
    dataset = open_dataset(f"imagefolder:{tmp_path}")
    assert dataset.class_names == ("a dog", "b cat")
    assert dataset.original_names == ("a_dog", "b_cat")
    assert [(dataset.key(index), dataset.label(index)) for index in range(len(dataset))] == [
        ("a_dog/sub/x.png", 0),
        ("b_cat/1.PNG", 1),
        ("b_cat/2.png", 1),
    ]
    assert dataset.image(0).size == (support.SIDE, support.SIDE)


def test_folder_of_the_split_is_preferred(tmp_path: Path) -> None:
    _fill(tmp_path / "test")
    _fill(tmp_path / "train")
    assert len(open_dataset(f"imagefolder:{tmp_path}", "train")) == 3


@pytest.mark.parametrize("name", ["absent", ""])
def test_folder_without_images_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="Image folder"):
        open_dataset(f"imagefolder:{tmp_path / name}")
