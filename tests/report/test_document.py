"""Reports as pages: what they say is what was measured, marked, compared only where it can be, and safe."""

from __future__ import annotations

import csv
import html
import html.parser
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import report_samples as samples
import support
from clipmlu import write_report
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.cli import main
from clipmlu.errors import InputError, MissingDependencyError, OptionError, OutputExistsError
from clipmlu.files.publish import encode_json
from clipmlu.measure.accuracy.evaluate import evaluate
from clipmlu.measure.accuracy.report import AccuracyReport, ClassAccuracy, ConfidenceBin, Confusion
from clipmlu.measure.samples import SkippedImage
from clipmlu.measure.statistics import wilson_interval
from clipmlu.model import load
from clipmlu.report.document.build import MOST_DETAILED
from clipmlu.report.document.published import published_figures
from clipmlu.report.figures.speed import MOST_LABELLED, Point, count_latencies, draw_pareto
from clipmlu.report.markdown import escaped
from clipmlu.specs import ModelId, Precision
from conftest import REPOSITORY

pytest.importorskip("jinja2", reason="needs the report extra")
pytest.importorskip("matplotlib", reason="needs the report extra")
MARKUP = "<img src=x onerror=alert(1)>\"'&\u202e{{7*7}}"
REPORTS: dict[str, Any] = {
    "eval": samples.accuracy,
    "bench": samples.speed,
    "sweep": samples.sweep,
    "mm_run": samples.tool,
    "compare": samples.comparison,
    "search": samples.search,
    "run": samples.run,
    "retrieval": samples.retrieval,
}


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and the rows of all tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data

    def commands(self) -> list[str]:
        blocks = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", self.text, flags=re.DOTALL)
        return [html.unescape(line) for block in blocks for line in block.strip().split("\n")]

    def cells(self) -> list[list[str]]:
        return [[" ".join(cell.split()) for cell in row] for row in self.rows]


def write(tmp_path: Path, *reports: Any, **options: Any) -> Page:
    """Write reports to files and a page of them."""
    names = []
    for number, report in enumerate(reports):
        names.append(tmp_path / f"{number}.json")
        names[-1].write_bytes(encode_json(report))
    write_report(names, tmp_path / "page.html", overwrite=True, **options)
    return Page(tmp_path / "page.html")


def measured(**changes: Any) -> AccuracyReport:
    """A report as an evaluation of this version writes it."""
    facts = {
        "data_digest": "c" * 64,
        "weights_digest": "f" * 64,
        "baseline": None,
        "provenance": samples.provenance(emulated=False),
        **changes,
    }
    return msgspec.structs.replace(samples.accuracy(), **facts)


@pytest.mark.parametrize("kind", list(REPORTS))
def test_every_kind_becomes_a_page_and_markdown_with_its_numbers(kind: str, tmp_path: Path) -> None:
    page = write(tmp_path, REPORTS[kind]())
    markdown = (tmp_path / "page.md").read_text(encoding="utf-8")
    numbers = {
        "eval": ["0.6341", "0.6299", "0.6383", "0.8876", "98,765"],
        "bench": [],
        "sweep": ["0.6123", "1234.00/5678.00", "same class as in float32 for 87.5 % of the images"],
        "mm_run": ["1282.0 images/s", "15.875"],
        "compare": ["0.98765", "0.998765", "p = 0.455", "34.6 %"],
        "search": ["1.77", "0.98", "87.5%", "12.3", "same class as in float32"],
        "run": ["0.6341", "1.2"],
        "retrieval": ["0.6305", "0.5145", "7.65", "2.5", "3 image(s)"],
    }[kind]
    for text in (page.text, re.sub(r"\\(.)", r"\1", markdown)):
        assert not [number for number in numbers if number not in text]
        assert "None" not in text
        assert "nan" not in re.findall(r"\w+", text)


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        write(tmp_path, *(make() for make in REPORTS.values()))
        found.append(((tmp_path / "page.html").read_bytes(), (tmp_path / "page.md").read_bytes()))
    assert found[0] == found[1]
    assert len(found[0][0]) < 400_000


def test_nothing_of_a_report_becomes_markup_and_nothing_is_outside(tmp_path: Path) -> None:
    report = measured(
        dataset=f"imagefolder:{MARKUP}",
        per_class=(ClassAccuracy(class_name=MARKUP, images=3, correct=1, top1=1 / 3),),
        confusions=(Confusion(class_name=MARKUP, predicted=MARKUP, images=2, examples=(MARKUP,)),),
        templates=(MARKUP,),
    )
    origin = msgspec.structs.replace(report.provenance, model=ModelId(name=MARKUP), tool_versions={MARKUP: MARKUP})
    page = write(tmp_path, msgspec.structs.replace(report, provenance=origin), title=MARKUP)
    tags = {tag for tag, _attributes in page.elements}
    assert not tags & {"img", "script", "link", "iframe"}
    assert not [name for _tag, attributes in page.elements for name in attributes if name.startswith("on")]
    outside = [each for _tag, each in page.elements if (each.get("href") or each.get("src") or "#").startswith("http")]
    assert outside == []
    assert "49" not in [cell for row in page.cells() for cell in row], "a template was evaluated"
    ids = [each["id"] for _tag, each in page.elements if "id" in each]
    assert len(ids) == len(set(ids))
    markdown = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "\u202e" not in markdown + page.text
    outside_of_code = re.sub(r"````sh\n.*?\n````", "", markdown, flags=re.DOTALL)
    assert "<img" not in outside_of_code.replace("\\<img", "")


def test_emulated_results_are_marked_and_have_no_speed(tmp_path: Path) -> None:
    page = write(tmp_path, samples.speed(), samples.sweep(), samples.accuracy(), samples.retrieval(), samples.run())
    assert 'class="emulated-banner"' in page.text
    for rate in (
        "54321",
        "54322",
        "54,32",
        "2345.7",
        "12345.7",
        "12,345.7",
        "1234.6 images/s",
        "1234.568",
        "10.333",
        "98.8 s",
    ):
        assert rate not in page.text, rate
    markdown = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "54322" not in markdown
    assert markdown.count("**(emulated)**") > 5
    clean = write(tmp_path, samples.tool())
    assert 'class="emulated' not in clean.text.partition("</style>")[2]


def test_results_of_the_same_data_stand_together_and_others_apart(tmp_path: Path) -> None:
    exact = msgspec.structs.replace(samples.provenance(emulated=False), precision=Precision.FORCE_FLOAT32)
    reports = [
        measured(provenance=exact, top1=0.65),
        measured(top1=0.64),
        measured(data_digest="d" * 64, top1=0.9),
        measured(data_digest=None, top1=0.8),
        measured(data_digest=None, top1=0.8, elapsed_s=2.0),
        measured(templates=("other {}",), top1=0.7),
    ]
    emulated = msgspec.structs.replace(exact, emulated=True)
    page = write(tmp_path, *reports)
    tables = [row for row in page.cells() if len(row) in (8, 9) and row[0].split()[0].isdigit()]
    assert [(row[0], len(row)) for row in tables] == [("1", 9), ("2", 9), ("3", 8), ("4", 8), ("5", 8), ("6", 8)]
    assert [row[-3] for row in tables[:2]] == ["itself", "-1.00"]
    assert "5 different questions" in page.text
    assert "written by an older clipmlu" in page.text
    page = write(tmp_path, measured(provenance=emulated, top1=0.65), *reports[:2])
    assert [row[-3] for row in page.cells() if len(row) == 9 and row[2] != "top-1"] == ["0.00", "itself", "-1.00"], (
        "emulated is no baseline"
    )


@pytest.mark.parametrize("number", [1e308, -1e308])
@pytest.mark.parametrize("kind", ["bench", "compare"])
def test_numbers_that_nobody_measures_are_no_crash_and_no_warning(kind: str, number: float, tmp_path: Path) -> None:
    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: replaced(each) for name, each in value.items()}
        if isinstance(value, list):
            return [replaced(each) for each in value]
        return number if isinstance(value, float) else False if value is True else value

    content = replaced(json.loads(encode_json(REPORTS[kind]())))
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert write_report(tmp_path / "a.json", tmp_path / "page.html").size_bytes > 20_000
    assert "<path" in draw_pareto([Point("1", "mode", number, (number, number), 0.5, None, True)])


def test_a_real_report_gives_its_classes_bins_and_mistakes(compiled: CompiledBundle, tmp_path: Path) -> None:
    dataset = support.Pictures(60)
    with load(compiled.path) as model:
        report = evaluate(model, dataset)
        shown = evaluate(model, dataset)
        predictions = model.classifier(dataset.class_names).predict([dataset.image(n) for n in range(60)], top_k=7)
    assert shown.confidence_bins == report.confidence_bins
    page = write(tmp_path, report)
    cells = page.cells()
    assert [f"{report.top1:.4f}", f"{report.top1_interval.low:.4f}"] == next(
        row for row in cells if len(row) == 8 and row[0] == "1"
    )[2:4]
    # The bins by hand, from the predictions of the same images.
    confidence = np.array([each.score for each in predictions])
    right = np.array([dataset.class_names.index(each.class_name) for each in predictions]) == dataset.labels
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        row = next(row for row in cells if row[0] == f"{low / 15:.3f} to {(low + 1) / 15:.3f}")
        assert row[1] == str(inside.sum())
        if inside.any():
            interval = wilson_interval(int(right[inside].sum()), int(inside.sum()))
            expected = (confidence[inside].mean(), right[inside].mean(), interval.low, interval.high)
            assert [float(cell) for cell in row[2:]] == pytest.approx(expected, abs=6e-5)
    for pair in report.confusions[:12]:
        assert f"<bdi>{pair.class_name}</bdi></strong> taken for <strong><bdi>{pair.predicted}</bdi>" in page.text


def test_mistakes_of_a_folder_have_thumbnails_and_no_file_outside_it_is_read(
    compiled: CompiledBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        place = tmp_path / "shapes" / support.NAMES[number % 3] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        support.picture(number).save(place)
    where = f"imagefolder:{tmp_path / 'shapes'}"
    assert main(["eval", str(compiled.path), "--dataset", where, "--output", str(tmp_path / "a.json")]) == 0
    page = str(tmp_path / "page.html")
    assert main(["report", str(tmp_path / "a.json"), "-o", page]) == 0
    out, _err = capsys.readouterr()
    assert out.endswith(f"{page}\n")
    report = json.loads((tmp_path / "a.json").read_text())
    keys = [
        f"{pair['class_name']}, taken for {pair['predicted']}: {key}"
        for pair in report["confusions"][:12]
        for key in pair["examples"]
    ]
    pictures = [each for tag, each in Page(Path(page)).elements if tag == "img"]
    assert [each["alt"] for each in pictures] == keys
    assert all((each["src"] or "").startswith("data:image/jpeg;base64,") for each in pictures)
    assert f"clipmlu eval {compiled.path} --dataset {where}" in Path(page).read_text()
    support.picture(1).save(tmp_path / "secret.png")
    report["confusions"][0]["examples"] = ["../secret.png", str(tmp_path / "secret.png"), "gone.png"]
    (tmp_path / "a.json").write_text(json.dumps(report))
    write_report(tmp_path / "a.json", page, overwrite=True)
    first = report["confusions"][1]["examples"][0]
    assert next(each["title"] for tag, each in Page(Path(page)).elements if tag == "img") == first
    write_report(tmp_path / "a.json", page, overwrite=True, thumbnails=False)
    assert "<img" not in Path(page).read_text()


def test_images_outside_the_folder_of_the_report_and_the_current_one_need_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, sent = tmp_path / "mine", tmp_path / "sent"
    for folder in (mine, sent, tmp_path / "here"):
        folder.mkdir()
    support.picture(0).save(mine / "private.png")
    (sent / "link").symlink_to(mine)
    monkeypatch.chdir(tmp_path / "here")
    page = tmp_path / "page.html"

    def pictures(folder: Path, *options: str) -> int:
        pair = Confusion(class_name="cat", predicted="dog", images=1, examples=("private.png",))
        report = measured(dataset=f"imagefolder:{folder}", split="", confusions=(pair,))
        (sent / "report.json").write_bytes(encode_json(report))
        assert main(["report", str(sent / "report.json"), "-o", str(page), "--overwrite", *options]) == 0
        return page.read_text().count("<img")

    for folder in (mine, sent / "link"):
        assert pictures(folder) == 0
        assert f"images of 'imagefolder:{folder}' are not shown" in capsys.readouterr().err
        assert "nor below that in which this page was written" in page.read_text()
    assert pictures(mine, "--thumbnails") == 1
    monkeypatch.chdir(tmp_path)
    assert pictures(mine) == 1, "below the current folder"
    monkeypatch.chdir(sent)
    shutil.copy(mine / "private.png", sent)
    assert pictures(sent) == 1, "below the folder of the report"
    assert "not shown" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is damaged or no JSON file: Input data was truncated"),
        (encode_json(samples.accuracy())[:900], "is damaged or no JSON file: Input data was truncated"),
        (b"\xff\xfe", "is damaged or no JSON file"),
        (b"[1, 2]", "is no report; expected what eval, bench"),
        (b'{"name": "package"}', "is no report; expected what eval, bench"),
        (b'{"top1": 1, "per_class": [], "dataset": "demo"}', "was written by an older clipmlu"),
        (
            b'{"towers": [], "open_s": "x", "in_flight": 2}',
            "is not a report as this version's 'clipmlu bench --output' writes it",
        ),
        (b'{"top1": NaN}', "is damaged or no JSON file"),
    ],
)
def test_other_files_are_refused_in_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        write_report(path, tmp_path / "page.html")
    assert "\n" not in str(caught.value)
    assert "a.json" in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_bins_that_no_evaluation_writes_are_refused_or_left_empty(tmp_path: Path) -> None:
    each = {"low": 0.2, "high": 0.4, "images": 3, "correct": 2, "mean_confidence": 0.3}
    plain = json.loads(encode_json(samples.accuracy()))
    for change, message in (
        ({"mean_confidence": 1e308}, "is not a report as 'clipmlu eval --output' writes it"),
        ({"images": -1}, "is not a report as 'clipmlu eval --output' writes it"),
        ({"mean_confidence": None}, None),
        ({"correct": 4}, None),
    ):
        (tmp_path / "a.json").write_text(json.dumps({**plain, "confidence_bins": [{**each, **change}]}))
        if message is None:
            write_report(tmp_path / "a.json", tmp_path / "page.html", overwrite=True)
            row = next(row for row in Page(tmp_path / "page.html").cells() if row[0] == "0.200 to 0.400")
            assert row[2:] == ["", "", "", ""]
        else:
            with pytest.raises(InputError, match=message):
                write_report(tmp_path / "a.json", tmp_path / "page.html", overwrite=True)


def test_a_report_of_the_version_before_is_read(tmp_path: Path) -> None:
    report = json.loads(encode_json(samples.accuracy()))
    for name in ("confidence_bins", "data_digest", "command"):
        del report[name]
    for pair in report["confusions"]:
        del pair["examples"]
    (tmp_path / "old.json").write_text(json.dumps({**report, "schema_version": 1}))
    write_report(tmp_path / "old.json", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "No reliability diagram: the report was written by an older clipmlu" in text
    assert "No command is recorded of result 1" in text


def test_folders_give_their_reports_and_name_damaged_ones(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    (folder / "sweep").mkdir(parents=True)
    (folder / "sweep" / "sweep.json").write_bytes(encode_json(samples.sweep()))
    (folder / "b.json").write_bytes(encode_json(samples.tool()))
    (folder / "cut.json").write_bytes(encode_json(samples.tool())[:50])
    (folder / "other.json").write_text("{}")
    notes: list[str] = []
    written = write_report([folder, folder / "b.json"], tmp_path / "page.html", on_note=notes.append)
    assert written.results == 2
    assert len(notes) == 1
    assert notes[0].startswith("left out: ")
    assert "cut.json" in notes[0]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="empty' holds no report"):
        write_report(empty, tmp_path / "b.html")


def test_what_is_asked_for_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(encode_json(samples.tool()))
    with pytest.raises(OptionError, match=r"the report is '.*page\.pdf'; expected a name that ends in \.html"):
        write_report(path, tmp_path / "page.pdf")
    with pytest.raises(OptionError, match="there are no reports"):
        write_report([], tmp_path / "page.html")
    with pytest.raises(OptionError, match="the reports are 3; expected a path"):
        write_report(3, tmp_path / "page.html")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Cannot read the report '.*none\.json': No such file"):
        write_report(tmp_path / "none.json", tmp_path / "page.html")
    (tmp_path / "page.md").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"page\.md"):
        write_report(path, tmp_path / "page.html")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"^Writing a report needs 'matplotlib'.*clipmlu\[report\]"):
        write_report(path, tmp_path / "b.html")


@pytest.mark.parametrize("classes", [1, 1500])
def test_one_class_and_very_many_classes(classes: int, tmp_path: Path) -> None:
    rows = tuple(
        ClassAccuracy(
            class_name=f"class {number} " + "long" * 50,
            images=0 if number % 2 else 4,
            correct=1,
            top1=None if number % 2 else 0.25,
        )
        for number in range(classes)
    )
    report = measured(classes=classes, per_class=rows, confusions=(), top5=None, top5_interval=None)
    page = write(tmp_path, report)
    named = [row for row in page.cells() if row and row[0].startswith("class ") and len(row) == 3]
    assert len(named) == (1 if classes == 1 else 12 + 750)
    assert len(page.text.encode()) < 1_000_000


def test_published_figures_are_shown_for_the_same_weights_and_all_images_only(tmp_path: Path) -> None:
    model = ModelId(name="ViT-B-32", pretrained="openai")
    origin = msgspec.structs.replace(samples.provenance(emulated=False), model=model)
    report = measured(provenance=origin, dataset="cifar100", split="test", images=10_000, skipped=())
    # docs/magicmind-api.md, section 6.4, and open_clip's table.
    text = (REPOSITORY / "docs" / "magicmind-api.md").read_text(encoding="utf-8")
    published = re.search(r"Published: (\S+)/(\S+) fp32, (\S+)/(\S+) fp16, (\S+)/(\S+) qint8_mixed_float16", text)
    assert published is not None
    found = published_figures(report)
    vendor = [number for each in found if each.top5 is not None for number in (each.top1, each.top5)]
    assert vendor == [float(number) for number in published.groups()]
    assert found[0].top1 == 0.6423
    page = write(tmp_path, report)
    assert "not measured here" in page.text
    assert "commit 05e7db4" in page.text
    assert "commit dc085c1" in page.text
    for other in (
        {"images": 9_999},
        {"split": "train"},
        {"dataset": "imagefolder:cifar100"},
        {"provenance": msgspec.structs.replace(origin, model=ModelId(name="ViT-B-32", random_seed=0))},
        {"provenance": msgspec.structs.replace(origin, model=ModelId(name="ViT-B-32", pretrained="mine"))},
    ):
        assert published_figures(msgspec.structs.replace(report, **other)) == []
    assert "Published" not in write(tmp_path, msgspec.structs.replace(report, images=9_999)).text


def test_the_table_of_open_clip_is_whole() -> None:
    path = REPOSITORY / "src" / "clipmlu" / "assets" / "published_open_clip.csv"
    rows = list(csv.DictReader(path.read_text(encoding="ascii").splitlines()))
    assert len({(row["name"], row["pretrained"]) for row in rows}) == len(rows) > 80
    for row in rows:
        assert 0.1 < float(row["cifar100"]) < float(row["cifar10"]) < 1


@pytest.mark.parametrize("values", [[5.0], [1.0, 1.0, 1.0], [*range(1, 101), 5000.0]])
def test_latencies_are_all_counted(values: Sequence[float]) -> None:
    bars = count_latencies(values)
    assert sum(bars.counts) + bars.above == len(values)
    assert bars.edges[0] <= min(values)
    assert len(bars.counts) == len(bars.edges) - 1 <= 40
    assert bars.above == sum(value > bars.edges[-1] for value in values)


def test_a_job_is_reported_from_its_folder(compiled: CompiledBundle, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(5):
        support.picture(number).save(pictures / f"{number}.png")
    words = [str(compiled.path), str(pictures), "-o", str(tmp_path / "job"), "--shard-format", "npy"]
    assert main(["embed", *words]) == 0
    assert main(["report", str(tmp_path / "job"), "-o", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "5 of 5 done" in text
    shutil.rmtree(tmp_path / "job" / "records")


def test_the_commands_of_the_document_run(
    compiled: CompiledBundle, exported: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (REPOSITORY / "docs" / "reports.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(compiled.path, "demo-cpu")
    shutil.copytree(exported.path, "demo")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 4
    for line in commands:
        shorter = ["--no-stages", "--duration", "1", "--warmup", "0", "--iterations", "1"] if " bench " in line else []
        assert main([*shlex.split(line)[1:], *shorter]) == 0
    assert "comparison.json" in Path("report.html").read_text(encoding="utf-8")


def test_published_figures_of_all_models_of_the_same_images_are_shown(tmp_path: Path) -> None:
    reports = []
    for name in ("ViT-B-32", "ViT-L-14"):
        origin = samples.provenance(emulated=False)
        origin = msgspec.structs.replace(origin, model=ModelId(name=name, pretrained="openai"))
        data = {"dataset": "cifar100", "split": "test", "images": 10_000, "skipped": ()}
        reports.append(measured(provenance=origin, **data))
    page = write(tmp_path, *reports)
    rows = [row for row in page.cells() if row[0] == "open_clip"]
    assert [row[-1] for row in rows] == ["ViT-B-32::openai", "ViT-L-14::openai"]
    assert page.text.count("Source of open_clip") == 1


def test_of_very_many_results_the_first_ones_are_shown_in_detail_and_all_in_tables(tmp_path: Path) -> None:
    reports = [measured(elapsed_s=float(number + 1)) for number in range(MOST_DETAILED + 2)]
    page = write(tmp_path, *reports)
    headings = re.findall(r"<h3><bdi>Result (\d+):", page.text)
    assert headings == [str(number) for number in range(1, MOST_DETAILED + 1)]
    note = f"This page shows the first {MOST_DETAILED} of {MOST_DETAILED + 2} results in detail, and the others in its tables only."
    assert note in page.text
    assert "Top-1 with its 95 % interval of the first 40 of 42 results" in page.text
    files = [row[-1] for row in page.cells() if len(row) == 7 and row[1] == "accuracy"]
    assert files == [str(tmp_path / f"{number}.json") for number in range(MOST_DETAILED + 2)]
    assert "The boxes above show the first 8 of 42 results." in page.text
    fewer = write(tmp_path, *reports[:8]).text
    assert "in its tables only" not in fewer
    assert "The boxes above" not in fewer


def test_the_command_of_a_page_writes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-it's 1.json").write_bytes(encode_json(measured()))
    Path("more").mkdir()
    Path("more/b.json").write_bytes(encode_json(samples.tool()))
    title = "50 % 'off' \\x41 \u202e"
    given = ["./-it's 1.json", "more", "-o", "the page.html", f"--title={title}", "--no-thumbnails", "--overwrite"]
    assert main(["report", *given]) == 0
    content = Path("the page.html").read_bytes()
    line = Page(Path("the page.html")).commands()[-1]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], stdout=subprocess.PIPE, check=True
    ).stdout.decode().split("\0")[:-1]  # fmt: skip
    assert sorted(words) == sorted(["clipmlu", "report", *given])
    Path("the page.html").unlink()
    assert main(words[1:]) == 0
    assert Path("the page.html").read_bytes() == content


def test_every_table_and_row_of_emulated_results_is_marked(tmp_path: Path) -> None:
    exact = measured(elapsed_s=9.0)
    emulated = measured(provenance=samples.provenance(), elapsed_s=8.0)
    trials = msgspec.structs.replace(samples.search(), provenance=samples.provenance())
    reports = (exact, emulated, samples.sweep(), samples.comparison(), samples.retrieval(), trials, samples.run())
    page = write(tmp_path, *reports)
    rows = [row[0] for row in page.cells() if row[0].startswith(("1 qint8", "2 qint8"))]
    assert rows == ["1 qint8_mixed_float16", "2 qint8_mixed_float16 emulated"]
    assert [row for row in page.cells() if row[0].startswith("qint16") and "emulated" not in row[0]] == []
    for number in range(2, 8):
        part = page.text.split(f"<h3><bdi>Result {number}: ")[1].split("<h3>")[0].split("<h2")[0]
        captions = re.findall(r'<p class="caption".*?</p>|<figcaption>.*?</figcaption>', part)
        assert captions
        assert [caption for caption in captions if 'class="emulated"' not in caption] == [], number
    part = page.text.split("<h3><bdi>Result 1: ")[1].split("<h3>")[0]
    assert "emulated" not in part


def test_the_first_sentences_compare_with_float32_and_say_what_is_missing(tmp_path: Path) -> None:
    exact = msgspec.structs.replace(samples.provenance(emulated=False), precision=Precision.FORCE_FLOAT32)
    interval = wilson_interval(640, 1000)
    reports = [
        measured(provenance=exact, top1=0.64, top1_interval=interval, images=1),
        measured(top1=0.63, top1_interval=wilson_interval(630, 1000)),
        measured(top1=0.5, top1_interval=wilson_interval(500, 1000), elapsed_s=3.0),
    ]
    text = " ".join(write(tmp_path, *reports).text.split())
    low, high = 100 * interval.low, 100 * interval.high
    assert "classifies 64.00 % of 1 image correctly" in text
    assert f"prompt '{{}}' (95 %: {low:.2f} to {high:.2f}; result 1)" in html.unescape(text)
    assert "result 2) it is 63.00 %, 1.00 points less than in float32. The difference is smaller than" in text
    assert "result 3) it is 50.00 %, 14.00 points less than in float32.<" in text
    assert "The speed under load was not measured" in text
    again = [msgspec.structs.replace(reports[0], elapsed_s=10.0 + number) for number in range(5)]
    text = " ".join(write(tmp_path, reports[0], *again).text.split())
    assert "result 4) it is 64.00 %, the same as result 1." in text
    assert "result 5) it is" not in text
    assert "The tables below have 2 more results of these images." in text
    text = write(tmp_path, *reports[1:]).text
    assert "The tables below have 1 more result of these images." in text
    assert (
        "What the precision of results 1, 2 costs is not shown: evaluate a bundle of the same model in force_float32"
        in text
    )


def test_a_float32_result_of_other_images_prompts_or_models_does_not_show_what_a_precision_costs(
    tmp_path: Path,
) -> None:
    exact = msgspec.structs.replace(samples.provenance(emulated=False), precision=Precision.FORCE_FLOAT32)
    emulated = msgspec.structs.replace(exact, emulated=True)
    other = msgspec.structs.replace(exact, model=ModelId(name="demo"))
    retrained = measured(provenance=exact, weights_digest="e" * 64)
    unknown = measured(provenance=exact, weights_digest=None)
    reports = {
        "weights": retrained,
        "unknown weights": unknown,
        "images": measured(provenance=exact, data_digest="d" * 64),
        "prompts": measured(provenance=exact, templates=("other {}",)),
        "model": measured(provenance=other),
        "emulated": measured(provenance=emulated),
    }
    for name, report in reports.items():
        text = " ".join(write(tmp_path, report, measured()).text.split())
        assert "What the precision of result 2 costs is not shown" in text, name
        assert "than in float32" not in text, name
    for report in (retrained, unknown):
        page = write(tmp_path, report, measured(), measured(provenance=exact, top1=0.7))
        assert "Results with the same name of the model are of different weights" in page.text
        assert "result 2) it is 63.41 %, 6.59 points less than in float32" in page.text
        assert ("without a digest of their images or of the model" in page.text) is (report is unknown)
    # The results of two models on the same images are each compared with the float32 result of their own model.
    half = msgspec.structs.replace(other, precision=Precision.FORCE_FLOAT16)
    both = [
        measured(provenance=exact, top1=0.7),
        measured(top1=0.65),
        reports["model"],
        measured(provenance=half, top1=0.5),
    ]
    text = " ".join(write(tmp_path, *both).text.split())
    assert "result 2) it is 65.00 %, 5.00 points less than in float32" in text
    assert "result 4) it is 50.00 %, 13.41 points less than in float32" in text
    assert "costs is not shown" not in text


def test_results_of_fast_preprocessing_say_so_and_are_no_baseline(tmp_path: Path) -> None:
    exact = msgspec.structs.replace(samples.provenance(emulated=False), precision=Precision.FORCE_FLOAT32)
    reports = [measured(provenance=exact, top1=0.6, fast_preprocess=True), measured(provenance=exact, top1=0.62)]
    page = write(tmp_path, *reports, measured(top1=0.61))
    text = " ".join(page.text.split())
    assert "result 1) it is 60.00 %, 2.00 points less than result 2" in text
    assert "In force_float32 with fast preprocessing (cpu, result 1)" in text
    assert "result 3) it is 61.00 %, 1.00 points less than in float32" in text
    rows = [row for row in page.cells() if len(row) == 9 and row[0] in "123"]
    assert [(row[1], row[-3]) for row in rows] == [
        ("force_float32 with fast preprocessing", "-2.00"),
        ("force_float32", "itself"),
        ("qint8_mixed_float16", "-1.00"),
    ]


def test_rates_are_related_only_if_they_were_measured_alike_and_on_one_machine(tmp_path: Path) -> None:
    def page_of(second: Any) -> str:
        return " ".join(write(tmp_path, first, second).text.split())

    origin = samples.provenance(emulated=False)
    first = msgspec.structs.replace(samples.speed(), provenance=origin)
    (tower,) = first.towers
    slower = tuple(msgspec.structs.replace(each, images_per_second=27_160.99) for each in tower.scenarios)
    second = msgspec.structs.replace(first, towers=(msgspec.structs.replace(tower, scenarios=slower),))
    assert (
        "27,161.0 images/s (offline, batch 256, result 2), 0.50 times the rate of result 1, which is of the same bundle."
        in page_of(second)
    )
    other = msgspec.structs.replace(second, provenance=msgspec.structs.replace(origin, bundle_digest="b" * 64))
    assert "0.50 times the rate of result 1." in page_of(other)
    # Not only with the first result: also with an earlier one that was measured alike.
    text = " ".join(write(tmp_path, msgspec.structs.replace(first, threads=4), first, other).text.split())
    assert "(offline, batch 256, result 3), 0.50 times the rate of result 2." in text
    assert "different machines" not in page_of(second)
    for changes in ({"threads": 4}, {"in_flight": 1}, {"provenance": msgspec.structs.replace(origin, devices=(0, 1))}):
        text = page_of(msgspec.structs.replace(second, **changes))
        assert "(offline, batch 256, result 2)." in text, changes
        assert "different machines" not in text
    machine = msgspec.structs.replace(first.machine, cpu="Another")
    text = page_of(msgspec.structs.replace(second, machine=machine))
    assert "The speeds are of 2 different machines, and cannot be compared" in text
    assert "times the rate" not in text
    assert "(offline, through HTTP, result 2)." in page_of(msgspec.structs.replace(second, transport="http"))


def test_what_is_still_to_be_measured_counts_every_kind_of_result(tmp_path: Path) -> None:
    def missing(*reports: Any) -> list[str]:
        text = write(tmp_path, *reports).text
        return [name for name in ("speed under load", "accuracy") if f"The {name} was not measured" in text]

    real = msgspec.structs.replace(samples.speed(), provenance=samples.provenance(emulated=False))
    assert missing(measured()) == missing(samples.retrieval()) == missing(samples.search()) == ["speed under load"]
    assert missing(real) == missing(samples.tool()) == ["accuracy"]
    for reports in (
        (measured(), samples.tool()),
        (samples.search(), real),
        (samples.retrieval(), real),
        (samples.sweep(),),
    ):
        assert missing(*reports) == []


def test_results_stand_apart_if_other_images_could_not_be_read(tmp_path: Path) -> None:
    exact = msgspec.structs.replace(samples.provenance(emulated=False), precision=Precision.FORCE_FLOAT32)
    images = [SkippedImage(id=name, reason="broken") for name in ("a.png", "b.png")]
    reports = [measured(provenance=exact, skipped=(images[0],)), measured(skipped=tuple(images))]
    page = write(tmp_path, *reports)
    text = " ".join(page.text.split())
    assert "2 different questions" in text
    assert "of 49,991 images correctly (1 more could not be read): imagefolder" in text
    assert "What the precision of result 2 costs is not shown" in text
    same = write(tmp_path, reports[0], measured(skipped=(SkippedImage(id="a.png", reason="of another machine"),)))
    assert "result 2) it is 63.41 %, the same as in float32" in " ".join(same.text.split())


def test_one_of_a_thing_is_written_in_the_singular(tmp_path: Path) -> None:
    skipped = (SkippedImage(id="a.png", reason="broken"),)
    text = write(tmp_path, measured(skipped=skipped, images=1, classes=1)).text
    assert "1 image that could not be read" in text
    assert "1 image, 1 class, prompt" in text
    assert not re.findall(r"(?<![\d.,])1 (?:images|classes|rows|trials|results)\b", text)


def test_what_has_a_meaning_in_markdown_is_escaped_and_nothing_else() -> None:
    assert escaped("force_float32 a|b `c` [d](e) *f*\n# g <h> $i$") == (
        r"force_float32 a\|b \`c\` \[d\](e) \*f\* \# g \<h\> \$i\$"
    )
    assert escaped("_a_ __b__ c_") == r"\_a\_ \_\_b\_\_ c\_"
    assert escaped("\x1b[1m\u202e") == r"\\x1b\[1m\\xe2\\x80\\xae"


def test_files_with_equal_content_are_one_result(tmp_path: Path) -> None:
    for name in ("a.json", "b.json", "c.json"):
        (tmp_path / name).write_bytes(encode_json(samples.tool() if name != "c.json" else samples.sweep()))
    notes: list[str] = []
    assert write_report([tmp_path, tmp_path / "b.json"], tmp_path / "page.html", on_note=notes.append).results == 2
    assert notes == [f"left out: '{tmp_path}/b.json' has the content of '{tmp_path}/a.json'"]


def test_a_page_never_replaces_a_report_that_it_is_made_of(tmp_path: Path) -> None:
    report = tmp_path / "page.md"
    report.write_bytes(encode_json(samples.tool()))
    with pytest.raises(OptionError, match=r"page\.md' is one of the reports, which the page would replace"):
        write_report(report, tmp_path / "page.html", overwrite=True)
    assert report.read_bytes() == encode_json(samples.tool())
    assert not (tmp_path / "page.html").exists()


def test_the_tool_without_summaries_and_rates_is_shown(tmp_path: Path) -> None:
    tool = msgspec.structs.replace(samples.tool(), summaries=(), images_per_second=None, command=("mm_run", "a b"))
    page = write(tmp_path, tool)
    assert "not known (320.51 batches/s)" in page.text
    assert "mm_run 'a b'" in page.commands()


def test_a_sweep_names_its_fastest_row_on_the_front_and_labels_many_rows_on_the_front_only(tmp_path: Path) -> None:
    row = msgspec.structs.replace(samples.sweep().rows[0], emulated=False, on_front=False)
    rates = [100.0 * (number + 1) for number in range(MOST_LABELLED + 2)]
    rows = [
        msgspec.structs.replace(
            row,
            images_per_second=rate,
            slowest_images_per_second=rate,
            fastest_images_per_second=rate,
            top1=0.5 + 0.01 * place,
            on_front=place in (3, 5),
        )
        for place, rate in enumerate(rates)
    ]
    real = msgspec.structs.replace(samples.sweep(), provenance=samples.provenance(emulated=False))
    page = write(tmp_path, msgspec.structs.replace(real, rows=tuple(rows)))
    assert "the fastest is qint16_mixed_float32 with batch 1024: 600.0 images/s, top-1 55.00 %." in page.text
    assert [row[2] for row in page.cells() if row[1:2] == ["sweep"]] == [
        "Fastest of the sweep, 600.0 images/s, qint16_mixed_float32, batch 1024, top-1 55.00 %, 2 of 14 rows on the front"
    ]
    drawing = next(
        each for each in re.findall(r"<svg.*?</svg>", page.text, flags=re.DOTALL) if "images per second" in each
    )
    assert {"4", "6"} <= set(re.findall(r">(\d+)</text>", drawing))
    assert not {"1", "3", "5", "14"} & set(re.findall(r">(\d+)</text>", drawing))
    few = write(tmp_path, msgspec.structs.replace(real, rows=tuple(rows[:6])))
    drawing = next(
        each for each in re.findall(r"<svg.*?</svg>", few.text, flags=re.DOTALL) if "images per second" in each
    )
    assert {"1", "2", "3", "4", "5", "6"} <= set(re.findall(r">(\d+)</text>", drawing))
    marked = write(tmp_path, samples.sweep())
    assert "Fastest of the sweep" not in marked.text


def test_the_label_of_a_drawing_holds_its_main_numbers(tmp_path: Path) -> None:
    bins = tuple(
        ConfidenceBin(
            low=n / 15, high=(n + 1) / 15, images=n, correct=n // 2, mean_confidence=(n + 0.5) / 15 if n else None
        )
        for n in range(15)
    )
    speed = samples.speed()
    tower = speed.towers[0]
    scenarios = [msgspec.structs.replace(each, latencies_ms=(10.0, 11.0, 12.0)) for each in tower.scenarios]
    towers = (msgspec.structs.replace(tower, scenarios=tuple(scenarios)),)
    real = msgspec.structs.replace(speed, provenance=samples.provenance(emulated=False), towers=towers)
    page = write(tmp_path, measured(confidence_bins=bins), real)
    labels = " ".join(each["aria-label"] or "" for tag, each in page.elements if tag == "svg")
    assert "most, 14, are at 0.933 to 1.000" in labels
    assert "p50 10.222 ms, p90 10.333 ms, p99 10.555 ms" in labels
    assert "Alone most takes post process, 1012.346 ms" in labels
