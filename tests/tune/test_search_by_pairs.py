"""A search that is judged by the recall of pairs of images and texts."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import clipmlu
import support
from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.cli import main
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.data.calibration import CalibrationOptions, obtain_calibration
from clipmlu.data.images import content_digest
from clipmlu.data.pairs.reading import PairChoice
from clipmlu.errors import InputError, OptionError, OverlapError
from clipmlu.tune.quantise import search_bundle
from clipmlu.tune.retrieval_evaluator import RetrievalEvaluator
from clipmlu.tune.trial import SearchOptions, SearchReport

PICTURES = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures with texts, and six others without classes to calibrate with, of which one is among the 40."""
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("images", "calibration"):
        (folder / name).mkdir()
    for number in range(PICTURES):
        support.picture(number).save(folder / "images" / f"{number}.png")
    for number in (0, *range(100, 105)):
        support.picture(number).save(folder / "calibration" / f"{number}.bmp")
    write(
        folder / "pairs.csv",
        [(f"images/{number}.png", f"text {number} {chr(97 + number % 26)}") for number in range(PICTURES)],
    )
    return folder


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "caption"), *rows])
    return path


def search(
    exported: ExportedBundle,
    data: Path,
    output: Path,
    *,
    max_drop: float,
    pairs: Path | None = None,
    on_result: Callable[[str], None] = lambda _name: None,
    **given: Any,
) -> tuple[CompiledBundle, SearchReport, list[str]]:
    notes: list[str] = []
    calibration = CalibrationOptions(dataset=str(data / "calibration"), samples=6)
    options = CompileOptions(target="cpu", batch_size=8, calibration=calibration, min_cosine=-1, min_agreement=0)
    wanted = SearchOptions(
        max_drop=max_drop, pairs=PairChoice(paths=(pairs or data / "pairs.csv",), image_root=data), **given
    )
    bundle, report = search_bundle(exported, output, options, wanted, on_note=notes.append, on_result=on_result)
    return bundle, report, notes


def test_the_figures_are_those_of_eval_and_the_images_those_outside_the_calibration(
    exported: ExportedBundle, compiled: CompiledBundle, data: Path, tmp_path: Path
) -> None:
    bundle, report, notes = search(exported, data, tmp_path / "best", max_drop=0.5)
    trial = report.chosen
    assert trial is not None
    assert (report.images, trial.images, report.reference_top1, trial.top1) == (39, 39, None, None)
    assert report.dataset == str(data / "pairs.csv")
    others = write(
        tmp_path / "others.csv",
        [(f"images/{number}.png", f"text {number} {chr(97 + number % 26)}") for number in range(1, PICTURES)],
    )
    measured = clipmlu.evaluate_retrieval(bundle, others, image_root=data, reference=compiled, allow_overlap=True)
    reference = clipmlu.evaluate_retrieval(compiled, others, image_root=data)
    for recall, found in ((trial.recall, measured), (report.reference_recall, reference)):
        assert recall is not None
        assert (recall.image_to_text, recall.text_to_image) == (
            found.image_to_text.first.value,
            found.text_to_image.first.value,
        )
    assert measured.reference is not None
    both = (measured.reference.image_to_text, measured.reference.text_to_image)
    assert trial.drop == pytest.approx(max(each.recall_drop for each in both))
    assert trial.drop_bound == pytest.approx(max(each.recall_drop_bound for each in both))
    assert trial.agreement == min(each.top1_agreement for each in both)
    assert f"recall@1 {trial.recall.image_to_text:.4f} (image to text)" in notes[-1]  # type: ignore[union-attr]
    seen = set(bundle.calibration_data().images)
    assert seen >= {content_digest(support.picture(number)) for number in range(PICTURES)}
    with pytest.raises(OverlapError, match="was calibrated with"):
        clipmlu.evaluate_retrieval(bundle, others, image_root=data)
    assert msgspec.json.decode((bundle.path / "search.json").read_bytes(), type=SearchReport) == report


@pytest.mark.parametrize(
    ("change", "resumed"),
    [("name", True), ("text", False), pytest.param("pairs", False, marks=pytest.mark.slow)],
)
def test_a_search_resumes_for_the_same_content_only(
    exported: ExportedBundle, data: Path, tmp_path: Path, change: str, resumed: bool
) -> None:
    rows = [(f"images/{number}.png", f"text {number}") for number in range(PICTURES)]
    others = {"name": rows, "text": [*rows[:-1], (rows[-1][0], "another")], "pairs": [*rows, (rows[2][0], rows[3][1])]}

    def stop(_name: str) -> None:
        raise KeyboardInterrupt

    first, second = write(tmp_path / "a.csv", rows), write(tmp_path / "b.csv", others[change])
    with pytest.raises(KeyboardInterrupt):
        search(exported, data, tmp_path / "out", max_drop=0.5, pairs=first, on_result=stop)
    (path,) = (tmp_path / "out.search" / "trials").glob("*-*.json")
    assert {"images", "texts", "pairs", "search.max_drop"} <= msgspec.json.decode(path.read_bytes())["key"].keys()
    _, report, notes = search(exported, data, tmp_path / "out", max_drop=0.5, pairs=second)
    assert any("resuming the search in" in note and "1 trials are stored" in note for note in notes) is resumed, notes
    assert report.chosen is not None


def test_what_cannot_be_judged_is_refused(exported: ExportedBundle, data: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"39 images cannot show that a drop is within 0\.01, .* at least 163 can"):
        search(exported, data, tmp_path / "out", max_drop=0.01)
    shared = write(
        tmp_path / "shared.csv", [(f"images/{number}.png", f"text {number % 2}") for number in range(PICTURES)]
    )
    with pytest.raises(OptionError, match="2 images that share no text cannot show"):
        search(exported, data, tmp_path / "out", max_drop=0.1, pairs=shared)
    seen = write(
        tmp_path / "seen.csv", [("calibration/0.bmp", "a"), ("calibration/101.bmp", "b"), ("images/3.png", "c")]
    )
    with pytest.raises(InputError, match="has no two images with texts beside the 6 of the calibration"):
        search(exported, data, tmp_path / "out", max_drop=0.5, pairs=seen)
    joint = support.write_exported(tmp_path / "joint", layout="joint")
    with pytest.raises(OptionError, match="the recall of pairs needs two towers"):
        search(joint, data, tmp_path / "out", max_drop=0.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "search pairs is '.*pairs.csv', but nothing is searched; give max_drop \\(--max-drop\\) too"),
        (("--max-drop", "0.5", "--search-templates", "cifar"), "search templates are for classes"),
    ],
)
def test_options_that_contradict_each_other_are_told_in_one_line(
    exported: ExportedBundle,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: tuple[str, ...],
    message: str,
) -> None:
    arguments = [
        "compile",
        str(exported.path),
        "-o",
        str(tmp_path / "out"),
        "--search-pairs",
        str(data / "pairs.csv"),
        *given,
    ]
    assert main(arguments) == 2
    support.assert_one_line(capsys.readouterr().err, message)


@pytest.mark.parametrize("name", ["search_image_column", "search_text_column", "search_image_root", "search_split"])
def test_options_of_pairs_need_pairs_and_a_search(name: str, exported: ExportedBundle, tmp_path: Path) -> None:
    words = name.replace("_", " ")
    with pytest.raises(OptionError, match=f"{words} is 'x', but there are no pairs; give search_pairs"):
        clipmlu.compile_bundle(exported, tmp_path / "out", target="cpu", max_drop=0.5, **{name: "x"})
    with pytest.raises(OptionError, match=f"{words} is 'x', but nothing is searched"):
        clipmlu.compile_bundle(exported, tmp_path / "out", target="cpu", **{name: "x"})


def test_the_command_judges_by_pairs(
    exported: ExportedBundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--target",
        "cpu",
        "--max-drop",
        "0.5",
        "--search-samples",
        "30",
        "--min-cosine",
        "-1",
        "--min-agreement",
        "0",
    ]
    with (tmp_path / "other.csv").open("w", newline="") as stream:
        rows = [(f"{number}.png", f"text {number}", "mine" if number <= 20 else "other") for number in range(PICTURES)]
        csv.writer(stream).writerows([("picture", "words", "split"), *rows])
    given = [
        "--calib",
        str(data / "calibration"),
        "--calib-samples",
        "6",
        "--search-pairs",
        str(tmp_path / "other.csv"),
    ]
    given += ["--search-image-column", "picture", "--search-text-column", "words", "--search-split", "mine"]
    given += ["--search-image-root", str(data / "images")]
    assert main(["compile", str(exported.path), "-o", str(tmp_path / "out"), *options, *given]) == 0
    assert re.search(r"float32: recall@1 \S+ \(image to text\) and .* on 20 held-out images", capsys.readouterr().err)
    report = msgspec.json.decode((tmp_path / "out" / "search.json").read_bytes(), type=SearchReport)
    assert (report.images, report.reference_top1) == (20, None)  # without the one of the calibration
    assert report.chosen is not None
    assert report.chosen.recall is not None


def test_a_worse_model_loses_what_it_loses_in_eval(
    exported: ExportedBundle, compiled: CompiledBundle, data: Path, tmp_path: Path
) -> None:
    """On pairs of which float32 finds most: each image with the text that is most similar to it."""
    texts = [f"text {number} {chr(97 + number % 26) * 3}" for number in range(400)]
    with clipmlu.load(compiled.path) as model:
        found = (
            model.embed_images([data / "images" / f"{number}.png" for number in range(1, PICTURES)])
            @ model.embed_texts(texts).T
        )
    pairs = write(
        tmp_path / "pairs.csv",
        [(f"images/{row + 1}.png", texts[int(best)]) for row, best in enumerate(found.argmax(axis=1))],
    )
    other = support.write_exported(tmp_path / "other", seed=3)
    worse = compile_bundle(other, tmp_path / "worse", CompileOptions(target="cpu", check=False))
    calibration = obtain_calibration(exported, CalibrationOptions(dataset=str(data / "calibration"), samples=6))
    choice = PairChoice(paths=(pairs,), image_root=data)
    evaluator = RetrievalEvaluator(exported, calibration, choice, SearchOptions(max_drop=0.5, pairs=choice))
    evaluator.evaluate_reference(tmp_path)
    figures = evaluator.evaluate(worse, SessionOptions(), len(evaluator), 0.5)
    measured = clipmlu.evaluate_retrieval(worse, pairs, image_root=data, reference=compiled)
    assert measured.reference is not None
    both = (measured.reference.image_to_text, measured.reference.text_to_image)
    assert both[0].recall_drop > both[1].recall_drop + 0.1
    assert figures.drop == both[0].recall_drop
    assert figures.drop_bound == max(each.recall_drop_bound for each in both) >= figures.drop
    assert figures.agreement == min(each.top1_agreement for each in both) < 0.9
    assert figures.embedding_error > 0.1
    assert evaluator.evaluate(worse, SessionOptions(), 10, None).images == 10
