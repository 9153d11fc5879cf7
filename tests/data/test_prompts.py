"""Templates and class names."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmlu.data.prompts import TEMPLATE_SETS, fill_template, resolve_class_names, resolve_templates
from clipmlu.errors import InputError, OptionError, UnknownNameError


def test_named_sets_have_their_published_sizes() -> None:
    assert {name: len(resolve_templates(name)) for name in TEMPLATE_SETS} == {
        "simple": 1,
        "openai-imagenet": 80,
        "cifar": 18,
    }


def test_imagenet_set_equals_open_clips() -> None:
    metadata = pytest.importorskip("open_clip.zero_shot_metadata", reason="needs the export extra")
    assert resolve_templates("openai-imagenet") == tuple(
        template("{}") for template in metadata.OPENAI_IMAGENET_TEMPLATES
    )


def test_templates_come_from_a_string_a_sequence_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("a {}.\n\n  the {}. \n", encoding="utf-8")
    assert resolve_templates("a drawing of a {}") == ("a drawing of a {}",)
    assert resolve_templates(["a {}", "{}"]) == ("a {}", "{}")
    assert resolve_templates(str(path)) == resolve_templates(path) == ("a {}.", "the {}.")


@pytest.mark.parametrize("templates", ["a photo of a cat", ["a {}", "no place"], ""])
def test_template_without_a_place_for_the_name_is_refused(templates: str | list[str]) -> None:
    with pytest.raises(OptionError, match=r"has no '\{\}' for the class name"):
        resolve_templates(templates)


def test_no_templates_are_refused() -> None:
    with pytest.raises(OptionError, match="No templates"):
        resolve_templates([])


def test_misspelt_set_is_answered_with_the_close_one() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown template set 'cifar10'\. Close matches: cifar"):
        resolve_templates("cifar10")


def test_every_place_is_filled_and_other_braces_stay() -> None:
    assert fill_template("a {} and a {} in {x}", "cat") == "a cat and a cat in {x}"


def test_labels_come_from_a_list_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffcat\nice cream\n\n", encoding="utf-8")
    assert resolve_class_names("cat, ice cream,") == resolve_class_names(str(path)) == ("cat", "ice cream")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (",", "No class names"),
        ("", "No class names"),
        ("cat,dog,cat", "more than once: 'cat'"),
        ("absent.txt", "Label file 'absent.txt' does not exist"),
    ],
)
def test_useless_labels_are_refused(labels: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_class_names(labels)


def test_binary_label_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xff\x00\xfe")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        resolve_class_names(str(path))
