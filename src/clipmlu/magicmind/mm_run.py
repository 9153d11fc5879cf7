"""The vendor's benchmark tool ``mm_run``: calling it, parsing its two output formats, and checking its figures.

Facts about the tool: docs/magicmind-api.md, sections 4.3 and 4.4 ("api"). The old format is that of the logs in
magicmind_cloud (``*/data/output_ok/*_log_perf``), the new one that of the SDK's ``mm_run`` sample (its trace.cc,
S#49149657720, and README, S#14487021415).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NoReturn

from clipmlu.arguments import check_fields
from clipmlu.backends.provenance import Provenance, provenance_of
from clipmlu.backends.several_devices import check_devices
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.errors import BackendUnavailableError, OptionError, SessionError, ShapeError
from clipmlu.magicmind import MM_RUN_PATH
from clipmlu.specs import NaturalInt, PositiveInt, Spec, TensorSpec, TowerName

HOME_VARIABLE = "NEUWARE_HOME"
_FIXED_PLACES = ("usr/local/neuware/bin/mm_run", "mps/bin/mm_run")
_TAIL_LINES, _KEPT_LINES = 8, 60  # in messages, in reports
_TOOL_WARMUP_MS, _TOOL_DURATION_MS = 200, 3000  # api 4.3
_AGREEMENT = 1e-3  # printed figures are rounded to five or six digits, and from 100000 on printed like 1.2346e+05
_NUMBER = r"([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?![\w.])"
_STATISTICS = re.compile(
    rf"min:\s*{_NUMBER}\s+max:\s*{_NUMBER}\s+mean:\s*{_NUMBER}\s+median:\s*{_NUMBER}"
    rf"\s+percentile:\s*\(90%\)\s*{_NUMBER}\s+\(95%\)\s*{_NUMBER}\s+\(99%\)\s*{_NUMBER}"
)
_OLD_STAGES = {
    "Enqueue Time (ms)": "enqueue",
    "H2D Latency (ms)": "copy_in",
    "MLU Compute Latency (ms)": "compute",
    "D2H Latency (ms)": "copy_out",
}
_NEW_STAGES = {
    "H2D Summary": "copy_in",
    "MLU Compute (Launch jobs) Summary": "compute",
    "D2H Summary": "copy_out",
    "Total Latency Summary(H2D + Compute + D2H)": "total",
}
_NEW_CLOCKS = {
    "Latency(host clock, ms)": "host_clock",
    "Latency(dev clock, ms)": "device_clock",
    "Interface Duration(ms)": "interface",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MmRunOptions:
    """Options of the tool; validated on construction.

    Attributes:
        tower: name of the graph; None for the image tower, or the only graph of the joint layout.
        batch_size: rows of a batch; None for the bundle's own.
        warmup_ms: milliseconds before the measurement.
        duration_ms: shortest measuring time of each thread in milliseconds.
        iterations: smallest number of batches of each thread.
        threads: threads for each card, each with its own context.
        devices: indices of the cards.
        timeout_s: time limit in seconds, in addition to warm-up and duration.
    """

    tower: TowerName | None = None
    batch_size: PositiveInt | None = None
    warmup_ms: NaturalInt = _TOOL_WARMUP_MS
    duration_ms: NaturalInt = _TOOL_DURATION_MS
    iterations: PositiveInt = 100
    threads: PositiveInt = 1
    devices: tuple[NaturalInt, ...] = (0,)
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.timeout_s <= 0:
            raise OptionError(f"timeout is {self.timeout_s:g} s; expected more than 0")
        check_devices(self.devices)


class Latency(Spec, frozen=True, kw_only=True):
    """Milliseconds of one stage of a batch, as printed by the tool."""

    min_ms: float
    max_ms: float
    mean_ms: float
    median_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float


class Summary(Spec, frozen=True, kw_only=True):
    """One performance summary; the new format has one for each card.

    Attributes:
        format: ``old`` (SDK up to 1.0.1) or ``new``.
        iterations: number of batches of all threads.
        host_wall_s: seconds from the first to the last batch.
        compute_s: computing time in seconds by the host's clock, summed over batches and threads; None if not printed.
        compute_device_s: the same by the card's clock; only the new format has it, and only on request.
        tool_qps: the tool's own throughput: sum of batch sizes over wall time. For several inputs the tool uses the
            largest leading dimension, so this may differ from images per second.
        counted_rows: the tool's size of one batch.
        latencies: maps a stage to its latency; in the new format a stage name ends with a dot and the clock.
    """

    format: Literal["old", "new"]
    iterations: int
    host_wall_s: float
    compute_s: float | None
    compute_device_s: float | None
    tool_qps: float
    counted_rows: int
    latencies: dict[str, Latency]

    @property
    def iterations_per_second(self) -> float:
        """Batches per second."""
        return self.iterations / self.host_wall_s


class MmRunReport(Spec, frozen=True, kw_only=True):
    """Measurements of the vendor's tool on real cards.

    Attributes:
        tool: path of the tool.
        command: the command line.
        provenance: the bundle and the cards; never emulated, since the tool takes real models only.
        tower: name of the graph.
        batch_size: images of a batch, or texts for the text tower.
        images_per_second: batches per second of all cards times images; None for the text tower.
        texts_per_second: the same for the text tower; None for others.
        iterations_per_second: batches per second of all cards.
        summaries: the printed summaries.
        output_tail: the last lines of the output.
    """

    tool: str
    command: tuple[str, ...]
    provenance: Provenance
    tower: TowerName
    batch_size: int
    images_per_second: float | None
    texts_per_second: float | None
    iterations_per_second: float
    summaries: tuple[Summary, ...]
    output_tail: str


def find_mm_run(environ: Mapping[str, str], *, root: Path = Path("/")) -> Path:
    """Return the tool's path: MM_RUN_PATH (a directory or the file), $NEUWARE_HOME/bin, the usual places, PATH.

    Args:
        environ: environment variables.
        root: folder below which the usual places are.

    Raises:
        BackendUnavailableError: it is in none of them.
    """
    given, home = environ.get(MM_RUN_PATH), environ.get(HOME_VARIABLE)
    candidates = [Path(given), Path(given) / "mm_run"] if given else []
    candidates += [Path(home) / "bin" / "mm_run"] if home else []
    candidates += [root / place for place in _FIXED_PLACES]
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    found = shutil.which("mm_run", path=environ.get("PATH", ""))
    if found is not None:
        return Path(found)
    searched = ", ".join(str(candidate) for candidate in candidates)
    raise BackendUnavailableError(
        f"The vendor's tool mm_run was not found ({searched}, PATH). It comes with the SDK; set {MM_RUN_PATH} to its directory."
    )


def run_mm_run(
    bundle: CompiledBundle, options: MmRunOptions | None = None, *, environ: Mapping[str, str] | None = None
) -> MmRunReport:
    """Measure a bundle's graph with the vendor's tool.

    Args:
        bundle: a bundle compiled for ``mlu``.
        options: options of the tool; defaults if None.
        environ: environment of the tool and of the search for it; this process's if None.

    Raises:
        OptionError: the bundle has no such graph, or was not compiled for a card.
        ShapeError: the bundle does not support the batch size.
        BackendUnavailableError: the tool is not installed.
        SessionError: the tool failed, took too long, or printed unreadable or contradictory figures.
    """
    options = options or MmRunOptions()
    environ = os.environ if environ is None else environ
    tower = options.tower or bundle.image_graph
    placement = bundle.compilation.placement(tower)
    if placement.emulated or placement.target != "mlu":
        kind = "emulated; its files are no MagicMind models" if placement.emulated else f"for {placement.target}"
        raise OptionError(
            f"the {tower} tower of bundle '{bundle.path}' is {kind}; mm_run takes what --target mlu makes"
        )
    batch_size = _check_batch(bundle, options.batch_size)
    shapes = [_shape_of(tensor, batch_size) for tensor in bundle.tower(tower).inputs]
    tool = find_mm_run(environ)
    command = build_command(tool, bundle.tower_path(tower), shapes, options)
    output = _run(command, environ, options)
    summaries = parse_output(output)
    _check_against_request(summaries, shapes, options, output)
    rate = sum(summary.iterations_per_second for summary in summaries)
    return MmRunReport(
        tool=str(tool),
        command=tuple(command),
        provenance=provenance_of(bundle, options.devices),
        tower=tower,
        batch_size=batch_size,
        images_per_second=None if tower == "text" else rate * batch_size,
        texts_per_second=rate * batch_size if tower == "text" else None,
        iterations_per_second=rate,
        summaries=summaries,
        output_tail=_tail(output, _KEPT_LINES),
    )


def build_command(tool: Path, model: Path, shapes: Sequence[Sequence[int]], options: MmRunOptions) -> list[str]:
    """Return the tool's command line.

    ``--input_dims`` gives the shape of every input: a model of mutable shape needs it, and old and new tools support
    it. ``--batch_size`` is not used: the oldest tools name it ``--batch``, and newer ones abort unless it has one
    number for each input (api 4.3), which is the reason why the vendor's own perf.sh fails for CLIP (api 6.5, 13).
    Times are given only if they differ from the tool's defaults, since the oldest tools' names for them are not public.
    """
    times = (("--warmup", options.warmup_ms, _TOOL_WARMUP_MS), ("--duration", options.duration_ms, _TOOL_DURATION_MS))
    dims = [",".join(str(size) for size in shape) for shape in shapes]
    return [
        str(tool),
        *("--magicmind_model", str(model)),
        *("--input_dims", *dims),
        *("--devices", *(str(device) for device in options.devices)),
        *("--threads", str(options.threads)),
        *(word for name, value, default in times if value != default for word in (name, str(value))),
        *("--iterations", str(options.iterations)),
    ]


def parse_output(text: str) -> tuple[Summary, ...]:
    """Parse the tool's output.

    Raises:
        SessionError: there is no summary of a known format, or its figures contradict each other.
    """
    blocks = re.split(r"=+ Performance Summary *\n", text)[1:]
    if not blocks:
        _refuse("printed no performance summary", text)
    return tuple(_parse_block(block) for block in blocks)


def _parse_block(block: str) -> Summary:
    new = "Total iterations:" in block
    if block.count("Throughput (qps):") > 1:
        _refuse("printed several throughputs in one summary, which is no known form", block)
    iterations = int(_figure(block, "Total iterations" if new else "Iterations"))
    wall = _figure(block, "Host wall time(s)" if new else "Host Wall Time (s)")
    qps = _figure(block, "Throughput (qps)")
    if iterations < 1 or wall <= 0:
        _refuse(f"says that it ran {iterations} batches in {wall:g} s", block)
    rows = _rows_by_totals(block, iterations, wall, qps) if new else _rows_by_rate(block, iterations, wall, qps)
    compute = _optional_figure(block, "Total MLU compute time(host clock, s)" if new else "MLU Compute Time (s)")
    return Summary(
        format="new" if new else "old",
        iterations=iterations,
        host_wall_s=wall,
        compute_s=compute,
        compute_device_s=_optional_figure(block, "Total MLU compute time(dev clock, s)"),
        tool_qps=qps,
        counted_rows=rows,
        latencies=_new_latencies(block) if new else _old_latencies(block),
    )


def _rows_by_rate(block: str, iterations: int, wall: float, qps: float) -> int:
    """Return the rows of a batch in the old format: qps = iterations x rows / wall in all 225 public logs (api 4.4)."""
    exact = qps * wall / iterations
    rows = max(1, round(exact))
    if abs(exact - rows) > _AGREEMENT * rows:
        _contradiction(f"{iterations} batches in {wall:g} s, but {qps:g} qps", block)
    return rows


def _rows_by_totals(block: str, iterations: int, wall: float, qps: float) -> int:
    """Return the rows of a batch in the new format; its two totals and two rates must agree (api 4.4)."""
    found = re.search(rf"with total batch sizes:\s*(\d+) and {_NUMBER} iterations/second", block)
    if found is None:
        _refuse("printed a line 'Throughput (qps)' of unknown form", block)
    total, rate = int(found[1]), float(found[2])
    for printed, count in ((rate, iterations), (qps, total)):
        if abs(printed - count / wall) > _AGREEMENT * count / wall:
            _contradiction(f"{count} in {wall:g} s, but {printed:g} per second", block)
    if total % iterations or total < iterations:
        _contradiction(f"{total} rows in {iterations} batches of one size", block)
    return total // iterations


def _check_against_request(
    summaries: Sequence[Summary], shapes: Sequence[Sequence[int]], options: MmRunOptions, output: str
) -> None:
    """Check that the tool ran the requested batches on all cards.

    The new tool counts the largest leading size (S#14487021415, and BatchSize in S#49765893513). For the old tool this
    is not known: in every public log all inputs have the same leading size (api 4.4).
    """
    leading = [shape[0] for shape in shapes]
    for summary in summaries:
        counted = {max(leading)} if summary.format == "new" else set(leading)
        if summary.counted_rows not in counted:
            requested = " and ".join(str(size) for size in leading)
            _refuse(f"ran batches of {summary.counted_rows} by its figures, but was asked for {requested}", output)
    if summaries[0].format == "new" and len(summaries) != len(options.devices):
        _refuse(f"printed {len(summaries)} summaries for {len(options.devices)} cards", output)


def _contradiction(what: str, output: str) -> NoReturn:
    _refuse(f"printed figures that contradict one another: {what}", output)


def _refuse(what: str, output: str) -> NoReturn:
    raise SessionError(f"mm_run {what}. The end of its output:\n{_tail(output)}")


def _figure(block: str, label: str) -> float:
    figure = _optional_figure(block, label)
    if figure is None:
        _refuse(f"printed no readable '{label}'", block)
    return figure


def _optional_figure(block: str, label: str) -> float | None:
    found = re.search(rf"^\s*{re.escape(label)}:\s*{_NUMBER}", block, re.MULTILINE)
    return None if found is None else float(found[1])


def _old_latencies(block: str) -> dict[str, Latency]:
    found = {}
    for line in block.splitlines():
        label, _, rest = line.partition(":")
        statistics = _STATISTICS.search(rest)
        if label in _OLD_STAGES and statistics:
            found[_OLD_STAGES[label]] = _latency(statistics)
    return found


def _new_latencies(block: str) -> dict[str, Latency]:
    """Return the latencies of the first shape group; clipmlu gives the tool only one."""
    found: dict[str, Latency] = {}
    stage = ""
    for line in block.splitlines():
        label = line.strip().partition(":")[0]
        statistics = _STATISTICS.search(line)
        if label in _NEW_STAGES:
            stage = _NEW_STAGES[label]
        elif stage and label in _NEW_CLOCKS and statistics:
            found.setdefault(f"{stage}.{_NEW_CLOCKS[label]}", _latency(statistics))
    return found


def _latency(found: re.Match[str]) -> Latency:
    low, high, mean, median, p90, p95, p99 = (float(number) for number in found.groups())
    return Latency(min_ms=low, max_ms=high, mean_ms=mean, median_ms=median, p90_ms=p90, p95_ms=p95, p99_ms=p99)


def _run(command: Sequence[str], environ: Mapping[str, str], options: MmRunOptions) -> str:
    """Run the tool and return stdout, then stderr; both are read separately, so that warnings do not split lines."""
    limit = options.timeout_s + (options.warmup_ms + options.duration_ms) / 1000
    try:
        # The vendor's tool with arguments from clipmlu.
        process = subprocess.Popen(  # noqa: S603
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise BackendUnavailableError(f"Cannot run '{command[0]}': {error.strerror}.") from error
    with process:
        try:
            parts = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired as error:
            _end(process)
            _refuse(
                f"did not end within {limit:g} s and was stopped; fewer iterations take less time",
                _text_of(error.output, error.stderr),
            )
        except BaseException:
            _end(process)
            raise
    text = _text_of(*parts)
    if process.returncode != 0:
        # RunInMultiDevices keeps the futures of one card only and waits for those of all (S#49760091045).
        hint = "; by its public source several cards fail, so try one" if len(options.devices) > 1 else ""
        _refuse(f"failed with exit code {process.returncode}{hint}", text)
    return text


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the tool and its child processes (MM_RUN_PATH may be a script), so that nothing keeps running on the card."""
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
        os.killpg(process.pid, signal.SIGKILL)


def _text_of(*parts: bytes | None) -> str:
    return "\n".join(part.decode("utf-8", "replace") for part in parts if part)


def _tail(text: str, lines: int = _TAIL_LINES) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def _check_batch(bundle: CompiledBundle, batch_size: int | None) -> int:
    facts = bundle.compilation
    size = facts.batch_size if batch_size is None else batch_size
    fits = size <= facts.max_batch if facts.dynamic_shape else size == facts.batch_size
    if not fits:
        taken = f"1..{facts.max_batch}" if facts.dynamic_shape else str(facts.batch_size)
        raise ShapeError(f"Bundle '{bundle.path}' takes batches of {taken}; got {size}.")
    return size


def _shape_of(tensor: TensorSpec, batch_size: int) -> list[int]:
    """Return the sizes of one input; the number of texts of the joint layout is fixed."""
    return [size if isinstance(size, int) else batch_size for size in tensor.shape]
