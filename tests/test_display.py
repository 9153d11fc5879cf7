"""How results show themselves, checked with values by hand, ``json`` and pandas."""

from __future__ import annotations

import base64
import dataclasses
import gc
import html.parser
import io
import json
import pickle
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

import clipmlu
import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.chain import RunReport, Step
from clipmlu.classify.results import Prediction, Predictions
from clipmlu.data.datasets import open_dataset
from clipmlu.data.thumbnails import ImageReference
from clipmlu.display import Displayed, shorten, size_text
from clipmlu.errors import MissingDependencyError
from clipmlu.files.publish import encode_json
from clipmlu.jobs.options import ClassificationOptions, JobOptions
from clipmlu.jobs.run import JobReport, run_job
from clipmlu.measure.accuracy.evaluate import EvalOptions, evaluate
from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.measure.compare.compare import CompareOptions, compare_bundles
from clipmlu.measure.speed.loads import SpeedOptions
from clipmlu.measure.speed.speed import measure_speed
from clipmlu.specs import Precision
from clipmlu.tune.sweep_report import SweepReport, SweepRow
from clipmlu.tune.trial import SearchReport, Trial
from jobs.shard_samples import make_provenance

LONG = "folder-" * 40


class _Check(html.parser.HTMLParser):
    """Elements are closed in the order of their opening; none but those of tables and pictures."""

    allowed = frozenset({"table", "caption", "thead", "tbody", "tr", "th", "td", "small", "p", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.allowed, tag
        if tag == "img":
            self.images += 1
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_html(text: str) -> int:
    """Check HTML, and return its number of pictures."""
    parser = _Check()
    parser.feed(text)
    parser.close()
    assert not parser.open
    return parser.images


def check_displayed(value: Displayed, *, emulated: bool = False) -> None:
    check_displayed_text(value, emulated=emulated)
    plain = value.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def check_displayed_text(value: Displayed, *, emulated: bool = False) -> None:
    text = repr(value)
    assert len(text.splitlines()) <= 5
    assert max(map(len, text.splitlines())) <= 120
    assert text.startswith(type(value).__name__)
    check_html(value._repr_html_())
    for shown in (text, value._repr_html_()):
        assert ("emulated" in shown) is emulated


@pytest.fixture
def accuracy(compiled: CompiledBundle) -> AccuracyReport:
    with clipmlu.load(compiled.path) as model:
        return evaluate(model, support.Pictures(40), EvalOptions())


def test_accuracy_report(accuracy: AccuracyReport) -> None:
    check_displayed(accuracy)
    assert f"top-1: {accuracy.top1:.4f}" in repr(accuracy)
    assert accuracy.to_dict() == json.loads(encode_json(accuracy))
    frame = accuracy.to_dataframe()
    assert list(frame.columns) == ["class_name", "images", "correct", "top1"]
    assert frame["images"].sum() == 40
    assert frame["correct"].sum() / 40 == pytest.approx(accuracy.top1)
    assert "emulated" not in frame
    provenance = msgspec.structs.replace(accuracy.provenance, emulated=True)
    marked = msgspec.structs.replace(accuracy, provenance=provenance)
    check_displayed(marked, emulated=True)
    assert marked.to_dataframe()["emulated"].all()


def test_reports_of_comparison_and_speed(compiled: CompiledBundle, exported: ExportedBundle) -> None:
    comparison = compare_bundles(compiled, exported, support.Pictures(16), CompareOptions())
    check_displayed(comparison)
    assert comparison.to_dict() == json.loads(encode_json(comparison))
    frame = comparison.to_dataframe()
    assert len(frame) == sum(len(tower.nodes) for tower in comparison.towers.values()) > 0
    assert set(frame["tower"]) == {"image", "text"}
    speed = measure_speed(
        compiled.path, SpeedOptions(duration_ms=1, warmup_ms=0, iterations=1, stages=False, tower="image")
    )
    check_displayed(speed)
    assert speed.to_dict() == json.loads(encode_json(speed))
    scenario = speed.towers[0].scenarios[1]
    assert f"image, offline: {scenario.value:.1f} samples/s" in " ".join(repr(speed).split())
    assert speed.to_dataframe()["value"].tolist() == [each.value for each in speed.towers[0].scenarios]


def test_reports_of_sweep_search_and_run(accuracy: AccuracyReport) -> None:
    rows = (
        SweepRow(precision=Precision.FORCE_FLOAT32, batch_size=8, images_per_second=12.5, top1=0.5, on_front=True),
        SweepRow(precision=Precision.QINT8_MIXED_FLOAT32, failure="no <range>"),
    )
    machine = clipmlu.measure.machine.describe_machine()  # type: ignore[attr-defined]
    sweep = SweepReport(
        provenance=make_provenance(emulated=True), dataset="demo", split="test", images=4, threads=0, repetitions=1,
        duration_ms=1, rows=rows, machine=machine,
    )  # fmt: skip
    check_displayed(sweep, emulated=True)
    assert "best: force_float32 batch 8" in repr(sweep)
    assert "no &lt;range&gt;" in sweep._repr_html_()
    assert sweep.to_dataframe()["precision"].tolist() == ["force_float32", "qint8_mixed_float32"]
    trial = Trial(
        precision=Precision.FORCE_FLOAT16, quantisation=None, verdict="accepted", images=9, top1=0.75, drop=0.01,
        drop_bound=0.02, elapsed_s=1.0,
    )  # fmt: skip
    search = SearchReport(
        provenance=make_provenance(), max_drop=0.01, confidence=0.95, dataset="demo", split="test", images=9,
        templates="simple", reference_top1=0.76, trials=(trial,),
    )  # fmt: skip
    check_displayed(search)
    assert search.chosen == trial
    assert msgspec.structs.replace(search, trials=()).chosen is None
    assert search.to_dataframe()["top1"].tolist() == [0.75]
    run = RunReport(steps=(Step(name="export", result="made", elapsed_s=1.5, path=LONG),), accuracy=accuracy)
    check_displayed(run)
    assert "export: made, 1.5 s" in repr(run)


def test_job_and_its_report(compiled: CompiledBundle, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        support.picture(number).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"no image")
    options = JobOptions(
        shard_format="jsonl", classification=ClassificationOptions(class_names=("ant", "<b>"), top_k=2)
    )
    report = run_job(compiled.path, [folder], tmp_path / "job", options)
    check_displayed(report)
    assert report.to_dict()["path"] == str(tmp_path / "job")
    assert "images: 4 (1 could not be read)" in repr(report)
    check_displayed(dataclasses.replace(report, emulated=True), emulated=True)
    assert isinstance(report, JobReport)
    job = clipmlu.open_job(tmp_path / "job")
    check_displayed(job)
    check_displayed(job.state())
    assert "finished shards: 1" in repr(job.state())
    check_displayed(job.verify())
    check_displayed(job.export(tmp_path / "all.csv"))
    frame = job.to_dataframe()
    assert [Path(name).name for name in frame["id"]] == ["0.png", "1.png", "2.png", "3.png"]
    with clipmlu.load(compiled.path) as model:
        expected = model.classifier(["ant", "<b>"]).predict(folder / "2.png")
    assert isinstance(expected, Prediction)
    assert frame["class_name_1"][2] == expected.class_name
    assert frame["score_1"][2] == pytest.approx(expected.score, abs=1e-5)
    assert "no image" not in str(frame["class_name_1"][1])
    assert frame["error"].notna().tolist() == [False, True, False, False]
    shutil.rmtree(job.path)
    check_displayed_text(job)
    assert "No such file" in repr(job), "what is shown never fails"


def test_bundles_and_model(compiled: CompiledBundle, exported: ExportedBundle) -> None:
    check_displayed(exported)
    check_displayed(compiled)
    manifest = json.loads((compiled.path / "manifest.json").read_text())
    assert compiled.to_dict() == {"path": str(compiled.path), "digest": compiled.digest, "manifest": manifest}
    assert "precision: force_float32" in repr(compiled)
    with clipmlu.load(compiled.path) as model:
        check_displayed(model)
        assert not model._sessions, "nothing is opened by looking at it"
        assert model.to_dataframe()["target"].tolist() == ["cpu"]


def test_classifier(compiled: CompiledBundle) -> None:
    with clipmlu.load(compiled.path) as model:
        classifier = model.classifier(["<ant>", "bee"], none_label="other", reject_below=0.25)
    check_displayed(classifier)
    assert "&lt;ant&gt;" in classifier._repr_html_()
    assert "below 0.25" in classifier._repr_html_()
    assert classifier.to_dict()["open_set"]["none_label"] == "other"
    assert classifier.to_dataframe()["class_name"].tolist() == ["<ant>", "bee"]


def test_long_class_names_are_shortened(compiled: CompiledBundle) -> None:
    with clipmlu.load(compiled.path) as model:
        text = repr(model.classifier(["a" * 5000, "two\nlines"], cache=False))
    assert "aaa...aaa" in text
    assert "'two lines'" in text
    assert len(text) < 200


def test_data_frames_without_rows_have_columns() -> None:
    assert list(Predictions().to_dataframe().columns) == ["source", "error"]
    assert list(open_dataset("demo", "test", size=3)[:0].to_dataframe().columns) == ["key", "label", "class_name"]


def test_elements_slices_and_iteration_of_a_dataset() -> None:
    dataset = open_dataset("demo", "test", size=30)
    check_displayed(dataset)
    image, label = dataset[3]
    element = dataset[3]
    check_displayed(element)
    assert (label, element.class_name, element.key) == (dataset.label(3), dataset.class_names[label], dataset.key(3))
    assert image.tobytes() == dataset.image(3).tobytes()
    assert dataset[-1].key == dataset.key(29)
    assert dataset[np.int64(4)].key == dataset.key(4)
    part = dataset[4:20:3]
    assert (len(part), part.split) == (6, "test[4:20:3]")
    assert [each.key for each in part] == [dataset.key(index) for index in range(4, 20, 3)]
    assert [each.label for each in part[1:3]] == [dataset.label(7), dataset.label(10)]
    assert len(list(dataset)) == 30
    assert check_html(dataset._repr_html_()) == 8
    assert check_html(element._repr_html_()) == 1
    frame = part.to_dataframe()
    assert frame["label"].tolist() == [dataset.label(index) for index in range(4, 20, 3)]
    for wrong in (30, -31):
        with pytest.raises(IndexError, match=f"Dataset 'demo' has no image {wrong}; it has 30"):
            dataset[wrong]


def test_a_slice_is_evaluated_like_the_same_number_of_samples(compiled: CompiledBundle) -> None:
    dataset = open_dataset("demo", "test", size=30)
    with clipmlu.load(compiled.path) as model:
        part, samples = evaluate(model, dataset[:7]), evaluate(model, dataset, EvalOptions(samples=7))
    assert (part.top1, part.per_class) == (samples.top1, samples.per_class)
    assert (part.split, samples.split) == ("test[0:7]", "test")


def test_folder_without_classes(tmp_path: Path) -> None:
    from clipmlu.data.datasets import open_folder

    support.picture(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone")
    dataset: Any = open_folder(tmp_path)
    assert dataset[0].label is None
    assert dataset[0].class_name is None
    assert check_html(dataset._repr_html_()) == 1, "the second one cannot be read"
    check_displayed(dataset)


def _predictions(count: int, **changes: Any) -> Predictions:
    first = Prediction("x.jpg", ("<b>", "dog"), (0, 1), (0.75, 0.25), **changes)
    return Predictions(dataclasses.replace(first, source=f"<i>{number}.jpg") for number in range(count))


def test_predictions_are_short_and_escaped() -> None:
    many = _predictions(30)
    assert len(repr(many).splitlines()) == 23
    assert repr(many[0]) == "Prediction(<i>0.jpg: '<b>' 0.750, 'dog' 0.250)"
    assert "... 10 more" in repr(many)
    assert "10 more" in many._repr_html_()
    assert check_html(many._repr_html_()) == 0
    part = many[5:7]
    assert isinstance(part, Predictions)
    assert [each.source for each in part] == ["<i>5.jpg", "<i>6.jpg"]
    assert isinstance(many[-1], Prediction)
    assert many.to_dict()["results"][1] == many[1].to_dict()
    marked = _predictions(2, emulated=True)
    assert "(emulated)" in repr(marked)
    assert "(emulated)" in repr(marked[0])
    assert "(emulated)" in marked._repr_html_()
    assert marked[0].to_dict()["emulated"] is True
    names = tuple(f"{'name ' * 20}{number}" for number in range(9))
    long = Prediction(LONG, names, tuple(range(9)), (0.1,) * 9, emulated=True)
    for shown in (repr(long), repr(Predictions([long])), repr(Prediction.failed(LONG, LONG))):
        assert max(map(len, shown.splitlines())) <= 120


def test_predictions_become_a_data_frame() -> None:
    frame = Predictions([*_predictions(2), Prediction.failed("bad", "broken")]).to_dataframe()
    assert list(frame.columns) == ["source", "error", "class_name_1", "score_1", "class_name_2", "score_2"]
    assert frame["class_name_1"].tolist()[:2] == ["<b>", "<b>"]
    assert frame["score_2"].tolist()[:2] == [0.25, 0.25]
    assert frame["error"].tolist()[2] == "broken"
    assert frame.isna().sum().sum() == 2 + 4
    assert _predictions(1)[0].to_dataframe()["score_1"].tolist() == [0.75]


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'clipmlu\[dataframe\]'"):
        _predictions(1).to_dataframe()


def _shown_picture(reference: ImageReference) -> Image.Image:
    uri = reference.uri()
    assert uri is not None
    head, _, content = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    assert len(content) < 20_000
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.mark.parametrize("kind", ["path", "text", "pillow", "array"])
def test_thumbnails_show_the_image_while_it_is_there(kind: str, tmp_path: Path, compiled: CompiledBundle) -> None:
    whole = Image.new("RGB", (300, 150), (200, 30, 30))
    whole.save(tmp_path / "a.png")
    given: dict[str, Callable[[], Any]] = {
        "path": lambda: tmp_path / "a.png",
        "text": lambda: str(tmp_path / "a.png"),
        "pillow": whole.copy,
        "array": lambda: np.asarray(whole).copy(),
    }
    source = given[kind]()
    with clipmlu.load(compiled.path) as model:
        found = model.classifier(["ant", "bee"]).predict([source])
    reference = found[-1].image  # type: ignore[index]
    assert reference is not None
    small = _shown_picture(reference)
    assert small.size == (96, 48)
    assert np.abs(np.asarray(small).astype(int) - (200, 30, 30)).max() < 12
    assert check_html(found._repr_html_()) == 1


def test_thumbnails_keep_no_image_alive_and_never_fail(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    array = np.zeros((8, 8, 3), np.uint8)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    gone = [ImageReference(image), ImageReference(array), ImageReference(np.zeros((2, 8, 8, 3), np.uint8)[1])]
    del image, array
    gc.collect()
    others = [tmp_path / "bad.jpg", tmp_path / "missing.jpg", tmp_path, b"bytes", np.zeros((2, 2), np.float32), None]
    for reference in [*gone, *map(ImageReference, others)]:
        assert reference.uri() is None
        assert reference.html() == ""
    copy = pickle.loads(pickle.dumps(Prediction("a", ("b",), (0,), (1.0,), image=gone[0])))
    assert copy.image.uri() is None


def test_in_ipython_images_that_nobody_keeps_have_thumbnails(
    monkeypatch: pytest.MonkeyPatch, compiled: CompiledBundle
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=object))
    content = io.BytesIO()
    Image.new("RGB", (300, 150), (200, 30, 30)).save(content, "PNG")
    with clipmlu.load(compiled.path) as model:
        found = model.classifier(["ant", "bee"]).predict([content.getvalue(), *(support.picture(n) for n in range(30))])
    gc.collect()
    references = [prediction.image for prediction in found]
    assert references[0] is not None
    assert _shown_picture(references[0]).size == (96, 48)
    assert [reference is not None and reference.uri() is not None for reference in references] == [True] * 20 + [
        False
    ] * 11
    assert check_html(found._repr_html_()) == 20


def test_a_shown_thumbnail_stays_when_its_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (10, 200)).save(path)
    reference = ImageReference(path)
    before = reference.uri()
    path.unlink()
    assert before is not None
    assert reference.uri() == before


def test_a_long_text_loses_its_middle() -> None:
    assert shorten("a\nb  c") == "a b c"
    assert shorten("x" * 80) == "x" * 34 + "..." + "x" * 34


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 kB"), (13_149, "13.1 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (12_345_678_901, "12,345.7 MB")],
)
def test_sizes_are_not_rounded_to_nothing(count: int, text: str) -> None:
    assert size_text(count) == text
