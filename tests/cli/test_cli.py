"""The commands that run a bundle: results on stdout, notes on stderr, one line per error, documented exit codes."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import clipmlu
import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.cli import cli
from clipmlu.data.resize.order import describe_pillow

Run = Callable[..., tuple[int, str, str]]
LABELS = "cat,dog,red circle"


def test_classify_folder_reports_skips_and_counts_the_broken_image(
    run: Run, compiled: CompiledBundle, photos: Path
) -> None:
    code, out, err = run("classify", compiled.path, photos, "--labels", LABELS, "--format", "jsonl", "--top-k", 2)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [Path(row["source"]).name for row in rows] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert all(len(row["predictions"]) == 2 for row in rows)
    assert re.search(r"skipped: .*broken\.jpg", err)
    assert "1 image(s) could not be read." in err


def test_formats_agree(run: Run, compiled: CompiledBundle, photos: Path) -> None:
    arguments = ("classify", compiled.path, photos / "*.png", "--labels", LABELS, "--format")
    as_json = json.loads(run(*arguments, "json")[1])
    lines = [json.loads(line) for line in run(*arguments, "jsonl")[1].splitlines()]
    table = run(*arguments, "table")[1].splitlines()
    rows = list(csv.DictReader(io.StringIO(run(*arguments, "csv")[1])))
    assert as_json["results"] == lines
    assert as_json["provenance"] == {
        "model": json.loads((compiled.path / "manifest.json").read_text())["model"],
        "bundle_digest": hashlib.sha256((compiled.path / "manifest.json").read_bytes()).hexdigest(),
        "target": "cpu",
        "precision": "force_float32",
        "emulated": False,
        "devices": [],
        "tool_versions": {
            **{name: metadata.version(name) for name in ("clipmlu", "onnxruntime")},
            "pillow": describe_pillow(),
        },
    }
    assert len(lines) == len(rows) == len(table) == 3
    for line, row, text in zip(lines, rows, table, strict=True):
        best = line["predictions"][0]
        assert row["class_name_1"] == best["class_name"]
        assert float(row["score_1"]) == pytest.approx(best["score"], abs=1e-6)
        assert text == f"{line['source']}  {best['class_name']:<10} {best['score']:6.1%}"


def test_inputs_from_file_glob_folder_and_stdin_are_the_same(
    run: Run, compiled: CompiledBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [photos / "sub" / f"{number}.png" for number in (3, 4)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([str(file) for file in files]) + "\n\n"))
    arguments = ("--labels", LABELS, "--format", "jsonl")
    outputs = {
        run("classify", compiled.path, *files, *arguments)[1],
        run("classify", compiled.path, photos / "sub", *arguments)[1],
        run("classify", compiled.path, photos / "s*" / "*.png", *arguments)[1],
        run("classify", compiled.path, photos / "s*", *arguments)[1],
        run("classify", compiled.path, "-", *arguments)[1],
    }
    assert len(outputs) == 1
    assert len(outputs.pop().splitlines()) == 2


def test_missing_image_does_not_stop_the_others(run: Run, compiled: CompiledBundle, photos: Path) -> None:
    code, out, err = run(
        "classify", compiled.path, "absent.png", photos / "0.png", "--labels", LABELS, "--format", "jsonl"
    )
    assert code == 1
    assert len(out.splitlines()) == 1
    assert "absent.png" in err


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("no*match", r"the file does not exist, and the pattern matches no image"),
        ("IMG[1].jpg", r"'IMG\[1\]\.jpg': the file does not exist, and the pattern"),
        ("empty", r"'empty': it holds no images"),
        ("x" * 300, "Cannot read image 'x*': File name too long"),
        ("[x]" * 300, "the pattern matches no image"),
        ("a\0b.png", r"a\\x00b\.png': .*null"),
        ("/dev/zero", "'/dev/zero': it is not a regular file"),
        ("pipe.png", "'pipe.png': it is not a regular file"),
        (os.fsdecode(b"caf\xe9.png"), r"'caf\\xe9\.png': there is no such file"),
    ],
)
@pytest.mark.parametrize("stdin", [False, True])
def test_one_bad_entry_is_reported_and_the_others_go_on(
    run: Run,
    compiled: CompiledBundle,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    entry: str,
    reason: str,
    stdin: bool,
) -> None:
    monkeypatch.chdir(photos)
    (photos / "empty").mkdir()
    os.mkfifo(photos / "pipe.png")
    if stdin:
        content = os.fsencode(f"{entry}\n0.png\n\n1.png")
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    inputs = ["-"] if stdin else [entry, "0.png", "1.png"]
    code, out, err = run("classify", compiled.path, *inputs, "--labels", LABELS, "--format", "jsonl")
    assert code == 1
    assert [json.loads(line)["source"] for line in out.splitlines()] == ["0.png", "1.png"]
    assert re.search(f"^skipped: .*{reason}", err), err
    assert err.endswith("\n1 image(s) could not be read.\n")
    code, _, err = run("embed", compiled.path, entry, "0.png", "-o", "out.npy")
    assert (code, np.load("out.npy").shape) == (1, (1, support.DIM))
    assert re.search(f"^skipped: .*{reason}", err), err


@pytest.mark.parametrize(
    ("stdin", "reason"),
    [
        (None, "standard input is closed"),
        (b"", "standard input has no paths"),
        (b"\n \n", "standard input has no paths"),
    ],
)
def test_list_on_stdin_without_a_path_is_reported(
    run: Run, compiled: CompiledBundle, photos: Path, monkeypatch: pytest.MonkeyPatch, stdin: bytes | None, reason: str
) -> None:
    monkeypatch.setattr("sys.stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
    code, out, err = run("classify", compiled.path, "-", photos / "0.png", "--labels", LABELS, "--format", "jsonl")
    assert (code, len(out.splitlines())) == (1, 1)
    assert re.search(f"^skipped: Cannot read '-': .*{reason}\\.\n1 image", err), err


@pytest.mark.parametrize(
    "arguments",
    [
        ("classify", "{long}", "0.png", "--labels", "a,b"),
        ("eval", "{bundle}", "--dataset", "cifar100", "--offline", "--data-dir", "{long}"),
        pytest.param(("export", "demo", "--tokenizer", "{long}", "-o", "out"), marks=pytest.mark.torch),
        ("run", "demo", "-o", "{long}"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_path_that_cannot_be_looked_at_is_one_line(
    run: Run, compiled: CompiledBundle, photos: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(photos)
    code, out, err = run(*(text.format(long="y" * 300, bundle=compiled.path) for text in arguments))
    assert (code, out) == (1, "")
    line = err.splitlines(keepends=True)[-1]  # after the steps, if there are
    assert re.fullmatch(r"clipmlu: Cannot [^\n]*'y{300}[^\n]*File name too long[^\n]*\n", line), err


def test_folder_says_what_it_left_out(run: Run, compiled: CompiledBundle, photos: Path) -> None:
    (photos / "gone.png").symlink_to("nowhere")
    code, _, err = run("classify", compiled.path, photos, "--labels", LABELS)
    assert code == 1
    assert re.search(r"skipped: .*gone\.png': it is a link to 'nowhere'", err)
    assert "Left out: 1 file(s) of other types (.txt 1).\n2 image(s) could not be read.\n" in err


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_names_that_are_no_utf8_are_in_all_outputs_and_lead_back(
    run: Run, compiled: CompiledBundle, tmp_path: Path
) -> None:
    raw = [os.fsencode(tmp_path / "odd") + name for name in (b"/a\nb.png", b"/back\\slash.png", b"/caf\xe9.png")]
    (tmp_path / "odd").mkdir()
    content = io.BytesIO()
    support.picture(0).save(content, "PNG")
    for path in raw:
        Path(os.fsdecode(path)).write_bytes(content.getvalue())
    arguments = ("classify", compiled.path, tmp_path / "odd", "--labels", LABELS, "--format")
    as_json = [row["source"] for row in json.loads(run(*arguments, "json")[1])["results"]]
    as_lines = [json.loads(line)["source"] for line in run(*arguments, "jsonl")[1].splitlines()]
    as_csv = [row["source"] for row in csv.DictReader(io.StringIO(run(*arguments, "csv")[1]))]
    as_table = [line.split("  ")[0] for line in run(*arguments, "table")[1].splitlines()]
    assert run("embed", compiled.path, tmp_path / "odd", "-o", tmp_path / "odd.npy")[0] == 0
    ids = json.loads((tmp_path / "odd.ids.json").read_bytes())
    assert as_json == as_lines == as_csv == as_table == ids
    assert [os.fsencode(clipmlu.path_from_name(name)) for name in ids] == raw
    assert [name.rpartition("/")[2] for name in ids] == [r"a\x0ab.png", r"back\\slash.png", r"caf\xe9.png"]


def test_classifier_file_round_trip(run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path) -> None:
    expected = run(
        "classify", compiled.path, photos / "0.png", "--labels", LABELS, "--save-classifier", tmp_path / "three.clf"
    )[1]
    (compiled.path / "text.onnx").unlink()
    code, out, _ = run("classify", compiled.path, photos / "0.png", "--classifier", tmp_path / "three.clf")
    assert (code, out) == (0, expected)


@pytest.mark.parametrize(
    ("arguments", "code", "pattern"),
    [
        (("x.png", "--labels", "absent.txt"), 1, "Label file 'absent.txt' does not exist"),
        (("x.png", "--labels", "[a, b]"), 2, "begins with '\\['"),
        (("x.png", "--labels", "x" * 300 + "," + "y" * 300, "--templates", "the " * 200), 2, r"has no '\{\}'"),
        (("x.png", "--labels", ","), 2, "No class names"),
        (("x.png", "--labels", "a,b", "--templates", "a photo"), 2, r"Template 'a photo' has no '\{\}'"),
        (
            ("x.png", "--labels", "a,b", "--templates", "cifer"),
            2,
            "Unknown template set 'cifer'. Did you mean 'cifar'?",
        ),
        (("x.png",), 2, "Give either --labels or --classifier"),
        (("--labels", "a,b"), 2, "Give at least one INPUT"),
        (("x.png", "--classifier", "absent.clf"), 1, "Classifier file 'absent.clf' does not exist"),
        (("x.png", "--labels", "a,b", "--batch-size", "9"), 1, r"Batch of 9 is outside 1\.\.8"),
    ],
)
def test_classify_mistakes_are_one_clear_line(
    run: Run, compiled: CompiledBundle, arguments: tuple[str, ...], code: int, pattern: str
) -> None:
    result, out, err = run("classify", compiled.path, *arguments)
    assert (result, out) == (code, "")
    support.assert_one_line(err, pattern)


def test_embed_writes_array_and_ids(run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path) -> None:
    code, _, err = run("embed", compiled.path, photos, "-o", tmp_path / "out.npy")
    embeddings = np.load(tmp_path / "out.npy")
    ids = json.loads((tmp_path / "out.ids.json").read_text())
    assert code == 1
    assert "broken.jpg" in err
    assert [Path(each).name for each in ids] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    expected = support.embed_images(np.stack([support.preprocess(support.picture(number)) for number in range(5)]))
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)


def test_embed_texts(run: Run, compiled: CompiledBundle, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("cat\nred circle\n")
    assert run("embed", compiled.path, "--texts", tmp_path / "texts.txt", "-o", tmp_path / "texts.npy")[0] == 0
    assert np.load(tmp_path / "texts.npy").shape == (2, support.DIM)
    assert json.loads((tmp_path / "texts.ids.json").read_text()) == ["cat", "red circle"]


def _dataset(root: Path) -> Path:
    for label in ("cat", "red_circle"):
        (root / label).mkdir(parents=True)
        for number in range(3):
            support.picture(number + len(label)).save(root / label / f"{number}.png")
    return root


def test_eval_reports_the_same_on_screen_in_json_and_in_the_file(
    run: Run, compiled: CompiledBundle, tmp_path: Path
) -> None:
    dataset = f"imagefolder:{_dataset(tmp_path / 'images')}"
    code, out, _ = run("eval", compiled.path, "--dataset", dataset, "--json", "--output", tmp_path / "report.json")
    report = json.loads(out)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert code == 0
    assert report == saved
    assert (report["images"], report["classes"], report["top5"]) == (6, 2, None)
    shown = run("eval", compiled.path, "--dataset", dataset, "--sample-files", tmp_path / "files")[1]
    assert f"{report['top1']:.4f}" in shown
    assert f"top1 accuracy: {report['top1']:f}" in shown.splitlines()
    assert "[red_circle]" in (tmp_path / "files" / "infer_result.txt").read_text()


def test_hardest_classes_are_not_perfect(
    run: Run, compiled: CompiledBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        support.picture(number).save(f"{number}.png")
    rows = run("classify", compiled.path, "*.png", "--labels", "cat,red circle", "--format", "jsonl")[1].splitlines()
    cats = [row["source"] for row in map(json.loads, rows) if row["predictions"][0]["class_name"] == "cat"]
    for folder, name in zip(("cat", "red_circle"), cats, strict=False):
        (tmp_path / "images" / folder).mkdir(parents=True)
        shutil.copy(name, tmp_path / "images" / folder)
    arguments = ("eval", compiled.path, "--dataset", "imagefolder:images")
    found = {row["class_name"]: row["top1"] for row in json.loads(run(*arguments, "--json")[1])["per_class"]}
    table = run(*arguments)[1].partition("hardest classes")[2].partition("confusions")[0]
    assert found == {"cat": 1, "red circle": 0}
    assert [name for name in found if name in table] == ["red circle"]


def test_eval_of_a_broken_image_counts_the_rest(run: Run, compiled: CompiledBundle, tmp_path: Path) -> None:
    root = _dataset(tmp_path / "images")
    (root / "cat" / "9.png").write_bytes(b"x")
    code, out, err = run("eval", compiled.path, "--dataset", f"imagefolder:{root}", "--json")
    assert code == 1
    assert json.loads(out)["images"] == 6
    assert re.search(r"skipped: .*9\.png", err)


@pytest.mark.parametrize(
    ("arguments", "code", "pattern"),
    [
        (("--dataset", "cifar1000"), 2, "Unknown dataset 'cifar1000'. Did you mean 'cifar100'"),
        (("--dataset", "imagefolder:absent"), 1, "Image folder 'absent' does not exist"),
        (("--dataset", "cifar100", "--offline"), 1, "cifar100 is not on this machine"),
        (("--dataset", "cifar100", "--split", "val"), 2, "has no split 'val'"),
    ],
)
def test_eval_mistakes_are_one_clear_line(
    run: Run, compiled: CompiledBundle, arguments: tuple[str, ...], code: int, pattern: str
) -> None:
    result, out, err = run("eval", compiled.path, *arguments)
    assert (result, out) == (code, "")
    support.assert_one_line(err, pattern)


def test_compile_and_info_show_the_same_bundle(run: Run, exported: ExportedBundle, tmp_path: Path) -> None:
    output = tmp_path / "static"
    code, out, err = run(
        "compile", exported.path, "-o", output, "--target", "cpu", "--static-shape", "--batch-size", 5, "--json"
    )
    assert code == 0
    assert "Next: clipmlu eval" in err
    assert json.loads(out) == json.loads(run("info", output, "--json")[1])
    shown = run("info", output)[1]
    assert "exactly 5" in shown
    assert "force_float32" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "pattern"),
    [
        (("--precision", "qint8_mixed_float16"), 2, "qint8_mixed_float16 needs calibration data: give --calib"),
        (("--granularity", "per_axis"), 2, "force_float32 quantises nothing; leave out the quantisation options"),
        (("--batch-size", "65", "--max-batch", "64"), 2, "batch size 65 is larger than max batch 64"),
        (("--static-shape", "--max-batch", "64"), 2, "a static shape takes exactly 32"),
    ],
)
def test_compile_mistakes_are_one_clear_line(
    run: Run, exported: ExportedBundle, tmp_path: Path, arguments: tuple[str, ...], code: int, pattern: str
) -> None:
    result, out, err = run("compile", exported.path, "-o", tmp_path / "out", *arguments)
    assert (result, out) == (code, "")
    support.assert_one_line(err, pattern)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "--dataset", "demo", "--max-drop"),
        ("bench", "--scenario", "server", "--latency-bound-ms"),
        ("compile", "-o", "out", "--min-cosine"),
        ("compile", "-o", "out", "--min-agreement"),
        ("compile", "-o", "out", "--max-drop"),
        ("compile", "-o", "out", "--calib", "demo", "--calib-percentile"),
        ("compile", "-o", "out", "--calib", "demo", "--precision", "qint8_mixed_float32", "--smooth-alpha"),
        ("compare", "other", "--threshold"),
    ],
)
def test_what_is_no_number_is_a_usage_error(
    run: Run, exported: ExportedBundle, arguments: tuple[str, ...], value: str
) -> None:
    code, out, err = run(arguments[0], exported.path, *arguments[1:-1], f"{arguments[-1]}={value}")
    assert (code, out) == (2, "")
    assert value in err


@pytest.mark.parametrize(
    "arguments", [("--batch-size", "0"), ("--max-drop", "2"), ("--precision", "int9"), ("--no-such-flag",)]
)
def test_flags_that_do_not_exist_or_fit_are_usage_errors(
    run: Run, exported: ExportedBundle, arguments: tuple[str, ...]
) -> None:
    code, out, err = run("compile", exported.path, "-o", "out", *arguments)
    assert (code, out) == (2, "")
    support.assert_one_line(err, r"^clipmlu: .*[.?] Try 'clipmlu compile --help'\.$")


@pytest.mark.parametrize("command", [("info",), ("classify",), ("eval", "--dataset", "demo"), ("compile", "-o", "out")])
def test_missing_bundle_is_one_clear_line(run: Run, command: tuple[str, ...], tmp_path: Path) -> None:
    extra = ("x.png", "--labels", "a,b") if command[0] == "classify" else ()
    code, out, err = run(command[0], tmp_path / "absent", *extra, *command[1:])
    assert (code, out) == (1, "")
    support.assert_one_line(err, "No bundle at '.*absent'")


def test_unwritable_output_is_one_clear_line(
    run: Run, exported: ExportedBundle, compiled: CompiledBundle, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    support.picture(0).save(tmp_path / "0.png")
    for arguments in (
        ("compile", exported.path, "--target", "cpu", "-o", tmp_path / "file" / "out"),
        ("embed", compiled.path, tmp_path / "0.png", "-o", tmp_path / "file" / "out.npy"),
        ("classify", compiled.path, "--labels", LABELS, "--save-classifier", tmp_path / "file" / "x"),
    ):
        code, _, err = run(*arguments)
        assert code == 1
        support.assert_one_line(err, "Cannot write '.*file")


def test_datasets_models_and_doctor_answer_in_json(run: Run) -> None:
    names = [each["name"] for each in json.loads(run("datasets", "--json")[1])]
    assert names == ["demo", "cifar100", "cifar10", "imagefolder:PATH"]
    findings = {each["check"]: each for each in json.loads(run("doctor", "--json")[1])}
    assert findings["target cpu"]["status"] == "ok"
    assert "onnxruntime" in findings["target cpu"]["found"]
    assert "dataset cifar100" in run("doctor")[1]
    assert "cifar100" in run("datasets")[1]


@pytest.mark.torch
def test_models_that_open_clip_lacks_are_named(run: Run) -> None:
    pytest.importorskip("open_clip", reason="needs the export extra (open_clip)")
    code, _, err = run("models", "chinese")
    assert code == 2
    expected = r"Unknown model 'chinese'\. Did you mean 'hf:OFA-Sys/chinese-clip-vit-base-patch16'\? .* hf:org/name \(transformers\)"
    support.assert_one_line(err, expected)
    assert "Did you mean" in run("models", "ViT-B-23")[2]


def _environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "CLIPMLU_CACHE_DIR": str(tmp_path / "cache"), "PYTHONUNBUFFERED": "1"}


HEAVY = (
    "torch",
    "open_clip",
    "ray",
    "onnxruntime",
    "openvino",
    "onnx",
    "onnx_ir",
    "pyarrow",
    "webdataset",
    "magicmind",
    "numpy",
    "rich",
    "PIL",
    "tokenizers",
)


@pytest.mark.parametrize(
    "statement",
    [
        "import clipmlu",
        "from clipmlu.cli import main; main(['--help'])",
        "from clipmlu.cli import main; main(['eval', '--help'])",
    ],
)
def test_import_and_help_load_nothing_heavy(statement: str, tmp_path: Path) -> None:
    code = f"{statement}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment(tmp_path)
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_reader_that_goes_away_is_no_traceback(compiled: CompiledBundle, photos: Path, tmp_path: Path) -> None:
    command = (
        f"{sys.executable} -m clipmlu classify {compiled.path} {photos}/*.png {photos}/*.png --labels cat,dog | true"
    )
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, env=_environment(tmp_path)
    )
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


@pytest.mark.parametrize(
    "command",
    ["eval", *(pytest.param(each, marks=pytest.mark.slow) for each in ("eval --task retrieval", "bench", "compare"))],
)
def test_reader_that_goes_away_takes_no_file_away(
    command: str, run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    os.close(read)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("".join(["filepath,title\n", *(f"{photos / f'{n}.png'},a photo {n}\n" for n in range(2))]))
    name, *task = command.split()
    arguments: dict[str, list[object]] = {
        "eval": ["--dataset", "demo", "--samples", 2],
        "eval --task retrieval": [pairs, *task],
        "bench": ["--duration", 1, "--no-stages"],
        "compare": [compiled.path, "--samples", 2],
    }
    with open(write, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        with pytest.raises(SystemExit):  # rich raises it
            run(name, compiled.path, *arguments[command], "--output", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["command"]["arguments"][1] == name


def _interrupted(
    arguments: list[object], listed: str, awaited: str, tmp_path: Path, number: int = signal.SIGINT
) -> tuple[int, str, str]:
    """Run a command on a list that does not end, and send it a signal when it has said ``awaited``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clipmlu", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # communicate() would lose what a buffer of readline() still holds
        env=_environment(tmp_path),
        # A shell starts background jobs with SIGINT ignored, and a test run may be one of them.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - no threads are running yet
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(listed.encode())
    assert awaited.encode() in process.stderr.readline()  # it is at work, and waits for the rest of the list
    out, err = support.end_by_signal(process, number)
    return process.returncode, out.decode(), err.decode()


def endings(*quick: int) -> pytest.MarkDecorator:
    """Signals and their exit codes; those that are not named are tried with ``make test-all``."""
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
    rows = [
        pytest.param(number, code, marks=() if number in quick else pytest.mark.slow) for number, code in codes.items()
    ]
    return pytest.mark.parametrize(("number", "expected"), rows)


@endings(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
def test_signal_is_one_line_and_its_exit_code(
    number: int, expected: int, compiled: CompiledBundle, tmp_path: Path
) -> None:
    arguments = ["embed", compiled.path, "-", "-o", tmp_path / "out.npy"]
    code, out, err = _interrupted(arguments, "absent.png\n" * 100, "absent.png", tmp_path, number)
    assert (code, out) == (expected, "")
    lines = [line for line in err.splitlines() if line and not line.startswith("skipped: ")]
    assert lines == ["clipmlu: interrupted; no incomplete files remain."]
    assert not [path for path in tmp_path.iterdir() if "out" in path.name or path.suffix == ".tmp"]


@endings(signal.SIGTERM)
def test_signal_leaves_the_finished_embeddings(
    number: int, expected: int, compiled: CompiledBundle, photos: Path, tmp_path: Path
) -> None:
    listed = f"absent.png\n{photos / '0.png'}\n{photos / '1.png'}\n" * 40
    arguments = ["embed", compiled.path, "-", "--batch-size", 6, "-o", tmp_path / "out.npy"]
    code, _, err = _interrupted(arguments, listed, "absent.png", tmp_path, number)
    assert code == expected
    rows = np.load(tmp_path / "out.partial.npy")
    assert rows.dtype == np.float32
    assert f"Wrote the {len(rows)} embeddings that were finished to {tmp_path / 'out.partial.npy'}" in err
    reference = support.embed_images(np.stack([support.preprocess(support.picture(number)) for number in (0, 1)]))
    np.testing.assert_allclose(rows, np.tile(reference, (len(rows) // 2, 1)), atol=1e-6)
    ids = json.loads((tmp_path / "out.partial.ids.json").read_text())
    assert ids == [str(photos / "0.png"), str(photos / "1.png")] * (len(rows) // 2)
    assert sorted(path.name for path in tmp_path.glob("*out.*")) == ["out.partial.ids.json", "out.partial.npy"]


@endings(signal.SIGINT)
def test_signal_leaves_a_whole_document(
    number: int, expected: int, compiled: CompiledBundle, photos: Path, tmp_path: Path
) -> None:
    listed = f"absent.png\n{photos / '0.png'}\n" * 40
    arguments = ["classify", compiled.path, "-", "--labels", LABELS, "--batch-size", 4, "--format", "json"]
    code, out, _ = _interrupted(arguments, listed, "absent.png", tmp_path, number)
    assert code == expected
    results = json.loads(out)["results"]
    assert results
    assert {row["source"] for row in results} == {str(photos / "0.png")}


def test_ignored_signal_stays_ignored(compiled: CompiledBundle, photos: Path, tmp_path: Path) -> None:
    """As under ``nohup``."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from clipmlu.cli import main, _signals\n"
        "with _signals.TerminationSignals() as found:\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "assert found.received is None\n"
        f"sys.exit(main(['classify', {str(compiled.path)!r}, {str(photos / '0.png')!r}, '--labels', 'cat,dog']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=_environment(tmp_path)
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("redirection", "expected"),
    [
        ("> /dev/full", "clipmlu: Cannot write to standard output: No space left on device"),
        (">&-", "clipmlu: Standard output is closed"),
    ],
)
@pytest.mark.parametrize("arguments", ["classify {bundle} {photo} --labels cat,dog", "info {bundle} --json", "--help"])
def test_output_that_cannot_be_written_is_one_line(
    redirection: str, expected: str, arguments: str, compiled: CompiledBundle, photos: Path, tmp_path: Path
) -> None:
    filled = arguments.format(bundle=compiled.path, photo=photos / "0.png")
    result = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m clipmlu {filled} {redirection}"],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(tmp_path),
    )
    (line,) = result.stderr.splitlines()
    assert line.startswith(expected)
    assert result.returncode == 1


def test_error_in_the_middle_leaves_the_finished_embeddings(
    run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list on stdin that breaks off with an error, after some batches."""

    class Broken(io.TextIOBase):
        left = 40

        def readline(self, _size: int = -1) -> str:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.EIO, "Input/output error")
            return f"{photos / '0.png'}\n"

        def __iter__(self) -> Iterator[str]:
            return iter(self.readline, "")

    monkeypatch.setattr(sys, "stdin", Broken())
    with pytest.raises(OSError, match="Input/output error"):
        run("embed", compiled.path, "-", "--batch-size", 4, "-o", tmp_path / "out.npy")
    assert len(np.load(tmp_path / "out.partial.npy")) >= 4
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("command", ["classify", "embed", "eval", "bench", "compile"])
def test_batches_that_do_not_fit_in_memory_are_refused(
    command: str, run: Run, exported: ExportedBundle, photos: Path, tmp_path: Path
) -> None:
    large = 2**31 - 1
    if command != "compile":
        assert run("compile", exported.path, "--target", "cpu", "--max-batch", large, "-o", tmp_path / "large")[0] == 0
    arguments = {
        "classify": [photos, "--labels", "cat,dog"],
        "embed": [photos, "-o", tmp_path / "e.npy"],
        "eval": ["--dataset", "demo", "--samples", 4],
        "bench": ["--duration", 1, "--no-stages"],
        "compile": ["--target", "cpu", "-o", tmp_path / "out"],
    }[command]
    path = exported.path if command == "compile" else tmp_path / "large"
    code, _, err = run(command, path, *arguments, "--batch-size", large)
    assert code == 2
    assert "GB of memory for their inputs alone" in err.splitlines()[-1]
    assert "choose a smaller --batch-size" in err.splitlines()[-1]


def test_batches_beyond_any_axis_are_refused_before_anything_is_written(
    run: Run, exported: ExportedBundle, tmp_path: Path
) -> None:
    code, _, err = run("compile", exported.path, "--target", "cpu", "--max-batch", 2**31, "-o", tmp_path / "out")
    assert code == 2
    support.assert_one_line(err, "max batch is 2147483648; expected 1 or more, 2147483647 at most")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "\n \n\t\n"])
def test_a_file_without_a_text_is_refused(run: Run, compiled: CompiledBundle, tmp_path: Path, content: str) -> None:
    (tmp_path / "texts.txt").write_text(content)
    code, _, err = run("embed", compiled.path, "--texts", tmp_path / "texts.txt", "-o", tmp_path / "e.npy")
    assert code == 1
    assert f"clipmlu: The text file '{tmp_path / 'texts.txt'}' holds no text. Expected one text a line." in err
    assert not (tmp_path / "e.npy").exists()


@pytest.mark.parametrize("end", [b"\0", b""])
def test_a_list_between_zero_bytes_is_read(
    run: Run, compiled: CompiledBundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    """As ``find -print0`` writes it; a name may then hold a line break, and may be cut by the end of a chunk."""
    odd = tmp_path / "two\nlines.png"
    shutil.copy(photos / "0.png", odd)
    names = [str(odd), *[str(photos / "1.png")] * 3000, str(photos / "2.png")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\0".join(names).encode() + end)))
    code, _, err = run("embed", compiled.path, "-", "-o", tmp_path / "e.npy")
    assert (code, "skipped" in err) == (0, False)
    rows, ids = np.load(tmp_path / "e.npy"), json.loads((tmp_path / "e.ids.json").read_text())
    assert [clipmlu.path_from_name(name) for name in ids] == [Path(name) for name in names]
    with clipmlu.load(compiled.path) as encoder:
        expected = encoder.embed_images([photos / "0.png", photos / "1.png", photos / "2.png"])
    np.testing.assert_allclose(rows[[0, 1, 2000, -1]], expected[[0, 1, 1, 2]], atol=1e-6)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["{photos}"], ["{photos}", "nowhere.png"], ["--top-k", "x", "{photos}"]])
def test_notes_that_cannot_be_written_change_no_result(
    run: Run, compiled: CompiledBundle, photos: Path, arguments: list[str]
) -> None:
    command = ["classify", str(compiled.path), *(each.format(photos=photos) for each in arguments), "--labels", "a,b"]
    code, out, err = run(*command)
    with open("/dev/full", "wb") as full:
        silent = subprocess.run(
            [sys.executable, "-m", "clipmlu", *command], stdout=subprocess.PIPE, stderr=full, text=True, check=False
        )
    assert err
    assert (silent.stdout, silent.returncode) == (out, code)


@pytest.mark.parametrize("name", ["classify", "embed", "eval", "bench", "compare", "run", "sweep"])
def test_every_command_that_prepares_images_has_workers(name: str) -> None:
    (option,) = [option for option in cli.commands[name].params if option.name == "workers"]
    assert option.get_error_hint(None) == "'--workers'"
    assert option.type.name == "integer"
