"""Mistakes of new users with results, datasets and images of none of the classes: what they wrote, and what the answer holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import clipmlu
import support
from clipmlu.errors import ClipmluError
from clipmlu.model import Model, load

PYTHON: list[tuple[str, list[str]]] = [
    ("dataset[1000]", ["Dataset 'demo' has no image 1000", "it has 20"]),
    ("model.classifier(['ant'], reject_below=30)", ["reject below is 30", "1"]),
    ("model.classifier(['ant'], reject_below='30%')", ["reject below is '30%'", "expected a number"]),
    (
        "model.classifier(['ant', 'other'], none_label='other')",
        ["none label is 'other'", "also a class", "another name"],
    ),
    ("model.classifier(['ant'], none_label='')", ["none label is ''", "expected a name"]),
    ("model.classifier(['ant'], background=['Ant'])", ["background has 'Ant'", "also a class", "leave it out"]),
    ("model.classifier(['ant'], none_label='x', background=[])", ["without a rule", "reject_below", "0.3"]),
    (
        "model.classifier(['ant'], background={'sky', 'sea'})",
        ["background are {", "expected a text or a list of texts"],
    ),
    ("clipmlu.evaluate(model, dataset, reject_below=-1)", ["reject below is -1", "0"]),
    ("model.classifier(['ant']).predict(b'x', on_error='skip').class_name", ["not a supported image format"]),
    (
        "model.classifier(['ant', 'bee']).predict(image).to_dataframe()",
        ["'pandas'", "pip install 'clipmlu[dataframe]'"],
    ),
]


@pytest.fixture(scope="module")
def model(compiled_once: Path) -> Iterator[Model]:
    with load(compiled_once) as opened:
        yield opened


@pytest.mark.parametrize(("code", "words"), PYTHON, ids=[code for code, _words in PYTHON])
def test_a_mistake_in_python_is_answered_in_one_line(
    model: Model, monkeypatch: pytest.MonkeyPatch, code: str, words: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    names = {"model": model, "dataset": clipmlu.open_dataset("demo", size=20), "image": support.picture(0)}
    with pytest.raises((ClipmluError, IndexError)) as caught:
        eval(code, {"clipmlu": clipmlu, **names})
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
