"""The vendor's mm_run behind a stand-in that is as strict as the real one is known to be (api 4.3), in both output formats."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import support
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_compiled
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.errors import BackendUnavailableError, BundleError, OptionError, SessionError, ShapeError
from clipmlu.magicmind.mm_run import MmRunOptions, build_command, find_mm_run, parse_output, run_mm_run

# Numbers of our own in the layout of magicmind_cloud's logs: 250 batches of 4 in 2.5 s.
OLD = """\
==================== Parameter Information
iterations: 1000
[MMINFO]  CreateModel time is 2318 ms
==================== Performance Summary
Iterations:                   250
Host Wall Time (s):           2.5
MLU Compute Time (s):         2.25
Throughput (qps):             400
Enqueue Time (ms):            min: 0.18217    max: 3.2597     mean: 0.1955     median: 0.18935    percentile: (90%) 0.21535    (95%) 0.2168     (99%) 0.22603   \n\
H2D Latency (ms):             min: 0.1        max: 0.7        mean: 0.3        median: 0.2        percentile: (90%) 0.4      (95%) 0.5      (99%) 0.6     \n\
MLU Compute Latency (ms):     min: 8.1        max: 9.7        mean: 9          median: 8.9        percentile: (90%) 9.3       (95%) 9.4      (99%) 9.5     \n\
D2H Latency (ms):             min: 0.014      max: 0.027      mean: 0.015705   median: 0.015      percentile: (90%) 0.016      (95%) 0.021      (99%) 0.022     \n\
Trace averages of 25 runs:
  MLU Compute Latency (ms): 9.0025      Enqueue: 0.19735   \n"""
# In the layout of S#49149657720: 500 batches in 2 s; 32 images and 100 texts each, of which the tool counts the texts.
NEW = """\
=================== Performance Summary
Total iterations:                       500
Host wall time(s):                      2
Total MLU compute time(host clock, s):  1.5
Throughput (qps):                       25000 with total batch sizes: 50000 and 250 iterations/second
Input shape group 0: [pixel_values: [32, 3, 8, 8], input_ids: [100, 32]]
  H2D Summary:
  Latency(host clock, ms):    min: 0.12       max: 1.053      mean: 0.36809    median: 0.326      percentile: (90%) 0.651      (95%) 0.716      (99%) 0.808
  Interface Duration(ms):     min: 0.016      max: 0.104      mean: 0.028189   median: 0.025      percentile: (90%) 0.039      (95%) 0.045      (99%) 0.064
  MLU Compute (Launch jobs) Summary:
  Latency(host clock, ms):    min: 2.5        max: 3.5        mean: 3          median: 2.9        percentile: (90%) 3.1      (95%) 3.2      (99%) 3.3
  Latency(dev clock, ms):     min: 2.4        max: 3.4        mean: 2.95       median: 2.8        percentile: (90%) 3        (95%) 3.1      (99%) 3.2
  D2H Summary:
  Latency(host clock, ms):    min: 0.01       max: 0.02       mean: 0.015      median: 0.014      percentile: (90%) 0.016      (95%) 0.017      (99%) 0.018
  Total Latency Summary(H2D + Compute + D2H):
  Latency(host clock, ms):    min: 2.7        max: 4.5        mean: 3.4        median: 3.3        percentile: (90%) 3.6      (95%) 3.7      (99%) 4.1
Trace average MLU Compute perf over 100:
  Latency(host clock, ms): 3.01        Interface Duration(ms): 0.2
"""


def test_old_format() -> None:
    (summary,) = parse_output(OLD)
    assert (summary.format, summary.iterations, summary.host_wall_s, summary.tool_qps) == ("old", 250, 2.5, 400)
    assert summary.iterations_per_second == pytest.approx(250 / 2.5)
    assert summary.counted_rows == 400 * 2.5 / 250
    assert (summary.compute_s, summary.compute_device_s) == (2.25, None)
    assert set(summary.latencies) == {"enqueue", "copy_in", "compute", "copy_out"}
    compute = summary.latencies["compute"]
    assert (compute.min_ms, compute.max_ms, compute.mean_ms, compute.median_ms) == (8.1, 9.7, 9.0, 8.9)
    assert (compute.p90_ms, compute.p95_ms, compute.p99_ms) == (9.3, 9.4, 9.5)


def test_new_format() -> None:
    (summary,) = parse_output("[I] options\n" + NEW)
    assert (summary.format, summary.iterations, summary.host_wall_s, summary.tool_qps) == ("new", 500, 2.0, 25000)
    assert summary.iterations_per_second == pytest.approx(500 / 2.0)
    assert summary.counted_rows == 50000 / 500, "the texts"
    assert (summary.compute_s, summary.compute_device_s) == (1.5, None)
    assert summary.latencies["compute.host_clock"].mean_ms == 3.0, "not the averages behind the summary"
    assert summary.latencies["compute.device_clock"].median_ms == 2.8
    assert summary.latencies["total.host_clock"].p99_ms == 4.1
    assert summary.latencies["copy_in.interface"].min_ms == 0.016


def test_one_summary_for_each_card() -> None:
    assert len(parse_output(NEW + NEW)) == 2


def test_large_figures_are_printed_with_five_digits_and_an_exponent() -> None:
    """The format of the statistics before them sticks to the tool's stream (S#49149657720): 1234567 / 3.2 = 385802.2."""
    text = NEW.replace(
        "500\nHost wall time(s):                      2", "1234567\nHost wall time(s):                      3.2"
    )
    text = text.replace(
        "25000 with total batch sizes: 50000 and 250 iter",
        "3.858e+05 with total batch sizes: 1234567 and 3.858e+05 iter",
    )
    (summary,) = parse_output(text)
    assert (summary.iterations, summary.tool_qps, summary.counted_rows) == (1234567, 385800.0, 1)
    assert summary.iterations_per_second == pytest.approx(385802.1875), "from count and time, not from the rounded rate"


def test_clocks_that_were_not_traced_are_left_out() -> None:
    """--trace_time dev or none prints no host clock (S#49149657720)."""
    lines = [line for line in NEW.splitlines() if "host clock" not in line]
    (summary,) = parse_output("\n".join(lines))
    assert summary.compute_s is None
    assert set(summary.latencies) == {"copy_in.interface", "compute.device_clock"}
    (summary,) = parse_output(
        NEW.replace("(host clock, s):  1.5", "(host clock, s):  1.5\nTotal MLU compute time(dev clock, s):  1.25")
    )
    assert (summary.compute_s, summary.compute_device_s) == (1.5, 1.25)


def test_statistics_of_nothing_are_left_out() -> None:
    (summary,) = parse_output(OLD.replace("min: 0.1        max: 0.7 ", "min: -          max: -nan"))
    assert set(summary.latencies) == {"enqueue", "compute", "copy_out"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no performance summary"),
        ("Usage: mm_run --magicmind_model FILE\n", "no performance summary.*\nUsage: mm_run"),
        (OLD.replace("qps):             400", "qps):             370"), "contradict one another: 250 batches in 2.5 s"),
        (NEW.replace("250 iterations", "350 iterations"), "contradict one another: 500 in 2 s, but 350 per second"),
        (NEW.replace("25000 with", "26000 with"), "contradict one another: 50000 in 2 s, but 26000 per second"),
        (NEW.replace("sizes: 50000", "sizes: 50001"), "contradict one another: 50001 rows in 500 batches of one size"),
        (OLD + "Throughput (qps):             400\n", "several throughputs in one summary"),
        (OLD.replace("qps):             400", "qps):             4oo"), r"no readable 'Throughput \(qps\)'"),
        (OLD.replace("Iterations: ", "Iterationen:"), "no readable 'Iterations'"),
        (
            NEW.replace(" with total batch sizes: 50000 and 250 iterations/second", ""),
            "line .Throughput .qps.. of unknown form",
        ),
        (OLD.replace("Host Wall Time (s):           2.5\n", ""), r"no readable 'Host Wall Time \(s\)'"),
        (OLD.replace("(s):           2.5", "(s):           ---"), r"no readable 'Host Wall Time \(s\)'"),
        (OLD.replace("(s):           2.5", "(s):           0"), "ran 250 batches in 0 s"),
    ],
)
def test_figures_that_cannot_be_read_or_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(SessionError, match=f"(?s){message}"):
        parse_output(text)


FAKE = """\
#!{python}
import json, sys
NUMBERS = {{"devices", "threads", "warmup", "duration", "iterations", "batch_size"}}
options, name = {{}}, None
def stop(message):
    print(message, file=sys.stderr); sys.exit(134)
for word in sys.argv[1:]:
    if word.startswith("--"):
        name = word[2:]
        if name not in NUMBERS | {{"magicmind_model", "input_dims"}} or name in options:
            stop("Invalid option " + word)
        options[name] = []
    elif name is None:
        stop("token before any option")
    elif name in NUMBERS and not word.isdecimal():
        stop("no number: " + word)
    else:
        options[name].append(word)
json.dump(options, open({log!r}, "w"))
if any(not values for values in options.values()) or len(options.get("magicmind_model", ())) != 1:
    stop("an option has no value")
dims = [[int(size) for size in item.split(",")] for item in options["input_dims"]]
if len(dims) != {inputs}:
    stop("Check failed: names.size() == shapes.size()")
if "batch_size" in options and len(options["batch_size"]) != len(dims):
    stop("Check failed: batchs.size() == input_shapes.size()")
{special}
iterations, wall = int(options["iterations"][0]) * int(options["threads"][0]) * 2, 1.25
batch = max(item[0] for item in dims)
rate = iterations / wall
for _device in options["devices"]:
    print("=================== Performance Summary")
    if {new}:
        print(f"Total iterations:    {{iterations}}\\nHost wall time(s):   {{wall}}")
        print(f"Throughput (qps):    {{rate * batch:g}} with total batch sizes: {{iterations * batch}} and {{rate:g}} iterations/second")
    else:
        print(f"Iterations:    {{iterations}}\\nHost Wall Time (s):   {{wall}}\\nThroughput (qps):  {{rate * dims[0][0]:g}}")
"""


@pytest.fixture
def mm_run(tmp_path: Path) -> Any:
    """Writes the stand-in; gives the environment in which it is found, and where it notes its options."""

    def write(*, new: bool = True, inputs: int = 1, special: str = "") -> tuple[dict[str, str], Path]:
        folder, log = tmp_path / "neuware" / "bin", tmp_path / "options.json"
        folder.mkdir(parents=True, exist_ok=True)
        text = FAKE.format(python=sys.executable, log=str(log), new=new, inputs=inputs, special=special)
        (folder / "mm_run").write_text(text)
        (folder / "mm_run").chmod(stat.S_IRWXU)
        surroundings = {name: value for name, value in os.environ.items() if name != "MM_RUN_PATH"}
        return {**surroundings, "NEUWARE_HOME": str(tmp_path / "neuware")}, log

    return write


@pytest.fixture
def card(compiled: CompiledBundle) -> CompiledBundle:
    """A bundle that says that it was built for a card; the stand-in does not read its files."""
    return _for_a_card(compiled)


def _for_a_card(compiled: CompiledBundle, **changes: Any) -> CompiledBundle:
    compilation = json.loads((compiled.path / "manifest.json").read_text())["compilation"]
    support.edit_manifest(
        compiled.path, compilation={**compilation, "target": "mlu", "backend": "magicmind", **changes}
    )
    return open_compiled(compiled.path, verify=False)


@pytest.mark.parametrize("new", [False, True])
def test_images_per_second_are_batches_times_images(card: CompiledBundle, mm_run: Any, new: bool) -> None:
    environ, log = mm_run(new=new)
    report = run_mm_run(card, MmRunOptions(batch_size=8, iterations=50, devices=(0, 1)), environ=environ)
    assert report.iterations_per_second == pytest.approx(2 * 100 / 1.25), "of both cards"
    assert report.images_per_second == pytest.approx(2 * 80 * 8)
    assert report.texts_per_second is None
    assert (report.provenance.target, report.provenance.emulated, report.batch_size) == ("mlu", False, 8)
    assert report.provenance.devices == (0, 1)
    assert [summary.format for summary in report.summaries] == ["new" if new else "old"] * 2
    assert report.output_tail.startswith("=================== Performance Summary")
    assert json.loads(log.read_text()) == {
        "magicmind_model": [str(card.path / "image.onnx")],
        "input_dims": ["8,3,8,8"],
        "devices": ["0", "1"],
        "threads": ["1"],
        "iterations": ["50"],
    }


def test_text_tower_counts_texts(card: CompiledBundle, mm_run: Any) -> None:
    environ, log = mm_run()
    report = run_mm_run(card, MmRunOptions(tower="text", warmup_ms=10, duration_ms=20), environ=environ)
    assert report.images_per_second is None
    assert report.texts_per_second == pytest.approx(160 * 4)
    options = json.loads(log.read_text())
    assert (options["input_dims"], options["warmup"], options["duration"]) == (["4,32"], ["10"], ["20"])


def _joint(folder: Path) -> CompiledBundle:
    """The fused graph for a card: batches of four images, and 100 texts."""
    source = support.write_exported(folder / "fused", layout="joint")
    options = CompileOptions(target="cpu", batch_size=4, dynamic_shape=False)
    return _for_a_card(compile_bundle(source, folder / "joint-card", options))


@pytest.mark.parametrize(("new", "overstated"), [(True, 100 / 4), (False, 1)])
def test_two_inputs_are_given_their_shapes_and_texts_are_not_taken_for_images(
    tmp_path: Path, mm_run: Any, new: bool, overstated: float
) -> None:
    bundle = _joint(tmp_path)
    environ, log = mm_run(new=new, inputs=2)
    report = run_mm_run(bundle, MmRunOptions(iterations=50), environ=environ)
    assert json.loads(log.read_text())["input_dims"] == ["4,3,8,8", "100,32"]
    assert report.tower == "joint"
    assert report.images_per_second == pytest.approx(100 / 1.25 * 4)
    assert report.summaries[0].tool_qps / report.images_per_second == pytest.approx(overstated), (
        "what its qps overstate"
    )


@pytest.mark.parametrize("new", [False, True])
def test_tool_that_ran_another_batch_is_not_believed(card: CompiledBundle, mm_run: Any, new: bool) -> None:
    environ, _ = mm_run(new=new, special="dims[0][0] = 2")
    with pytest.raises(SessionError, match="mm_run ran batches of 2 by its figures, but was asked for 4"):
        run_mm_run(card, MmRunOptions(batch_size=4), environ=environ)


def test_card_that_is_missing_in_the_summaries_is_told(card: CompiledBundle, mm_run: Any) -> None:
    environ, _ = mm_run(special="options['devices'].pop()")
    with pytest.raises(SessionError, match="printed 1 summaries for 2 cards"):
        run_mm_run(card, MmRunOptions(devices=(0, 1)), environ=environ)


TORN = """
class Torn:
    def write(self, text):
        for half in (text[:9], text[9:]):
            sys.__stdout__.write(half)
            sys.__stdout__.flush()
            sys.stderr.write("[CNNL] [Warning]: is deprecated\\n")
            sys.stderr.flush()
    def flush(self):
        sys.__stdout__.flush()
sys.stdout = Torn()
"""


@pytest.mark.parametrize(
    "special", ["sys.stdout = sys.stderr", TORN], ids=["figures on stderr", "warnings inside their lines"]
)
def test_figures_are_read_wherever_the_tool_prints_them(card: CompiledBundle, mm_run: Any, special: str) -> None:
    environ, _ = mm_run(special=special)
    assert run_mm_run(card, MmRunOptions(iterations=50), environ=environ).images_per_second == pytest.approx(80 * 4)


@pytest.mark.parametrize(
    ("special", "message"),
    [
        ("print('CNRT error: 0x99'); sys.exit(139)", r"failed with exit code 139.*CNRT error: 0x99"),
        ("import os; os.abort()", "failed with exit code -6"),
        ("print('nothing useful'); sys.exit(0)", "printed no performance summary.*nothing useful"),
        ("print('begun', flush=True); import time; time.sleep(60)", r"did not end within 2 s and was stopped.*begun"),
    ],
)
def test_tool_that_fails_hangs_or_babbles_is_told_with_its_output(
    card: CompiledBundle, mm_run: Any, special: str, message: str
) -> None:
    environ, _ = mm_run(special=special)
    with pytest.raises(SessionError, match=f"(?s){message}"):
        run_mm_run(
            card,
            MmRunOptions(timeout_s=1.0 if "sleep" in special else 60.0, warmup_ms=200, duration_ms=800),
            environ=environ,
        )


def test_time_limit_grows_with_the_duration(card: CompiledBundle, mm_run: Any) -> None:
    environ, _ = mm_run(special="import time; time.sleep(0.3)")
    options = MmRunOptions(timeout_s=0.1, warmup_ms=1000, duration_ms=30_000, iterations=50)
    assert run_mm_run(card, options, environ=environ).images_per_second == pytest.approx(80 * 4)


def test_nothing_is_left_on_the_card_when_time_is_up(card: CompiledBundle, mm_run: Any, tmp_path: Path) -> None:
    """What MM_RUN_PATH names may be a script that starts the tool."""
    noted = tmp_path / "child.pid"
    child = f"import subprocess; child = subprocess.Popen(['sleep', '60']); open({str(noted)!r}, 'w').write(str(child.pid)); child.wait()"
    environ, _ = mm_run(special=child)
    with pytest.raises(SessionError, match="was stopped"):
        run_mm_run(card, MmRunOptions(timeout_s=3.0, warmup_ms=0, duration_ms=0), environ=environ)
    assert _has_ended(int(noted.read_text()))


def _has_ended(pid: int) -> bool:
    for _attempt in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_failure_with_several_cards_says_what_to_try(card: CompiledBundle, mm_run: Any) -> None:
    environ, _ = mm_run(special="sys.exit(134)")
    with pytest.raises(SessionError, match="exit code 134; by its public source several cards fail, so try one"):
        run_mm_run(card, MmRunOptions(devices=(0, 1)), environ=environ)
    with pytest.raises(SessionError, match=r"exit code 134\. The end"):
        run_mm_run(card, environ=environ)


def test_tool_that_cannot_be_started_is_told(card: CompiledBundle, mm_run: Any, tmp_path: Path) -> None:
    environ, _ = mm_run()
    (tmp_path / "neuware" / "bin" / "mm_run").write_text("#!/no/such/interpreter\n")
    with pytest.raises(BackendUnavailableError, match=r"Cannot run '.*mm_run': No such file or directory"):
        run_mm_run(card, environ=environ)


@pytest.mark.parametrize(
    ("inputs", "more", "message"),
    [
        (2, [], None),
        (2, ["--batch_size", "4", "100"], None),
        (2, ["--batch_size", "4"], "batchs.size() == input_shapes.size()"),
        (1, [], "names.size() == shapes.size()"),
        (2, ["--batch", "4"], "Invalid option --batch"),
        (2, ["--threads", "1"], "Invalid option --threads"),
    ],
)
def test_stand_in_is_as_strict_as_the_tool(
    card: CompiledBundle, mm_run: Any, inputs: int, more: list[str], message: str | None
) -> None:
    """One --batch_size for two inputs, as perf.sh gives it, aborts the real tool (api 6.5, 13); what we give does not."""
    environ, _ = mm_run(inputs=inputs)
    command = build_command(find_mm_run(environ), card.path / "x", [[4, 3, 8, 8], [100, 32]], MmRunOptions())
    done = subprocess.run([*command, *more], check=False, capture_output=True, text=True)
    assert done.returncode == (0 if message is None else 134)
    assert (message or "") in done.stderr


def test_tool_is_looked_for_where_the_sdk_puts_it(tmp_path: Path, mm_run: Any) -> None:
    environ, _ = mm_run()
    tool = tmp_path / "neuware" / "bin" / "mm_run"
    assert find_mm_run(environ) == tool
    assert find_mm_run({"MM_RUN_PATH": str(tool.parent)}) == tool
    assert find_mm_run({"MM_RUN_PATH": str(tool)}) == tool
    assert find_mm_run({"PATH": str(tool.parent)}) == tool
    root = tmp_path / "root"
    with pytest.raises(BackendUnavailableError, match=r"mm_run was not found .*set MM_RUN_PATH to its directory"):
        find_mm_run({"PATH": str(tmp_path), "NEUWARE_HOME": str(tmp_path)}, root=root)
    for place in ("mps", "usr/local/neuware"):  # the second is searched first
        usual = root / place / "bin" / "mm_run"
        usual.parent.mkdir(parents=True)
        shutil.copy(tool, usual)
        assert find_mm_run({"PATH": str(tmp_path)}, root=root) == usual


def test_bundles_that_are_not_for_a_card_are_refused(
    compiled: CompiledBundle, exported: ExportedBundle, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=r"image tower of bundle .* is for cpu; mm_run takes what --target mlu makes"):
        run_mm_run(compiled)
    emulated = compile_bundle(exported, tmp_path / "emulated", CompileOptions(target="emulated-mlu"))
    with pytest.raises(OptionError, match="is emulated; its files are no MagicMind models"):
        run_mm_run(emulated)


def test_towers_that_the_bundle_has_not_are_refused(card: CompiledBundle, mm_run: Any, tmp_path: Path) -> None:
    environ, log = mm_run()
    with pytest.raises(BundleError, match="no fused graph"):
        run_mm_run(card, MmRunOptions(tower="joint"), environ=environ)
    with pytest.raises(BundleError, match="layout 'joint' and no separate image tower"):
        run_mm_run(_joint(tmp_path), MmRunOptions(tower="image"), environ=environ)
    assert not log.exists(), "it was not run"


def test_text_tower_that_stays_on_the_cpu_is_refused(card: CompiledBundle, mm_run: Any) -> None:
    environ, _ = mm_run()
    text = {"target": "cpu", "backend": "onnxruntime", "precision": "force_float32", "emulated": False}
    split = _for_a_card(card, text_tower=text)
    with pytest.raises(OptionError, match=r"the text tower of bundle .* is for cpu"):
        run_mm_run(split, MmRunOptions(tower="text"), environ=environ)
    assert run_mm_run(split, MmRunOptions(iterations=50), environ=environ).images_per_second == pytest.approx(80 * 4)


def test_batches_that_the_bundle_does_not_take_are_refused(
    card: CompiledBundle, exported: ExportedBundle, mm_run: Any, tmp_path: Path
) -> None:
    environ, _ = mm_run()
    with pytest.raises(ShapeError, match=r"takes batches of 1\.\.8; got 9"):
        run_mm_run(card, MmRunOptions(batch_size=9), environ=environ)
    options = CompileOptions(target="cpu", batch_size=4, dynamic_shape=False)
    static = _for_a_card(compile_bundle(exported, tmp_path / "static", options))
    with pytest.raises(ShapeError, match="takes batches of 4; got 3"):
        run_mm_run(static, MmRunOptions(batch_size=3), environ=environ)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch size is 0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"devices": ()}, "expected different indices"),
        ({"devices": (1, 1)}, "names card 1 twice"),
        ({"devices": (-1,)}, r"devices\[0\] is -1; expected 0 or more"),
        ({"timeout_s": 0.0}, "timeout is 0 s"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        MmRunOptions(**changes)
