"""What callers of the library give: each option and argument has its type, or is refused in one line with its value."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import typing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import clipmlu
import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.errors import InputError, OptionError, ShapeError
from conftest import REPOSITORY

_CPU = {"target": "cpu"}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "ExportOptions": ("clipmlu.export.options", {}),
    "ImportOptions": ("clipmlu.importing.options", {}),
    "CompileOptions": ("clipmlu.compile.plan", {}),
    "LowerOptions": ("clipmlu.compile.lowering", {}),
    "CalibrationOptions": ("clipmlu.data.calibration", {"dataset": "demo"}),
    "EvalOptions": ("clipmlu.measure.accuracy.evaluate", {}),
    "RetrievalOptions": ("clipmlu.measure.retrieval.evaluate", {}),
    "PairChoice": ("clipmlu.data.pairs.reading", {"paths": ("pairs.csv",)}),
    "CompareOptions": ("clipmlu.measure.compare.compare", {}),
    "SpeedOptions": ("clipmlu.measure.speed.loads", {}),
    "MmRunOptions": ("clipmlu.magicmind.mm_run", {}),
    "SweepOptions": ("clipmlu.tune.sweep_options", {"precisions": ("force_float32",), "batch_sizes": (1,)}),
    "SearchOptions": ("clipmlu.tune.quantise", {"max_drop": 0.5}),
    "DatasetChoice": ("clipmlu.data.datasets.choice", {"name": "demo"}),
    "RunOptions": ("clipmlu.chain", {"dataset": DatasetChoice(name="demo")}),
    "SessionOptions": ("clipmlu.backends.base", {}),
    "WorkerOptions": ("clipmlu.magicmind.client.options", {"python": "python3"}),
    "JobOptions": ("clipmlu.jobs.options", {}),
    "IndexOptions": ("clipmlu.index.options", {}),
    "ClassificationOptions": ("clipmlu.jobs.options", {"class_names": ("cat", "dog")}),
    "UrlOptions": ("clipmlu.data.url.options", {}),
    "ServeOptions": ("clipmlu.serve.options", {}),
    "HttpOptions": ("clipmlu.serve.http.options", {}),
    "MluBuild": ("clipmlu.specs", {}),
    "QuantisationOptions": ("clipmlu.specs", {}),
}
"""Options class -> its module and what it cannot be made without."""
INTERNAL = {"GraphOptions", "RangeOptions", "RunningOptions", "EngineOptions", "ProfilerOptions", "CountOptions"}
"""Made by the library or the command line alone, or as the vendor's SDK has them."""
WHOLE, NUMBER, FLAG, PRECISION = "whole number", "number", "flag", "precision"
WRONG: dict[str, tuple[Any, ...]] = {
    WHOLE: ("3", 2.5, True, [1], float("nan")),
    NUMBER: ("0.5", True, [0.5], float("nan")),
    FLAG: ("no", 1, None),
    PRECISION: ("fp8", "FORCE_FLOAT17", 16),
}


def class_of(name: str) -> Any:
    return getattr(importlib.import_module(OPTIONS[name][0]), name)


def make(options_class: str, **given: Any) -> Any:
    required: dict[str, Any] = dict(OPTIONS[options_class][1])
    for needed, name in (("export", "ExportOptions"), ("compile", "CompileOptions"), ("evaluate", "EvalOptions")):
        if options_class in ("SweepOptions", "RunOptions") and needed in fields_of(options_class):
            required[needed] = class_of(name)()
    return class_of(options_class)(**(required | given))


def fields_of(options_class: str) -> dict[str, str]:
    """Field -> its annotation as it is written."""
    kind = class_of(options_class)
    if issubclass(kind, msgspec.Struct):
        return dict(typing.cast("dict[str, str]", kind.__annotations__))
    return {field.name: str(field.type) for field in dataclasses.fields(kind)}


def kind_of(annotation: str) -> str | None:
    first = annotation.partition(" | ")[0]
    whole = {"int": WHOLE, "PositiveInt": WHOLE, "NaturalInt": WHOLE}
    return (whole | {"float": NUMBER, "Probability": NUMBER, "bool": FLAG, "Precision": PRECISION}).get(first)


FIELDS = [
    (options_class, field, kind)
    for options_class in OPTIONS
    for field, annotation in fields_of(options_class).items()
    if (kind := kind_of(annotation)) is not None
    and field != "max_errors"  # which takes texts such as "3" and "1%", too
]


def test_every_options_class_is_tried() -> None:
    found = set()
    for path in (REPOSITORY / "src" / "clipmlu").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Options")}
    assert found - INTERNAL == {name for name in OPTIONS if name.endswith("Options")}
    assert len(FIELDS) > 60


@pytest.mark.parametrize(("options_class", "field", "kind"), FIELDS)
def test_a_field_of_another_type_is_refused_at_once(options_class: str, field: str, kind: str) -> None:
    for wrong in WRONG[kind]:
        with pytest.raises(OptionError) as caught:
            make(options_class, **{field: wrong})
        message = str(caught.value)
        assert message.startswith(f"{field.replace('_', ' ')} is {wrong!r}; expected "), message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("options_class", "given", "message"),
    [
        ("SweepOptions", {"precisions": ("fp8",)}, r"precisions\[0\] is 'fp8'; expected .*force_float32, force_float16.*'int8'"),
        ("SweepOptions", {"precisions": "force_float32"}, r"precisions is 'force_float32'; expected a tuple"),
        ("SweepOptions", {"batch_sizes": ("1",)}, r"batch sizes\[0\] is '1'; expected a whole number"),
        ("SweepOptions", {"batch_sizes": (True,)}, r"batch sizes\[0\] is True; expected"),
        ("SweepOptions", {"compile": {"target": "cpu"}}, r"compile is {'target': 'cpu'}; expected CompileOptions"),
        ("RunOptions", {"export": None}, r"export is None; expected ExportOptions"),
        ("SpeedOptions", {"devices": ("0",)}, r"devices\[0\] is '0'; expected"),
        ("SpeedOptions", {"scenarios": ("fast",)}, r"scenarios\[0\] is 'fast'; expected .*one of single-stream"),
        ("SpeedOptions", {"images": "photos"}, r"images is 'photos'; expected a tuple, each .*path"),
        ("SweepOptions", {"batch_sizes": (4, 0)}, r"batch sizes\[1\] is 0; expected 1 or more, 2147483647 at most$"),
        ("MmRunOptions", {"tower": "both"}, r"tower is 'both'; expected one of image, text, joint or None"),
        ("ExportOptions", {"layout": "fused"}, r"layout is 'fused'; expected one of towers, joint"),
        ("CompareOptions", {"tower": 1}, r"tower is 1; expected one of image, text, both"),
        ("CompileOptions", {"calibration": "demo"}, r"calibration is 'demo'; expected CalibrationOptions or CalibrationSet"),
        ("CompileOptions", {"quantisation": {"granularity": "x"}}, r"quantisation is .*; expected QuantisationOptions"),
        ("CompileOptions", {"seen_images": "abc"}, r"seen images is 'abc'; expected a tuple"),
        ("CompileOptions", {"target": None}, r"target is None; expected a text"),
        ("CompileOptions", {"batch_size": 2**31}, r"batch size is 2147483648; expected 1 or more, 2147483647 at most"),
        ("CompileOptions", {"precision": "fp8"}, r"precision is 'fp8'; expected one of fp32, .*force_float32, force_float16, qint8_"),
        ("LowerOptions", {"layout": "fused"}, r"layout is 'fused'; expected one of towers, joint"),
        ("LowerOptions", {"compile": {}}, r"compile is {}; expected CompileOptions"),
        ("QuantisationOptions", {"granularity": "per_channel"}, r"granularity is 'per_channel'; expected one of per_tensor, "),
        ("QuantisationOptions", {"smooth_alpha": {"qkv": "0.5"}}, r"smooth alpha is {'qkv': '0.5'}; expected a map"),
        ("QuantisationOptions", {"keep_float": "qkv"}, r"keep float is 'qkv'; expected a tuple"),
        ("MluBuild", {"archs": {"mtp_372": (0,)}}, r"archs is {'mtp_372': \(0,\)}; expected a map"),
        ("MluBuild", {"node_types": {"n": "int8"}}, r"node types is {'n': 'int8'}; expected .*float32, float16"),
        ("EvalOptions", {"seed": -1}, r"seed is -1; expected 0 or more"),
        ("EvalOptions", {"workers": 0}, r"workers is 0; expected 1 or more"),
        ("EvalOptions", {"templates": None}, r"templates is None; expected a text"),
        ("EvalOptions", {"templates": b"a {}"}, r"templates is b'a {}'; expected a text"),
        ("CompareOptions", {"batch_size": 0}, r"batch size is 0; expected 1 or more"),
        ("CompareOptions", {"threads": -1}, r"threads is -1; expected 0 or more"),
        ("CompareOptions", {"workers": 0}, r"workers is 0; expected 1 or more"),
        ("SpeedOptions", {"seed": -1}, r"seed is -1; expected 0 or more"),
        ("DatasetChoice", {"max_pixels": 0}, r"max pixels is 0; expected 1 or more"),
        ("RunOptions", {"threads": -1}, r"threads is -1; expected 0 or more"),
    ],
)  # fmt: skip
def test_other_fields_are_held_to_their_types_too(options_class: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}"):
        make(options_class, **given)


def test_values_that_say_the_same_are_converted() -> None:
    compiling = make(
        "CompileOptions", precision="qint8_mixed_float16", batch_size=np.int64(4), min_cosine=np.float32(0.5)
    )
    assert compiling.precision is clipmlu.Precision.QINT8_MIXED_FLOAT16
    assert type(compiling.batch_size) is int
    assert type(compiling.min_cosine) is float
    assert (compiling.batch_size, compiling.min_cosine) == (4, 0.5)
    sweep = make("SweepOptions", precisions=["force_float16"], batch_sizes=[1, 2])
    assert sweep.precisions == (clipmlu.Precision.FORCE_FLOAT16,)
    assert sweep.batch_sizes == (1, 2)
    assert type(sweep.precisions[0]) is clipmlu.Precision
    assert make("QuantisationOptions", keep_float=["qkv"]).keep_float == ("qkv",)


@pytest.fixture
def model(compiled: CompiledBundle) -> Any:
    with clipmlu.load(compiled.path) as encoder:
        yield encoder


PICTURE = np.zeros((support.SIDE, support.SIDE, 3), np.uint8)
ROWS = np.eye(3, support.DIM, dtype=np.float32)
TOKENS = np.ones((2, support.CONTEXT), np.int64)

CALLS: dict[str, tuple[Any, type[Exception], str]] = {
    "load threads": (lambda path: clipmlu.load(path, threads="2"), OptionError, "threads is '2'; expected a whole number"),
    "load device": (lambda path: clipmlu.load(path, device=True), OptionError, "device is True; expected a whole number"),
    "load verify": (lambda path: clipmlu.load(path, verify="no"), OptionError, "verify is 'no'; expected True or False"),
    "load image_only": (lambda path: clipmlu.load(path, image_only=1), OptionError, "image only is 1; expected True or"),
    "load busy_wait": (lambda path: clipmlu.load(path, busy_wait=0), OptionError, "busy wait is 0; expected True or False"),
    "load fast": (lambda path: clipmlu.load(path, fast_preprocess=1), OptionError, "fast preprocess is 1; expected True"),
    "load max_pixels": (lambda path: clipmlu.load(path, max_pixels="9"), OptionError, "max pixels is '9'; expected a whole"),
    "Encoder": (clipmlu.Encoder, OptionError, "bundle is .*; expected CompiledBundle"),
    "compile options": (
        lambda path: clipmlu.compile_bundle(path, "out", {"target": "cpu"}),
        OptionError,
        "options is {'target': 'cpu'}; expected CompileOptions or None",
    ),
    "export options": (lambda path: clipmlu.export_model("demo", "out", "fast"), OptionError, "options is 'fast'; expected Exp"),
    "search options": (
        lambda path: clipmlu.search_bundle(path, "out", None, clipmlu.SearchOptions(max_drop=0.5)),
        OptionError,
        "options is None; expected CompileOptions",
    ),
    "compare dataset": (
        lambda path: clipmlu.compare_bundles(path, path, 3),
        OptionError,
        r"dataset is 3; expected an open dataset, such as clipmlu.open_dataset\('NAME'\) gives",
    ),
    "compare options": (
        lambda path: clipmlu.compare_bundles(path, path, clipmlu.open_dataset("demo", size=2), 3),
        OptionError,
        "options is 3; expected CompareOptions",
    ),
    "dataset size": (lambda path: clipmlu.open_dataset("demo", size="2"), OptionError, "size is '2'; expected a whole number"),
    "dataset seed": (lambda path: clipmlu.open_dataset("demo", seed=-1), OptionError, "seed is -1; expected 0 or more"),
    "dataset split": (lambda path: clipmlu.open_dataset("demo", split=1), OptionError, "split is 1; expected a text or None"),
    "dataset pixels": (
        lambda path: clipmlu.open_dataset("demo", max_pixels=2.5),
        OptionError,
        "max pixels is 2.5; expected a whole number",
    ),
}  # fmt: skip

USES: dict[str, tuple[Any, type[Exception], str]] = {
    "evaluate dataset": (
        lambda model: clipmlu.evaluate(model, 3),
        OptionError,
        r"dataset is 3; expected an open dataset, such as clipmlu.open_dataset\('NAME'\) gives",
    ),
    "evaluate options": (
        lambda model: clipmlu.evaluate(model, clipmlu.open_dataset("demo", size=2), {"samples": 3}),
        OptionError,
        "options is {'samples': 3}; expected EvalOptions or None",
    ),
    "evaluate encoder": (
        lambda model: clipmlu.evaluate(3, clipmlu.open_dataset("demo", size=2)),
        OptionError,
        "model is 3; expected Encoder",
    ),
    "embed_images None": (lambda model: model.embed_images(None), InputError, "images are None; expected an image or a list"),
    "embed_images dict": (lambda model: model.embed_images({"a": PICTURE}), InputError, "images are {'a': array.*; expected an"),
    "embed_images set": (lambda model: model.embed_images({"a.png"}), InputError, r"images are {'a.png'}; expected an image"),
    "embed_images number": (lambda model: model.embed_images(3), InputError, "images are 3; expected an image or a list"),
    "embed_images inner": (lambda model: model.embed_images([PICTURE, None]), InputError, "Cannot read an image .*'NoneType'"),
    "embed_images batch": (
        lambda model: model.embed_images(PICTURE, batch_size="3"),
        OptionError,
        "batch size is '3'; expected a whole number",
    ),
    "embed_texts None": (lambda model: model.embed_texts(None), OptionError, "texts are None; expected a text or a list"),
    "embed_texts number": (lambda model: model.embed_texts(3), OptionError, "texts are 3; expected a text or a list of texts"),
    "embed_texts inner": (lambda model: model.embed_texts(["a", None]), OptionError, r"texts\[1\] is None; expected a text"),
    "embed_texts bytes": (lambda model: model.embed_texts(b"ab"), OptionError, "texts are b'ab'; expected a text or a list"),
    "tokenizer": (lambda model: model.tokenizer([1]), OptionError, r"texts\[0\] is 1; expected a text"),
    "encode_images list": (lambda model: model.encode_images([[1.0]]), ShapeError, r"pixel_values is \[\[1.0\]\]; expected a NumPy"),
    "encode_images None": (lambda model: model.encode_images(None), ShapeError, "pixel_values is None; expected a NumPy array"),
    "submit_images": (lambda model: model.submit_images(None), ShapeError, "pixel_values is None; expected a NumPy array"),
    "encode_tokens list": (lambda model: model.encode_tokens([[1, 2]]), ShapeError, r"input_ids is \[\[1, 2\]\]; expected a NumPy"),
    "submit_tokens": (lambda model: model.submit_tokens(None), ShapeError, "input_ids is None; expected a NumPy array"),
    "classifier names": (lambda model: model.classifier(None), OptionError, "Class names are of type 'NoneType'"),
    "classifier cache": (lambda model: model.classifier(["a", "b"], cache="no"), OptionError, "cache is 'no'; expected True or"),
    "load_classifier": (lambda model: model.load_classifier(None), OptionError, "the classifier file is None; expected a path"),
}  # fmt: skip

ASKED: dict[str, tuple[Any, type[Exception], str]] = {
    **{
        f"predict top_k {wrong!r}": (
            lambda asked, wrong=wrong: asked.predict(PICTURE, top_k=wrong),
            OptionError,
            f"top k is {re.escape(repr(wrong))}; expected {expected}",
        )
        for wrong, expected in (("3", "a whole"), (2.5, "a whole"), (None, "a whole"), (True, "a whole"), (0, "1 or more"))
    },
    "predict none at all": (lambda asked: asked.predict([], top_k="3"), OptionError, "top k is '3'; expected a whole number"),
    "predict None": (lambda asked: asked.predict(None), InputError, "images are None; expected an image or a list of them"),
    "predict dict": (lambda asked: asked.predict({"a": PICTURE}), InputError, "images are {'a': array"),
    "predict batch '3'": (lambda asked: asked.predict(PICTURE, batch_size="3"), OptionError, "batch size is '3'; expected a whole"),
    "predict batch True": (lambda asked: asked.predict(PICTURE, batch_size=True), OptionError, "batch size is True; expected"),
    "rows top_k": (lambda asked: asked.predictions_from_rows(ROWS, list("abc"), top_k=1.0), OptionError, "top k is 1.0; expected"),
    "rows few": (
        lambda asked: asked.predictions_from_rows(ROWS, ["a", "b"]),
        OptionError,
        "sources are 2 for 3 rows; expected one name for each row",
    ),
    "rows many": (lambda asked: asked.predictions_from_rows(ROWS, list("abcd")), OptionError, "sources are 4 for 3 rows"),
    "rows None": (lambda asked: asked.predictions_from_rows(ROWS, None), OptionError, "sources is None; expected a list"),
    "rows numbers": (lambda asked: asked.predictions_from_rows(ROWS, [1, 2, 3]), OptionError, r"sources is \[1, 2, 3\]; expected"),
    "scores 1-D": (lambda asked: asked.scores(np.zeros(2, np.float32)), ShapeError, r"Rows of logits are float32 of shape \(2,\)"),
    "scores width": (lambda asked: asked.scores(np.zeros((1, 3), np.float32)), ShapeError, r"Rows of logits are .* shape \(1, 3\); expected"),
    "scores list": (lambda asked: asked.scores([[0.5, 1.0]]), ShapeError, "Rows of logits are list of shape"),
    "scores NaN": (
        lambda asked: asked.scores(np.array([[0, 1], [np.nan, 0]], np.float32)),
        InputError,
        "Row 1 holds NaN or infinity",
    ),
    "scores inf": (lambda asked: asked.scores(np.array([[np.inf, 1]], np.float32)), InputError, "Row 0 holds NaN or infinity"),
    "save overwrite": (lambda asked: asked.save("a.clf", overwrite="no"), OptionError, "overwrite is 'no'; expected True or False"),
}  # fmt: skip


def refused(call: Any, given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}") as caught:
        call(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(CALLS))
def test_functions_refuse_arguments_of_another_type(
    name: str, compiled: CompiledBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    call, error, message = CALLS[name]
    refused(call, compiled.path, error, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", list(USES))
def test_a_model_refuses_arguments_of_another_type(name: str, model: Any) -> None:
    call, error, message = USES[name]
    refused(call, model, error, message)


@pytest.mark.parametrize("name", list(ASKED))
def test_a_classifier_refuses_arguments_of_another_type(
    name: str, model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    call, error, message = ASKED[name]
    refused(call, model.classifier(["a", "b"], cache=False), error, message)
    assert not (tmp_path / "a.clf").exists()


def test_numpy_numbers_and_iterators_are_taken(model: Any) -> None:
    classifier = model.classifier(["a", "b"], cache=False)
    bright = np.full_like(PICTURE, 200)
    predictions = classifier.predict(iter([bright, bright]), top_k=np.int32(1), batch_size=np.int64(2))
    assert [len(prediction.class_names) for prediction in predictions] == [1, 1]
    assert model.embed_texts(iter(["a", "b"])).shape == (2, support.DIM)


@pytest.fixture(scope="module")
def target_bundle(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> clipmlu.CompiledBundle:
    """The tiny model for one target."""
    if request.param == "openvino":
        pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp(request.param)
    compiling = clipmlu.CompileOptions(target=request.param, batch_size=2)
    return clipmlu.compile_bundle(support.write_exported(folder / "exported"), folder / "made", compiling)


@pytest.mark.parametrize("target_bundle", ["cpu", "emulated-mlu", "openvino"], indirect=True)
@pytest.mark.parametrize(("wrong", "row"), [(-1, 1), (-(2**40), 1), (259, 0), (2**31, 1), (2**32 + 1, 1)])
def test_a_token_that_no_tokenizer_makes_is_refused_before_the_run(
    target_bundle: clipmlu.CompiledBundle, wrong: int, row: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """The stand-in tokenizer has the ids 0 to 258: <pad>, <sot>, 256 bytes, <eot>."""
    tokens = TOKENS.copy()
    tokens[row, 3] = wrong
    with clipmlu.load(target_bundle.path) as encoder:
        capfd.readouterr()
        for call in (encoder.encode_tokens, encoder.submit_tokens):
            with pytest.raises(InputError, match=rf"^input_ids\[{row}\] holds the token {wrong}; expected 0 to 258"):
                call(tokens)
        assert capfd.readouterr() == ("", "")
        tokens[row, 3] = 258
        expected = support.embed_tokens(tokens)
        assert np.abs(encoder.encode_tokens(tokens) - expected).max() < 1e-4


def test_device_of_torch_is_told_what_chooses_the_runtime(compiled: CompiledBundle) -> None:
    with pytest.raises(OptionError, match=r"device is 'cuda'; expected the index of an MLU card.* chosen by target"):
        clipmlu.load(compiled.path, device="cuda")  # type: ignore[arg-type]
