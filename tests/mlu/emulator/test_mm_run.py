"""The emulated tool ``mm_run``: options and output as in public sources (api 4.3, 4.4), times of this CPU."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clipmlu.errors import SessionError
from clipmlu.magicmind.emulator.mm_run import command
from clipmlu.magicmind.mm_run import parse_output
from conftest import REPOSITORY
from mlu.emulator.calls import build, clip_like, configure, linear, parse, reference

MARK = " (emulated)"
FEW = ["--warmup", "0", "--duration", "0", "--iterations", "7"]


@pytest.fixture
def static(mm: ModuleType, tmp_path: Path) -> Path:
    """A model of ``x @ weight`` that takes exactly two rows."""
    model = build(mm, parse(mm, linear(tmp_path / "m.onnx", np.eye(3))), configure(mm, {"graph_shape_mutable": False}))
    assert model.serialize_to_file(str(tmp_path / "static")).ok()
    return tmp_path / "static"


@pytest.fixture
def fused(mm: ModuleType, tmp_path: Path) -> Path:
    """A model as the CLIP sample's, for 1 to 8 images and six texts."""
    limits = {"0": {"min": [1, 3, 4, 4], "max": [8, 3, 4, 4]}, "1": {"min": [6, 5], "max": [6, 5]}}
    parts = {"graph_shape_mutable": True}, {"dim_range": limits}, {"opt_config": {"type64to32_conversion": True}}
    model = build(mm, parse(mm, clip_like(tmp_path / "clip.onnx")), configure(mm, *parts))
    assert model.serialize_to_file(str(tmp_path / "fused")).ok()
    return tmp_path / "fused"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the tool in this process; returns exit code, stdout and stderr."""

    def run_tool(*words: object) -> tuple[int, str, str]:
        code = command.main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return run_tool


def test_new_format_is_that_of_the_tool_and_says_emulated(run: Any, fused: Path) -> None:
    code, out, _ = run("--magicmind_model", fused, "--input_dims", "4,3,4,4", "6,5", "--threads", 2, *FEW)
    assert code == 0
    (summary,) = parse_output(out.replace(MARK, ""))
    assert (summary.format, summary.iterations, summary.counted_rows) == ("new", 14, 6), "of two threads; most rows"
    assert summary.tool_qps == pytest.approx(14 * 6 / summary.host_wall_s, rel=1e-3)
    assert set(summary.latencies) == {f"{stage}.host_clock" for stage in ("copy_in", "compute", "copy_out", "total")}
    compute = summary.latencies["compute.host_clock"]
    assert 0 < compute.min_ms <= compute.median_ms <= compute.p99_ms <= compute.max_ms
    assert summary.compute_s == pytest.approx(14 * compute.mean_ms / 1000, rel=1e-3)
    heads = re.findall(r"^=+ (.+)$", out, re.MULTILINE)
    assert len(heads) == 4
    assert all(head.endswith(MARK) for head in heads)
    assert out.splitlines()[-1].endswith("these are no figures of a card.")
    assert "--iterations<Int> : 7" in out
    assert "Input shape group 0: [image: [4, 3, 4, 4], text: [6, 5]]" in out


def test_its_figures_are_not_taken_for_those_of_a_card(run: Any, static: Path) -> None:
    """What ``clipmlu bench --tool mm_run`` reads."""
    with pytest.raises(SessionError, match="printed no performance summary"):
        parse_output(run("--magicmind_model", static, *FEW)[1])


def test_old_format_comes_with_the_old_name_of_the_batch_size(run: Any, static: Path) -> None:
    """MC resnet50_onnx perf.sh at zoo v1.0; compare_perf.py reads the number after the colon."""
    code, out, _ = run("--magicmind_model", static, "--batch", 2, "--threads", 1, "--devices", 0, *FEW)
    assert code == 0
    (summary,) = parse_output(out.replace(MARK, ""))
    assert (summary.format, summary.iterations, summary.counted_rows) == ("old", 7, 2)
    assert set(summary.latencies) == {"enqueue", "copy_in", "compute", "copy_out"}
    [line] = [line for line in out.splitlines() if "Throughput (qps)" in line]
    assert float(line.split(":")[1]) == pytest.approx(7 * 2 / summary.host_wall_s, rel=1e-3)
    assert "Trace averages of 100 runs:" in out
    for fact in ("Buffer Info: Input", "Num: 1", "Name: x", "Datatype: FLOAT", "Dim: [2, 3]", "Size: 24"):
        assert fact in out


def test_results_are_those_of_the_given_inputs(run: Any, fused: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    texts = np.random.default_rng(1).integers(0, 50, (6, 5)).astype(np.int32)
    for name, array in (("a", images), ("b", texts)):
        (tmp_path / name).write_bytes(array.tobytes())
    files = ["--input_files", tmp_path / "a", tmp_path / "b", "--output_path", tmp_path / "out"]
    assert run("--magicmind_model", fused, "--batch_size", 2, 6, *files, *FEW)[0] == 0
    for index, expected in enumerate(reference(tmp_path / "clip.onnx", images, texts.astype(np.int64))):
        found = np.frombuffer((tmp_path / "out" / f"output{index}").read_bytes(), np.float32)
        np.testing.assert_allclose(found, expected.ravel(), rtol=1e-5, atol=1e-5)


def test_several_cards_have_a_summary_each(run: Any, static: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--magicmind_model", static, "--devices", 0, 1, *FEW)[0] == 134
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "2")
    out = run("--magicmind_model", static, "--devices", 0, 1, *FEW)[1]
    assert [summary.iterations for summary in parse_output(out.replace(MARK, ""))] == [7, 7]


def test_both_the_number_and_the_duration_are_reached_unless_a_limit_is_set(
    run: Any, static: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = ("--warmup", 0, "--duration", 150, "--iterations", 1)
    (summary,) = parse_output(run("--magicmind_model", static, *times)[1].replace(MARK, ""))
    assert summary.host_wall_s >= 0.15
    assert summary.iterations > 1
    monkeypatch.setenv("CLIPMLU_EMULATOR_MM_RUN_ITERATIONS", "3")
    (summary,) = parse_output(run("--magicmind_model", static, "--iterations", 1000)[1].replace(MARK, ""))
    assert summary.iterations == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--magicmind_model is required"),
        (["x"], "'x' stands before any option"),
        (["--magicmind_model", "nothing"], "CreateModel: NOT_FOUND"),
        (["--magicmind_model", "STATIC", "--batches", "2"], "unknown option --batches; known: --magicmind_model"),
        (["--magicmind_model", "STATIC", "--threads", "1", "--threads", "1"], "--threads is given twice"),
        (["--magicmind_model", "STATIC", "--threads"], "--threads has no value"),
        (["--magicmind_model", "STATIC", "--threads", "two"], "--threads is 'two'; expected a whole number"),
        (["--magicmind_model", "STATIC", "--iterations", "0"], "--iterations is 0; expected 1 or more"),
        (["--magicmind_model", "STATIC", "--plugin", "a.so"], "--plugin is not emulated: plugins"),
        (["--magicmind_model", "STATIC", "--batch", "2", "--batch_size", "2"], "give one"),
        (["--magicmind_model", "STATIC", "--batch_size", "4", *FEW], "Enqueue: OUT_OF_RANGE"),
        (["--magicmind_model", "STATIC", "--input_dims", "2,3", "2,3"], "names.size() == shapes.size()"),
        (["--magicmind_model", "STATIC", "--input_files", "gone"], "cannot read 'gone': No such file"),
        (["--magicmind_model", "STATIC", "--output_path", "STATIC", *FEW], "cannot write to --output_path '"),
        (
            ["--magicmind_model", "FUSED", "--batch_size", "4"],
            "batchs.size() == input_shapes.size(): 2 inputs, 1 sizes",
        ),
        (["--magicmind_model", "FUSED"], "input 'image' has the shape [-1, 3, 4, 4]; give --input_dims"),
    ],
)
def test_what_the_tool_refuses_ends_with_its_exit_code(
    run: Any, static: Path, fused: Path, words: list[str], message: str
) -> None:
    """One --batch_size for two inputs is what the CLIP sample's perf.sh gives; the public source aborts (api 6.5, 13)."""
    code, _, err = run(*(word.replace("STATIC", str(static)).replace("FUSED", str(fused)) for word in words))
    assert code == 134
    own = "\n".join(
        line for line in err.splitlines() if "emulated MagicMind, " not in line
    )  # the SDK's log comes first
    assert own.startswith("mm_run (emulated): ")
    assert message in own


@pytest.mark.parametrize(("word", "expected"), [("--help", 0), ("-h", 134), ("--h", 134)])
def test_usage_is_printed_as_the_zoo_asks_for_it(run: Any, word: str, expected: int) -> None:
    """The zoo's READMEs call ``mm_run -h``; only --help exits with 0 (api 4.2)."""
    code, out, err = run(word)
    assert (code, err) == (expected, "")
    assert out.startswith("usage: mm_run --magicmind_model FILE")


def test_an_interrupt_ends_the_tool_at_once(static: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipmlu.magicmind.emulator.mm_run", "--magicmind_model", str(static)]
    with subprocess.Popen([*command, "--duration", "60000"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("Buffer Info: Output"))  # the measurement comes next
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT


def test_a_script_finds_the_tool_where_the_vendors_scripts_look_for_it(static: Path, tmp_path: Path) -> None:
    """With the order of calls of a ``perf.sh`` of magicmind_cloud: set -e, and the tool under MM_RUN_PATH, through tee."""
    script = tmp_path / "perf.sh"
    script.write_text(
        "set -e\n"
        "MM_RUN(){\n"
        "    ${MM_RUN_PATH}/mm_run --magicmind_model $1 --batch_size $2 --iterations 1000 --devices 0 2>&1 | tee log_perf\n"
        "}\n"
        f"MM_RUN {static} 2\n"
        "test $(command -v mm_run) = ${MM_RUN_PATH}/mm_run\n"
        "echo ${MM_RUN_PATH} > folder\n"
        "exit 7\n"
    )
    (tmp_path / "json.py").write_text("raise SystemExit('the folder of the script is on the path')")
    code = "import sys; from clipmlu.cli.emulate import emulate_command as run; sys.exit(run(standalone_mode=False))"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY / "src")}
    environment |= {"CLIPMLU_EMULATOR_MM_RUN_ITERATIONS": "4", "MM_RUN_PATH": "/usr/local/neuware/bin"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "--", "bash", str(script)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    (summary,) = parse_output((tmp_path / "log_perf").read_text().replace(MARK, ""))
    assert (summary.iterations, summary.counted_rows) == (4, 2)
    assert not Path((tmp_path / "folder").read_text().strip()).exists()
