"""The output of ``mm_run`` in its two formats (api 4.4); each header says that the figures are emulated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from clipmlu.display import EMULATED_MARK
from clipmlu.magicmind.emulator.mm_run.measure import SHORT_NAMES, BatchTimes, CardResult
from clipmlu.magicmind.emulator.mm_run.request import Request
from clipmlu.magicmind.emulator.model import Model
from clipmlu.magicmind.emulator.ports import Port
from clipmlu.magicmind.emulator.types import Dims, Shape, get_numpy_dtype_by_datatype

NOTICE = "Computed on this host's CPU by clipmlu's emulator; these are no figures of a card."
_LABEL = 30
_FIGURE = 11


def header(title: str) -> str:
    """Return the line above a part of the output."""
    return f"=================== {title}{EMULATED_MARK}"


def parameters(request: Request, shapes: Sequence[Shape]) -> Iterator[str]:
    """Yield the options; the new format adds their types."""
    values = {
        "magicmind_model": ("String", request.magicmind_model),
        "input_dims": ("StringList", " ".join(",".join(map(str, shape)) or "_" for shape in shapes)),
        "devices": ("IntList", ",".join(map(str, request.devices))),
        "threads": ("Int", str(request.threads)),
        "warmup": ("Int", str(request.warmup)),
        "duration": ("Int", str(request.duration)),
        "iterations": ("Int", str(request.iterations)),
    }
    values |= {name: ("String", text) for name, text in request.others.items()}
    yield header("Parameter Information")
    for name, (kind, text) in values.items():
        yield f"{name}: {text}" if request.is_old else f"--{name}<{kind}> : {text}"


def facts(model: Model, request: Request, version: str, model_ms: float) -> Iterator[str]:
    """Yield what is printed before the measurement: device and model."""
    yield f"[MMINFO]  CreateModel time is {model_ms:.0f} ms"
    yield header("Device Information")
    for device in request.devices:
        yield f"Device {device}: {NOTICE} {version}"
    yield header("Model Information")
    inputs = zip(model.get_input_names(), model.get_input_data_types(), model.get_input_dimensions(), strict=True)
    outputs = zip(model.get_output_names(), model.get_output_data_types(), model.get_output_dimensions(), strict=True)
    for side, ports in (("Input", inputs), ("Output", outputs)):
        found = [Port(name=name, dtype=dtype, dims=tuple(dims.GetDims())) for name, dtype, dims in ports]
        yield f"Buffer Info: {side}"
        yield f"Num: {len(found)}"
        for index, port in enumerate(found):
            yield from _buffer(index, port)


def _buffer(index: int, port: Port) -> Iterator[str]:
    dims = Dims(port.dims)
    count = dims.GetElementCount()
    size = "UNAVAILABLE" if count < 0 else str(count * get_numpy_dtype_by_datatype(port.dtype).itemsize)
    yield f"[{index}]:"
    yield f"  Name: {port.name}"
    yield f"  Datatype: {SHORT_NAMES.get(port.dtype, port.dtype.name)}"
    yield "  Layout: ARRAY"
    yield f"  Dim: {dims}"
    yield f"  Size: {size}"


def summary(result: CardResult, names: Sequence[str], shapes: Sequence[Shape], request: Request) -> Iterator[str]:
    """Yield the performance summary of one card."""
    yield header("Performance Summary")
    yield from _old_summary(result, shapes, request) if request.is_old else _new_summary(result, names, shapes, request)


def _old_summary(result: CardResult, shapes: Sequence[Shape], request: Request) -> Iterator[str]:
    count, times = len(result.batches), np.array(result.batches)
    yield _line("Iterations", str(count))
    yield _line("Host Wall Time (s)", _figure(result.wall_s))
    yield _line("MLU Compute Time (s)", _figure(times[:, BatchTimes._fields.index("compute")].sum() / 1000))
    yield _line("Throughput (qps)", _figure(count * _rows(shapes, first=True) / result.wall_s))
    for label, field in (
        ("Enqueue Time (ms)", "enqueue"),
        ("H2D Latency (ms)", "copy_in"),
        ("MLU Compute Latency (ms)", "compute"),
        ("D2H Latency (ms)", "copy_out"),
    ):
        yield _line(label, _statistics(_column(result, field)))
    yield f"Trace averages of {request.avg_runs} runs:"
    for first in range(0, count, request.avg_runs):
        part = times[first : first + request.avg_runs].mean(axis=0)
        yield f"  MLU Compute Latency (ms): {_figure(part[2])}      Enqueue: {_figure(part[1])}"


def _new_summary(result: CardResult, names: Sequence[str], shapes: Sequence[Shape], request: Request) -> Iterator[str]:
    count, rate = len(result.batches), len(result.batches) / result.wall_s
    rows = _rows(shapes, first=False)
    compute = _column(result, "compute")
    yield _line("Total iterations", str(count), 40)
    yield _line("Host wall time(s)", _figure(result.wall_s), 40)
    yield _line("Total MLU compute time(host clock, s)", _figure(compute.sum() / 1000), 40)
    yield _line(
        "Throughput (qps)",
        f"{_figure(rate * rows)} with total batch sizes: {count * rows} and {_figure(rate)} iterations/second",
        40,
    )
    given = ", ".join(f"{name}: {list(shape)}" for name, shape in zip(names, shapes, strict=True))
    yield f"Input shape group 0: [{given}]"
    copy_in, copy_out = _column(result, "copy_in"), _column(result, "copy_out")
    for label, values in (
        ("H2D Summary", copy_in),
        ("MLU Compute (Launch jobs) Summary", compute),
        ("D2H Summary", copy_out),
        ("Total Latency Summary(H2D + Compute + D2H)", copy_in + compute + copy_out),
    ):
        yield f"  {label}:"
        yield "  " + _line("Latency(host clock, ms)", _statistics(values), 28)
    yield f"Trace average MLU Compute perf over {request.avg_runs}:"
    for first in range(0, count, request.avg_runs):
        yield f"  Latency(host clock, ms): {_figure(compute[first : first + request.avg_runs].mean())}"


def _rows(shapes: Sequence[Shape], *, first: bool) -> int:
    """Return the rows of a batch that the tool counts: of the first input, or the most of any (api 4.4)."""
    sizes = [shape[0] if shape else 1 for shape in shapes]
    return sizes[0] if first else max(sizes)


def _column(result: CardResult, field: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array([getattr(batch, field) for batch in result.batches])


def _statistics(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    named = {"min": values.min(), "max": values.max(), "mean": values.mean(), "median": np.median(values)}
    ends = np.percentile(values, [90, 95, 99])
    parts = [f"{name}: {_figure(value):{_FIGURE}}" for name, value in named.items()]
    shares = " ".join(f"({share}%) {_figure(value):{_FIGURE}}" for share, value in zip((90, 95, 99), ends, strict=True))
    return f"{''.join(parts)}percentile: {shares}".rstrip()


def _figure(value: float) -> str:
    return f"{value:.6g}"


def _line(label: str, text: str, width: int = _LABEL) -> str:
    return f"{f'{label}:':{width}}{text}"
