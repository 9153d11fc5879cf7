"""A folder of images per class: which folders are classes, which are splits, and what the classes are called."""

from __future__ import annotations

from pathlib import Path

import pytest

import support
from clipmlu.data.datasets import Dataset, open_dataset, open_folder
from clipmlu.data.datasets.splits import is_split_name
from clipmlu.errors import ClipmluError, InputError, OptionError


def _fill(root: Path, *files: str) -> Path:
    for file in files or ("b_cat/2.png", "b_cat/1.PNG", "a_dog/sub/x.png", ".hidden/y.png"):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        support.picture(0).save(path)
    return root


def _open(root: Path, split: str | None = None, **options: object) -> Dataset:
    return open_dataset(f"imagefolder:{root}", split, **options)  # type: ignore[arg-type]


def test_sorted_sub_folders_are_the_classes(tmp_path: Path) -> None:
    dataset = _open(_fill(tmp_path))
    assert dataset.class_names == ("a dog", "b cat")
    assert dataset.original_names == ("a_dog", "b_cat")
    assert dataset.split == "all"
    assert [(dataset.key(index), dataset.label(index)) for index in range(len(dataset))] == [
        ("a_dog/sub/x.png", 0),
        ("b_cat/1.PNG", 1),
        ("b_cat/2.png", 1),
    ]
    assert dataset.image(0).size == (support.SIDE, support.SIDE)


@pytest.mark.parametrize(
    ("split", "first"), [(None, "of_test"), ("test", "of_test"), ("train", "of_train"), ("val", "of_val")]
)
def test_split_is_the_one_asked_for_and_test_otherwise(tmp_path: Path, split: str | None, first: str) -> None:
    for name in ("train", "val", "test"):
        _fill(tmp_path / name, f"of_{name}/1.png")
    dataset = _open(tmp_path, split)
    assert (dataset.original_names, dataset.split) == ((first,), split or "test")


@pytest.mark.parametrize(
    ("folders", "split", "message"),
    [
        (
            ("train/cat", "val/cat"),
            None,
            r"has no split 'test'; it has train, val. Say which one: --split val, or imagefolder:",
        ),
        (("train/cat", "val/cat"), "vla", r"has no split 'vla'; it has train, val. Say which one: --split val"),
        (("train/cat", "val/cat"), "", r"has no split ''; it has train, val"),
        (("train/cat", "val/cat"), "../train", r"has no split '../train'"),
        (("Train/cat", "Validation/cat"), None, r"it has Train, Validation. Say which one: --split Validation"),
        (("train2017/cat", "val2017/cat"), None, r"it has train2017, val2017"),
        (("train/cat",), None, r"has no split 'test'; it has train. Say which one: --split train"),
        (("train/cat", "val/cat", "meta/x"), None, r"it has train, val beside 1 other folder"),
        (("data/train/cat", "data/val/cat"), "data", r"data' has no split 'test'; it has train, val"),
        (("cat", "dog"), "test", r"has no split 'test': its sub-folders are cat, dog. Leave --split out"),
        (("cat", "dog"), "s" * 5000, r"has no split 's+\.\.\.'"),
    ],
)
def test_split_that_is_not_there_is_refused(
    tmp_path: Path, folders: tuple[str, ...], split: str | None, message: str
) -> None:
    _fill(tmp_path, *(f"{folder}/1.png" for folder in folders))
    with pytest.raises(OptionError, match=message):
        _open(tmp_path, split)


@pytest.mark.parametrize("folders", [("train", "car"), ("test", "exam"), ("plane", "train", "bus")])
def test_a_class_may_be_called_like_a_split(tmp_path: Path, folders: tuple[str, ...]) -> None:
    _fill(tmp_path, *(f"{folder}/1.png" for folder in folders))
    assert _open(tmp_path).class_names == tuple(sorted(folders))
    assert _open(tmp_path, default_split="train").class_names == tuple(sorted(folders))


def test_folders_called_like_splits_are_classes_if_that_is_said(tmp_path: Path) -> None:
    _fill(tmp_path, "train/1.png", "val/1.png")
    assert _open(tmp_path, folder_names=True).class_names == ("train", "val")


def test_split_names_are_known_in_every_spelling() -> None:
    for name in [
        "train",
        "val",
        "valid",
        "validation",
        "test",
        "dev",
        "eval",
        "training",
        "testing",
        "Test",
        "TRAIN",
        "evaluation",
        "val2017",
        "test_images",
    ]:
        assert is_split_name(name), name
    for name in ["trainer", "valley", "validator", "tester", "device", "evil", "trains", "train-station", "2017"]:
        assert not is_split_name(name), name


def test_an_empty_class_folder_is_refused(tmp_path: Path) -> None:
    _fill(tmp_path)
    (tmp_path / "c_cow").mkdir()
    (tmp_path / "d_elk").mkdir()
    (tmp_path / "d_elk" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="has class folders without images: 'c_cow', 'd_elk'"):
        _open(tmp_path)


@pytest.mark.parametrize(
    "folders", [("n01440764", "n01443537"), ("0", "1", "10"), ("class_0", "class_1"), ("01.cat_x", "02.dog_y")]
)
def test_folders_named_by_ids_need_names(tmp_path: Path, folders: tuple[str, ...]) -> None:
    _fill(tmp_path, *(f"{folder}/1.png" for folder in folders))
    with pytest.raises(InputError, match=f"named by ids, such as '{folders[0]}', .* --class-names FILE"):
        _open(tmp_path)
    own = tuple(folder.replace("_", " ") for folder in folders)
    assert _open(tmp_path, folder_names=True).class_names == own
    words = tuple(f"word {letter}" for letter in "abc"[: len(folders)])
    (tmp_path / "names.tsv").write_text("".join(f"{key}\t{word}\n" for key, word in zip(folders, words, strict=True)))
    for given in (tmp_path / "names.tsv", str(tmp_path / "names.tsv"), words, dict(zip(folders, words, strict=True))):
        dataset = _open(tmp_path, class_names=given)
        assert (dataset.class_names, dataset.original_names) == (words, folders)


def test_names_are_counted(tmp_path: Path) -> None:
    _fill(tmp_path)
    with pytest.raises(InputError, match="has 1 names for 2 class folders"):
        _open(tmp_path, class_names=["cat"])
    with pytest.raises(OptionError, match="exclude each other"):
        _open(tmp_path, class_names=["cat", "dog"], folder_names=True)


def test_classes_of_a_named_dataset_may_have_other_names() -> None:
    own = open_dataset("demo", size=2)
    renamed = open_dataset("demo", size=2, class_names=[f"the {name}" for name in own.class_names])
    assert renamed.class_names[0] == f"the {own.class_names[0]}"
    assert renamed.original_names == own.original_names
    assert renamed.image(1).tobytes() == own.image(1).tobytes()
    with pytest.raises(OptionError, match="--folder-names is for imagefolder:PATH"):
        open_dataset("demo", folder_names=True)


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (("train/cat/1.png", "val/cat/1.png"), ("cat",)),
        (("train/1.png", "val/1.png"), ()),
        (("cat/1.png", "dog/1.png"), ("cat", "dog")),
        (("2021/1.png", "2022/1.png"), ()),
        (("1.png",), ()),
    ],
)
def test_folder_to_calibrate_with(tmp_path: Path, files: tuple[str, ...], classes: tuple[str, ...]) -> None:
    assert open_folder(_fill(tmp_path, *files)).class_names == classes


def test_folder_to_calibrate_with_has_no_test_images(tmp_path: Path) -> None:
    _fill(tmp_path, "test/cat/1.png", "val/cat/1.png")
    with pytest.raises(OptionError, match="has no split 'train'; it has test, val"):
        open_folder(tmp_path)


def test_dates_are_classes_if_they_are_named(tmp_path: Path) -> None:
    _fill(tmp_path, "2021/1.png", "2022/1.png")
    assert open_folder(tmp_path, class_names=["cat", "dog"]).class_names == ("cat", "dog")
    assert open_folder(tmp_path, folder_names=True).class_names == ("2021", "2022")
    with pytest.raises(OptionError, match="has no class folders"):
        open_folder(tmp_path / "2021", class_names=["cat"])


@pytest.mark.parametrize("name", ["absent", "", "x" * 5000])
def test_folder_without_images_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClipmluError, match="Image folder"):
        _open(tmp_path / name)
