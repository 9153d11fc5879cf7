"""Mistakes of new users with images, labels and templates: what they wrote, and what the one line of the answer holds."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pytest
from PIL import Image

import support
from clipmlu.errors import ClipmluError
from clipmlu.model import Model, load

IMAGES: list[tuple[str, list[str]]] = [
    ("predict('')", ["the path is empty", "Expected an image file"]),
    ("predict('photos')", ["'photos': it is a directory", "glob('*.jpg')"]),
    ("predict('photos/*.png')", ["'photos/*.png'", "a pattern is none", "glob.glob("]),
    ("predict('photos/no.jpg')", ["'photos/no.jpg': there is no such file"]),
    ("predict(open('list.txt').readlines())", ["white space around the name", "strip()"]),
    ("predict(open('list.txt'))", ["opened as text", "'rb'"]),
    ("predict('list.txt')", ["'list.txt'", "not a supported image format", "JPEG"]),
    ("predict('https://host/a.jpg?key=1')", ["'https://host/a.jpg?key=***'", "allow_urls=True in Python"]),
    ("predict('a.png', allow_urls='yes')", ["allow_urls is 'yes'", "True or False"]),
    ("predict('file:///photos/a%20b.png')", ["it is a file URL", "Give the path '/photos/a b.png'"]),
    ("predict('s3://bucket/a.png')", ["begin with 's3:'", "Download the file"]),
    ("predict('data:image/png;base64,iVBO')", ["it is a data URL", "base64.b64decode"]),
    ("predict('data:image/png;base64,' + 'A' * 10000)", ["it is a data URL", "base64.b64decode"]),
    ("predict(None)", ["images are None", "expected an image or a list"]),
    ("predict({'a': 'a.png'})", ["images are {'a': 'a.png'}", "list(images.values())"]),
    ("predict({'a.png', 'b.png'})", ["expected an image or a list", "sorted(images)"]),
    ("predict(['a.png', ['b.png']])", ["'image 1'", "'list'", "Give all images in one list"]),
    ("predict(['a.png', None])", ["'image 1'", "'NoneType'", "a missing value"]),
    ("predict(pandas.Series(['a.png', float('nan')]))", ["'image 1'", "'float'", "a missing value"]),
    ("predict(['a.png', 7])", ["'image 1'", "'int'", "Expected a path"]),
    ("predict(pandas.DataFrame({'path': ['a.png']}))", ["a table", "columns 'path'", "table['path']"]),
    ("predict(polars.DataFrame({'path': ['a.png']}))", ["a table", "columns 'path'", "table['path']"]),
    ("predict(pandas.Series([0.5, 0.25]))", ["a column of float64", "expected one of paths"]),
    ("predict(polars.Series([0.5, 0.25]))", ["a column of Float64", "expected one of paths"]),
    ("predict([{'image': 'a.png', 'label': 3}])", ["fields 'image', 'label'", "give the field that holds the image"]),
    ("predict({'bytes': None, 'path': None})", ["neither bytes nor a path"]),
    ("predict(np.zeros((9, 9, 3)))", ["range of floating-point pixels", "(array * 255).round().astype('uint8')"]),
    ("predict(model.preprocessor(Image.new('RGB', (9, 9))))", ["float32 with shape (3, 8, 8)", "go to encode_images"]),
    ("predict(np.zeros((3, 9, 9), np.uint8))", ["channels are first", "array.transpose(1, 2, 0)"]),
    ("predict(['a.png', np.zeros((9, 9, 3))])", ["shape (9, 9, 3) ('image 1')", "range of floating-point pixels"]),
    ("predict(np.zeros((9, 9), bool))", ["array of bool with shape (9, 9)", "Expected uint8"]),
    ("predict(np.fromfile('a.png', np.uint8))", ["array of uint8 with shape", "array.tobytes()"]),
    ("predict([np.zeros((2, 9, 9, 3), np.uint8)])", ["shape (2, 9, 9, 3)", "without a list around it"]),
    ("predict(np.array([['a.png'], ['a.png']]))", ["shape (2, 1)", "array.ravel()"]),
    ("predict('a.png', on_error='ignore')", ["on_error is 'ignore'", "raise, skip"]),
]

TEMPLATES: list[tuple[str, list[str]]] = [
    ("'a photo of a cat'", ["'a photo of a cat' has no '{}'", "'a photo of a {}.'"]),
    ("'a photo of a {label}.'", ["has no '{}'", "Write '{}' for '{label}'"]),
    ("['a {}', 'a photo of a %s']", ["'a photo of a %s' has no '{}'", "Write '{}' for '%s'"]),
    ("'openai-imagent'", ["Unknown template set 'openai-imagent'", "openai-imagenet"]),
    ("['a {}', 'openai-imagent']", ["Unknown template set 'openai-imagent'", "openai-imagenet"]),
    ("lambda name: 'a photo of a cat'", ["does not hold the class name", "Give a dict"]),
    ("lambda name: f'a photo of a {name.lower()}.'", ["does not hold the class name as it is", "Give a dict"]),
    ("lambda name: f'an {name}' if name[0] in 'UI' else f'a {name}'", ["depends on the class name", "Give a dict"]),
    ("[lambda name: 'a photo of a {}.'.format(nam)]", ["Template 0", "NameError", "expected one like lambda"]),
    ("lambda: 'a photo'", ["function that fails for the class name", "TypeError", "lambda name:"]),
    ("[print]", ["Template 0", "returns None", "expected a text"]),
    ("lambda name: 'a photo of a {}.'", ["holds '{}'", "give that text without a function"]),
    ("['a {}', 3]", ["Template 1 is of type 'int'", "the name of a set"]),
    ("{'a {}', '{}'}", ["Templates are of type 'set'", "a list of texts"]),
    ("[]", ["No templates"]),
]

LABELS: list[tuple[str, list[str]]] = [
    ("''", ["No class names", "at least one is needed"]),
    ("'lables.txt'", ["Label file 'lables.txt' does not exist", "'cat,dog'"]),
    ("[]", ["No class names"]),
    ("{}", ["No class names"]),
    ("None", ["'NoneType'", "expected a list of texts"]),
    ("{'ant', 'bee'}", ["'set'", "expected a list of texts"]),
    ("['ant', ['bee']]", ["Class name 1 is of type 'list'", "expected a text"]),
    ("['ant', '']", ["Class name 1 is blank"]),
    ("pandas.DataFrame({'name': ['ant']})", ["a table with the columns 'name'", "table['name']"]),
    ("pandas.Series(['ant', 'bee'] * 9)", ["18 values, of which 2 are different", "column.unique()"]),
    ("pandas.Series(['ant', float('nan')])", ["Class name 1", "'float'"]),
    ("{'ant': []}", ["Class 'ant' has an empty list of prompts"]),
    ("{'ant': ' '}", ["Class 'ant' has a prompt that is blank", "'a photo of a ant.'"]),
    ("{'ant': None}", ["prompts of class 'ant' are None", "a list of prompts"]),
    ("{'ant': ['x', 3]}", ["A prompt of class 'ant' is 3", "expected a text"]),
    ("{'ant': {'prompt': 'x'}}", ["prompts of class 'ant' are {'prompt': 'x'}", "a list of prompts"]),
    ("{1: 'ant', 2: 'bee'}", ["dict of labels", "begin at 1", "number from 0"]),
    ("{'0': 'ant', '1': 'bee'}", ["positions to names or names to prompts", "list(labels.values())"]),
    ("{'ant': 'an ant', 'bee': 'a bee'}, 'a photo of a {}'", ["templates are 'a photo of a {}'", "prompts of its own"]),
]


@pytest.fixture(scope="module")
def model(compiled_once: Path) -> Iterator[Model]:
    with load(compiled_once) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder in which a new user works."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "photos/a.png"):
        support.picture(1).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("photos/a.png\na.png\n", encoding="utf-8")


def _refused(code: str, words: list[str], names: dict[str, Any]) -> None:
    with contextlib.ExitStack() as files:

        def open_and_close(*arguments: Any) -> Any:
            return files.enter_context(open(*arguments))

        known = {"np": np, "pandas": pandas, "polars": polars, "Image": Image, "io": io, "open": open_and_close}
        with pytest.raises(ClipmluError) as caught:
            eval(code, {**known, **names})
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(("code", "words"), IMAGES, ids=[code for code, _ in IMAGES])
def test_images(model: Model, code: str, words: list[str]) -> None:
    predict = model.classifier(["ant", "bee"]).predict
    _refused(code, words, {"predict": predict, "model": model})


@pytest.mark.parametrize(("code", "words"), TEMPLATES, ids=[code for code, _ in TEMPLATES])
def test_templates(model: Model, code: str, words: list[str]) -> None:
    _refused(f"model.classifier(['ant', 'bee'], {code})", words, {"model": model})


@pytest.mark.parametrize(("code", "words"), LABELS, ids=[code for code, _ in LABELS])
def test_labels(model: Model, code: str, words: list[str]) -> None:
    _refused(f"model.classifier({code})", words, {"model": model})
