"""``clipmlu eval --task retrieval``, against the towers in NumPy."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import clipmlu
import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.specs import TokenizerSpec

Run = Callable[..., tuple[int, str, str]]
TEXTS = 60


def write_pairs(folder: Path, images: int = 40, name: str = "pairs.csv") -> Path:
    """Noise pictures with one or two texts each; the last text of image 3 is that of image 4, too."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(images):
        support.picture(number).save(folder / f"{number}.png")
        rows += [(f"{number}.png", f"text {number} of {chr(97 + number % 26) * 3}")]
        rows += [(f"{number}.png", f"another {number * 7}")] * (number % 2)
    rows.append(("3.png", "text 4 of eee"))
    with (folder / name).open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "caption"), *rows])
    return folder / name


def expected_ranks(bundle: Path, path: Path) -> tuple[list[int], list[int]]:
    """Ranks of both directions, by sorting the similarities of the towers in NumPy."""
    with path.open(newline="") as stream:
        rows = [tuple(row) for row in csv.reader(stream)][1:]
    images, texts = list(dict.fromkeys(row[0] for row in rows)), list(dict.fromkeys(row[1] for row in rows))
    tokenizer = Tokenizer.load(
        bundle / "tokenizer.json", TokenizerSpec(kind="huggingface", clean="lower", context_length=support.CONTEXT)
    )
    pixels = np.stack([support.preprocess(Image.open(path.parent / name)) for name in images])
    found = support.embed_images(pixels) @ support.embed_tokens(tokenizer(texts)).T
    right = np.array([[(image, text) in rows for text in texts] for image in images])

    def ranks(similarities: npt.NDArray[np.float32], right: npt.NDArray[np.bool_]) -> list[int]:
        return [1 + int((row[~own] >= row[own].max()).sum()) for row, own in zip(similarities, right, strict=True)]

    return ranks(found, right), ranks(found.T, right.T)


def test_ranks_are_those_of_the_towers_in_numpy(run: Run, compiled: CompiledBundle, tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "data")
    code, out, err = run(
        "eval", compiled.path, path, "--task", "retrieval", "--json", "--output", tmp_path / "report.json"
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    for name, ranks in zip(("image_to_text", "text_to_image"), expected_ranks(compiled.path, path), strict=True):
        found = report[name]
        assert [(each["k"], each["hits"]) for each in found["recalls"]] == [
            (k, sum(rank <= k for rank in ranks)) for k in (1, 5, 10)
        ]
        assert (found["mean_rank"], found["median_rank"]) == (pytest.approx(np.mean(ranks)), np.median(ranks))
        for each in found["recalls"]:
            assert each["interval"]["low"] < each["value"] < each["interval"]["high"]
    assert (report["images"], report["texts"], report["shared_texts"], report["groups"]) == (40, TEXTS, 1, 39)
    assert report["task"] == "retrieval"
    shown = run("eval", compiled.path, path, "--task", "retrieval")[1]
    for name in ("image to text", "text to image"):
        assert f"{report[name.replace(' ', '_')]['recalls'][0]['value']:.4f} (" in shown
        assert re.search(rf"^{name} ", shown, re.MULTILINE)
    assert clipmlu.evaluate_retrieval(compiled.path, path).data_digest == report["data_digest"]


@pytest.mark.slow
def test_bundles_of_other_shapes_and_cards_give_the_same(
    run: Run, compiled: CompiledBundle, exported: ExportedBundle, tmp_path: Path
) -> None:
    path = write_pairs(tmp_path / "data")
    expected = clipmlu.evaluate_retrieval(compiled, path)
    static = ("--static-shape", "--batch-size", 7)
    assert run("compile", exported.path, "--target", "cpu", *static, "-o", tmp_path / "static")[0] == 0
    found = clipmlu.evaluate_retrieval(tmp_path / "static", path, reference=compiled)
    assert (found.image_to_text, found.text_to_image) == (expected.image_to_text, expected.text_to_image)
    assert found.reference is not None
    for agreement in (found.reference.image_to_text, found.reference.text_to_image):
        assert (agreement.top1_agreement, agreement.top10_overlap, agreement.mean_rank_change) == (1.0, 1.0, 0.0)
        assert (agreement.lost, agreement.won, agreement.recall_drop) == (0, 0, 0.0)


def test_results_of_the_emulated_card_are_marked(
    run: Run, compiled: CompiledBundle, exported: ExportedBundle, tmp_path: Path
) -> None:
    path = write_pairs(tmp_path / "data", images=12)
    emulated = ("--target", "emulated-mlu", "--precision", "force_float16")
    assert run("compile", exported.path, *emulated, "-o", tmp_path / "card")[0] == 0
    code, out, err = run("eval", compiled.path, path, "--task", "retrieval", "--reference", tmp_path / "card")
    assert code == 0, err
    assert re.search(r"^agreement with .*emulated-mlu, force_float16 \(emulated\)$", out, re.MULTILINE)
    report = clipmlu.evaluate_retrieval(tmp_path / "card", path, reference=compiled)
    assert repr(report).startswith("RetrievalReport(emulated; ")
    assert report.reference is not None
    assert report.reference.image_to_text.top10_overlap is not None
    assert report.reference.image_to_text.top10_overlap > 0.95


def test_the_agreement_with_another_model(run: Run, compiled: CompiledBundle, tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "data")
    other = support.write_exported(tmp_path / "other", seed=3)
    assert run("compile", other.path, "--target", "cpu", "-o", tmp_path / "worse")[0] == 0
    code, out, _ = run("eval", tmp_path / "worse", path, "--task", "retrieval", "--reference", compiled.path, "--json")
    assert code == 0
    report = json.loads(out)
    both = {
        name: clipmlu.evaluate_retrieval(bundle, path)
        for name, bundle in (("new", tmp_path / "worse"), ("old", compiled))
    }
    for name in ("image_to_text", "text_to_image"):
        new, old = getattr(both["new"], name), getattr(both["old"], name)
        found = report["reference"][name]
        assert found["recall_drop"] == pytest.approx(old.first.value - new.first.value)
        assert found["lost"] - found["won"] == old.first.hits - new.first.hits
        assert found["mean_rank_change"] == pytest.approx(new.mean_rank - old.mean_rank)
        assert 0 < found["top10_overlap"] < 0.6
        assert found["top1_agreement"] < 0.5
    assert (
        "agreement with tiny"
        in run("eval", tmp_path / "worse", path, "--task", "retrieval", "--reference", compiled.path)[1]
    )


def test_what_cannot_be_read_and_what_occurs_twice_is_counted(
    run: Run, compiled: CompiledBundle, tmp_path: Path
) -> None:
    path = write_pairs(tmp_path / "data", images=9)
    (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG broken")
    Image.open(tmp_path / "data" / "1.png").save(tmp_path / "data" / "copy.bmp")
    extra = [
        ("broken.png", "broken"),
        ("absent.png", "absent"),
        ("copy.bmp", "a copy"),
        ("2.png", " "),
        ("5.png", "text 5 of fff"),
    ]
    extra.append(("6.png", "word " * 90))
    with path.open("a", newline="") as stream:
        csv.writer(stream).writerows(extra)
    code, out, err = run("eval", compiled.path, path, "--task", "retrieval", "--json", "--batch-size", 4)
    report = json.loads(out)
    assert code == 1
    assert re.search(r"skipped: .*broken\.png", err)
    assert re.search(r"skipped: .*absent\.png.*there is no file", err)
    assert report["images"] == 9
    assert report["texts"] == 9 + 4 + 2, "texts of unreadable images are left out"
    counts = {
        name: report[name]
        for name in ("duplicate_images", "empty_texts", "repeated_pairs", "shared_texts", "truncated_texts")
    }
    assert counts == {
        "duplicate_images": 1,
        "empty_texts": 1,
        "repeated_pairs": 1,
        "shared_texts": 1,
        "truncated_texts": 1,
    }
    shown = run("eval", compiled.path, path, "--task", "retrieval")[1]
    assert "2 image(s) could not be read; their texts are left out too" in shown
    assert "1 longer than the context of the model" in shown


def test_a_loss_of_recall_against_the_baseline_is_a_failed_gate(
    run: Run, compiled: CompiledBundle, tmp_path: Path
) -> None:
    path = write_pairs(tmp_path / "data")
    evaluate = (path, "--task", "retrieval")
    baseline = tmp_path / "base.json"
    assert run("eval", compiled.path, *evaluate, "--output", baseline)[0] == 0
    content = json.loads(baseline.read_text())
    for name, queries in (("image_to_text", 40), ("text_to_image", TEXTS)):  # as of a much better model
        content[name]["recalls"][0] |= {"hits": queries, "value": 1.0}
    now = {
        name: json.loads(baseline.read_text())[name]["recalls"][0]["value"]
        for name in ("image_to_text", "text_to_image")
    }
    code, out, err = run("eval", compiled.path, *evaluate, "--baseline", baseline)
    assert code == 0, err
    assert re.search(r"baseline\s+recall@1 \S+ and \S+, drop \+0\.0000 and \+0\.0000, allowed 0\.01", out)
    better = tmp_path / "better.json"
    better.write_text(json.dumps(content))
    code, out, err = run(
        "eval",
        compiled.path,
        *evaluate,
        "--baseline",
        better,
        "--max-recall-drop",
        0.1,
        "--json",
        "--output",
        tmp_path / "new.json",
    )
    assert code == 3
    assert re.search(
        rf"image to text {now['image_to_text']:.4f} is {1 - now['image_to_text']:.4f} below the baseline's 1\.0000", err
    )
    assert re.search(r"text to image .* below the baseline's 1\.0000; allowed: 0\.1 \(--max-recall-drop\)", err)
    assert json.loads((tmp_path / "new.json").read_text()) == json.loads(out), "the report is written all the same"
    largest = max(1 - value for value in now.values())
    assert run("eval", compiled.path, *evaluate, "--baseline", better, "--max-recall-drop", largest)[0] == 0
    with pytest.raises(clipmlu.ClipmluError, match=r"\(--max-recall-drop\)"):
        clipmlu.evaluate_retrieval(compiled, path, baseline=better, max_recall_drop=0.1)


def test_images_of_the_fast_path_are_compared_with_such_only(
    run: Run, compiled: CompiledBundle, tmp_path: Path
) -> None:
    path = write_pairs(tmp_path / "data", images=6)
    for number in range(6):  # decoded at an eighth of their size
        support.picture(number).resize((160, 160)).save(tmp_path / "data" / f"{number}.png", "jpeg")
    evaluate = ("-q", "eval", compiled.path, path, "--task", "retrieval")
    assert run(*evaluate, "--output", tmp_path / "exact.json")[0] == 0
    fast = ("--fast-preprocess", "--reference", compiled.path, "--output", tmp_path / "fast.json")
    code, out, err = run(*evaluate, *fast)
    assert code == 0, err
    assert "fast: not the pixels of open_clip" in out
    assert json.loads((tmp_path / "fast.json").read_text())["reference"]["image_to_text"]["top1_agreement"] == 1.0
    code, _, err = run(*evaluate, "--baseline", tmp_path / "fast.json")
    assert code == 2
    assert "the baseline has fast_preprocess 'True', this evaluation 'False'" in err


def test_a_baseline_must_be_about_the_same_pairs(run: Run, compiled: CompiledBundle, tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "data")
    baseline, accuracy = tmp_path / "base.json", tmp_path / "accuracy.json"
    assert run("eval", compiled.path, path, "--task", "retrieval", "--samples", 20, "--output", baseline)[0] == 0
    assert run("eval", compiled.path, "--dataset", "demo", "--samples", 4, "--output", accuracy)[0] == 0
    gate = ("--task", "retrieval", "--baseline")
    assert "the baseline has images '20', this evaluation '40'" in run("eval", compiled.path, path, *gate, baseline)[2]
    path.write_text(path.read_text().replace("text 2 of ccc", "text 2 of CCD"))
    code, _, err = run("eval", compiled.path, path, *gate, baseline, "--samples", 20)
    assert (code, "is about other images or texts" in err) == (2, True)
    code, _, err = run("eval", compiled.path, path, *gate, accuracy)
    assert (code, "is a report about the accuracy of classification" in err) == (1, True)
    code, _, err = run("eval", compiled.path, "--dataset", "demo", "--samples", 4, "--baseline", baseline)
    assert (code, "is a report about retrieval" in err) == (1, True)
    baseline.write_text("{}")
    code, _, err = run("eval", compiled.path, path, *gate, baseline)
    assert (code, "is not a report as" in err) == (1, True)


MISTAKES: list[tuple[tuple[object, ...], int, str]] = [
    (("--task", "retrieval"), 2, "Missing argument 'PAIRS'"),
    (("{pairs}",), 2, r"files of pairs .* are for --task retrieval"),
    (
        ("{pairs}", "--task", "retrival"),
        2,
        "'retrival' is not one of classification, retrieval. Did you mean 'retrieval'",
    ),
    (("{pairs}", "--task", "retrieval", "--dataset", "demo"), 2, "--dataset is for --task classification"),
    (("{pairs}", "--task", "retrieval", "--processes", 2), 2, "--processes is for --task classification"),
    (("{pairs}", "--task", "retrieval", "--engine", "ray"), 2, "--engine is for --task classification"),
    (("{pairs}", "--task", "retrieval", "--templates", "a {}"), 2, "--templates is for --task classification"),
    (("--dataset", "demo", "--reference", "x"), 2, "--reference is for --task retrieval"),
    (("--dataset", "demo", "--max-recall-drop", "0.1"), 2, "--max-recall-drop is for --task retrieval"),
    (("{pairs}", "--task", "retrieval", "--max-recall-drop", "0.1"), 2, "--max-recall-drop needs a --baseline"),
    (("{pairs}", "--task", "retrieval", "--samples", 41), 2, r"samples is 41, but '.*pairs.csv' has 40 images"),
    (("{pairs}", "--task", "retrieval", "--samples", 1), 1, "only 1 different image; expected two or more"),
    (("{pairs}", "--task", "retrieval", "--image-root", "absent"), 1, "folder of the images 'absent' does not exist"),
    (
        ("{pairs}", "--task", "retrieval", "--image-root", "{empty}"),
        1,
        "Not one of the 40 images of '.*pairs.csv' could be read. First: ",
    ),
    (
        ("{pairs}", "--task", "retrieval", "--text-column", "title"),
        1,
        "has no column 'title'; it has 'image', 'caption'",
    ),
    (("{pairs}", "--task", "retrieval", "--reference", "absent"), 1, "'absent'"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES)
def test_mistakes_are_one_clear_line(
    run: Run, compiled: CompiledBundle, tmp_path: Path, arguments: tuple[object, ...], code: int, message: str
) -> None:
    places = {"{pairs}": write_pairs(tmp_path / "data"), "{empty}": tmp_path / "empty"}
    (tmp_path / "empty").mkdir()
    found, out, err = run("-q", "eval", compiled.path, *(places.get(str(each), each) for each in arguments))
    assert (found, out) == (code, ""), err
    assert re.search(message, err), err
    assert "Traceback" not in err


def test_a_joint_bundle_is_refused(run: Run, tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "data", images=3)
    joint = support.write_exported(tmp_path / "joint", layout="joint")
    assert run("compile", joint.path, "--target", "cpu", "-o", tmp_path / "out")[0] == 0
    code, _, err = run("eval", tmp_path / "out", path, "--task", "retrieval")
    assert code == 1
    support.assert_one_line(err, "has the layout 'joint'")


def test_images_of_the_calibration_are_refused(run: Run, exported: ExportedBundle, tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "data", images=8)
    compile_ = (
        "compile",
        exported.path,
        "--target",
        "cpu",
        "--precision",
        "int8",
        "--calib",
        tmp_path / "seen",
        "-o",
        tmp_path / "int8",
        "--no-check",
    )
    (tmp_path / "seen").mkdir()
    for number in (100, 5):
        support.picture(number).save(tmp_path / "seen" / f"{number}.png")
    code, _, err = run(*compile_)
    assert code == 0, err
    code, out, err = run("eval", tmp_path / "int8", path, "--task", "retrieval")
    assert (code, out) == (3, "")
    assert "Image '5.png' is one that bundle" in err
    code, out, _ = run("eval", tmp_path / "int8", path, "--task", "retrieval", "--allow-overlap", "--json")
    assert (code, json.loads(out)["calibration_overlap"]) == (0, 1)
    assert (
        "1 of these images also served for calibration"
        in run("eval", tmp_path / "int8", path, "--task", "retrieval", "--allow-overlap")[1]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"task": "retrieval"}', "is not a report as"),
        (b"[]", "is not a report as"),
        (None, "Cannot read the report .*No such file"),
        (b'"recalls": [', "is not a report as .*it has no recall at 1"),
        (b'"schema_version": 1', "has schema 99; this clipmlu reads up to 1"),
    ],
)
def test_a_damaged_baseline_is_one_clear_line(
    run: Run, compiled: CompiledBundle, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path, report = write_pairs(tmp_path / "data", images=5), tmp_path / "base.json"
    if content is not None and not content.startswith((b"{", b"[")):
        assert run("eval", compiled.path, path, "--task", "retrieval", "--output", report)[0] == 0
        changed = json.loads(report.read_text())
        if b"recalls" in content:
            changed["image_to_text"]["recalls"] = []
        else:
            changed["schema_version"] = 99
        content = json.dumps(changed).encode()
    if content is not None:
        report.write_bytes(content)
    code, out, err = run("-q", "eval", compiled.path, path, "--task", "retrieval", "--baseline", report)
    assert (code, out) == (1, "")
    support.assert_one_line(err, message)


@pytest.mark.parametrize("pairs", [None, 5, b"pairs.csv", [], [1], [("a.png", "a text")], ""])
def test_what_are_no_pairs_is_told_with_its_value(compiled: CompiledBundle, pairs: Any) -> None:
    with pytest.raises(clipmlu.ClipmluError, match=r"(?i)expected|no path") as caught:
        clipmlu.evaluate_retrieval(compiled, pairs)
    assert "\n" not in str(caught.value)
