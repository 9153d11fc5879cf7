"""Accuracy against the same figures computed by hand in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import InputError, OptionError, ShapeError
from clipmlu.files.publish import encode_json
from clipmlu.measure.accuracy.evaluate import EvalOptions, evaluate
from clipmlu.measure.accuracy.report import AccuracyReport, Confusion, compare_with_baseline, read_report
from clipmlu.measure.accuracy.tally import ImageResult, Tally
from clipmlu.measure.samples import SkippedImage
from clipmlu.measure.statistics import wilson_interval
from clipmlu.model import load
from clipmlu.report.vendor_files import write_sample_files
from support import NAMES, Pictures


@pytest.fixture
def encoder(compiled: CompiledBundle) -> Iterator[Encoder]:
    with load(compiled.path) as opened:
        yield opened


def _reference_logits(encoder: Encoder, indices: list[int], names: tuple[str, ...] = NAMES) -> support.FloatArray:
    pixels = np.stack([support.preprocess(support.picture(index)) for index in indices])
    texts = support.embed_tokens(encoder.tokenizer([f"a photo of a {name}." for name in names]))
    return support.LOGIT_SCALE * support.embed_images(pixels).astype(np.float64) @ texts.astype(np.float64).T


@pytest.mark.parametrize("size", [1, 4, 9, 300])
def test_report_equals_the_same_figures_by_hand(encoder: Encoder, size: int) -> None:
    dataset = Pictures(size)
    results: list[ImageResult] = []
    report = evaluate(encoder, dataset, on_result=results.append)
    logits = _reference_logits(encoder, list(range(size)))
    ranked = np.argsort(-logits, axis=1)
    labels = dataset.labels
    right = ranked[:, 0] == labels
    assert report.images == size
    assert report.top1 == right.mean()
    assert report.top5 == np.mean([label in row[:5] for label, row in zip(labels, ranked, strict=True)])
    per_class = [right[labels == number].mean() for number in range(len(NAMES)) if (labels == number).any()]
    assert report.mean_per_class == pytest.approx(np.mean(per_class))
    assert report.per_class[-1].images == 0
    assert report.per_class[-1].top1 is None
    assert sum(row.images for row in report.per_class) == size
    assert [(result.index, result.label) for result in results] == list(enumerate(labels.tolist()))
    assert [list(result.ranked) for result in results] == ranked[:, :5].tolist()
    assert report.expected_calibration_error == pytest.approx(_calibration_error(logits, right), abs=1e-6)
    wrong = [(NAMES[label], NAMES[guess]) for label, guess in zip(labels, ranked[:, 0], strict=True) if label != guess]
    for confusion in report.confusions:
        assert confusion.images == wrong.count((confusion.class_name, confusion.predicted))
        places = [
            place for place, pair in enumerate(zip(labels, ranked[:, 0], strict=True)) if pair == _numbers(confusion)
        ]
        assert confusion.examples == tuple(map(dataset.key, places[:4]))
    counts = [confusion.images for confusion in report.confusions]
    assert counts == sorted(counts, reverse=True)
    confidence = _softmax(logits).max(axis=1)
    edges = np.linspace(0, 1, 16)
    for number, each in enumerate(report.confidence_bins):
        inside = (confidence > edges[number]) & (confidence <= edges[number + 1])
        assert (each.images, each.correct) == (inside.sum(), right[inside].sum())
        assert (each.low, each.high) == pytest.approx((edges[number], edges[number + 1]))
        expected = confidence[inside].mean() if inside.any() else None
        assert each.mean_confidence == (expected if expected is None else pytest.approx(expected, abs=1e-6))
    assert len(report.confidence_bins) == 15


def _numbers(confusion: Confusion) -> tuple[int, int]:
    return NAMES.index(confusion.class_name), NAMES.index(confusion.predicted)


def _calibration_error(logits: support.FloatArray, right: np.ndarray) -> float:
    confidence = _softmax(logits).max(axis=1)
    total = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def _softmax(logits: support.FloatArray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def test_examples_of_confusions_do_not_depend_on_the_order_of_the_parts() -> None:
    """Nine images of class 0 that are taken for class 1, counted in parts that arrive in three orders."""
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        total = Tally(3)
        for part in order:
            counts = Tally(3)
            indices = range(3 * part + 10, 3 * part + 13)
            counts.add(np.zeros(3, np.int64), np.ones((3, 1), np.int64), np.ones(3, np.float32), indices)
            total.merge(counts)
        assert total.examples == {1: [10, 11, 12, 13]}


def test_the_digest_of_the_data_changes_with_the_images_and_names(encoder: Encoder) -> None:
    datasets = [Pictures(9), Pictures(9), Pictures(10), Pictures(9)]
    datasets[-1].class_names = ("aardvark", *NAMES[1:])
    digests = [evaluate(encoder, each).data_digest for each in datasets]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert evaluate(encoder, Pictures(10), EvalOptions(samples=9)).data_digest == digests[0]


def test_the_report_says_which_weights_were_evaluated(encoder: Encoder, exported: ExportedBundle) -> None:
    assert evaluate(encoder, Pictures(3)).weights_digest == exported.manifest.export.weights_digest != ""


def test_batch_size_changes_nothing_but_the_batches(encoder: Encoder) -> None:
    reports = [evaluate(encoder, Pictures(21), EvalOptions(batch_size=size)) for size in (1, 5, 8)]
    assert [report.batch_size for report in reports] == [1, 5, 8]
    assert len({(report.images, report.top1, report.top5, report.confusions) for report in reports}) == 1


def test_samples_are_the_first_or_drawn_with_the_seed(encoder: Encoder) -> None:
    def indices(options: EvalOptions) -> list[int]:
        results: list[ImageResult] = []
        evaluate(encoder, Pictures(50), options, on_result=results.append)
        return [result.index for result in results]

    assert indices(EvalOptions(samples=7)) == list(range(7))
    drawn = indices(EvalOptions(samples=7, shuffle=True, seed=1))
    assert drawn == indices(EvalOptions(samples=7, shuffle=True, seed=1))
    assert drawn != indices(EvalOptions(samples=7, shuffle=True, seed=2))
    assert len(set(drawn)) == 7


def test_more_samples_than_images_are_refused(encoder: Encoder) -> None:
    with pytest.raises(OptionError, match="samples is 51, but 'pictures' has 50 images"):
        evaluate(encoder, Pictures(50), EvalOptions(samples=51))
    with pytest.raises(OptionError, match="samples is 0"):
        EvalOptions(samples=0)


def test_batch_that_the_bundle_does_not_take_is_refused_before_anything_runs(encoder: Encoder) -> None:
    with pytest.raises(ShapeError, match=r"Batch of 9 is outside 1\.\.8"):
        evaluate(encoder, Pictures(9), EvalOptions(batch_size=9))


def test_broken_images_are_listed_and_not_counted(encoder: Encoder) -> None:
    dataset = Pictures(20, broken=frozenset({0, 7, 19}))
    progress: list[int] = []
    report = evaluate(encoder, dataset, on_progress=progress.append)
    good = [index for index in range(20) if index not in dataset.broken]
    predicted = _reference_logits(encoder, good).argmax(axis=1)
    assert report.images == 17
    assert report.top1 == (predicted == dataset.labels[good]).mean()
    assert [(skipped.id, skipped.reason) for skipped in report.skipped][1] == ("pictures/7", "Image '7' is broken")
    assert sum(progress) == 20


def test_dataset_of_broken_images_is_an_error(encoder: Encoder) -> None:
    with pytest.raises(
        InputError, match=r"Not one of the 2 images of 'pictures' could be read. First: Image '0' is broken"
    ):
        evaluate(encoder, Pictures(2, broken=frozenset({0, 1})))


def test_top5_of_few_classes_does_not_exist(encoder: Encoder) -> None:
    report = evaluate(encoder, Pictures(9, class_names=NAMES[:5]))
    assert (report.top5, report.top5_interval) == (None, None)
    assert b"NaN" not in encode_json(report)


def test_classes_of_one_name_are_told_apart_and_counted_by_position(encoder: Encoder) -> None:
    names = ("ant", "crane", "cat", "crane", "elk", "fox", "gnu")
    report = evaluate(encoder, Pictures(200, class_names=names))
    rows = [row.class_name for row in report.per_class]
    assert rows == ["ant", "crane (1)", "cat", "crane (3)", "elk", "fox", "gnu"]
    logits = _reference_logits(encoder, list(range(200)), names)
    predicted = np.argsort(-logits, axis=1, kind="stable")[:, 0]
    labels = Pictures(200, class_names=names).labels
    assert report.top1 == np.mean(predicted == labels)
    shown = {(each.class_name, each.predicted): each.images for each in report.confusions}
    assert all(
        shown[pair] == np.sum((labels == rows.index(pair[0])) & (predicted == rows.index(pair[1]))) for pair in shown
    )
    assert ("crane (3)", "crane (1)") in shown


def test_a_baseline_of_other_class_names_is_no_baseline(encoder: Encoder) -> None:
    ids = tuple(f"n0144076{number}" for number in range(7))
    reports = [evaluate(encoder, Pictures(9, class_names=names)) for names in (NAMES, ids)]
    with pytest.raises(
        OptionError, match="the baseline has the class name 'n01440760' where this evaluation has 'ant'"
    ):
        compare_with_baseline(reports[0], reports[1], 1.0)


def test_report_survives_json(encoder: Encoder) -> None:
    report = evaluate(encoder, Pictures(9))
    assert msgspec.json.decode(encode_json(report), type=AccuracyReport) == report


def test_reports_of_an_older_layout_are_told_apart_from_other_files(encoder: Encoder, tmp_path: Path) -> None:
    report = msgspec.to_builtins(evaluate(encoder, Pictures(9)))
    del report["schema_version"]
    older = {"model": report["provenance"]["model"], "emulated": False, **report}
    del older["provenance"]
    path = tmp_path / "report.json"
    path.write_bytes(msgspec.json.encode(older))
    with pytest.raises(InputError, match=r"report\.json' was written by an older clipmlu.*clipmlu eval BUNDLE"):
        read_report(path)
    path.write_bytes(msgspec.json.encode({**report, "schema_version": 3}))
    with pytest.raises(InputError, match=r"has schema 3; this clipmlu reads up to 2"):
        read_report(path)
    path.write_bytes(b'{"steps": []}')
    with pytest.raises(InputError, match=r"is not a report as 'clipmlu eval --output' writes it"):
        read_report(path)


def test_tallies_of_parts_add_up_to_the_whole() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 9, 100)
    ranked = np.argsort(generator.random((100, 9)), axis=1)
    confidence = generator.random(100, dtype=np.float32)
    whole, part, rest = Tally(9), Tally(9), Tally(9)
    whole.add(labels, ranked, confidence)
    part.add(labels[:33], ranked[:33], confidence[:33])
    rest.add(labels[33:], ranked[33:], confidence[33:])
    part.merge(rest)
    assert np.array_equal(part.confusion, whole.confusion)
    assert (part.images, part.correct, part.top5_correct) == (100, whole.correct, whole.top5_correct)
    assert part.expected_calibration_error == whole.expected_calibration_error


def test_parts_give_the_same_bits_in_any_order_and_the_calibration_error_stays_exact() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 9, 20_000)
    ranked = np.argsort(generator.random((20_000, 9)), axis=1)
    confidence = generator.random(20_000, dtype=np.float32) ** 8  # of any magnitude: float64 sums would round
    totals = []
    for seed in range(4):
        total = Tally(9)
        for part in np.array_split(np.random.default_rng(seed).permutation(20_000), 7 + seed):
            counts = Tally(9)
            counts.add(labels[part], ranked[part], confidence[part])
            total.merge(counts)
        totals.append(total)
    assert len({total.expected_calibration_error for total in totals}) == 1
    assert len({total.bin_confidence.tobytes() for total in totals}) == 1
    gaps = []
    for low in range(15):  # with fractions, which do not round
        inside = np.ceil(confidence * 15).astype(int) - 1 == low
        right = int((ranked[inside, 0] == labels[inside]).sum())
        gaps.append(abs(right - sum(map(Fraction, confidence[inside].tolist()))))
    assert totals[0].expected_calibration_error == pytest.approx(float(sum(gaps) / 20_000), abs=2**-32)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (6171, 10_000, 0.6075, 0.6266)],
)
def test_wilson_interval_has_its_textbook_values(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, trials)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_sample_files_are_written_as_the_vendors_sample_writes_them(encoder: Encoder, tmp_path: Path) -> None:
    dataset = Pictures(3)
    results: list[ImageResult] = []
    report = evaluate(encoder, dataset, on_result=results.append)
    write_sample_files(tmp_path / "out", results, dataset.original_names, report)
    lines = {path.name: path.read_text().splitlines() for path in (tmp_path / "out").iterdir()}
    ranked = np.argsort(-_reference_logits(encoder, [0, 1, 2]), axis=1)[:, :5]
    assert lines["eval_labels.txt"] == [f"[{row}]: {dataset.label(row)}" for row in range(3)]
    assert lines["eval_result_1.txt"] == [f"[{row}]: {ranked[row, 0]}" for row in range(3)]
    assert lines["eval_result_5.txt"] == [f"[{row}]: {index}" for row in range(3) for index in ranked[row]]
    first = ["top5 result:", *(f"{rank} [{NAMES[index].upper()}]" for rank, index in enumerate(ranked[0]))]
    assert lines["infer_result.txt"][:6] == first
    assert len(lines["infer_result.txt"]) == 18
    assert lines["eval_result.txt"] == [f"top1 accuracy: {report.top1:f}", f"top5 accuracy: {report.top5:f}"]


def test_a_baseline_that_lost_a_class_is_refused(encoder: Encoder) -> None:
    report = evaluate(encoder, Pictures(4), EvalOptions())
    shorter = msgspec.structs.replace(report, per_class=report.per_class[:-1])
    with pytest.raises(
        OptionError, match=r"has figures of \d+ classes, this evaluation of \d+; they cannot be compared"
    ):
        compare_with_baseline(report, shorter, 0.1)


def test_a_baseline_without_other_images_is_refused(encoder: Encoder) -> None:
    """Both left out one image of ten, but not the same one: number and digest of the images are equal."""
    report = evaluate(encoder, Pictures(9))
    without = [
        msgspec.structs.replace(report, skipped=(SkippedImage(id=name, reason="broken"),))
        for name in ("a.png", "b.png")
    ]
    with pytest.raises(
        OptionError, match=r"image 'a\.png' could be read in only one of the baseline and this evaluation"
    ):
        compare_with_baseline(*without, 1.0)
    again = msgspec.structs.replace(without[0], skipped=(SkippedImage(id="a.png", reason="of another machine"),))
    assert compare_with_baseline(without[0], again, 1.0).baseline is not None


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.4, 1.0])
def test_coverage_and_accuracy_of_the_kept_images_equal_those_by_hand(encoder: Encoder, threshold: float) -> None:
    dataset = Pictures(100)
    report = evaluate(encoder, dataset, EvalOptions(reject_below=threshold))
    logits = _reference_logits(encoder, list(range(100)))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = (exponentials / exponentials.sum(axis=1, keepdims=True)).max(axis=1)
    kept, right = confidence >= threshold, logits.argmax(axis=1) == dataset.labels
    found = report.rejection
    assert found is not None
    assert (found.reject_below, found.kept, found.coverage) == (threshold, kept.sum(), kept.mean())
    if threshold in (0.25, 0.4):
        assert 0 < found.kept < 100
    if found.kept:
        assert found.top1 == right[kept].mean()
        assert found.top1_interval == wilson_interval(int(right[kept].sum()), int(kept.sum()))
        assert f"top-1 of the kept: {found.top1:.4f}" in repr(report)
    else:
        assert found.top1 is None
    plain = evaluate(encoder, dataset)
    assert plain.rejection is None
    unchanged = ("top1", "top5", "per_class", "confusions", "expected_calibration_error", "images")
    assert [getattr(plain, name) for name in unchanged] == [getattr(report, name) for name in unchanged]


def test_kept_images_of_parts_add_up() -> None:
    generator = np.random.default_rng(3)
    labels, confidence = generator.integers(0, 9, 100), generator.random(100, dtype=np.float32)
    ranked = np.argsort(generator.random((100, 9)), axis=1)
    total = Tally(9, 0.5)
    for part in np.array_split(np.arange(100), 7):
        counts = Tally(9, 0.5)
        counts.add(labels[part], ranked[part], confidence[part])
        total.merge(counts)
    kept = confidence >= 0.5
    assert (total.kept, total.kept_correct) == (kept.sum(), (ranked[kept, 0] == labels[kept]).sum())
