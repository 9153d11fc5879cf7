"""``probes.py`` on the emulated SDK, where the answers are known, and on SDKs that crash and hang."""

from __future__ import annotations

import ast
import functools
import io
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest

from clipmlu.errors import BackendUnavailableError, UnknownNameError
from clipmlu.graph.lowering import MAGICMIND
from clipmlu.magicmind import probes
from clipmlu.magicmind.backend import emulated_worker
from clipmlu.magicmind.probe.ask import probe_emulated_sdk, probe_names, probe_sdk, write_probe
from clipmlu.magicmind.probe.graphs import make_graphs
from clipmlu.magicmind.probe.operators import OPERATOR_RECIPES
from clipmlu.magicmind.probe.report import JSON_NAME, MARKDOWN_NAME, ProbeReport
from mlu.test_driver_file import ALLOWED, imports, newer_than_37

SOURCE = Path(probes.__file__).read_text(encoding="utf-8")
QUIET = {"switches": "", "faults": "", "devices": 1}
TIMEOUT = 16.0
FEW = ("casts", "asnumpy", "output-list", "operators", "status")
"""Probes that both emulators are asked in every run of the tests; the others are asked in the slow ones."""

Ask = Callable[[str, bool], ProbeReport]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """``ask(mode, all)``: the report on the strict or lenient emulator, of all probes or of ``FEW``; asked once."""

    @functools.cache
    def answers(mode: str, everything: bool) -> ProbeReport:
        folder = tmp_path_factory.mktemp(mode)
        only = () if everything else FEW
        return probe_emulated_sdk(folder, timeout_seconds=TIMEOUT, only=only, mode=mode, **QUIET)

    return answers


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    for name, content in make_graphs().items():
        (folder / name).write_bytes(content)
    return folder


def found(report: ProbeReport, name: str, case: str) -> str:
    record = next(record for record in report.records if record.name == name)
    return record.details[case].found


OPEN_QUESTIONS = [
    # probe, case, what the strict emulator answers, what the lenient one answers; the switch that decides
    ("shape-outside", "dynamic, more rows than the range", r"enqueue: bad Status 'OUT_OF_RANGE", r"result .*right"),
    ("shape-outside", "dynamic, fewer rows than the range", r"enqueue: bad Status 'OUT_OF_RANGE", r"result .*right"),
    ("shape-outside", "static, more rows", r"^from_numpy: OK; enqueue: bad Status 'OUT_OF_RANGE", r"sync: bad Status"),
    (
        "rank",
        "static, one axis more",
        r"^from_numpy: bad Status",
        r"^from_numpy: OK; enqueue: bad Status",
    ),  # check_rank
    ("casts", "float64 for FLOAT32", r"^cast, result right$", r"^cast, result right$"),
    ("casts", "int64 for INT32", r"^cast, result right$", r"^cast, result right$"),
    ("casts", "uint8 for FLOAT32", r"^from_numpy: bad Status", r"^cast, result right$"),  # narrow_casts
    ("casts", "float16 for FLOAT32", r"^from_numpy: bad Status", r"^cast, result right$"),
    ("overflow", "2**32 + 5", r"^from_numpy: bad Status 'OUT_OF_RANGE", r"^wraps \(5\)$"),  # refuse_overflow
    ("overflow", "2**31 + 1", r"^from_numpy: bad Status 'OUT_OF_RANGE", r"^wraps \(-2147483648\)$"),
    ("strides", "negative stride", r"^result right$", r"^result right$"),
    ("array-overwritten", "overwritten before enqueue", r"of neither", r"of the old values"),  # inputs_stay_lent
    ("array-overwritten", "overwritten between enqueue and sync", r"of neither", r"of the old values"),
    ("int64-type", "converted", r"^INT32$", r"^INT32$"),
    ("int64-type", "not converted", r"^build_model: None$", r"^INT64$"),  # refuse_64bit
    (
        "dims",
        "range with min = max on all axes",
        r"^inputs \[\[2, 8\]\], outputs \[\[2, 5\]\]$",
        r"^inputs \[\[2, 8\]\]",
    ),
    ("dims", "range on the rows", r"^inputs \[\[-1, 8\]\], outputs \[\[-1, 5\]\]$", r"outputs \[\[-1, 5\]\]$"),
    ("names", "ports", r"in the model \['in/put:0'\] and \['out/put.1'\]$", r"in the model \['in/put:0'\]"),
    ("asnumpy", "copy or view", r"^a view$", r"^a copy$"),  # asnumpy_is_view
    ("asnumpy", "before sync", r"NaN", r"^right$"),  # poison_before_sync
    ("asnumpy", "after the next run into the same list", r"changes$", r"stays as it was$"),
    ("output-list", "the same list, same shape", r"^result right$", r"^result right$"),
    ("output-list", "the same list, another shape", r"^enqueue: bad Status", r"^result right$"),  # fixed_output_lists
    ("output-list", "cleared, another shape", r"^result right$", r"^result right$"),
    ("input-list", "too few tensors", r"^enqueue: bad Status", r"^enqueue: bad Status"),
    ("input-list", "overwritten between enqueue and sync", r"of neither", r"of the old values"),  # inputs_stay_lent
    ("queueing", "64 runs, one sync", r"^all results right$", r"^all results right$"),
    ("queueing", "two contexts on one queue", r"^all results right$", r"^all results right$"),
    (
        "queueing",
        "one context on two queues",
        r"enqueue 2: bad Status",
        r"^all results right$",
    ),  # one_queue_per_context
    ("threads", "two threads at a time, each with its own context", r"^all results right$", r"^all results right$"),
    ("gil", "sync", r"^other threads run$", r"^other threads run$"),
    ("fork", "objects of the parent, in the child", r"bad Status.*made in process", r"^hangs$"),  # refuse_after_fork
    ("fork", "own objects in the child", r"^result right$", r"^result right$"),
    ("json", "an unknown key", r"^parse_from_string: bad Status", r"^parse_from_string: OK; build_model: Model$"),
    ("json", "not JSON", r"^parse_from_string: bad Status", r"^parse_from_string: bad Status"),
    ("json", "mlu_archs", r"build_model: None$", r"build_model: None$"),
    ("model-file", "missing", r"^deserialize_from_file: bad Status 'NOT_FOUND", r"bad Status 'NOT_FOUND"),
    ("model-file", "one byte changed", r"bad Status 'DATA_LOSS.*digest", r"bad Status 'DATA_LOSS"),
    ("onnx-file", "random bytes", r"^parse: bad Status 'DATA_LOSS", r"^parse: bad Status 'DATA_LOSS"),
    ("defaults", "an empty one", r"^shapes fixed, computes in float32$", r"^shapes mutable,"),  # static_by_default
    ("calibration", "calls, LINEAR", r"1 resets and 4 times next for 3 batches$", r"1 resets and 4 times next"),
    ("calibration", "calls, EQNM", r"2 resets and 8 times next for 3 batches$", r"2 resets and 8 times next"),
    ("calibration", "twice on one network", r"again: bad Status", r"again: OK; build_model: Model$"),  # calibrate_once
    ("calibration", "unequal lengths", r"^calibrate: bad Status", r"^calibrate: OK"),  # equal_calibration_lengths
    ("calibration", "an input of integers", r"^calibrate: OK; build_model: Model$", r"^calibrate: OK"),
    ("float16", "rounding", r"^to nearest, ties to even$", r"^to nearest, ties to even$"),
    ("float16", "overflow", r"^infinity$", r"^infinity$"),
    ("float16", "sum of 4096 ones", r"^4096: accumulated in float32", r"^4096: accumulated in float32"),
    ("float16", "matrix product", r"^inputs rounded, accumulated in float32, result rounded$", r"^inputs rounded, acc"),
    ("node-types", "inputs and output FLOAT32", r"float32$", r"float32$"),
    ("node-types", "output of the model FLOAT16", r"float16$", r"float16$"),
    ("opsets", "opset 11", r"^right$", r"^right$"),
    ("opsets", "opset 12", r"^parse: bad Status", r"^right$"),  # limit_opset
    ("opsets", "opset 18", r"^parse: bad Status", r"^right$"),
    ("newer-operators", "LayerNormalization at 17", r"^parse: bad Status", r"^right$"),  # closed_operators, limit_opset
    ("newer-operators", "weights outside", r"^parse: bad Status", r"^right$"),  # refuse_external_data
    ("newer-operators", "attention at 11", r"^right$", r"^right$"),
    ("operators", "MatMul", r"^right$", r"^right$"),
    ("other-arch", "mtp_592", r"create_i_engine: None$", r"create_i_engine: None$"),
    ("devices", "neither System nor active()", r"^result right$", r"^result right$"),
    ("devices", "id beyond the last: active()", r"^active: bad Status", r"^active: bad Status"),
    ("set-dimension", "after calibrate", r"^set_dimension: bad Status", r"^set_dimension: OK; build_model: Model"),
    ("set-dimension", "-1, then a static build", r"set_dimension: OK; build_model: None", r"build_model: None"),
    ("returns", "to(device)", r"^None$", r"^Tensor$"),  # silent_returns
    ("returns", "resize", r"^None$", r"^OK$"),
    ("status", "good", r"is true, code\(\): raises AttributeError", r"is true, code\(\): Code$"),  # opaque_status
    ("status", "bad", r"is true, code\(\): raises", r"is false, code\(\): Code$"),
    ("enums", "DataType", r"int\(\) raises TypeError$", r"int\(\) raises TypeError$"),
    ("contexts", "", r"^16 or more$", r"^16 or more$"),
    ("latency", "", r"^emulated: first .* ms, then .* ms$", r"^emulated: "),
]


@pytest.mark.parametrize(
    ("name", "case", "harsh", "mild"),
    [pytest.param(*each, marks=() if each[0] in FEW else pytest.mark.slow) for each in OPEN_QUESTIONS],
    ids=lambda value: str(value)[:30],
)
def test_answer_is_that_of_the_emulators_switch(ask: Ask, name: str, case: str, harsh: str, mild: str) -> None:
    everything = name not in FEW
    assert re.search(harsh, found(ask("strict", everything), name, case))
    assert re.search(mild, found(ask("lenient", everything), name, case))


def test_every_question_of_section_7_has_a_probe() -> None:
    issues = {probe.issue for probe in probes.PROBES.values()} | {issue for _, issue, _, _ in probes.LEFT_OUT}
    assert issues == {f"7.{number}" for number in range(1, 22)}


@pytest.mark.slow
def test_every_probe_is_answered_or_left_out_for_a_reason(ask: Ask) -> None:
    records = ask("strict", True).records
    assert {record.issue for record in records} == {f"7.{number}" for number in range(1, 22)}
    left_out = {record.name for record in records if record.outcome == "not tried"}
    assert left_out == {"two-cards", "throughput", "memory", "torch-mlu"}
    assert all(record.answer for record in records)
    assert {record.outcome for record in records} == {"answered", "not tried"}


def test_operators_are_those_of_the_lowering_and_all_compute_rightly_but_one(ask: Ask) -> None:
    assert set(OPERATOR_RECIPES) == set(MAGICMIND.operators)
    assert wrong_operators(ask("strict", False)) == {"IsNaN"}  # closed_operators
    assert wrong_operators(ask("lenient", False)) == set()


def wrong_operators(report: ProbeReport) -> set[str]:
    record = next(each for each in report.records if each.name == "operators")
    return {name for name, case in record.details.items() if case.found != "right"}


def test_report_says_that_it_is_emulated_and_names_no_host(ask: Ask) -> None:
    strict = ask("strict", False)
    assert strict.emulated
    assert strict.title.startswith("Emulated")
    assert strict.arch == "mtp_372"
    text = json.dumps(msgspec.to_builtins(strict))
    assert "/tmp/" not in text.replace(strict.host.sdk_path or "", "")
    host = platform.node()
    assert not host or not re.search(rf"\b{re.escape(host)}\b", text)


def test_expected_outputs_are_those_of_onnxruntime() -> None:
    files = make_graphs()
    for name, facts in json.loads(files["graphs.json"]).items():
        if name in ("foreign domain", "weights outside", "twins"):  # not for onnxruntime, or not from memory
            continue
        session = onnxruntime.InferenceSession(files[f"{name}.onnx"], providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        arrays = [np.load(io.BytesIO(files[f"{name}.in{number}.npy"])) for number in range(facts["inputs"])]
        for number, result in enumerate(session.run(None, dict(zip(names, arrays, strict=True)))):
            expected = np.load(io.BytesIO(files[f"{name}.out{number}.npy"]))
            assert result.dtype == expected.dtype
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4, err_msg=name)


# ---- crashes, hangs, and what is not there ------------------------------------------------------------------------------

PLANTED = """

@probe("planted", "7.0", "What does a planted probe do?", cases=("before", "bad", "after"), card=False)
def _planted(bench: Bench, case: str) -> Finding:
    print("the vendor's last words at " + os.path.join(bench.scratch, "x"), flush=True)
    if case == "bad":
        PLANTED_HERE
    return Finding("fine")


"""


def run_planted(tmp_path: Path, graphs: Path, bad: str, *options: str, changes: str = "") -> dict[str, Any]:
    """A copy of the program with one more probe; its record."""
    program = tmp_path / "planted.py"
    head, tail = SOURCE.split('if __name__ == "__main__":')
    program.write_text(f"{head}{PLANTED.replace('PLANTED_HERE', bad)}{changes}\n\nif __name__ == '__main__':{tail}")
    command = [sys.executable, str(program), "--graphs", str(graphs), "--output", str(tmp_path), "--only", "planted"]
    environment = emulated_worker(**QUIET).environment
    done = subprocess.run([*command, *options], env=environment, check=True, capture_output=True, text=True, timeout=60)
    assert "planted" in done.stderr
    record: dict[str, Any] = json.loads((tmp_path / JSON_NAME).read_bytes())["records"][0]
    return record


@pytest.mark.parametrize(
    ("bad", "outcome", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed", "killed by SIGSEGV"),
        ("os.abort()", "crashed", "killed by SIGABRT"),
        ("os._exit(3)", "crashed", "exit code 3"),
        ("os._exit(0)", "crashed", "the process ended without an answer"),
        ("time.sleep(100)", "timed out", "no end within 2 s"),
        ("raise ValueError('what now?')", "answered", "raises ValueError: what now?"),
        ("raise NotReachedError('build_model: None')", "answered", "build_model: None"),
        ("return Finding('x', number=np.float32('nan'), more=[object])", "answered", "x"),
    ],
)
def test_crash_hang_and_exception_are_findings_and_later_cases_run(
    tmp_path: Path, graphs: Path, bad: str, outcome: str, said: str
) -> None:
    record = run_planted(tmp_path, graphs, bad, "--timeout", "2", "--arch", "mtp_372")
    assert record["outcome"] == outcome
    assert record["details"]["bad"]["found"] == said
    assert record["details"]["before"]["found"] == record["details"]["after"]["found"] == "fine"
    assert record["answer"] == f"before / after: fine; bad: {said}"
    assert "the vendor's last words at <scratch>" in record["log"]
    assert said in (tmp_path / MARKDOWN_NAME).read_text()


def test_probe_that_keeps_hanging_is_given_up_after_some_cases(tmp_path: Path, graphs: Path) -> None:
    changes = "MAX_TIMEOUTS = 1"
    record = run_planted(tmp_path, graphs, "time.sleep(100)", "--timeout", "1", "--arch", "mtp_372", changes=changes)
    assert record["outcome"] == "timed out"
    assert [case["outcome"] for case in record["details"].values()] == ["answered", "timed out", "not tried"]
    assert record["details"]["after"]["found"] == "left out after 1 cases that hung"


def test_interrupted_run_ends_its_processes_and_keeps_what_it_found(tmp_path: Path, graphs: Path) -> None:
    program = Path(probes.__file__)
    command = [sys.executable, str(program), "--graphs", str(graphs), "--output", str(tmp_path), "--timeout", "60"]
    environment = emulated_worker(**{**QUIET, "faults": "parse:1:hang"}).environment
    process = subprocess.Popen([*command, "--only", "enums", "dims", "--arch", "mtp_372"], env=environment, stderr=-1)
    with process:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        deadline = time.monotonic() + 10
        while not (before := children_of(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.terminate()
        lines += process.stderr.readlines()
        assert process.wait(20) == 130
    assert b"enums: answered" in lines[0]
    assert b"interrupted" in lines[-1]
    assert [record["name"] for record in json.loads((tmp_path / JSON_NAME).read_bytes())["records"]] == ["enums"]
    assert before
    assert not [pid for pid in before if Path(f"/proc/{pid}").exists()]


def children_of(parent: int) -> list[str]:
    return [pid for task in Path(f"/proc/{parent}/task").iterdir() for pid in (task / "children").read_text().split()]


def test_crash_on_leaving_is_noted_and_spoils_no_answer(tmp_path: Path, graphs: Path) -> None:
    leaving = "import atexit; atexit.register(os.abort)"
    record = run_planted(tmp_path, graphs, leaving, "--arch", "mtp_372")
    assert record["outcome"] == "answered"
    assert [case["raw"] for case in record["details"].values()] == [{}, {}, {"process_end": "killed by SIGABRT"}]


@pytest.mark.slow
def test_hang_inside_the_sdk_is_the_answer(tmp_path: Path) -> None:
    report = probe_emulated_sdk(
        tmp_path, timeout_seconds=2, only=["queueing"], **{**QUIET, "faults": "create_i_context:2:hang"}
    )
    (record,) = report.records
    assert record.outcome == "timed out"
    outcomes = [case.outcome for case in record.details.values()]
    assert outcomes == ["answered", "timed out", "answered", "timed out"]
    assert record.details["two contexts on one queue"].found == "no end within 2 s"


def test_crash_inside_the_sdk_is_the_answer(tmp_path: Path) -> None:
    report = probe_emulated_sdk(tmp_path, only=["queueing"], **{**QUIET, "faults": "sync:2:crash"})
    (record,) = report.records
    assert record.outcome == "crashed"
    assert "killed by SIGKILL" in {case.found for case in record.details.values()}


def test_card_is_found_out_even_if_it_is_another(tmp_path: Path) -> None:
    report = probe_emulated_sdk(tmp_path, only=["contexts"], arch="mtp_592", **QUIET)
    assert report.arch == "mtp_592"
    assert report.records[0].answer == "16 or more"


@pytest.mark.parametrize(
    ("breakage", "arch"),
    [
        pytest.param("BuilderConfig.mlu_archs = property(lambda self: [])", "json:mtp_372", marks=pytest.mark.slow),
        ("BuilderConfig.mlu_archs = property(lambda self: [])\nconfig.KEYS.pop('archs')", "default:any"),
        pytest.param(
            "from clipmlu.magicmind.emulator.devices import System\ndel System.device_count",
            "mtp_372",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "from clipmlu.magicmind.emulator.model import Model\ndel Model.EngineConfig",
            "mtp_372",
            marks=pytest.mark.slow,
        ),
        ("from clipmlu.magicmind.emulator.tensor import Tensor\ndel Tensor.to", "mtp_372"),
    ],
)
def test_sdk_that_lacks_something_is_asked_all_the_same(tmp_path: Path, breakage: str, arch: str) -> None:
    header = (
        "from clipmlu.magicmind.emulator import config\nfrom clipmlu.magicmind.emulator.config import BuilderConfig\n"
    )
    (tmp_path / "sitecustomize.py").write_text(f"{header}{breakage}\n")
    environment = dict(emulated_worker(**QUIET).environment or {})
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    report = probe_sdk(tmp_path, python=sys.executable, environment=environment, only=["casts"])
    assert report.arch == arch
    assert found(report, "casts", "float64 for FLOAT32") == "cast, result right"


def test_several_cards_show_what_active_means_to_a_thread(tmp_path: Path) -> None:
    report = probe_emulated_sdk(tmp_path, only=["threads", "two-cards"], **{**QUIET, "devices": 2})
    assert "device 0 is active in this thread" in found(
        report, "threads", "a context of the main thread, without active()"
    )
    assert found(report, "threads", "a context of the main thread, after active()") == "result right"
    assert found(report, "two-cards", "").endswith("open on card 1: Session; run: list; result right")


def test_without_a_card_what_needs_none_is_asked(tmp_path: Path) -> None:
    report = probe_emulated_sdk(tmp_path, only=["dims", "casts", "operators"], **{**QUIET, "devices": 0})
    outcomes = {record.name: (record.outcome, record.answer) for record in report.records}
    assert outcomes["casts"] == ("not tried", "there is no card")
    assert outcomes["dims"][0] == "answered"
    assert "not run, for there is no card" in outcomes["operators"][1]


@pytest.mark.slow
def test_no_model_that_runs_leaves_the_rest_untried_and_says_why(tmp_path: Path) -> None:
    report = probe_emulated_sdk(
        tmp_path, only=["foundation", "casts"], **{**QUIET, "faults": "create_i_engine:1:status"}
    )
    assert [record.outcome for record in report.records] == ["answered", "not tried"]
    assert "see 'foundation'" in report.records[1].answer


def test_absent_sdk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        BackendUnavailableError, match=r"There is no MagicMind SDK to probe here: set CLIPMLU_MLU_PYTHON"
    ):
        probe_sdk(tmp_path)
    with pytest.raises(BackendUnavailableError, match=r"There is no MagicMind SDK for .*No module named 'magicmind'"):
        probe_sdk(tmp_path, python=sys.executable)
    monkeypatch.setenv("CLIPMLU_MLU_PYTHON", str(tmp_path / "python3.7"))
    with pytest.raises(BackendUnavailableError, match=r"Cannot run '.*python3.7': No such file"):
        probe_sdk(tmp_path)
    with pytest.raises(BackendUnavailableError, match=r"gave no report \(exit code 1\)"):
        probe_sdk(tmp_path, python="/bin/false")
    assert list(tmp_path.iterdir()) == []


def test_sdk_that_crashes_on_import_is_reported(tmp_path: Path) -> None:
    package = tmp_path / "site" / "magicmind"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import os\nos.abort()\n")
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    with pytest.raises(BackendUnavailableError, match="import magicmind: killed by SIGABRT"):
        probe_sdk(tmp_path / "out", python=sys.executable, environment=environment)


def test_unknown_probe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown probe 'cast'\. Close matches: casts"):
        probe_sdk(tmp_path, only=["cast"])


# ---- one file for Python 3.7 ----------------------------------------------------------------------------------------------


def test_probes_are_valid_for_python_37_and_import_nothing_of_ours() -> None:
    assert newer_than_37(SOURCE) == []
    assert imports(SOURCE) <= ALLOWED | {"concurrent.futures", "gc", "resource"}
    modules = [
        node.args[0].value
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "import_module"
        and isinstance(node.args[0], ast.Constant)
    ]
    assert set(modules) == {"magicmind", "magicmind.python.runtime", "magicmind.python.runtime.parser"}


def test_program_and_report_agree_on_their_names() -> None:
    assert (probes.JSON_NAME, probes.MARKDOWN_NAME) == (JSON_NAME, MARKDOWN_NAME)
    assert "foundation" in probe_names()


@pytest.mark.parametrize("interpreter", ["this", "python37"])
def test_written_probe_runs_by_itself(interpreter: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    python = sys.executable if interpreter == "this" else request.getfixturevalue("python37")
    program = write_probe(tmp_path / "probe")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    listed = subprocess.run(
        [python, str(program), "--list"], check=True, capture_output=True, text=True, env=environment
    )
    assert len(listed.stdout.splitlines()) == len(probe_names())
    stub = Path(__file__).with_name("stub_sdk")
    environment["PYTHONPATH"] = str(stub)
    command = [
        python,
        str(program),
        "--output",
        str(tmp_path / "out"),
        "--only",
        "surface",
        "queueing",
        "--timeout",
        "20",
    ]
    subprocess.run(command, check=True, env=environment, timeout=60, capture_output=True)
    report = msgspec.json.decode((tmp_path / "out" / JSON_NAME).read_bytes(), type=ProbeReport)
    assert not report.emulated
    assert "classes with" in report.records[0].answer


@pytest.fixture
def python37() -> str:
    """An interpreter of Python 3.7 that has NumPy."""
    python = os.environ.get("CLIPMLU_TEST_PYTHON37")
    if python is None:
        pytest.skip("no python3.7; set CLIPMLU_TEST_PYTHON37 to one that has NumPy")
    return python
