"""Templates and class names."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from clipmlu.data.class_prompts import resolve_prompts
from clipmlu.data.prompts import TEMPLATE_SETS, fill_template, resolve_templates
from clipmlu.errors import InputError, OptionError, UnknownNameError
from clipmlu.jobs.options import ClassificationOptions
from clipmlu.keys import options_digest
from clipmlu.measure.accuracy.evaluate import EvalOptions
from clipmlu.measure.compare.compare import CompareOptions
from clipmlu.tune.trial import SearchOptions


def test_named_sets_have_their_published_sizes() -> None:
    assert {name: len(resolve_templates(name)) for name in TEMPLATE_SETS} == {
        "simple": 1,
        "openai-imagenet": 80,
        "cifar": 18,
        "chinese-simple": 1,
        "chinese": 22,
    }


def test_chinese_templates_are_distinct_chinese_sentences_around_the_name() -> None:
    templates = resolve_templates("chinese")
    assert len(set(templates)) == len(templates)
    assert resolve_templates("chinese-simple") == templates[:1]
    for template in templates:
        rest = template.replace("{}", "", 1)
        assert "{" not in rest
        assert rest.endswith("\u3002")
        assert all("\u4e00" <= each <= "\u9fff" for each in rest[:-1]), template


def test_imagenet_set_equals_open_clips() -> None:
    metadata = pytest.importorskip("open_clip.zero_shot_metadata", reason="needs the export extra")
    expected = tuple(template("{}") for template in metadata.OPENAI_IMAGENET_TEMPLATES)
    assert resolve_templates("openai-imagenet") == expected
    assert resolve_templates(metadata.OPENAI_IMAGENET_TEMPLATES) == expected


def test_functions_that_put_the_name_into_a_text_are_templates(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("the {}\n", encoding="utf-8")
    assert resolve_templates(lambda name: f"a photo of a {name}.") == ("a photo of a {}.",)
    mixed = [lambda c: f"{c}, or {c}", "a {}", "a drawing of a {}".format, "simple", path, str(path)]
    assert resolve_templates(mixed) == (
        "{}, or {}",
        "a {}",
        "a drawing of a {}",
        "a photo of a {}.",
        "the {}",
        "the {}",
    )
    assert resolve_templates(pandas.Series(["a {}", "{}"])) == ("a {}", "{}")
    assert resolve_templates(np.array(["a {}", "{}"])) == ("a {}", "{}")


@pytest.mark.parametrize(
    "function",
    [
        lambda name: f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}.",
        lambda name: f"a photo of a {name}{', a bird' if name in {'crane', 'jay'} else ''}.",
        lambda name: f"a photo of a {name}." if name != "sheep" else f"a photo of {name}.",
        lambda name: ("a {}", "the {}")[min(1, name.count(" "))].format(name),
    ],
)
def test_functions_whose_text_is_another_one_for_some_names_are_refused(function: Callable[[str], str]) -> None:
    with pytest.raises(
        OptionError, match=r"^Template 0 is a function .*depends on the class name.* Give a dict with the prompts"
    ):
        resolve_templates(function)
    with pytest.raises(OptionError, match="depends on the class name"):
        EvalOptions(templates=[function])


def test_options_hold_texts_for_functions() -> None:
    """So that they have a digest and a pickle, and equal templates are equal."""
    functions = [lambda name: f"a {name}", "{}"]
    for options in (EvalOptions, CompareOptions, functools.partial(SearchOptions, max_drop=0.01)):
        made = options(templates=functions)
        assert made.templates == ("a {}", "{}")
        assert pickle.loads(pickle.dumps(made)) == made
        assert options_digest(made) == options_digest(options(templates=("a {}", "{}")))
    assert ClassificationOptions(class_names=["ant"], templates=functions[0]).templates == "a {}"  # type: ignore[arg-type]


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
    with pytest.raises(UnknownNameError, match=r"Unknown template set 'cifar10'\. Did you mean 'cifar'"):
        resolve_templates("cifar10")


def test_every_place_is_filled_and_other_braces_stay() -> None:
    assert fill_template("a {} and a {} in {x}", "cat") == "a cat and a cat in {x}"


def test_a_template_file_may_be_a_list_of_python_or_json(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    for content in ('["a {}.", "the {}, here"]', "'a {}.',\n'the {}, here',\n", "['a {}.',\n 'the {}, here']"):
        path.write_text(content)
        assert resolve_templates(path) == ("a {}.", "the {}, here")
    path.write_text('[{"a": "{}"}]')
    with pytest.raises(InputError, match="is not a list of texts"):
        resolve_templates(path)


def test_a_template_file_keeps_what_is_no_line_end(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("a\u2028{}\nthe\x85 {}\n", encoding="utf-8")
    assert resolve_templates(path) == ("a\u2028{}", "the\x85 {}")


@pytest.mark.parametrize("templates", ["a photo of a cat " * 30, "x" * 5000, "a\0b"])
def test_a_text_too_long_for_a_path_is_no_file(templates: str) -> None:
    with pytest.raises((OptionError, UnknownNameError)):
        resolve_templates(templates)


@pytest.mark.parametrize("templates", [b"a {}", {"a {}"}, {"a {}": 1}, ["a {}", 3], 7])
def test_templates_that_are_no_texts_are_refused(templates: object) -> None:
    with pytest.raises(OptionError, match=r"of type '(bytes|set|dict|int)'; expected a text"):
        resolve_templates(templates)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["/dev/zero", "/"])
def test_a_template_file_that_is_none_is_refused_at_once(place: str) -> None:
    with pytest.raises(InputError, match=f"Cannot read the template file '{place}'"):
        resolve_templates(place)


@pytest.mark.parametrize("templates", ["caf\udce9 {}", ["a {}", "caf\udce9 {}"]])
def test_template_with_bytes_that_are_no_utf8_is_refused(templates: str | list[str]) -> None:
    with pytest.raises(InputError, match=r"Template [01] 'caf.*' holds bytes that are not UTF-8"):
        resolve_templates(templates)


@pytest.mark.parametrize(
    ("labels", "templates", "noted"),
    [
        (("cat", "\u732b"), None, True),
        (("\u732b",), "simple", True),
        (("\u732b",), "chinese-simple", False),
        (("cat",), None, False),
        (("\u732b\u306e\u5199\u771f",), None, False),  # Japanese
        ({"\u732b": ("\u4e00\u53ea\u732b",)}, None, False),
    ],
)
def test_chinese_class_names_with_the_english_template_are_noted(
    labels: Any, templates: str | None, noted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    resolve_prompts(labels, templates, background=isinstance(labels, dict))
    assert ["names such as '\u732b' are Chinese" in message for message in caplog.messages] == [True] * noted
