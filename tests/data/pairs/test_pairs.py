"""Files of images and texts: each form, and what is wrong with one in one line."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipmlu.data.pairs.pairs import PairSet
from clipmlu.data.pairs.reading import PairChoice
from clipmlu.errors import ClipmluError, InputError, OptionError

CAPTIONS = {"a.png": ("a dog", "a brown dog, running"), "sub/b.png": ('a "red" car',)}


def read(*paths: Path, **given: Any) -> dict[str, tuple[str, ...]]:
    return {image.name: image.texts for image in opened(*paths, **given).images}


def opened(*paths: Path, **given: Any) -> PairSet:
    return PairChoice(paths=tuple(paths), **given).open()


def rows_of(captions: dict[str, tuple[str, ...]]) -> list[list[str]]:
    return [[image, text] for image, texts in captions.items() for text in texts]


def written(path: Path, rows: list[list[str]], **dialect: Any) -> Path:
    text = io.StringIO()
    csv.writer(text, **dialect).writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    ("name", "head", "dialect"),
    [
        ("pairs.csv", ["image", "caption"], {}),
        ("pairs.csv", ["filepath", "title"], {"delimiter": "\t"}),  # as open_clip reads it by default
        ("pairs.csv", ["image", "text"], {"delimiter": ";"}),
        ("pairs.tsv", ["file_name", "text"], {"delimiter": "\t", "lineterminator": "\n"}),
        ("captions.txt", ["image", "caption"], {}),
        ("PAIRS.CSV", ["Image", " Caption "], {"quoting": csv.QUOTE_ALL}),
    ],
)
def test_tables_are_read(tmp_path: Path, name: str, head: list[str], dialect: dict[str, Any]) -> None:
    assert read(written(tmp_path / name, [head, *rows_of(CAPTIONS)], **dialect)) == CAPTIONS


def test_marks_line_ends_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    for content in (
        "\ufeffimage,caption\r\na.png,a dog\r\n\r\nb.png, a cat \r\n",
        "\n\nimage,caption\na.png,a dog\n\nb.png,a cat",
        "image,caption\ra.png,a dog\rb.png,a cat\r",
    ):
        (tmp_path / "x.csv").write_text(content, encoding="utf-8", newline="")
        assert read(tmp_path / "x.csv") == {"a.png": ("a dog",), "b.png": ("a cat",)}, content


def test_commas_of_a_last_text_need_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("image,caption\na.png,a dog, a cat, and a bird\nb.png,one\n")
    assert read(tmp_path / "x.csv") == {"a.png": ("a dog, a cat, and a bird",), "b.png": ("one",)}


def test_columns_are_chosen(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.csv", [["id", "image", "photo", "caption", "zh"], ["1", "a.png", "b.png", "a dog", "一只狗"]]
    )
    assert read(path) == {"a.png": ("a dog",)}
    assert read(path, image_column="photo", text_column="zh") == {"b.png": ("一只狗",)}


@pytest.mark.parametrize(
    "records",
    [
        [
            {"image": "a.png", "caption": "one"},
            {"image": "a.png", "caption": "two"},
            {"image": "b.png", "caption": "three"},
        ],
        [{"image": "a.png", "captions": ["one", "two"]}, {"image": "b.png", "captions": "three"}],
        [
            {"filename": "a.png", "sentences": [{"raw": "one"}, {"raw": "two"}]},
            {"filename": "b.png", "sentences": [{"raw": "three"}]},
        ],
        [{"file_name": "a.png", "text": ["one", "two"]}, {"file_name": "b.png", "text": "three"}],
    ],
)
def test_json_lines_and_lists_are_read(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    expected = {"a.png": ("one", "two"), "b.png": ("three",)}
    (tmp_path / "x.jsonl").write_text("\ufeff" + "\r\n".join(map(json.dumps, records)) + "\r\n\r\n")
    (tmp_path / "x.json").write_text(json.dumps(records))
    assert read(tmp_path / "x.jsonl") == read(tmp_path / "x.json") == expected


def test_captions_of_coco_are_read(tmp_path: Path) -> None:
    coco = {
        "info": {},
        "images": [
            {"id": 9, "file_name": "a.jpg", "height": 1},
            {"id": 4, "file_name": "b.jpg"},
            {"id": 5, "file_name": "c.jpg"},
        ],
        "annotations": [
            {"image_id": 4, "id": 1, "caption": "three"},
            {"image_id": 9, "id": 2, "caption": "one\n"},
            {"image_id": 9, "id": 3, "caption": "two"},
        ],
    }
    (tmp_path / "captions_val2017.json").write_text(json.dumps(coco))
    found = opened(tmp_path / "captions_val2017.json")
    assert {image.name: image.texts for image in found.images} == {"a.jpg": ("one", "two"), "b.jpg": ("three",)}
    assert found.images_without_texts == ("c.jpg",)


def test_a_split_of_karpathy_must_be_chosen(tmp_path: Path) -> None:
    images = [
        {"filepath": "val2014", "filename": "a.jpg", "split": "test", "sentences": [{"tokens": ["one"], "raw": "one"}]},
        {"filepath": "val2014", "filename": "b.jpg", "split": "val", "sentences": [{"raw": "two"}]},
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    with pytest.raises(
        OptionError, match=r"has the splits 'test', 'val', which must not be mixed; choose one with --split"
    ):
        opened(path)
    found = opened(path, split="test")
    assert [(image.name, image.texts) for image in found.images] == [("val2014/a.jpg", ("one",))]
    assert found.split == "test"
    with pytest.raises(OptionError, match=r"has no split 'train'; it has 'test', 'val'"):
        opened(path, split="train")


def archive(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items() if isinstance(members, dict) else members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def test_samples_of_webdataset_are_read_from_several_archives(tmp_path: Path) -> None:
    first = archive(
        tmp_path / "0.tar",
        {
            "s1.jpg": b"J",
            "s1.txt": b"one\r\ntwo\n",
            "s2.txt": b"three",
            "s2.webp": b"W",
            "s2.json": b'{"caption": "not this"}',
            "s9.txt": b"no image",
        },
    )
    second = archive(
        tmp_path / "1.tar",
        {
            "x/s1.0.txt": b"four",
            "x/s1.1.txt": b"five",
            "x/s1.png": b"P",
            "x/s2.png": b"Q",
            "x/s2.json": b'{"caption": "six"}',
            "x/s3.png": b"R",
        },
    )
    found = opened(first, second)
    assert [(image.name.partition("::")[2], image.texts, image.load()) for image in found.images] == [
        ("s1.jpg", ("one", "two"), b"J"),
        ("s2.webp", ("three",), b"W"),
        ("x/s1.png", ("four", "five"), b"P"),
        ("x/s2.png", ("six",), b"Q"),
    ]
    assert [name.partition("::")[2] for name in found.images_without_texts] == ["x/s3.png"]


def test_equal_names_in_two_folders_are_two_images(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder / "pairs.csv", [["image", "caption"], ["0.png", f"a {folder}"]])
    files = [tmp_path / folder / "pairs.csv" for folder in ("a", "b")]
    (tmp_path / "a/0.png").touch()
    (tmp_path / "b/0.png").touch()
    found = opened(*files)
    assert [(image.load(), image.texts) for image in found.images] == [
        (tmp_path / "a/0.png", ("a a",)),
        (tmp_path / "b/0.png", ("a b",)),
    ]
    assert [image.texts for image in opened(*files, image_root=tmp_path).images] == [("a a", "a b")]
    assert opened(files[0], files[0]).repeated_pairs == 1


def test_a_member_that_occurs_again_in_an_archive_is_another_image(tmp_path: Path) -> None:
    first = [("0.png", b"first"), ("0.txt", b"a dog"), ("1.png", b"between")]
    path = archive(tmp_path / "x.tar", [*first, ("0.png", b"second"), ("0.txt", b"a cat")])
    found = {image.load(): image.texts for image in opened(path).images}
    assert found == {b"first": ("a dog",), b"second": ("a cat",)}


def test_rows_that_name_no_split_are_not_left_out_unasked(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    records = [
        {"image": "a.png", "text": "a", "split": "test"},
        {"image": "b.png", "text": "b"},
        {"image": "c.png", "text": "c", "split": None},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    other = written(tmp_path / "y.csv", [["image", "caption"], ["d.png", "d"]])
    for files, count in (((path,), "2 of the 3"), ((path, other), "3 of the 4")):
        with pytest.raises(OptionError, match=f"{count} rows of '.*' name no split, the others 'test'; choose"):
            opened(*files)
    assert read(path, split="test") == {"a.png": ("a",)}


def test_what_is_empty_or_repeated_is_counted(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.csv",
        [
            ["image", "caption"],
            ["a.png", "one"],
            ["b.png", " "],
            ["a.png", "one "],
            ["a.png", ""],
            ["c.png", "two"],
            ["b.png", "\u3000"],
        ],
    )
    found = opened(path)
    assert {image.name: image.texts for image in found.images} == {"a.png": ("one",), "c.png": ("two",)}
    assert (found.empty_texts, found.repeated_pairs, found.images_without_texts) == (3, 1, ("b.png",))


def test_paths_are_those_beside_the_file_then_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("data/a.png", "here/a.png", "here/b.png", "root/b.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"x")
    monkeypatch.chdir(tmp_path / "here")
    path = written(
        tmp_path / "data" / "x.csv",
        [["image", "caption"], *([name, "x"] for name in ("a.png", "b.png", "c.png", "https://h/d.png"))],
    )
    a, b, c, d = opened(path).images
    assert (a.load(), b.load()) == (tmp_path / "data" / "a.png", Path("b.png"))
    with pytest.raises(InputError, match=r"Cannot read image 'c.png': there is no file '.*data/c.png' or 'c.png'"):
        c.load()
    with pytest.raises(InputError, match="it is a URL; expected a file"):
        d.load()
    write_windows = written(tmp_path / "win.csv", [["image", "caption"], ["data\\a.png", "x"]])
    with pytest.raises(InputError, match=r"its path has '.*', as on Windows; write it with '/'"):
        opened(write_windows).images[0].load()
    assert opened(path, image_root=tmp_path / "root").images[1].load() == tmp_path / "root" / "b.png"


WRONG: list[tuple[str, bytes | Callable[[Path], object], str]] = [
    ("x.csv", b"", "is empty. Expected column names in its first line"),
    ("x.csv", b"image,caption\n", "holds no pairs"),
    ("x.csv", b"image,caption\na.png,\nb.png,  \n", "holds no texts: not one of the images in its 2 rows"),
    ("x.csv", b"a.png,a dog\nb.png,a cat\n", "has no column for the image: its columns are 'a.png', 'a dog'; expected one of image, "),
    ("x.csv", b"image,label\na.png,3\n", "has no column for the text: its columns are 'image', 'label'"),
    ("x.csv", b"image,caption,caption\na.png,x,y\n", "has 2 columns 'caption'; expected one, and a line for each text"),
    ("x.csv", b"image,caption,id\na.png,x\n", "Line 2 of '.*x.csv' has 2 cells, but there are 3 columns"),
    ("x.csv", b"caption,image\na, b,a.png\n", "Line 2 of '.*' has 3 cells, but there are 2 columns. Put cells that hold a separator in double"),
    ("x.csv", b'image,caption\na.png,"a dog\nb.png,a cat\n', "Line 2 of '.*' cannot be read: .*A quote that begins a cell must end it"),
    ("x.csv", b"image,caption\n,a dog\n", "Line 2 of '.*' names no image: its column 'image' is empty"),
    ("x.csv", "image,caption\na.png,caf\xe9\n".encode("latin-1"), "is not UTF-8 text: byte 0xe9 in line 2"),
    ("x.csv", "image,caption\na.png,x\n".encode("utf-16"), "is UTF-16 text, not UTF-8"),
    ("x.jsonl", b'{"image": "a.png", "caption": "x"}\n{"image": }\n', "Line 2 of '.*' is not JSON"),
    ("x.jsonl", b'["a.png", "x"]\n', r"Line 1 of '.*' is \['a.png', 'x'\]; expected an object"),
    ("x.jsonl", b'{"image": "a.png", "caption": 5}\n', "Line 1 of '.*' has 5 in 'caption'; expected a text"),
    ("x.jsonl", b'{"image": "a.png", "caption": "x"}\n{"caption": "y"}\n', "Line 2 of '.*' has no path in 'image': it is None"),
    ("x.json", b'{"data": []}', "is not a list of images; expected"),
    ("x.json", b'{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 2, "caption": "x"}]}', "Annotation 1 of .* is about the image 2, which is not"),
    ("x.json", b'{"images": [{"id": 1}], "annotations": []}', "Image 1 of '.*' is {'id': 1}; expected 'id' and 'file_name'"),
    ("x.tar", b"no archive", "Cannot read '.*x.tar': it is damaged"),
    ("x.tar", lambda path: archive(path, {"a.txt": b"x"}), "it holds no images"),
    ("x.tar", lambda path: archive(path, {"a.png": b"x", "a.jpg": b"y", "a.txt": b"z"}), "Sample 'a' of '.*' has several images"),
    ("x.tar.gz", lambda path: archive(path, {"a.png": b"x", "a.txt": b"z"}, "w:gz"), "it is compressed, .* Decompress it: gunzip"),
    ("x.parquet", b"x", r"its name ends with '.parquet'. Expected .csv, .tsv, .jsonl, .json"),
    ("x", lambda path: path.mkdir(), "it is a folder; give the files in it"),
    ("absent.csv", lambda _path: None, "The file of pairs '.*absent.csv' does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_what_is_wrong_with_a_file_is_told_in_one_line(
    tmp_path: Path, name: str, content: bytes | Callable[[Path], object], message: str
) -> None:
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    with pytest.raises(ClipmluError, match=message) as caught:
        opened(path)
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", [["image", "caption"], ["a.png", "x"]])
    with pytest.raises(InputError, match=r"has no column 'captoin'; it has 'image', 'caption'. Did you mean 'caption'"):
        opened(path, text_column="captoin")
    with pytest.raises(InputError, match="The folder of the images 'absent' does not exist"):
        opened(path, image_root="absent")
    with pytest.raises(OptionError, match="has no split 'test'; it has no column for splits"):
        opened(path, split="test")
