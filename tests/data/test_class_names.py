"""Class names: what is understood, what is refused, and that positions never move."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from clipmlu.data.class_names import check_class_names, distinct_names, look_like_ids, name_folders, resolve_class_names
from clipmlu.errors import InputError, OptionError

THREE = ("tench, Tinca tinca", "carpenter's kit", "crane")


def _names(tmp_path: Path, content: str | bytes) -> tuple[str, ...]:
    path = tmp_path / "labels.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return resolve_class_names(str(path), on_note=lambda _line: None)


@pytest.mark.parametrize(
    "content",
    [
        "tench, Tinca tinca\ncarpenter's kit\ncrane\n",
        "\ufefftench, Tinca tinca\r\ncarpenter's kit\r\n\r\ncrane",
        "tench, Tinca tinca\rcarpenter's kit\rcrane\r",
        json.dumps(THREE),
        json.dumps(dict(enumerate(THREE)), indent=1),
        '{"2": "crane", "0": "tench, Tinca tinca", "1": "carpenter\'s kit"}',
        json.dumps({name: position for position, name in enumerate(THREE)}),
        json.dumps({"model_type": "clip", "id2label": dict(enumerate(THREE))}),
        json.dumps({"0": ["n01440764", THREE[0]], "1": ["n02966193", THREE[1]], "2": ["n03126707", THREE[2]]}),
        json.dumps([["n01440764", THREE[0]], ["n02966193", THREE[1]], ["n03126707", THREE[2]]]),
        "{0: 'tench, Tinca tinca',\n 1: \"carpenter's kit\",\n 2: 'crane'}",
        "classes = ['tench, Tinca tinca', \"carpenter's kit\", 'crane']",
        "('tench, Tinca tinca', \"carpenter's kit\", 'crane')",
        '"tench, Tinca tinca",\n"carpenter\'s kit",\n"crane"\n',
        "'tench, Tinca tinca',\n'carpenter's kit',\n'crane',\n",
        "- tench, Tinca tinca\n- carpenter's kit\n- crane\n",
        "names:\n  0: tench, Tinca tinca\n  1: carpenter's kit\n  2: crane\n",
        'names:\n- tench, Tinca tinca\n- "carpenter\'s kit"\n- crane\n'.replace('"', ""),
        "0: tench, Tinca tinca\n1: carpenter's kit\n2: crane\n",
        "0: 'tench, Tinca tinca',\n1: 'carpenter's kit',\n2: 'crane'\n",
        "0 tench, Tinca tinca\n2 crane\n1 carpenter's kit\n",
        "0. tench, Tinca tinca\n1. carpenter's kit\n2. crane\n",
        "0\ttench, Tinca tinca\n1\tcarpenter's kit\n2\tcrane\n",
        "tench, Tinca tinca\t0\ncrane\t2\ncarpenter's kit\t1\n",
        "n01440764 tench, Tinca tinca\nn02966193 carpenter's kit\nn03126707 crane\n",
        "n01440764\ttench, Tinca tinca\nn02966193\tcarpenter's kit\nn03126707\tcrane\n",
        "0\tn01440764\ttench, Tinca tinca\n1\tn02966193\tcarpenter's kit\n2\tn03126707\tcrane\n",
        'index,name\n0,"tench, Tinca tinca"\n1,carpenter\'s kit\n2,crane\n',
        'name,wnid\n"tench, Tinca tinca",n01440764\ncarpenter\'s kit,n02966193\ncrane,n03126707\n',
        "0;tench, Tinca tinca\n1;carpenter's kit\n2;crane\n",
        "(0) tench, Tinca tinca\n(1) carpenter's kit\n(2) crane\n",
        "label_0: tench, Tinca tinca\nlabel_1: carpenter's kit\nlabel_2: crane\n",
        "0 - tench, Tinca tinca\n1 - carpenter's kit\n2 - crane\n",
        "tench, Tinca tinca: 0\ncrane: 2\ncarpenter's kit: 1\n",
        "Nummer;Klasse\n0;tench, Tinca tinca\n1;carpenter's kit\n2;crane\n",
        '"tench, Tinca tinca"\ncarpenter\'s kit\ncrane\n',
        "n01440764 1 tench, Tinca tinca\nn02966193 2 carpenter's kit\nn03126707 3 crane\n",
    ],
)
def test_every_known_shape_gives_the_names_alone(tmp_path: Path, content: str) -> None:
    assert _names(tmp_path, content) == THREE


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("two\u2028lines\nnext\x85one\nform\x0cfeed\n", ("two\u2028lines", "next\x85one", "form\x0cfeed")),
        ("2 door car\n4 door car\n", ("2 door car", "4 door car")),
        ("747\n737\n", ("747", "737")),
        ("crane\nmaillot\ncrane\n", ("crane", "maillot", "crane")),
        ("Star Wars: A New Hope\nAlien\n", ("Star Wars: A New Hope", "Alien")),
        ("(unknown)\ncat\n", ("(unknown)", "cat")),
        ('"cat"', ("cat",)),
        ('"12"" nail"\ncat\n', ('12" nail', "cat")),
        ('{"0": ["n01484850", "great_white_shark"]}', ("great white shark",)),
        ("snake_case\ncat\n", ("snake_case", "cat")),
        ("class 1 truck\nclass 2 truck\n", ("class 1 truck", "class 2 truck")),
        ("3D printer\n2D barcode\n", ("3D printer", "2D barcode")),
        ("n01440764 0 tench\nn02966193 1 kit\nn03126707 crane\n", ("0 tench", "1 kit", "crane")),
    ],
)
def test_names_that_only_look_like_a_shape_stay_as_they_are(
    tmp_path: Path, content: str, names: tuple[str, ...]
) -> None:
    assert _names(tmp_path, content) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "No class names"),
        ("[cat, dog]\n", r"begins with '\[' and is neither JSON"),
        ('["cat", 3]', "Entry 2 of the label file .* is a number, not a name: 3"),
        ('[{"id": 0, "name": "cat"}]', "Entry 1 .* is an object"),
        ('["cat", ""]', "Class name 1 .* is blank"),
        ('{"0": "cat", "0": "dog"}', "has the key '0' more than once"),
        ('{"0": "cat", "2": "dog"}', "the number 1 is missing"),
        ('{"a": "cat", "b": "dog"}', "maps keys to names and gives no positions"),
        ("[" * 100_000, "neither JSON"),
        ("1: cat\n2: dog\n3: cow\n", "its numbers begin at 1"),
        ("1 cat\n2 dog\n3 cow\n", "its numbers begin at 1"),
        ("0: cat\n0: dog\n", "the number 0 occurs more than once"),
        ("0: cat\n1: dog\ncow\n", "Entry 3 .* has no number, others have: 'cow'"),
        ("cat\tchat\ndog\tchien\n", "two columns of words and gives no positions"),
        ("cat\t500\ndog\t400\n", "the number 0 is missing"),
        ("cat\ta\tx\ndog\tb\ty\n", "3 columns, and it is not clear which one holds the names"),
        ("cat\tchat\ndog\n", "Entry 2 .* has no tab"),
        ("0\t5\tcat\n1\t6\tdog\n", "3 columns, and it is not clear which one holds the names"),
        ('{"cat": true, "dog": false}', "Entry 1 .* is a truth value, not a name"),
        ("cat,dog,cow\n", "one line with commas in it: 'cat,dog,cow'"),
        ("cat,\ndog\ncow,\n", "Entry 1 .* ends with a comma, others do not"),
        ("name\ncat\ndog\n", "Entry 1 .* looks like a heading: 'name'"),
        ("Class Name\ncat\n", "looks like a heading"),
        ("item {\n  id: 1\n  name: 'cat'\n}\n", "looks like a program or its data: 'item {'"),
        ("n01440764 2 tench\nn02966193 1 kit\nn03126707 3 crane\n", "numbers are in another order than its lines"),
        ("# animals\ncat\n", "Entry 1 .* looks like a comment"),
        ("path: data\nnc: 2\nnames: [cat, dog]\n", "looks like YAML"),
        ("n01440764\nn01443537\n", "are WordNet ids, such as 'n01440764'"),
        ("cat\ndog\n".encode("utf-16"), "is UTF-16 text, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8"),
        ("cat\ndog\n".encode("utf-16-le"), "is UTF-16LE text"),
        ("cat\ndog\n".encode("utf-16-be"), "is UTF-16BE text"),
        ("猫\n狗\n".encode("utf-16-le"), "is UTF-16LE text"),
        ("cat\ndog\n".encode("utf-32-le"), "is UTF-32 text"),
        ("猫\n狗\n金鱼\n".encode("gb18030"), r"byte 0xb9 in line 2; it is probably GB18030 \(or GBK\)"),
        ("cat\ncafé\n".encode("latin-1"), "byte 0xe9 in line 2; it is probably CP1252"),
        (b"cat\0dog\n\0\0\1x", "holds zero bytes"),
        (b"a cat, a dog and many other animals\0", "holds zero bytes"),
        (b"cat\n\xff\xfe\xff", "it is probably no text at all, or damaged. Expected a UTF-8 text file"),
        (b"PK\x03\x04 and so on", "is a ZIP archive"),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_other_shapes_and_encodings_are_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _names(tmp_path, content)
    assert "labels.txt" in str(caught.value)


@pytest.mark.parametrize("place", ["pipe", "device", "folder", "large", "absent"])
def test_what_is_no_small_file_is_refused_at_once(tmp_path: Path, place: str) -> None:
    path = tmp_path / "labels.txt"
    if place == "pipe":
        os.mkfifo(path)
    elif place == "device":
        path = Path("/dev/zero")
    elif place == "folder":
        path.mkdir()
    elif place == "large":
        with path.open("wb") as stream:
            stream.truncate(1 << 40)
    with pytest.raises(InputError, match=f"'{path}'"):
        resolve_class_names(str(path))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ("cat, dog,", ("cat", "dog")),
        ("'cat','dog'", ("cat", "dog")),
        ('["cat", "dog"]', ("cat", "dog")),
        ("0: cat, 1: dog", ("cat", "dog")),
        ("cat\ndog, big\n", ("cat", "dog, big")),
        (["cat", " dog "], ("cat", "dog")),
        (iter(["cat"]), ("cat",)),
        (",".join(["a cat on a mat"] * 40), ("a cat on a mat",) * 40),
        ("e\u0301" * 200 + ",cat", ("e\u0301" * 200, "cat")),
        ("0,1,2", ("0", "1", "2")),
        ("\u732b\uff0c\u72d7", ("\u732b", "\u72d7")),  # the commas of Chinese keyboards
        ("\u732b\u3001\u72d7, \u725b", ("\u732b", "\u72d7", "\u725b")),
    ],
)
def test_lists_as_text_and_in_python(labels: str, names: tuple[str, ...]) -> None:
    assert resolve_class_names(labels, on_note=lambda _line: None) == names


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ("cat", InputError, "Label file 'cat' does not exist"),
        ("", OptionError, "No class names"),
        ("x" * 5000, InputError, "Label file 'xxx.*' does not exist"),
        ("a\0b", InputError, "does not exist"),
        (" ", OptionError, "No class names"),
        ([], InputError, "No class names"),
        (["cat", " "], InputError, "Class name 1 is blank"),
        (["cat", 1], OptionError, "Class name 1 is of type 'int'"),
        ({"cat", "dog"}, OptionError, "are of type 'set'"),
        ({"cat": 0}, OptionError, "are of type 'dict'"),
        (b"cat,dog", OptionError, "are of type 'bytes'"),
        (7, OptionError, "are of type 'int'"),
    ],
)
def test_what_is_no_list_of_names_is_refused(labels: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve_class_names(labels)  # type: ignore[arg-type]


def test_a_text_is_no_sequence_of_names() -> None:
    with pytest.raises(OptionError, match="are of type 'str'"):
        check_class_names("cat,dog")


def test_blank_lines_and_ids_are_told(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    notes: list[str] = []
    path.write_text("c1\n\nc2\n \n")
    assert resolve_class_names(path, on_note=notes.append) == ("c1", "c2")
    assert notes[0] == (
        f"Left out 2 blank lines of the label file '{path}' (line 2, 4); lines are counted without them."
    )
    assert "look like ids or numbers, such as 'c1'" in notes[1]


def test_repeated_names_are_told_apart_by_their_position() -> None:
    assert distinct_names(["crane", "cat", "crane"]) == ("crane (0)", "cat", "crane (2)")


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (["n01440764", "n01443537"], True),
        (["0", "1", "10"], True),
        (["class_0", "class_1"], True),
        (["001.Black_footed_Albatross", "002.Laysan_Albatross"], True),
        (["n02085620-Chihuahua", "n02085782-Japanese_spaniel"], True),
        (["cat", "dog"], False),
        (["A", "B"], False),
        (["猫", "狗"], False),
        (["boeing 737", "boeing 747", "a320"], False),
        (["4 door car", "cat"], False),
    ],
)
def test_ids_are_known(names: list[str], verdict: bool) -> None:
    assert look_like_ids(names) is verdict


IDS = ("n01440764", "n01443537", "n03126707")
WORDS = ("tench", "goldfish", "crane")


@pytest.mark.parametrize(
    "content",
    [
        "tench\ngoldfish\ncrane\n",
        '["tench", "goldfish", "crane"]',
        '{"n03126707": "crane", "n01440764": "tench", "n01443537": "goldfish"}',
        "n03126707\tcrane\nn01440764\ttench\nn01443537\tgoldfish\n",
        "folder,name\nn03126707,crane\nn01440764,tench\nn01443537,goldfish\n",
        "n01440764 tench\nn01443537 goldfish\nn01484850 great white shark\nn03126707 crane\n",
        '{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"], "517": ["n03126707", "crane"]}',
    ],
)
def test_folders_get_their_names_by_order_or_by_key(tmp_path: Path, content: str) -> None:
    path = tmp_path / "names"
    path.write_text(content)
    assert name_folders(path, IDS, on_note=lambda _line: None) == WORDS
    assert name_folders(str(path), IDS, on_note=lambda _line: None) == WORDS


def test_ids_without_a_folder_are_told(tmp_path: Path) -> None:
    notes: list[str] = []
    path = tmp_path / "names.json"
    path.write_text('{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}')
    assert name_folders(path, IDS[1:2], on_note=notes.append) == ("goldfish",)
    assert "1 of the 2 ids" in notes[0]


def test_numbered_folders_are_named_by_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    folders = sorted(map(str, range(12)))
    path.write_text("".join(f"{number}: name {number:02d}!\n" for number in range(12)))
    assert name_folders(path, folders) == tuple(f"name {int(folder):02d}!" for folder in folders)
    assert name_folders(path, ["00", "01", *(f"{number:02d}" for number in range(2, 12))])[11] == "name 11!"
    path.write_text("".join(f"name {number}!\n" for number in range(12)))
    with pytest.raises(InputError, match="a plain list of names may mean another order"):
        name_folders(path, folders)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["tench", "goldfish"], "has 2 names for 3 class folders"),
        ({"n01440764": "tench"}, "has no name for folders 'n01443537', 'n03126707'"),
        (dict.fromkeys([*IDS, "extra"], "x"), "names folder 'extra' that the dataset does not have"),
        ({"a": "tench", "b": "x", "c": "y"}, "has no name for folders 'n01440764', 'n01443537', 'n03126707'"),
        (["tench", "", "crane"], "Class name 1 is blank"),
    ],
)
def test_names_that_do_not_fit_the_folders_are_refused(given: list[str] | dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        name_folders(given, IDS)


@pytest.mark.parametrize(("names", "error"), [("dog,caf\udce9", OptionError), (["dog", "caf\ud83d"], InputError)])
def test_name_with_bytes_that_are_no_utf8_is_refused(names: str | list[str], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"Class name 1.* 'caf.*' holds bytes that are not UTF-8"):
        resolve_class_names(names)


def test_file_whose_name_has_a_comma_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cats,dogs").write_text("lion\nwolf\n")
    assert resolve_class_names("cats,dogs") == ("lion", "wolf")
