"""The vendor's benchmark tool ``mm_run``: called with the right options, its two output formats read, its figures checked.

Facts about the tool: docs/magicmind-api.md, sections 4.3 and 4.4 ("api"). The old format is that of the logs in
magicmind_cloud (``*/data/output_ok/*_log_perf``), the new one that of the SDK's ``mm_run`` sample (S#49149657720).
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from clipmlu.bundle import CompiledBundle
from clipmlu.errors import BackendUnavailableError, OptionError, SessionError, ShapeError
from clipmlu.specs import ModelId, Precision, Spec, TensorSpec, TowerName

PATH_VARIABLE = "MM_RUN_PATH"
HOME_VARIABLE = "NEUWARE_HOME"
_FIXED_PLACES = ("/usr/local/neuware/bin/mm_run", "/mps/bin/mm_run")
_TAIL_LINES = 15
_TOOL_WARMUP_MS, _TOOL_DURATION_MS = 200, 3000  # api 4.3
_AGREEMENT = 1e-3  # printed figures are rounded to five or six digits
_NUMBER = r"([-+0-9.eE]+)"
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
    """How to call the tool; validated on construction.

    Attributes:
        tower: which graph; None for the image tower, or the only graph of the joint layout.
        batch_size: rows of a batch; None for the bundle's own.
        warmup_ms: milliseconds before anything is measured.
        duration_ms: the shortest time to measure.
        iterations: the fewest batches to measure.
        threads: threads for each card, each with its own context.
        devices: indices of the cards.
        timeout_s: seconds after which the tool is ended.
    """

    tower: TowerName | None = None
    batch_size: int | None = None
    warmup_ms: int = _TOOL_WARMUP_MS
    duration_ms: int = _TOOL_DURATION_MS
    iterations: int = 100
    threads: int = 1
    devices: tuple[int, ...] = (0,)
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("batch size", self.batch_size, 1),
            ("warm-up", self.warmup_ms, 0),
            ("duration", self.duration_ms, 0),
            ("iterations", self.iterations, 1),
            ("threads", self.threads, 1),
        ):
            if value is not None and value < least:
                raise OptionError(f"{name} is {value}; expected {least} or more")
        if not self.devices or any(device < 0 for device in self.devices):
            raise OptionError(f"devices are {list(self.devices)}; expected one or more indices of 0 or more")
        if len(set(self.devices)) != len(self.devices):
            raise OptionError(f"devices are {list(self.devices)}; one is named twice")


class Latency(Spec, frozen=True, kw_only=True):
    """Milliseconds of one stage of a batch, as the tool prints them."""

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
        iterations: batches.
        host_wall_s: seconds from the first to the last.
        tool_qps: the tool's own throughput: batch sizes over wall time, where the largest leading dimension of several
            inputs is taken for the batch. Not to be taken for images per second.
        latencies: stage -> milliseconds; with the clock behind a dot in the new format.
    """

    format: Literal["old", "new"]
    iterations: int
    host_wall_s: float
    tool_qps: float
    latencies: dict[str, Latency]

    @property
    def iterations_per_second(self) -> float:
        """Batches per second."""
        return self.iterations / self.host_wall_s


class MmRunReport(Spec, frozen=True, kw_only=True):
    """What the vendor's tool measured on real cards.

    Attributes:
        tool: its path.
        command: how it was called.
        model: which model.
        bundle_digest: which bundle.
        tower: which graph.
        precision: its arithmetic.
        batch_size: images of a batch, or texts for the text tower.
        images_per_second: batches per second of all cards times images; None for the text tower.
        texts_per_second: the same for the text tower; None for others.
        iterations_per_second: batches per second of all cards.
        summaries: what the tool printed.
    """

    tool: str
    command: tuple[str, ...]
    model: ModelId
    bundle_digest: str
    tower: TowerName
    precision: Precision
    batch_size: int
    images_per_second: float | None
    texts_per_second: float | None
    iterations_per_second: float
    summaries: tuple[Summary, ...]


def find_mm_run(environ: Mapping[str, str]) -> Path:
    """The tool's path: MM_RUN_PATH (a directory or the file), $NEUWARE_HOME/bin, the usual places, PATH.

    Raises:
        BackendUnavailableError: it is in none of them.
    """
    given, home = environ.get(PATH_VARIABLE), environ.get(HOME_VARIABLE)
    places = [Path(given), Path(given) / "mm_run"] if given else []
    places += [Path(home) / "bin" / "mm_run"] if home else []
    places += [Path(place) for place in _FIXED_PLACES]
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return place
    found = shutil.which("mm_run", path=environ.get("PATH", ""))
    if found is not None:
        return Path(found)
    looked = ", ".join(str(place) for place in places)
    raise BackendUnavailableError(
        f"The vendor's tool mm_run was not found ({looked}, PATH). It comes with the SDK; set {PATH_VARIABLE} to its directory."
    )


def run_mm_run(
    bundle: CompiledBundle, options: MmRunOptions | None = None, *, environ: Mapping[str, str] | None = None
) -> MmRunReport:
    """Measure a bundle's graph with the vendor's tool.

    Args:
        bundle: compiled for ``mlu``.
        options: how; the defaults of ``MmRunOptions`` if None.
        environ: where to look for the tool, and its environment; this process's if None.

    Raises:
        OptionError: the bundle has no such graph, or is not for a card.
        ShapeError: the bundle does not take such batches.
        BackendUnavailableError: the tool is not here.
        SessionError: it failed, took too long, or printed figures that cannot be read or contradict one another.
    """
    options = options or MmRunOptions()
    environ = os.environ if environ is None else environ
    tower = options.tower or ("joint" if bundle.manifest.layout == "joint" else "image")
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
    summaries = parse_output(_run(command, environ, options.timeout_s))
    rate = sum(summary.iterations_per_second for summary in summaries)
    return MmRunReport(
        tool=str(tool),
        command=tuple(command),
        model=bundle.manifest.model,
        bundle_digest=bundle.digest,
        tower=tower,
        precision=placement.precision,
        batch_size=batch_size,
        images_per_second=None if tower == "text" else rate * batch_size,
        texts_per_second=rate * batch_size if tower == "text" else None,
        iterations_per_second=rate,
        summaries=summaries,
    )


def encode_mm_run(report: MmRunReport) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def build_command(tool: Path, model: Path, shapes: Sequence[Sequence[int]], options: MmRunOptions) -> list[str]:
    """The tool's command line.

    The shape of every input is given by ``--input_dims``: a model of mutable shape needs it, and old and new tools know it.
    ``--batch_size`` is left out: the oldest tools call it ``--batch``, and the newer ones abort unless it has one number
    for each input (api 4.3), which is where the vendor's own perf.sh fails for CLIP (api 6.5, 13). Times are given only when
    they are not the tool's defaults: what the oldest tools call them is not public.
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
    """Read what the tool printed.

    Raises:
        SessionError: there is no summary of a known format, or its figures contradict one another.
    """
    blocks = re.split(r"=+ Performance Summary *\n", text)[1:]
    if not blocks:
        raise SessionError(f"mm_run printed no performance summary. The end of its output:\n{_tail(text)}")
    return tuple(_parse_block(block) for block in blocks)


def _parse_block(block: str) -> Summary:
    new = "Total iterations:" in block
    iterations = int(_figure(block, "Total iterations" if new else "Iterations"))
    wall = _figure(block, "Host wall time(s)" if new else "Host Wall Time (s)")
    qps = _figure(block, "Throughput (qps)")
    if iterations < 1 or wall <= 0:
        raise SessionError(f"mm_run says that it ran {iterations} batches in {wall:g} s. Its output:\n{_tail(block)}")
    summary = Summary(
        format="new" if new else "old",
        iterations=iterations,
        host_wall_s=wall,
        tool_qps=qps,
        latencies=_new_latencies(block) if new else _old_latencies(block),
    )
    _check_figures(summary, block)
    return summary


def _check_figures(summary: Summary, block: str) -> None:
    """The rates that are printed must follow from the counts and the time beside them."""
    if summary.format == "old":
        # qps = iterations x batch / wall in all 225 public logs: the batch must be a whole number.
        batch = summary.tool_qps / summary.iterations_per_second
        printed, expected = batch, float(max(1, round(batch)))
    else:
        found = re.search(rf"with total batch sizes:\s*{_NUMBER} and {_NUMBER} iterations/second", block)
        if found is None:
            raise SessionError(f"mm_run's line 'Throughput (qps)' has an unknown form. Its output:\n{_tail(block)}")
        printed, expected = float(found[2]), summary.iterations_per_second
    if abs(printed - expected) > _AGREEMENT * expected:
        raise SessionError(
            f"mm_run's figures contradict one another: {summary.iterations} batches in {summary.host_wall_s:g} s, but "
            f"{summary.tool_qps:g} qps. Its output:\n{_tail(block)}"
        )


def _figure(block: str, label: str) -> float:
    found = re.search(rf"^\s*{re.escape(label)}:\s*{_NUMBER}", block, re.MULTILINE)
    try:
        if found is not None:
            return float(found[1])
    except ValueError:
        found = None
    raise SessionError(f"mm_run printed no readable '{label}'. Its output:\n{_tail(block)}")


def _old_latencies(block: str) -> dict[str, Latency]:
    found = {}
    for line in block.splitlines():
        label, _, rest = line.partition(":")
        statistics = _STATISTICS.search(rest)
        if label in _OLD_STAGES and statistics:
            found[_OLD_STAGES[label]] = _latency(statistics)
    return found


def _new_latencies(block: str) -> dict[str, Latency]:
    """Those of the first shape group; we give the tool one only."""
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


def _run(command: Sequence[str], environ: Mapping[str, str], timeout_s: float) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the vendor's tool, and arguments that we make
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        tail = _tail((error.output or b"").decode("utf-8", "replace"))
        raise SessionError(f"mm_run did not end within {timeout_s:g} s and was stopped. Its output:\n{tail}") from error
    except OSError as error:
        raise BackendUnavailableError(f"Cannot run '{command[0]}': {error.strerror}.") from error
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        raise SessionError(f"mm_run failed with exit code {done.returncode}. The end of its output:\n{_tail(text)}")
    return text


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])


def _check_batch(bundle: CompiledBundle, batch_size: int | None) -> int:
    facts = bundle.compilation
    size = facts.batch_size if batch_size is None else batch_size
    fits = size <= facts.max_batch if facts.dynamic_shape else size == facts.batch_size
    if not fits:
        taken = f"1..{facts.max_batch}" if facts.dynamic_shape else str(facts.batch_size)
        raise ShapeError(f"Bundle '{bundle.path}' takes batches of {taken}; got {size}.")
    return size


def _shape_of(tensor: TensorSpec, batch_size: int) -> list[int]:
    """Sizes of one input; the texts of the joint layout have a fixed number already."""
    return [size if isinstance(size, int) else batch_size for size in tensor.shape]
