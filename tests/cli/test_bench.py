"""``clipmlu bench --tool mm_run``: what goes to the vendor's tool, what is shown of its figures, and how each failure ends."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.cli.bench import bench_command
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions

Run = Callable[..., tuple[int, str, str]]
Tool = Callable[..., Path]

# Numbers of our own in the layout of api 4.4: 200 batches of 4 rows in 2.5 s, which is 80 batches and 320 rows a second.
OLD = """\
==================== Performance Summary
Iterations:                   200
Host Wall Time (s):           2.5
MLU Compute Time (s):         2
Throughput (qps):             320
MLU Compute Latency (ms):     min: 8.1        max: 9.7        mean: 9          median: 8.9        percentile: (90%) 9.3       (95%) 9.4      (99%) 9.5
"""
# The same batches, of which the tool counts 100 texts each.
NEW = """\
=================== Performance Summary
Total iterations:                       200
Host wall time(s):                      2.5
Throughput (qps):                       8000 with total batch sizes: 20000 and 80 iterations/second
"""


@pytest.fixture
def card(compiled: CompiledBundle) -> Path:
    """A bundle that says that it was built for a card, with batches of four."""
    path = compiled.path
    compilation = json.loads((path / "manifest.json").read_text())["compilation"]
    support.edit_manifest(path, compilation={**compilation, "target": "mlu", "backend": "magicmind"})
    return path


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Puts an mm_run where MM_RUN_PATH points to; it notes its arguments and prints a text. Gives the note's path."""

    def write(output: str, code: int = 0) -> Path:
        note, place = tmp_path / "arguments.json", tmp_path / "tools"
        place.mkdir()
        (place / "mm_run").write_text(
            f"#!{sys.executable}\nimport json, sys\njson.dump(sys.argv[1:], open({str(note)!r}, 'w'))\n"
            f"print({output!r})\nsys.exit({code})\n"
        )
        (place / "mm_run").chmod(stat.S_IRWXU)
        monkeypatch.setenv("MM_RUN_PATH", str(place))
        return note

    return write


def test_shows_images_per_second_and_latencies(run: Run, card: Path, tool: Tool) -> None:
    tool(OLD)
    code, out, err = run("bench", card, "--tool", "mm_run")
    assert (code, err) == (0, "")
    assert "320.0 images/s (80.00 batches/s)" in out
    assert "mlu, force_float32, image graph, batch 4" in out
    assert "320 (as printed: rows of its largest input)" in out
    compute = next(line for line in out.splitlines() if line.startswith("compute "))
    assert compute.split() == ["compute", "9", "8.9", "9.3", "9.4", "9.5", "8.1", "9.7"]


def test_options_reach_the_tool_in_its_words(run: Run, card: Path, tool: Tool) -> None:
    note = tool(OLD)
    times = ("--warmup", 50, "--duration", 400, "--iterations", 20)
    code, _, err = run("bench", card, "--tool", "mm_run", *times, "--threads", 2, "--devices", "3", "--batch-size", 4)
    assert code == 0, err
    assert json.loads(note.read_text()) == [
        *("--magicmind_model", str(card / "image.onnx")),
        *("--input_dims", "4,3,8,8"),
        *("--devices", "3"),
        *("--threads", "2"),
        *("--warmup", "50"),
        *("--duration", "400"),
        *("--iterations", "20"),
    ]


def test_report_is_the_same_in_the_file_and_on_stdout(run: Run, card: Path, tool: Tool, tmp_path: Path) -> None:
    tool(OLD)
    code, out, err = run(
        "bench", card, "--tool", "mm_run", "--tower", "text", "--json", "--output", tmp_path / "r.json"
    )
    assert code == 0, err
    report = json.loads(out)
    assert report == json.loads((tmp_path / "r.json").read_text())
    assert (report["texts_per_second"], report["images_per_second"]) == (320.0, None)
    assert (report["iterations_per_second"], report["summaries"][0]["tool_qps"]) == (80.0, 320.0)
    assert (report["provenance"]["target"], report["provenance"]["emulated"], report["tower"]) == ("mlu", False, "text")
    assert report["command"][0] == report["tool"] == str(tmp_path / "tools" / "mm_run")
    assert "Throughput (qps):             320" in report["output_tail"]


def test_fused_graph_counts_images_not_texts(run: Run, tool: Tool, tmp_path: Path) -> None:
    card = tmp_path / "joint-card"
    source = support.write_exported(tmp_path / "joint", layout="joint")
    compile_bundle(source, card, CompileOptions(target="cpu", batch_size=4, dynamic_shape=False))
    compilation = json.loads((card / "manifest.json").read_text())["compilation"]
    support.edit_manifest(card, compilation={**compilation, "target": "mlu", "backend": "magicmind"})
    note = tool(NEW)
    code, out, err = run("bench", card, "--tool", "mm_run")
    assert code == 0, err
    assert "320.0 images/s (80.00 batches/s)" in out, "not the 8000 of the tool"
    assert "8000 (as printed: rows of its largest input)" in out
    arguments = json.loads(note.read_text())
    assert arguments[2:5] == ["--input_dims", "4,3,8,8", "100,32"]
    assert "--batch_size" not in arguments


@pytest.mark.parametrize(
    ("output", "exit_code", "message"),
    [
        ("CNRT error: device is lost", 134, "mm_run failed with exit code 134"),
        ("nothing to see", 0, "mm_run printed no performance summary"),
        (OLD.replace("qps):             320", "qps):             777"), 0, "figures that contradict one another"),
    ],
)
def test_failures_of_the_tool_end_with_one_error_and_its_output(
    run: Run, card: Path, tool: Tool, tmp_path: Path, output: str, exit_code: int, message: str
) -> None:
    tool(output, exit_code)
    code, out, err = run("bench", card, "--tool", "mm_run", "--output", tmp_path / "r.json")
    assert (code, out) == (1, "")
    assert message in err
    last_line = output.strip().splitlines()[-1]
    assert " ".join(last_line.split()) in err, "the end of what it printed, on the one line of the message"
    assert not (tmp_path / "r.json").exists()


def test_missing_tool_says_where_it_was_looked_for(
    run: Run, card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = [Path("/usr/local/neuware/bin/mm_run"), Path("/mps/bin/mm_run")]
    if any(place.exists() for place in usual):
        pytest.skip("the vendor's mm_run is in its usual place here")
    monkeypatch.setenv("MM_RUN_PATH", str(tmp_path / "nowhere"))
    monkeypatch.setenv("NEUWARE_HOME", str(tmp_path / "sdk"))
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = run("bench", card, "--tool", "mm_run")
    assert (code, out) == (1, "")
    assert len(err.strip().splitlines()) == 1
    for place in (tmp_path / "nowhere" / "mm_run", tmp_path / "sdk" / "bin" / "mm_run", *usual, "PATH"):
        assert str(place) in err
    assert "set MM_RUN_PATH to its directory" in err


def test_bundles_that_no_card_takes_are_refused_before_the_tool_runs(
    run: Run, exported: ExportedBundle, tool: Tool, tmp_path: Path
) -> None:
    note = tool(OLD)
    compile_bundle(exported, tmp_path / "cpu", CompileOptions(target="cpu"))
    code, _, err = run("bench", tmp_path / "cpu", "--tool", "mm_run")
    assert code == 2
    assert "is for cpu; mm_run takes what --target mlu makes" in err
    code, _, err = run("bench", exported.path, "--tool", "mm_run")
    assert code == 1
    assert "is an exported bundle" in err
    assert not note.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tool", "trtexec"], "'trtexec' is not one of mm_run."),
        (["--tool", "mm_run", "--batch-size", "0"], "Invalid value for '--batch-size'"),
        (["--tool", "mm_run", "--iterations", "0"], "Invalid value for '--iterations'"),
        (["--tool", "mm_run", "--warmup", "-1"], "Invalid value for '--warmup'"),
        (["--tool", "mm_run", "--tower", "audio"], "Invalid value for '--tower'"),
    ],
)
def test_usage_is_checked_by_the_command_itself(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(bench_command, ["bundle", *arguments])
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    "option",
    [
        ["--scenario", "offline"],
        ["--latency-bound-ms", "5"],
        ["--images", "photos"],
        ["--no-stages"],
        ["--queries-per-stream", "4"],
        ["--tower", "both"],
    ],
)
def test_options_of_our_own_measurement_are_not_for_the_tool(
    run: Run, card: Path, tool: Tool, option: list[str]
) -> None:
    note = tool(OLD)
    code, _, err = run("bench", card, "--tool", "mm_run", *option)
    assert code == 2
    assert f"{option[0]}" in err
    assert not note.exists()


@pytest.mark.parametrize("devices", ["x", "0,", "-1", "0,0", "²"])
def test_devices_that_are_no_list_of_indices_are_refused(run: Run, card: Path, tool: Tool, devices: str) -> None:
    note = tool(OLD)
    code, _, err = run("bench", card, "--tool", "mm_run", f"--devices={devices}")
    assert code == 2
    assert "devices are" in err
    assert not note.exists()
