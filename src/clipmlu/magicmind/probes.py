#!/usr/bin/env python3
"""What the vendor's SDK does where public sources leave it open: each question is tried on a tiny graph.

This one file runs where the SDK lives: Python 3.7, its standard library, NumPy and ``magicmind``; nothing else of clipmlu.
``clipmlu doctor --probe-sdk`` runs it where clipmlu is; ``clipmlu doctor --write-probe DIR`` writes it and its graphs into a
folder, to be copied to where clipmlu is not:

    python3.7 probes.py --graphs graphs                     all questions; writes magicmind-probe.json and magicmind-probe.md
    python3.7 probes.py --graphs graphs --only casts json   some of them
    python3.7 probes.py --list                              the questions

Every probe is a process of its own: a crash, a hang or an exception is an answer like any other. A probe consists of cases;
one that ends the process is noted, and the cases after it go on in a new process. Nothing is sent anywhere. Host name and
home directory are left out of the report.

The questions are those of section 7 of clipmlu's record of public evidence, docs/magicmind-api.md ("api 7.n"); so are the
calls that the probes rely on (api 2.15).
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Dict, List

import numpy as np

FORMAT = 1
JSON_NAME = "magicmind-probe.json"
MARKDOWN_NAME = "magicmind-probe.md"
INDEX_NAME = "graphs.json"
ARCHS = ("mtp_372", "mtp_592", "tp_322")  # MLU370, MLU590 and the edge part (api 5)
FALLBACKS = (*(f"json:{name}" for name in ARCHS), "default:any")
"""Ways to build when none of ``ARCHS`` works: without the attribute ``mlu_archs``, and without naming any."""
LOG_TAIL = 2000
MAX_TIMEOUTS = 3  # cases of one probe that may hang before the rest of them is left out
RANGE = (2, 4)  # rows that the model "dynamic" takes
ANSWERED, CRASHED, TIMED_OUT, NOT_TRIED = "answered", "crashed", "timed out", "not tried"
NOT_REACHED = "not reached"

Array = np.ndarray
Fields = Dict[str, Any]
Details = Dict[str, Fields]
Arrays = List[Array]


# ---- what a probe is ---------------------------------------------------------------------------------------------------


class NotReachedError(Exception):
    """What had to work before the question could be asked did not."""


class Finding:
    """What one case showed.

    Args:
        text: a short text.
        raw: the facts behind it, JSON-able.
    """

    def __init__(self, text: str, **raw: Any) -> None:
        self.text = text
        self.raw = raw


class Probe:
    """One question.

    Args:
        name: for the command line and the report.
        issue: its number in section 7 of docs/magicmind-api.md.
        question: in one sentence.
        run: carries out one case.
        cases: names of the cases, or what finds them in the index of graphs.
        card: needs a card.
        fresh: each case gets a new process, because it may leave the SDK in a bad state.
        alone: nothing else may run meanwhile, because it measures time.
        sum_up: the answer from all cases; by default they are listed, equal ones together.
    """

    def __init__(
        self,
        name: str,
        issue: str,
        question: str,
        run: Callable[[Bench, str], Finding],
        cases: Sequence[str] | Callable[[Fields], Sequence[str]],
        card: bool,
        fresh: bool,
        alone: bool,
        sum_up: Callable[[Details], str] | None,
    ) -> None:
        self.name = name
        self.issue = issue
        self.question = question
        self.run = run
        self.card = card
        self.fresh = fresh
        self.alone = alone
        self.sum_up = sum_up or list_findings
        self._cases = cases

    def cases(self, index: Fields) -> list[str]:
        """Names of the cases."""
        return list(self._cases(index) if callable(self._cases) else self._cases)


PROBES: dict[str, Probe] = {}


def probe(
    name: str,
    issue: str,
    question: str,
    cases: Sequence[str] | Callable[[Fields], Sequence[str]] = ("",),
    card: bool = True,
    fresh: bool = False,
    alone: bool = False,
    sum_up: Callable[[Details], str] | None = None,
) -> Callable[[Callable[[Bench, str], Finding]], Callable[[Bench, str], Finding]]:
    """Register a function as a probe; see ``Probe``."""

    def register(run: Callable[[Bench, str], Finding]) -> Callable[[Bench, str], Finding]:
        PROBES[name] = Probe(name, issue, question, run, cases, card, fresh, alone, sum_up)
        return run

    return register


def list_findings(details: Details) -> str:
    """``case / case: finding`` for all cases; a finding alone where there is one case without a name."""
    grouped: dict[str, list[str]] = collections.OrderedDict()
    for case, fields in details.items():
        grouped.setdefault(fields["found"], []).append(case)
    return "; ".join(text if cases == [""] else f"{' / '.join(cases)}: {text}" for text, cases in grouped.items())


# ---- calling the SDK: whatever comes back is a finding -----------------------------------------------------------------


class Attempt:
    """One call and what came of it.

    Attributes:
        text: ``OK``, ``None``, a type's name, ``bad Status '...'`` or ``raises ...``.
        value: what it returned.
        good: it neither raised nor answered with a bad Status.
        raised: it raised.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        self.value: Any = None
        self.raised = False
        try:
            self.value = function(*arguments, **keywords)
        except Exception as error:
            self.raised = True
            self.good = False
            named = "" if isinstance(error, NotReachedError) else f"raises {type(error).__name__}: "
            self.text = shorten(f"{named}{error}")
        else:
            self.good = not is_status(self.value) or bool(self.value.ok())
            self.text = describe(self.value)


class Trail:
    """Calls in a row; the first that goes wrong ends it."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.good = True

    @property
    def text(self) -> str:
        """All calls and what came of them."""
        return "; ".join(self.steps)

    def call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Make a call unless an earlier one went wrong."""
        if not self.good:
            return None
        attempt = Attempt(function, *arguments)
        self.steps.append(f"{name}: {attempt.text}")
        self.good = attempt.good
        return attempt.value

    def make(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The same for a call that makes an object: None is wrong."""
        value = self.call(name, function, *arguments)
        self.good = self.good and value is not None
        return value

    def note(self, text: str) -> None:
        """Add what was seen, unless an earlier call went wrong."""
        if self.good:
            self.steps.append(text)

    def finding(self, **raw: Any) -> Finding:
        """What all this showed."""
        return Finding(self.text, good=self.good, **raw)


def need(call: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Make a call that is not in question.

    Raises:
        NotReachedError: it went wrong all the same.
    """
    attempt = Attempt(function, *arguments)
    if not attempt.good or attempt.value is None:
        raise NotReachedError(f"{call}: {attempt.text}")
    return attempt.value


def is_status(value: Any) -> bool:
    """Whether this is a Status: these two methods are seen in public code (api 2.1)."""
    return callable(getattr(value, "ok", None)) and callable(getattr(value, "error_message", None))


def describe(value: Any) -> str:
    """A returned value in a few words."""
    if is_status(value):
        return "OK" if value.ok() else f"bad Status '{shorten(str(value))}'"
    return "None" if value is None else type(value).__name__


def shorten(text: str) -> str:
    """One line of at most 200 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:197] + "..."


def compare(got: Any, expected: Array, tolerance: float = 1e-3) -> str:
    """``right``, or how a result differs; the tolerance is relative to the largest expected value."""
    values = np.asarray(got)
    if values.shape != expected.shape:
        return f"wrong: shape {list(values.shape)} instead of {list(expected.shape)}"
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return "wrong: NaN or infinity"
    difference = largest_difference(values, expected)
    limit = tolerance * max(1.0, float(np.abs(expected.astype(np.float64)).max() if expected.size else 0.0))
    return "right" if difference <= limit else f"wrong by up to {difference:.3g}"


def largest_difference(got: Array, expected: Array) -> float:
    """Largest absolute difference; infinite where one is not finite."""
    with np.errstate(all="ignore"):
        differences = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    if not differences.size:
        return 0.0
    return float(differences.max()) if np.isfinite(differences).all() else float("inf")


def close(got: Array, expected: Array) -> bool:
    """Whether a result is right."""
    return compare(got, expected) == "right"


# ---- what probes work with ---------------------------------------------------------------------------------------------


class Bench:
    """The SDK, the graphs, a folder for model files, and how to get to a model that runs.

    Args:
        graphs: folder with the graphs and their index.
        scratch: folder for what is built; shared by all probes of a run.
        arch: the architecture to build for, or one of ``FALLBACKS``.
        step_seconds: longest wait where a probe itself waits.
    """

    def __init__(self, graphs: str, scratch: str, arch: str, step_seconds: float) -> None:
        self.graphs = graphs
        self.scratch = scratch
        self.arch = arch
        self.step_seconds = step_seconds
        self.index = read_index(graphs)
        self._sdk: Any = None

    @property
    def sdk(self) -> Any:
        """``magicmind.python.runtime`` (api 1)."""
        if self._sdk is None:
            self._sdk = importlib.import_module("magicmind.python.runtime")
        return self._sdk

    def count(self) -> int:
        """Cards that this process sees."""
        with self.sdk.System() as entered:
            system = entered if hasattr(entered, "device_count") else self.sdk.System()
            return int(system.device_count())

    def has_card(self) -> bool:
        """Whether it is worth trying to run something: also where the cards cannot be counted."""
        counted = Attempt(self.count)
        return not counted.good or counted.value > 0

    def path(self, graph: str) -> str:
        """An ONNX file."""
        return os.path.join(self.graphs, f"{graph}.onnx")

    def arrays(self, graph: str, side: str) -> list[Array]:
        """Stored inputs (``in``) or expected outputs (``out``) of a graph."""
        count = self.index[graph][f"{side}puts"]
        return [np.load(os.path.join(self.graphs, f"{graph}.{side}{number}.npy")) for number in range(count)]

    def rows(self, count: int) -> tuple[Array, Array]:
        """Input and expected output of the graph "base" for so many rows."""
        values = np.linspace(-1.0, 2.0, count * 8).reshape(count, 8).astype(np.float32)
        weight = np.load(os.path.join(self.graphs, "base.weight.npy"))
        return values, np.maximum(values, 0) @ weight

    # building

    def network(self, graph: str, dims: Fields | None = None) -> Any:
        """A parsed network, with the shapes of its inputs replaced where ``dims`` says so."""
        network = self.sdk.Network()
        parser_class = getattr(self.sdk, "Parser", None)
        if parser_class is None:
            parser_class = importlib.import_module("magicmind.python.runtime.parser").Parser
        need("parse", parser_class(self.sdk.ModelKind.kOnnx).parse, network, self.path(graph))
        for number, shape in (dims or {}).items():
            tensor = need("get_input", network.get_input, int(number))
            need("set_dimension", tensor.set_dimension, self.sdk.Dims(list(shape)))
        return network

    def config(self, *parts: Fields, archs: Sequence[str] | None = None) -> Any:
        """A configuration; one call for each part, as the samples do (api 2.8)."""
        config = self.sdk.BuilderConfig()
        way, _, name = self.arch.rpartition(":")
        names = [name] if archs is None else list(archs)
        if way == "":
            config.mlu_archs = names
        for part in parts if way == "default" else ({"archs": names}, *parts):
            need(f"parse_from_string {json.dumps(part)}", config.parse_from_string, json.dumps(part))
        return config

    def usual(
        self, precision: str = "force_float32", ranges: Fields | None = None, mutable: bool = False, narrow: bool = True
    ) -> list[Fields]:
        """The parts of an ordinary configuration (api 3)."""
        parts: list[Fields] = [
            {"precision_config": {"precision_mode": precision}},
            {"graph_shape_mutable": mutable or bool(ranges)},
        ]
        if ranges:
            parts.append({"dim_range": {key: {"min": low, "max": high} for key, (low, high) in ranges.items()}})
        return [*parts, {"opt_config": {"type64to32_conversion": narrow}}]

    def build(self, graph: str, *parts: Fields, dims: Fields | None = None, archs: Sequence[str] | None = None) -> Any:
        """A model, freshly built."""
        config = self.config(*(parts or self.usual()), archs=archs)
        return need("build_model", self.sdk.Builder().build_model, "probe", self.network(graph, dims), config)

    def model_file(self, kind: str) -> str:
        """One of the models that many probes use; built when it is not there."""
        target = os.path.join(self.scratch, f"{kind}-{self.arch.replace(':', '-')}.mm")
        if not os.path.exists(target):
            low, high = RANGE
            builds: Fields = {
                "dynamic": ("base", self.usual(ranges={"0": ([low, 8], [high, 8])})),
                "static": ("base", self.usual()),
                "slow": ("slow", self.usual()),
                "integers": ("integers", self.usual()),
                "two": ("two", self.usual()),
            }
            graph, parts = builds[kind]
            temporary = f"{target}.{os.getpid()}"
            need("serialize_to_file", self.build(graph, *parts).serialize_to_file, temporary)
            os.replace(temporary, target)
        return target

    def load(self, kind: str) -> Any:
        """One of these models, read from its file."""
        model = self.sdk.Model()
        need("deserialize_from_file", model.deserialize_from_file, self.model_file(kind))
        return model

    def device(self, index: int = 0) -> Any:
        """A card."""
        device = self.sdk.Device()
        device.id = index
        return device

    def session(self, kind: str, index: int = 0) -> Session:
        """A model on a card, ready to run."""
        device = self.device(index)
        need("active", device.active)
        return Session(self, self.load(kind), device)


class Session:
    """A model with an engine, a context, a queue and input tensors."""

    def __init__(self, bench: Bench, model: Any, device: Any) -> None:
        options = Attempt(_engine_options, bench.sdk)
        self.device = device
        self.model = model
        # The argument is optional (api 2.11).
        self.engine = need("create_i_engine", model.create_i_engine, *([options.value] if options.good else []))
        self.context = need("create_i_context", self.engine.create_i_context)
        self.queue = need("create_queue", device.create_queue)
        self.inputs: list[Any] = need("create_inputs", self.context.create_inputs)

    def enqueue(self, *feeds: Array) -> list[Any]:
        """Start one batch with tensors of its own; the outputs."""
        inputs: list[Any] = need("create_inputs", self.context.create_inputs)
        outputs: list[Any] = []
        self.fill(inputs, feeds)
        need("enqueue", self.context.enqueue, inputs, outputs, self.queue)
        outputs.append(inputs)  # they must live until sync; the last entry is taken off by collect
        return outputs

    def fill(self, inputs: Sequence[Any], feeds: Sequence[Array]) -> None:
        """Put arrays into input tensors."""
        for tensor, feed in zip(inputs, feeds):
            need("from_numpy", tensor.from_numpy, feed)
            Attempt(_move, tensor, self.device)  # optional: many scripts leave it out (api 2.13)

    def sync(self) -> None:
        """Wait."""
        need("sync", self.queue.sync)

    def run(self, *feeds: Array) -> list[Array]:
        """Run one batch, the ordinary way; copies of the results."""
        outputs = self.enqueue(*feeds)
        self.sync()
        return copies(outputs[:-1])


def _move(tensor: Any, device: Any) -> None:
    tensor.to(device)


def _engine_options(sdk: Any) -> Any:
    options = sdk.Model.EngineConfig()
    options.device_type = "MLU"
    return options


def copies(tensors: Sequence[Any]) -> list[Array]:
    """What tensors hold, as arrays of our own."""
    return [np.array(tensor.asnumpy(), copy=True) for tensor in tensors]


def read_index(graphs: str) -> Fields:
    """Graph -> kind, number of inputs and outputs, tolerance."""
    with open(os.path.join(graphs, INDEX_NAME), encoding="utf-8") as stream:
        index: Fields = json.load(stream)
    return index


def graphs_of_kind(kind: str) -> Callable[[Fields], Sequence[str]]:
    """Finds the graphs of one kind: they are the cases of a probe."""

    def find(index: Fields) -> Sequence[str]:
        return [name for name, facts in index.items() if facts["kind"] == kind]

    return find


def shapes_of(dims: Sequence[Any]) -> list[list[int]]:
    """A list of Dims as numbers."""
    return [[int(size) for size in each.GetDims()] for each in dims]


def names_of(values: Sequence[Any]) -> list[str]:
    """A list of enumeration members as text."""
    return [str(value).rpartition(".")[2] for value in values]


# ---- the machine -------------------------------------------------------------------------------------------------------


def describe_host(bench: Bench) -> Finding:
    """The head of the report."""
    facts: Fields = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "neuware_home": os.environ.get("NEUWARE_HOME"),
        "sdk_path": None,
        "sdk_version": None,
        "emulated": False,
        "cards": None,
        "problem": None,
    }
    try:
        package = importlib.import_module("magicmind")
        runtime = bench.sdk
    except Exception as error:  # a shared library that is missing raises ImportError, a broken one anything
        return Finding("", **dict(facts, problem=shorten(f"{type(error).__name__}: {error}")))
    facts["emulated"] = bool(getattr(package, "EMULATED", False) or getattr(runtime, "EMULATED", False))
    facts["sdk_path"] = str(getattr(package, "__file__", ""))
    version = getattr(package, "__version__", None) or getattr(runtime, "__version__", None)
    facts["sdk_version"] = None if version is None else str(version)
    counted = Attempt(bench.count)
    facts["cards"] = counted.value
    if not counted.good:
        facts["problem"] = f"device_count: {counted.text}"
    return Finding("", **facts)


HOST = Probe(
    "host", "", "What is found here?", lambda bench, _case: describe_host(bench), ("",), False, False, False, None
)


@probe(
    "foundation",
    "7.13",
    "For which architecture is a model built that this card loads and computes rightly?",
    cases=ARCHS,
    fresh=True,
)
def _foundation(bench: Bench, case: str) -> Finding:
    bench.arch = case
    feeds, expected = bench.arrays("base", "in"), bench.arrays("base", "out")
    trail = Trail()
    model = trail.make("build", bench.build, "base")
    path = os.path.join(bench.scratch, f"foundation-{case.replace(':', '-')}.mm")
    trail.call("serialize_to_file", lambda: model.serialize_to_file(path))
    loaded = bench.sdk.Model()
    trail.call("deserialize_from_file", loaded.deserialize_from_file, path)
    session = trail.make("open", lambda: Session(bench, loaded, bench.device()))
    results = trail.call("run", lambda: session.run(*feeds))
    if not trail.good:
        return trail.finding(right=False)
    verdict = compare(results[0], expected[0])
    return Finding(
        f"builds, loads and runs: {verdict}", good=True, right=verdict == "right", bytes=os.path.getsize(path)
    )


# ---- 7.1 and 7.2: what is handed over ----------------------------------------------------------------------------------

_SHAPES = {
    "dynamic, more rows than the range": ("dynamic", (RANGE[1] + 1, 8)),
    "dynamic, fewer rows than the range": ("dynamic", (RANGE[0] - 1, 8)),
    "dynamic, another size of a fixed axis": ("dynamic", (3, 9)),
    "static, more rows": ("static", (3, 8)),
    "static, fewer rows": ("static", (1, 8)),
    "static, another size of a fixed axis": ("static", (2, 7)),
}
_RANKS = {
    "dynamic, one axis more": ("dynamic", (3, 8, 1)),
    "static, one axis more": ("static", (2, 8, 1)),
    "static, one axis less": ("static", (16,)),
}


def _hand_over(bench: Bench, kind: str, shape: Sequence[int]) -> Finding:
    session = bench.session(kind)
    values = np.ones(shape, np.float32)
    outputs: list[Any] = []
    trail = Trail()
    trail.call("from_numpy", session.inputs[0].from_numpy, values)
    trail.call("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
    trail.call("sync", session.queue.sync)
    if trail.good:
        results = copies(outputs)
        fits = len(shape) == 2 and shape[1] == 8
        expected = values @ np.load(os.path.join(bench.graphs, "base.weight.npy")) if fits else None
        verdict = "" if expected is None else f", {compare(results[0], expected)}"
        trail.note(f"result {list(results[0].shape)}{verdict}")
    after = Attempt(bench.session(kind).run, bench.rows(2)[0])
    works = after.good and close(after.value[0], bench.rows(2)[1])
    return trail.finding(works_afterwards=works)


@probe(
    "shape-outside",
    "7.1",
    "What happens when a batch lies outside dim_range, or differs from a static model's shape?",
    cases=tuple(_SHAPES),
    fresh=True,
)
def _shape_outside(bench: Bench, case: str) -> Finding:
    return _hand_over(bench, *_SHAPES[case])


@probe("rank", "7.2", "Does from_numpy look at the rank?", cases=tuple(_RANKS), fresh=True)
def _rank(bench: Bench, case: str) -> Finding:
    return _hand_over(bench, *_RANKS[case])


_CASTS = {
    "float64 for FLOAT32": ("static", np.float64),
    "float16 for FLOAT32": ("static", np.float16),
    "uint8 for FLOAT32": ("static", np.uint8),
    "int32 for FLOAT32": ("static", np.int32),
    "int64 for FLOAT32": ("static", np.int64),
    "int64 for INT32": ("integers", np.int64),
    "int16 for INT32": ("integers", np.int16),
    "float32 for INT32": ("integers", np.float32),
}


@probe("casts", "7.2", "Which types does from_numpy cast, and how?", cases=tuple(_CASTS))
def _casts(bench: Bench, case: str) -> Finding:
    kind, dtype = _CASTS[case]
    session = bench.session(kind)
    values = np.arange(16 if kind == "static" else 6).reshape(2, -1).astype(dtype)
    plain = values.astype(np.float32)
    expected = plain @ np.load(os.path.join(bench.graphs, "base.weight.npy")) if kind == "static" else 2 * plain
    return _feed(session, values, lambda result: f"cast, result {compare(result, expected)}")


@probe(
    "overflow",
    "7.2",
    "What becomes of int64 values that do not fit INT32?",
    cases=("2**31 + 1", "2**32 + 5", "-2**31 - 1"),
)
def _overflow(bench: Bench, case: str) -> Finding:
    number = {"2**31 + 1": 2**31 + 1, "2**32 + 5": 2**32 + 5, "-2**31 - 1": -(2**31) - 1}[case]
    wrapped = (number + 2**31) % 2**32 - 2**31
    limit = 2**31 - 1 if number > 0 else -(2**31)
    session = bench.session("integers")
    values = np.full((2, 3), number, np.int64)

    def judge(result: Array) -> str:
        seen = float(result.flat[0]) / 2
        tolerance = 300.0  # the graph computes in float32
        for name, value in (("wraps", wrapped), ("saturates", limit), ("is kept", number)):
            if abs(seen - value) <= tolerance * (abs(value) > 2**24) + 0.5:
                return f"{name} ({seen:.0f})"
        return f"becomes {seen:.0f}"

    return _feed(session, values, judge)


@probe(
    "strides",
    "7.2",
    "Does from_numpy take arrays that are not contiguous?",
    cases=("negative stride", "transposed", "every second row", "read-only"),
)
def _strides(bench: Bench, case: str) -> Finding:
    session = bench.session("static")
    values = {
        "negative stride": np.arange(16, dtype=np.float32).reshape(2, 8)[:, ::-1],
        "transposed": np.arange(16, dtype=np.float32).reshape(8, 2).T,
        "every second row": np.arange(32, dtype=np.float32).reshape(4, 8)[::2],
        "read-only": np.arange(16, dtype=np.float32).reshape(2, 8),
    }[case]
    if case == "read-only":
        values.setflags(write=False)
    expected = np.ascontiguousarray(values) @ np.load(os.path.join(bench.graphs, "base.weight.npy"))
    return _feed(session, values, lambda result: f"result {compare(result, expected)}")


def _feed(session: Session, values: Array, judge: Callable[[Array], str]) -> Finding:
    outputs: list[Any] = []
    trail = Trail()
    trail.call("from_numpy", session.inputs[0].from_numpy, values)
    trail.call("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
    trail.call("sync", session.queue.sync)
    if trail.good:
        result = copies(outputs)[0]
        return Finding(judge(result), good=True, first=float(result.flat[0]))
    return trail.finding()


@probe(
    "array-overwritten",
    "7.2",
    "Is the array given to from_numpy copied at once?",
    cases=("overwritten before enqueue", "overwritten between enqueue and sync"),
)
def _array_overwritten(bench: Bench, case: str) -> Finding:
    session = bench.session("slow")
    old, new = _slow_inputs(bench)
    before = [session.run(each)[0] for each in (old, new)]
    ahead = _runs_worth(session, old, 0.1)
    buffer = old.copy()
    need("from_numpy", session.inputs[0].from_numpy, buffer)
    if "before enqueue" in case:
        buffer[...] = new
        ahead = 0
    waiting = [session.enqueue(old) for _ in range(ahead)]
    outputs: list[Any] = []
    need("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
    buffer[...] = new
    session.sync()
    del waiting
    return Finding(_which(copies(outputs)[0], before), runs_queued_before=ahead)


def _slow_inputs(bench: Bench) -> list[Array]:
    first = bench.arrays("slow", "in")[0]
    return [first, np.ascontiguousarray(first[::-1])]


def _which(result: Array, known: Sequence[Array]) -> str:
    if close(result, known[0]):
        return "the result is that of the old values"
    if close(result, known[1]):
        return "the result is that of the new values"
    return "the result is that of neither the old values nor the new ones"


def _runs_worth(session: Session, feed: Array, seconds: float) -> int:
    """How many runs take so long, between 1 and 64."""
    session.run(feed)
    start = time.perf_counter()
    session.run(feed)
    return int(min(64, max(1, np.ceil(seconds / max(time.perf_counter() - start, 1e-6)))))


# ---- 7.3, 7.4 and 7.14: what a model says of itself ---------------------------------------------------------------------


@probe(
    "int64-type",
    "7.3",
    "Which type has an int64 input after type64to32_conversion?",
    cases=("converted", "INT64 set by hand, converted", "INT32 set by hand, converted", "not converted"),
    card=False,
)
def _int64_type(bench: Bench, case: str) -> Finding:
    network = bench.network("integers")
    for name in ("INT64", "INT32"):
        if case.startswith(name):
            need("set_data_type", network.get_input(0).set_data_type, getattr(bench.sdk.DataType, name))
    config = bench.config(*bench.usual(narrow=case != "not converted"))
    trail = Trail()
    model = trail.make("build_model", bench.sdk.Builder().build_model, "probe", network, config)
    if not trail.good:
        return trail.finding()
    return Finding(" ".join(names_of(model.get_input_data_types())), good=True)


_DIM_CASES: dict[str, tuple[bool, Any]] = {
    "range with min = max on all axes": (True, {"0": ([2, 8], [2, 8])}),
    "range on the rows": (True, {"0": ([1, 8], [4, 8])}),
    "mutable without a range": (True, None),
    "static": (False, None),
}


@probe("dims", "7.4", "Which dims does a model report?", cases=tuple(_DIM_CASES), card=False)
def _dims(bench: Bench, case: str) -> Finding:
    mutable, ranges = _DIM_CASES[case]
    model = bench.build("base", *bench.usual(ranges=ranges, mutable=mutable))
    inputs, outputs = shapes_of(model.get_input_dimensions()), shapes_of(model.get_output_dimensions())
    return Finding(f"inputs {inputs}, outputs {outputs}", inputs=inputs, outputs=outputs)


@probe(
    "names",
    "7.14",
    "What are inputs, outputs and nodes called after parsing and building?",
    cases=("ports", "a node without a name", "two nodes of one name"),
    card=False,
)
def _names(bench: Bench, case: str) -> Finding:
    trail = Trail()
    graph = "twins" if case.startswith("two") else "names"
    network = bench.network(graph)
    nodes = [
        f"{node.get_node_name()} ({node.get_node_type()})"
        for node in trail.call("get_all_nodes_in_network", network.get_all_nodes_in_network) or []
    ]
    model = bench.build(graph)
    if case != "ports":
        return Finding(", ".join(nodes) if trail.good else trail.text, nodes=nodes)
    inputs = trail.call("get_input_names", model.get_input_names) or []
    outputs = trail.call("get_output_names", model.get_output_names) or []
    text = f"in the file 'in/put:0' and 'out/put.1'; in the model {inputs} and {outputs}"
    return Finding(text if trail.good else trail.text, inputs=list(inputs), outputs=list(outputs), nodes=nodes)


# ---- 7.5 and 7.6: tensors ----------------------------------------------------------------------------------------------


@probe(
    "asnumpy",
    "7.5",
    "Is asnumpy a copy or a view, and when is it valid?",
    cases=(
        "copy or view",
        "before sync",
        "after the next run into the same list",
        "after context and tensors are gone",
    ),
)
def _asnumpy(bench: Bench, case: str) -> Finding:
    if case == "before sync":
        return _before_sync(bench)
    session = bench.session("static")
    first, expected = bench.rows(2)
    outputs: list[Any] = []
    session.fill(session.inputs, [first])
    need("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
    session.sync()
    seen = outputs[0].asnumpy()
    kept = np.array(seen, copy=True)
    if case == "copy or view":
        again = outputs[0].asnumpy()
        view = bool(np.shares_memory(seen, again))
        return Finding("a view" if view else "a copy", writable=bool(seen.flags.writeable), right=close(kept, expected))
    if case.startswith("after the next"):
        session.fill(session.inputs, [first + 1])
        need("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
        changed_early = not np.array_equal(seen, kept)
        session.sync()
        changed = not np.array_equal(seen, kept)
        text = "an array from before changes" if changed else "an array from before stays as it was"
        return Finding(text, changed_before_sync=changed_early)
    del outputs
    session.inputs = []
    session.context = session.queue = session.engine = session.model = None
    gc.collect()
    same = np.array_equal(seen, kept)
    return Finding("the array stays as it was" if same else "the array changes")


def _before_sync(bench: Bench) -> Finding:
    session = bench.session("slow")
    feed = bench.arrays("slow", "in")[0]
    expected = session.run(feed)[0]
    waiting = [session.enqueue(feed) for _ in range(_runs_worth(session, feed, 0.1))]
    outputs = session.enqueue(feed)
    start = time.perf_counter()
    attempt = Attempt(outputs[0].asnumpy)
    milliseconds = 1000 * (time.perf_counter() - start)
    text = attempt.text if not attempt.good else compare(np.array(attempt.value, copy=True), expected)
    shape = list(attempt.value.shape) if attempt.good else None
    session.sync()
    return Finding(text, milliseconds=milliseconds, runs_queued_before=len(waiting), shape=shape)


_LISTS = (
    "the same list, same shape",
    "the same list, another shape",
    "cleared, another shape",
    "a list that is too long",
)


@probe("output-list", "7.6", "May a list of outputs be used again?", cases=_LISTS)
def _output_list(bench: Bench, case: str) -> Finding:
    session = bench.session("dynamic")
    outputs: list[Any] = []
    session.fill(session.inputs, [bench.rows(2)[0]])
    need("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
    session.sync()
    count = 2 if "same shape" in case else 3
    feed, expected = bench.rows(count)
    feed, expected = (feed[::-1], expected[::-1]) if count == 2 else (feed, expected)
    if case.startswith("cleared"):
        outputs.clear()
    if "too long" in case:
        outputs.extend(outputs)
    session.fill(session.inputs, [np.ascontiguousarray(feed)])
    trail = Trail()
    trail.call("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
    trail.call("sync", session.queue.sync)
    if trail.good:
        return Finding(f"result {compare(outputs[0].asnumpy(), expected)}", good=True, length=len(outputs))
    return trail.finding()


_INPUTS = (
    "too few tensors",
    "never filled",
    "dropped between enqueue and sync",
    "overwritten between enqueue and sync",
    "outputs of another context",
)


@probe("input-list", "7.6", "What does enqueue make of its input tensors?", cases=_INPUTS, fresh=True)
def _input_list(bench: Bench, case: str) -> Finding:
    if case == "overwritten between enqueue and sync":
        return _tensor_overwritten(bench)
    session = bench.session("two" if case == "too few tensors" else "static")
    feed, expected = bench.rows(2)
    inputs = session.inputs[:1]
    if case != "never filled":
        session.fill(inputs, [feed])
    if case == "outputs of another context":
        # MC-old tacotron2 puts outputs of one context into another's inputs; here those of a graph that passes x on.
        other = Session(bench, bench.build("passing"), session.device)
        session.queue = other.queue
        started = other.enqueue(feed)
        inputs = started[:1]
    outputs: list[Any] = []
    trail = Trail()
    trail.call("enqueue", session.context.enqueue, inputs, outputs, session.queue)
    if case.startswith("dropped"):
        del inputs
        session.inputs = []
        gc.collect()
    trail.call("sync", session.queue.sync)
    if trail.good:
        return Finding(f"result {compare(outputs[0].asnumpy(), expected)}", good=True)
    return trail.finding()


def _tensor_overwritten(bench: Bench) -> Finding:
    session = bench.session("slow")
    old, new = _slow_inputs(bench)
    known = [session.run(each)[0] for each in (old, new)]
    waiting = [session.enqueue(old) for _ in range(_runs_worth(session, old, 0.1))]
    outputs: list[Any] = []
    session.fill(session.inputs, [old])
    need("enqueue", session.context.enqueue, session.inputs, outputs, session.queue)
    trail = Trail()
    trail.call("from_numpy", session.inputs[0].from_numpy, new)
    trail.call("sync", session.queue.sync)
    if not trail.good:
        return trail.finding()
    return Finding(_which(copies(outputs)[0], known), good=True, runs_queued_before=len(waiting))


# ---- 7.7: several at a time --------------------------------------------------------------------------------------------


@probe(
    "queueing",
    "7.7",
    "How many runs can be queued, and may contexts and queues be mixed?",
    cases=("64 runs, one sync", "two contexts on one queue", "one context on two queues", "two engines of one model"),
)
def _queueing(bench: Bench, case: str) -> Finding:
    session = bench.session("static")
    feeds = [bench.rows(2)[0] + number for number in range(64 if case.startswith("64") else 2)]
    expected = [np.maximum(feed, 0) @ np.load(os.path.join(bench.graphs, "base.weight.npy")) for feed in feeds]
    if case.startswith("64"):
        started = [session.enqueue(feed) for feed in feeds]
        session.sync()
        right = [close(outputs[0].asnumpy(), want) for outputs, want in zip(started, expected)]
        return Finding("all results right" if all(right) else f"{right.count(False)} of 64 results are wrong")
    context, queues = session.context, [session.queue, session.queue]
    contexts = [context, context]
    if case == "two contexts on one queue":
        contexts[1] = need("create_i_context", session.engine.create_i_context)
    elif case == "one context on two queues":
        queues[1] = need("create_queue", session.device.create_queue)
    else:
        other = Session(bench, session.model, session.device)
        contexts[1], queues[1] = other.context, other.queue
    trail = Trail()
    kept = []
    for number, (each, queue) in enumerate(zip(contexts, queues)):
        inputs = need("create_inputs", each.create_inputs)
        session.fill(inputs, [feeds[number]])
        outputs: list[Any] = []
        trail.call(f"enqueue {number + 1}", each.enqueue, inputs, outputs, queue)
        kept.append((inputs, outputs))
    for number, queue in enumerate(queues):
        trail.call(f"sync {number + 1}", queue.sync)
    if not trail.good:
        return trail.finding()
    right = [close(outputs[0].asnumpy(), want) for (_, outputs), want in zip(kept, expected)]
    return Finding("all results right" if all(right) else f"right: {right}", good=True)


_THREADS = (
    "a context of the main thread, without active()",
    "a context of the main thread, after active()",
    "made and run in a thread, without active()",
    "two threads at a time, each with its own context",
)


@probe("threads", "7.7", "What works in another thread, and does it need Device.active() there?", cases=_THREADS)
def _threads(bench: Bench, case: str) -> Finding:
    index = bench.count() - 1  # where there are several, not the one that may be active by default
    session = bench.session("static", index)
    feed, expected = bench.rows(2)
    if case.startswith("two threads"):
        return _two_threads(bench, session)

    def work() -> str:
        trail = Trail()
        used = session
        if "after active()" in case:
            trail.call("active", session.device.active)
        if case.startswith("made"):
            used = trail.make("open", Session, bench, session.model, session.device)
        results = trail.call("run", lambda: used.run(feed))
        if trail.good:
            trail.steps = [f"result {compare(results[0], expected)}"]
        return trail.text

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        text = pool.submit(work).result()
    return Finding(text, card=index)


def _two_threads(bench: Bench, session: Session) -> Finding:
    feed, expected = bench.rows(2)
    barrier = threading.Barrier(2)

    def work(_number: int) -> str:
        need("active", session.device.active)
        own = Session(bench, session.model, session.device)
        barrier.wait()
        right = [close(own.run(feed)[0], expected) for _ in range(30)]
        return "" if all(right) else f"{right.count(False)} of 30 results are wrong"

    def safely(number: int) -> str:
        attempt = Attempt(work, number)
        if not attempt.good:
            barrier.abort()
        return str(attempt.value) if attempt.good else attempt.text

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        texts = [text for text in pool.map(safely, range(2)) if text]
    return Finding("; ".join(texts) or "all results right")


@probe("gil", "7.7", "Do enqueue and sync let other Python threads run?", cases=("sync", "enqueue"), alone=True)
def _gil(bench: Bench, case: str) -> Finding:
    session = bench.session("slow")
    feed = bench.arrays("slow", "in")[0]
    count = _runs_worth(session, feed, 0.3)
    counter = _Counter()
    with counter:
        start = time.perf_counter()
        time.sleep(0.2)
        idle_rate = counter.total / (time.perf_counter() - start)
        before, start = counter.total, time.perf_counter()
        started = [session.enqueue(feed) for _ in range(count)]
        enqueue_seconds, enqueue_ticks = time.perf_counter() - start, counter.total - before
        before, start = counter.total, time.perf_counter()
        session.sync()
        sync_seconds, sync_ticks = time.perf_counter() - start, counter.total - before
    seconds, ticks = (sync_seconds, sync_ticks) if case == "sync" else (enqueue_seconds, enqueue_ticks)
    raw = {"seconds": seconds, "ticks": ticks, "idle_ticks_per_second": idle_rate, "runs": len(started)}
    if seconds < 0.02:
        return Finding("too short to tell", **raw)
    share = ticks / seconds / max(idle_rate, 1.0)
    return Finding("other threads run" if share > 0.1 else "other threads stand still", share=share, **raw)


class _Counter:
    """A thread that counts whenever it may."""

    def __init__(self) -> None:
        self.total = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> _Counter:
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._stop.set()
        self._thread.join()

    def _count(self) -> None:
        while not self._stop.is_set():
            self.total += 1
            time.sleep(0.0005)


_FORKS = (
    "objects of the parent, in the child",
    "own objects in the child",
    "in the child of a parent that used nothing",
)


@probe("fork", "7.7", "What works after a fork?", cases=_FORKS, fresh=True)
def _fork(bench: Bench, case: str) -> Finding:
    feed, expected = bench.rows(2)
    session = None
    if "used nothing" not in case:
        session = bench.session("static")
        session.run(feed)

    def in_child() -> str:
        trail = Trail()
        used = session
        if not case.startswith("objects of the parent"):
            used = trail.make("open", bench.session, "static")
        results = trail.call("run", lambda: [] if used is None else used.run(feed))
        return f"result {compare(results[0], expected)}" if trail.good else trail.text

    text = _in_forked_child(in_child, bench.step_seconds)
    if session is None:
        return Finding(text)
    after = Attempt(session.run, feed)
    return Finding(text, parent_works_afterwards=after.good and close(after.value[0], expected))


def _in_forked_child(work: Callable[[], str], seconds: float) -> str:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        attempt = Attempt(work)
        os.write(writing, (str(attempt.value) if attempt.good else attempt.text).encode())
        os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + seconds
    status = None
    while status is None and time.monotonic() < deadline:
        ended, code = os.waitpid(pid, os.WNOHANG)
        status = code if ended else None
        time.sleep(0.02)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as stream:
        text = stream.read().decode("utf-8", "replace")
    if status is None:
        return "hangs"
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return text or f"exit code {os.WEXITSTATUS(status)}"


# ---- 7.8 and 7.9: mistakes and defaults --------------------------------------------------------------------------------

_JSON_CASES = {
    "an unknown key": '{"no_such_key": true}',
    "an unknown nested key": '{"opt_config": {"no_such_key": true}}',
    "an unknown precision": '{"precision_config": {"precision_mode": "force_float8"}}',
    "a value of a wrong type": '{"graph_shape_mutable": "perhaps"}',
    "an unknown architecture": '{"archs": ["mtp_999"]}',
    "not JSON": '{"archs": [',
    "no object": "[1, 2]",
    "a range without graph_shape_mutable": '{"graph_shape_mutable": false, "dim_range": {"0": {"min": [1, 8], "max": [4, 8]}}}',
    "a range of another rank": '{"graph_shape_mutable": true, "dim_range": {"0": {"min": [1], "max": [4]}}}',
    "a range upside down": '{"graph_shape_mutable": true, "dim_range": {"0": {"min": [4, 8], "max": [1, 8]}}}',
    "an empty object": "{}",
}


@probe("json", "7.8", "What happens to a configuration that is wrong?", cases=(*_JSON_CASES, "mlu_archs"), card=False)
def _json(bench: Bench, case: str) -> Finding:
    network = bench.network("base")
    config = bench.sdk.BuilderConfig()
    trail = Trail()
    if case == "mlu_archs":
        trail.call("mlu_archs = ['mtp_999']", setattr, config, "mlu_archs", ["mtp_999"])
    else:
        if case != "an unknown architecture":
            config = bench.config()
        trail.call("parse_from_string", config.parse_from_string, _JSON_CASES[case])
    trail.make("build_model", bench.sdk.Builder().build_model, "probe", network, config)
    return trail.finding()


_FILE_CASES = ("missing", "a directory", "empty", "random bytes", "cut short", "one byte changed", "the ONNX file")


@probe("model-file", "7.8", "What happens to a model file that is missing or damaged?", cases=_FILE_CASES, card=False)
def _model_file(bench: Bench, case: str) -> Finding:
    with open(bench.model_file("static"), "rb") as stream:
        content = stream.read()
    middle = len(content) // 2
    contents = {
        "empty": b"",
        "random bytes": np.random.RandomState(0).bytes(len(content)),
        "cut short": content[:middle],
        "one byte changed": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    }
    path = os.path.join(bench.scratch, f"damaged-{os.getpid()}.mm")
    if case in contents:
        with open(path, "wb") as stream:
            stream.write(contents[case])
    target = {"a directory": bench.scratch, "the ONNX file": bench.path("base")}.get(case, path)
    trail = Trail()
    model = bench.sdk.Model()
    trail.call("deserialize_from_file", model.deserialize_from_file, target)
    if bench.has_card():
        trail.make("create_i_engine", model.create_i_engine)
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    return trail.finding()


@probe(
    "onnx-file",
    "7.8",
    "What happens to an ONNX file that is missing or damaged?",
    cases=("missing", "a directory", "empty", "random bytes", "cut short"),
    card=False,
)
def _onnx_file(bench: Bench, case: str) -> Finding:
    with open(bench.path("base"), "rb") as stream:
        content = stream.read()
    contents = {
        "empty": b"",
        "random bytes": np.random.RandomState(0).bytes(256),
        "cut short": content[: len(content) // 2],
    }
    path = os.path.join(bench.scratch, f"damaged-{os.getpid()}.onnx")
    if case in contents:
        with open(path, "wb") as stream:
            stream.write(contents[case])
    trail = Trail()
    network = bench.sdk.Network()
    parser = bench.sdk.Parser(bench.sdk.ModelKind.kOnnx)
    trail.call("parse", parser.parse, network, bench.scratch if case == "a directory" else path)
    trail.make("build_model", bench.sdk.Builder().build_model, "probe", network, bench.config(*bench.usual()))
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    return trail.finding()


@probe("defaults", "7.9", "What does a build come to when keys are absent?", cases=("no configuration", "an empty one"))
def _defaults(bench: Bench, case: str) -> Finding:
    arguments = [] if case == "no configuration" else [bench.sdk.BuilderConfig()]
    model = need("build_model", bench.sdk.Builder().build_model, "probe", bench.network("half"), *arguments)
    path = os.path.join(bench.scratch, f"defaults-{os.getpid()}.mm")
    need("serialize_to_file", model.serialize_to_file, path)
    size = os.path.getsize(path)
    os.remove(path)
    inputs = shapes_of(model.get_input_dimensions())
    trail = Trail()
    trail.note(f"dims {inputs}")
    session = trail.make("open", lambda: Session(bench, model, bench.device()))
    result = trail.call("run", lambda: session.run(*bench.arrays("half", "in")))
    if not trail.good:
        return trail.finding(inputs=inputs, bytes=size)
    error = largest_difference(result[0], bench.arrays("half", "out")[0])
    kind = "float32" if error < 1e-4 else "float16 or less"
    shape = "fixed" if all(size > 0 for each in inputs for size in each) else "mutable"
    return Finding(f"shapes {shape}, computes in {kind}", inputs=inputs, bytes=size, error=error)


@probe("int64-default", "7.9", "Is type64to32_conversion on when the key is absent?", card=False)
def _int64_default(bench: Bench, _case: str) -> Finding:
    config = bench.config({"precision_config": {"precision_mode": "force_float32"}}, {"graph_shape_mutable": False})
    trail = Trail()
    model = trail.make("build_model", bench.sdk.Builder().build_model, "probe", bench.network("integers"), config)
    return Finding(" ".join(names_of(model.get_input_data_types()))) if trail.good else trail.finding()


# ---- 7.10: calibration -------------------------------------------------------------------------------------------------


class _Recorder:
    """Calibration batches, and a record of what is asked of them.

    Args:
        bench: where the SDK is.
        batches: one array each.
        calls: where the calls are noted, as ``0.next``.
        number: index of the network's input.
    """

    def __init__(self, bench: Bench, batches: Sequence[Array], calls: list[str], number: int) -> None:
        sdk: Any = bench.sdk
        step = [0]
        held = list(batches) or [np.zeros((2, 8), np.float32)]  # asked for too early, or where there are none

        class Data(sdk.CalibDataInterface):  # type: ignore[misc]
            def next(self) -> Any:
                calls.append(f"{number}.next")
                if step[0] >= len(batches):
                    return sdk.Status(sdk.Code.OUT_OF_RANGE, "no more data")
                step[0] += 1
                return sdk.Status.OK()

            def reset(self) -> Any:
                calls.append(f"{number}.reset")
                step[0] = 0
                return sdk.Status.OK()

            def get_sample(self) -> Array:
                calls.append(f"{number}.get_sample")
                return held[max(0, step[0] - 1)]

            def get_shape(self) -> Any:
                calls.append(f"{number}.get_shape")
                return sdk.Dims(list(held[max(0, step[0] - 1)].shape))

            def get_data_type(self) -> Any:
                calls.append(f"{number}.get_data_type")
                return getattr(sdk.DataType, "FLOAT32" if held[0].dtype == np.float32 else "INT32")

        self.data = Data()


def _batches(count: int) -> list[Array]:
    return [np.full((2, 8), 0.5 + number, np.float32) for number in range(count)]


def _quantised(bench: Bench, *parts: Fields) -> Any:
    return bench.config(*bench.usual(precision="qint8_mixed_float32"), *parts)


_CALIBRATIONS = (
    "calls, LINEAR",
    "calls, EQNM",
    "twice on one network",
    "unequal lengths",
    "no data at all",
    "an input of integers",
    "a mode that quantises nothing",
    "another batch size than the network's",
)


@probe("calibration", "7.10", "How does the calibrator go through its data?", cases=_CALIBRATIONS)
def _calibration(bench: Bench, case: str) -> Finding:
    need("active", bench.device().active)
    sdk = bench.sdk
    calls: list[str] = []
    graph = {"unequal lengths": "two", "an input of integers": "tokens"}.get(case, "base")
    lengths = {"unequal lengths": (3, 2), "no data at all": (0,)}.get(case, (3,))
    sources = [_batches(length) for length in lengths]
    if graph == "tokens":
        sources = [[np.arange(6, dtype=np.int32).reshape(2, 3)] * 3]
    if case.startswith("another batch"):
        sources = [[np.ones((3, 8), np.float32)] * 3]
    network = bench.network(graph)
    config = bench.config(*bench.usual()) if "nothing" in case else _quantised(bench)

    def calibrate() -> Any:
        data = [_Recorder(bench, batches, calls, number).data for number, batches in enumerate(sources)]
        calibrator = sdk.Calibrator(data)
        algorithm = sdk.QuantizationAlgorithm
        chosen = algorithm.EQNM_ALGORITHM if "EQNM" in case else algorithm.LINEAR_ALGORITHM
        need("set_quantization_algorithm", calibrator.set_quantization_algorithm, chosen)
        return calibrator.calibrate(network, config)

    trail = Trail()
    trail.call("calibrate", calibrate)
    if case == "twice on one network":
        trail.call("again", calibrate)
    if trail.good:
        trail.make("build_model", sdk.Builder().build_model, "probe", network, config)
    raw = {"calls": calls[:80], "next": calls.count("0.next"), "reset": calls.count("0.reset")}
    if case.startswith("calls") and trail.good:
        return Finding(_describe_calls(calls), good=True, **raw)
    return trail.finding(**raw)


def _describe_calls(calls: Sequence[str]) -> str:
    first = next((number for number, call in enumerate(calls) if call == "0.next"), len(calls))
    second = next((number for number, call in enumerate(calls) if call == "0.next" and number > first), len(calls))
    before = [call.partition(".")[2] for call in calls[:first]]
    step = [call.partition(".")[2] for call in calls[first:second]]
    passes = calls.count("0.reset")
    return (
        f"before the first next: {', '.join(before) or 'nothing'}; one step: {', '.join(step)}; "
        f"{passes} resets and {calls.count('0.next')} times next for 3 batches"
    )


# ---- 7.11: numbers -----------------------------------------------------------------------------------------------------


def _half_model(bench: Bench, graph: str, *more: Fields, precision: str = "force_float16") -> Session:
    return Session(bench, bench.build(graph, *bench.usual(precision=precision), *more), bench.device())


_HALF_CASES = ("rounding", "overflow", "subnormal numbers", "sum of 4096 ones", "matrix product")


@probe("float16", "7.11", "How does force_float16 round, and how does it accumulate?", cases=_HALF_CASES)
def _float16(bench: Bench, case: str) -> Finding:
    if case == "matrix product":
        return _half_product(bench)
    if case.startswith("sum"):
        total = float(_half_model(bench, "ones").run(np.ones((1, 4096), np.float32))[0].flat[0])
        kinds = {4096.0: "float32 (or wider)", 2048.0: "float16, one after the other"}
        return Finding(f"{total:g}: accumulated in {kinds.get(total, 'another way')}", total=total)
    numbers = {
        "rounding": [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 1.25 * 2.0**-10, 1 + 1.75 * 2.0**-10, -1 - 2.0**-11, 0, 0, 0],
        "overflow": [40000.0, -40000.0, 32752.0, 32760.0, 100000.0, 0, 0, 0],
        "subnormal numbers": [2.0**-15, 2.0**-20, 2.0**-24, 2.0**-25, 2.0**-30, 0, 0, 0],
    }[case]
    values = np.array([numbers], np.float32)
    result = _half_model(bench, "double").run(values)[0].astype(np.float64).reshape(-1)
    seen = [float(each) for each in result[:5]]
    return Finding({"rounding": _name_rounding, "overflow": _name_overflow}.get(case, _name_subnormal)(seen), seen=seen)


def _name_rounding(seen: Sequence[float]) -> str:
    ulps = tuple(round((abs(value) / 2 - 1) * 2**11, 3) for value in seen)
    known: dict[tuple[float, ...], str] = {
        (0, 4, 2, 4, 0): "to nearest, ties to even",
        (2, 4, 2, 4, 2): "to nearest, ties away from zero",
        (0, 2, 2, 2, 0): "towards zero",
        (1, 3, 2.5, 3.5, 1): "not at all",
    }
    return known.get(ulps, f"in another way: {list(ulps)} half ulps above 1")


def _name_overflow(seen: Sequence[float]) -> str:
    value = seen[0]
    if value == float("inf"):
        return "infinity"
    return (
        "saturates at 65504" if value == 65504 else "float32 range" if abs(value - 80000) < 64 else f"becomes {value:g}"
    )


def _name_subnormal(seen: Sequence[float]) -> str:
    kept = [abs(seen[number] / 2 - power) <= power / 8 for number, power in enumerate((2.0**-15, 2.0**-20, 2.0**-24))]
    if all(kept):
        return "kept"
    return "flushed to zero" if not any(seen[:3]) else f"become {seen[:3]}"


def _half_product(bench: Bench) -> Finding:
    feed, weight = bench.arrays("half", "in")[0], np.load(os.path.join(bench.graphs, "half.weight.npy"))
    result = _half_model(bench, "half").run(feed)[0].astype(np.float64)
    fits = {name: largest_difference(result, value) for name, value in half_candidates(feed, weight).items()}
    best = min(fits, key=lambda name: fits[name])
    return Finding(best, differences=fits, error=largest_difference(result, bench.arrays("half", "out")[0]))


def half_candidates(feed: Array, weight: Array) -> dict[str, Array]:
    """What a matrix product gives under each reading of ``force_float16``."""
    exact = feed.astype(np.float64) @ weight.astype(np.float64)
    rounded = feed.astype(np.float16), weight.astype(np.float16)
    wide = rounded[0].astype(np.float64) @ rounded[1].astype(np.float64)
    narrow = np.zeros(exact.shape, np.float16)
    for number in range(feed.shape[1]):  # each product and each sum rounded to float16
        narrow = (narrow + rounded[0][:, number : number + 1] * rounded[1][number]).astype(np.float16)
    return {
        "inputs rounded, accumulated in float32, result rounded": wide.astype(np.float16),
        "inputs rounded, accumulated in float32, result not rounded": wide,
        "inputs rounded, accumulated in float16": narrow,
        "inputs not rounded, result rounded": exact.astype(np.float16),
        "nothing rounded": exact,
    }


@probe(
    "preference",
    "7.11",
    "What does computation_preference change? Largest error of a product of 512 terms.",
    cases=("force_float32", *(f"force_float16, {name}" for name in ("auto", "fast", "high_precision"))),
)
def _preference(bench: Bench, case: str) -> Finding:
    precision, _, preference = case.partition(", ")
    more = [{"computation_preference": preference}] if preference else []
    result = _half_model(bench, "half", *more, precision=precision).run(*bench.arrays("half", "in"))[0]
    error = largest_difference(result, bench.arrays("half", "out")[0])
    return Finding(f"{error:.2g}", error=error)


@probe(
    "node-types",
    "7.11",
    "Does set_precision on a node change what force_float16 computes? Largest error of a product of 512 terms.",
    cases=("as built", "inputs FLOAT32", "inputs and output FLOAT32", "output of the model FLOAT16"),
)
def _node_types(bench: Bench, case: str) -> Finding:
    network = bench.network("half")
    trail = Trail()
    if "inputs" in case:
        node = next(each for each in network.get_all_nodes_in_network() if "MatMul" in each.get_node_name())
        for number in (0, 1):
            trail.call(f"set_precision {number}", node.set_precision, number, bench.sdk.DataType.FLOAT32)
        if "output" in case:
            trail.call("set_output_type", node.set_output_type, 0, bench.sdk.DataType.FLOAT32)
    elif "FLOAT16" in case:
        trail.call("set_data_type", network.get_output(0).set_data_type, bench.sdk.DataType.FLOAT16)
    config = bench.config(*bench.usual(precision="force_float16"))
    model = trail.make("build_model", bench.sdk.Builder().build_model, "probe", network, config)
    session = trail.make("open", lambda: Session(bench, model, bench.device()))
    result = trail.call("run", lambda: session.run(*bench.arrays("half", "in"))[0])
    if not trail.good:
        return trail.finding()
    error = largest_difference(result, bench.arrays("half", "out")[0])
    return Finding(f"{error:.2g}, {result.dtype}", error=error)


# ---- 7.12 and 7.13: what is parsed, and where it runs ------------------------------------------------------------------


def _try_graph(bench: Bench, graph: str) -> Finding:
    """Parse, build and run one graph; stops where it fails."""
    facts = bench.index[graph]
    trail = Trail()
    network = bench.sdk.Network()
    parser = bench.sdk.Parser(bench.sdk.ModelKind.kOnnx)
    trail.call("parse", parser.parse, network, bench.path(graph))
    config = bench.config(*bench.usual())
    model = trail.make("build", bench.sdk.Builder().build_model, "probe", network, config)
    if trail.good and not bench.has_card():
        return Finding("parses and builds; not run, for there is no card", good=True)
    session = trail.make("open", lambda: Session(bench, model, bench.device()))
    results = trail.call("run", lambda: session.run(*bench.arrays(graph, "in")))
    if not trail.good:
        return Finding(trail.steps[-1], good=False, steps=trail.steps)
    expected = bench.arrays(graph, "out")
    verdicts = [compare(got, want, facts["tolerance"]) for got, want in zip(results, expected)]
    wrong = [verdict for verdict in verdicts if verdict != "right"]
    text = f"runs: {wrong[0]}" if wrong else "right"
    return Finding(text, good=not wrong, types=[str(each.dtype) for each in results])


def _sum_up_graphs(details: Details) -> str:
    right = [name for name, fields in details.items() if fields["found"] == "right"]
    others = collections.OrderedDict((name, fields) for name, fields in details.items() if name not in right)
    text = f"{len(right)} of {len(details)} parse, build and compute rightly"
    return f"{text}; not: {list_findings(others)}" if others else text


@probe(
    "opsets",
    "7.12",
    "Which ONNX opsets are taken?",
    cases=graphs_of_kind("opset"),
    card=False,
)
def _opsets(bench: Bench, case: str) -> Finding:
    return _try_graph(bench, case)


@probe(
    "newer-operators",
    "7.12",
    "Are operators after opset 11, weights outside the file and foreign operators taken?",
    cases=graphs_of_kind("newer"),
    card=False,
)
def _newer(bench: Bench, case: str) -> Finding:
    return _try_graph(bench, case)


@probe(
    "operators",
    "7.12",
    "Which operators of the lowered graphs are parsed, built and computed rightly?",
    cases=graphs_of_kind("operator"),
    card=False,
    sum_up=_sum_up_graphs,
)
def _operators(bench: Bench, case: str) -> Finding:
    return _try_graph(bench, case)


@probe("other-arch", "7.13", "Does a model that was built for another architecture load here?", cases=ARCHS, fresh=True)
def _other_arch(bench: Bench, case: str) -> Finding:
    if case == bench.arch:
        return Finding("this card's own")
    model = bench.build("base", archs=[case])
    path = os.path.join(bench.scratch, f"other-{case}.mm")
    need("serialize_to_file", model.serialize_to_file, path)
    loaded = bench.sdk.Model()
    trail = Trail()
    trail.call("deserialize_from_file", loaded.deserialize_from_file, path)
    need("active", bench.device().active)
    trail.make("create_i_engine", loaded.create_i_engine)
    return trail.finding()


# ---- 7.15 and 7.16: devices and dimensions -----------------------------------------------------------------------------

_DEVICE_CASES = (
    "neither System nor active()",
    "engine before active()",
    "id beyond the last: active()",
    "id beyond the last: create_queue()",
    "negative id: active()",
    "after System.destory()",
)


@probe(
    "devices",
    "7.15",
    "What do System and Device.active() matter, and what of a card that is not there?",
    cases=_DEVICE_CASES,
)
def _devices(bench: Bench, case: str) -> Finding:
    feed, expected = bench.rows(2)
    trail = Trail()
    if case == "neither System nor active()":
        device = bench.device()
    elif case == "engine before active()":
        model = bench.load("static")
        trail.make("create_i_engine", model.create_i_engine)
        device = bench.device()
        trail.call("active", device.active)
    elif case == "after System.destory()":
        system = bench.sdk.System()
        trail.call("initialize", system.initialize)
        trail.call("destory", system.destory)
        device = bench.device()
        trail.call("active", device.active)
    else:
        device = bench.device(-1 if "negative" in case else 99)
        if "create_queue" in case:
            trail.make("create_queue", device.create_queue)
        else:
            trail.call("active", device.active)
        return trail.finding()
    session = trail.make("open", lambda: Session(bench, bench.load("static"), device))
    results = trail.call("run", lambda: session.run(feed))
    return Finding(f"result {compare(results[0], expected)}", good=True) if trail.good else trail.finding()


_DIMENSION_CASES = (
    "after calibrate",
    "-1, then a static build",
    "-1, then a mutable build",
    "rows outside dim_range",
    "another rank",
    "twice",
)


@probe("set-dimension", "7.16", "When may set_dimension be called, and with what?", cases=_DIMENSION_CASES, card=False)
def _set_dimension(bench: Bench, case: str) -> Finding:
    sdk = bench.sdk
    network = bench.network("base")
    tensor = network.get_input(0)
    parts = bench.usual()
    if case == "after calibrate":
        parts = bench.usual(precision="qint8_mixed_float32")
        calibrator = sdk.Calibrator([_Recorder(bench, _batches(2), [], 0).data])
        need("calibrate", calibrator.calibrate, network, bench.config(*parts))
    elif case == "-1, then a mutable build":
        parts = bench.usual(mutable=True)
    elif case == "rows outside dim_range":
        parts = bench.usual(ranges={"0": ([1, 8], [4, 8])})
    shape = {"rows outside dim_range": [9, 8], "another rank": [2, 2, 4]}.get(case, [-1, 8] if "-1" in case else [3, 8])
    trail = Trail()
    trail.call("set_dimension", tensor.set_dimension, sdk.Dims(shape))
    if case == "twice":
        trail.call("again", tensor.set_dimension, sdk.Dims([4, 8]))
    model = trail.make("build_model", sdk.Builder().build_model, "probe", network, bench.config(*parts))
    if trail.good:
        trail.note(f"dims {shapes_of(model.get_input_dimensions())}")
    return trail.finding()


# ---- 7.17 and 7.18: the binding ----------------------------------------------------------------------------------------

_RETURNS = (
    "set_model_param",
    "unmark_output",
    "mark_output",
    "to(device)",
    "to(DataType)",
    "resize",
    "reshape",
    "step_begin",
)


@probe("returns", "7.17", "What do the calls return whose answer no public script looks at?", cases=_RETURNS)
def _returns(bench: Bench, case: str) -> Finding:
    sdk = bench.sdk
    if case == "set_model_param":
        return Finding(Attempt(sdk.Parser(sdk.ModelKind.kOnnx).set_model_param, "no-such-parameter", True).text)
    if case in ("unmark_output", "mark_output"):
        network = bench.network("base")
        unmarked = Attempt(network.unmark_output, network.get_output(0))
        if case == "unmark_output":
            return Finding(unmarked.text)
        return Finding(Attempt(network.mark_output, network.find_tensor_by_name("r")).text)
    if case == "step_begin":
        options = sdk.ProfilerOptions(sdk.HostTracerLevel.kCritical, sdk.DeviceTracerLevel.kOn)
        profiler = sdk.Profiler(options, tempfile.mkdtemp(dir=bench.scratch))
        need("start", profiler.start)
        answers = [Attempt(profiler.step_begin, 0).text, Attempt(profiler.step_end).text, Attempt(profiler.stop).text]
        return Finding(answers[0], step_end=answers[1], stop=answers[2])
    session = bench.session("static")
    tensor = session.inputs[0]
    need("from_numpy", tensor.from_numpy, bench.rows(2)[0])
    calls: dict[str, Callable[[], Any]] = {
        "to(device)": lambda: tensor.to(session.device),
        "to(DataType)": lambda: tensor.to(sdk.DataType.FLOAT16),
        "resize": lambda: tensor.resize([1, 8]),
        "reshape": lambda: tensor.reshape((1, 16)),
    }
    attempt = Attempt(calls[case])
    return Finding(attempt.text, same_object=attempt.value is tensor, shape=str(Attempt(lambda: tensor.shape).value))


@probe("surface", "7.17", "Which classes, methods and keywords has the binding?", card=False)
def _surface(bench: Bench, _case: str) -> Finding:
    classes: Fields = {}
    others: Fields = {}
    for name in dir(bench.sdk):
        value = getattr(bench.sdk, name)
        if name.startswith("_"):
            continue
        if not isinstance(value, type):
            others[name] = type(value).__name__
            continue
        members = [each for each in dir(value) if not each.startswith("_") or each == "__init__"]
        classes[name] = {each: _first_lines(getattr(value, each, None)) for each in members}
    count = sum(len(members) for members in classes.values())
    return Finding(
        f"{len(classes)} classes with {count} members; listed in the JSON file", classes=classes, others=others
    )


def _first_lines(value: Any) -> str:
    """Signature lines of a docstring: where a pybind11 function keeps its keywords."""
    text = getattr(value, "__doc__", None) if callable(value) else None
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    signatures = [line for line in lines if "(" in line and "->" in line] or lines[:1]
    return " | ".join(signatures)[:300]


_ENUMS = ("DataType", "ModelKind", "QuantizationAlgorithm", "Code", "Layout", "TensorLocation")


@probe("enums", "7.18", "What kind of enumerations are these?", cases=_ENUMS, card=False)
def _enums(bench: Bench, case: str) -> Finding:
    kind = getattr(bench.sdk, case)
    members = [name for name in dir(kind) if not name.startswith("_") and type(getattr(kind, name)) is kind]
    if not members:
        return Finding(f"{type(kind).__name__} without members of its own type", names=dir(kind))
    first = getattr(kind, members[0])
    values = {name: str(Attempt(int, getattr(kind, name)).value) for name in members}
    number = Attempt(int, first)
    text = f"{type(kind).__name__}, {'int() works' if number.good else 'int() ' + number.text.split(':')[0]}"
    return Finding(
        text,
        repr=repr(first),
        str=str(first),
        int=None if not number.good else number.value,
        values=values if number.good else members,
        hashable=Attempt(hash, first).good,
        same_object=getattr(kind, members[0]) is first,
        pybind="__members__" in dir(kind) and type(kind).__name__ != "EnumMeta" and type(kind).__name__ != "EnumType",
    )


@probe("status", "7.8", "What can be learnt from a Status?", cases=("good", "bad"), card=False)
def _status(bench: Bench, case: str) -> Finding:
    sdk = bench.sdk
    status = sdk.Status.OK() if case == "good" else sdk.Status(sdk.Code.OUT_OF_RANGE, "a text")
    code = Attempt(lambda: status.code())  # noqa: PLW0108 - where there is no such method, that is the finding
    text = f"prints as '{status}', is {'true' if bool(status) else 'false'}, code(): {code.text}"
    return Finding(
        text, repr=repr(status), error_message=status.error_message(), names=[n for n in dir(status) if n[0] != "_"]
    )


# ---- 7.20: limits ------------------------------------------------------------------------------------------------------


@probe("contexts", "7.20", "How many contexts does one engine give (up to 16)?")
def _contexts(bench: Bench, _case: str) -> Finding:
    session = bench.session("static")
    feed, expected = bench.rows(2)
    contexts = [session.context]
    failure = ""
    while len(contexts) < 16 and not failure:
        made = Attempt(session.engine.create_i_context)
        if made.good and made.value is not None:
            contexts.append(made.value)
        else:
            failure = made.text
    right = []
    for context in contexts:
        session.context = context
        right.append(close(session.run(feed)[0], expected))
    text = f"{len(contexts)}" + (f", then {failure}" if failure else " or more")
    return Finding(text if all(right) else f"{text}; {right.count(False)} of them compute wrongly", right=right)


@probe("latency", "7.20", "How long does the first call of a model take, and how long the following ones?", alone=True)
def _latency(bench: Bench, _case: str) -> Finding:
    session = bench.session("static")
    feed = bench.rows(2)[0]
    milliseconds = []
    for _ in range(20):
        start = time.perf_counter()
        session.run(feed)
        milliseconds.append(1000 * (time.perf_counter() - start))
    later = float(np.median(milliseconds[1:]))
    emulated = bool(getattr(bench.sdk, "EMULATED", False))
    text = f"{'emulated: ' if emulated else ''}first {milliseconds[0]:.3g} ms, then {later:.3g} ms"
    return Finding(text, milliseconds=milliseconds, emulated=emulated)


@probe("engine-config", "7.20", "What can be set on EngineConfig, kernel_capture included?", card=False)
def _engine_config(bench: Bench, _case: str) -> Finding:
    options = bench.sdk.Model.EngineConfig()
    names = sorted({name for name in dir(options) if not name.startswith("_")} | set(getattr(options, "__dict__", {})))
    return Finding(", ".join(names) or "nothing", names=names)


@probe("two-cards", "7.20", "Can one process use two cards?")
def _two_cards(bench: Bench, _case: str) -> Finding:
    if bench.count() < 2:
        raise NotReachedError(f"this process sees {bench.count()} card")
    feed, expected = bench.rows(2)
    trail = Trail()
    for index in (0, 1):
        session = trail.make(f"open on card {index}", lambda index=index: bench.session("static", index))
        results = trail.call("run", lambda session=session: session.run(feed))
        trail.note(f"result {compare(results[0], expected)}" if trail.good else "")
    return trail.finding()


LEFT_OUT = (
    (
        "throughput",
        "7.19",
        "What are throughput and latency of CLIP on a card?",
        "measure with: clipmlu bench --tool mm_run",
    ),
    (
        "memory",
        "7.20",
        "What are the limits of memory and batch size?",
        "running a card out of memory is not safe on a shared one",
    ),
    (
        "torch-mlu",
        "7.21",
        "Does MagicMind work with tensors of torch_mlu?",
        "needs torch_mlu, which the probes do without",
    ),
)
"""(name, issue, question, reason) of what is not tried."""


# ---- the child: cases of one probe, noted as they come ------------------------------------------------------------------


def run_cases(probe_: Probe, bench: Bench, cases: Sequence[str], note: Callable[[Fields], None]) -> None:
    """Carry out cases; each is noted before it begins and when it has ended, so that a crash shows where it happened."""
    for case in cases:
        note({"case": case})
        start = time.perf_counter()
        try:
            finding, outcome = probe_.run(bench, case), ANSWERED
        except NotReachedError as error:
            finding, outcome = Finding(str(error)), NOT_REACHED
        except Exception as error:
            finding, outcome = Finding(f"raises {shorten(f'{type(error).__name__}: {error}')}"), ANSWERED
        seconds = round(time.perf_counter() - start, 4)
        found = {"outcome": outcome, "found": finding.text, "raw": plain(finding.raw), "seconds": seconds}
        note(dict(found, case=case))


def plain(value: Any) -> Any:
    """The same in types that JSON knows; NaN and infinity as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else repr(value)


def child_main(options: argparse.Namespace) -> int:
    """``--run NAME``."""
    import resource  # Unix only, as the SDK is

    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # no dumps of crashes
    chosen = HOST if options.run == HOST.name else PROBES[options.run]
    scratch = options.scratch or tempfile.mkdtemp(prefix="magicmind-probe-")
    bench = Bench(options.graphs, scratch, options.arch or ARCHS[0], options.step_seconds)
    cases = chosen.cases(bench.index) if options.cases is None else json.loads(options.cases)
    try:
        if options.notes is None:
            run_cases(chosen, bench, cases, lambda fields: print(json.dumps(fields)))
            return 0
        with open(options.notes, "a", encoding="utf-8") as stream:

            def note(fields: Fields) -> None:
                stream.write(json.dumps(fields) + "\n")
                stream.flush()

            run_cases(chosen, bench, cases, note)
    finally:
        if options.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)
    return 0


# ---- the parent: one process after the other, and the report ------------------------------------------------------------


class Ending:
    """How a child ended.

    Attributes:
        notes: what it noted.
        how: empty when all is well, else in words.
        timed_out: it took too long.
        log: the end of what it printed.
    """

    def __init__(self, notes: list[Fields], how: str, timed_out: bool, log: str) -> None:
        self.notes = notes
        self.how = how
        self.timed_out = timed_out
        self.log = log


class Conductor:
    """Runs probes in processes of their own.

    Args:
        graphs: folder of the graphs.
        scratch: folder for models and logs.
        timeout: seconds for one case.
        arch: architecture to build for, or None to find out.
    """

    def __init__(self, graphs: str, scratch: str, timeout: float, arch: str | None) -> None:
        self.arch = arch
        self.has_card = False
        self.problem = ""
        self._graphs = graphs
        self._scratch = scratch
        self._timeout = timeout
        self._index = read_index(graphs)
        self._numbers = 0
        self._lock = threading.Lock()
        self._living: dict[int, subprocess.Popen[bytes]] = {}
        self._stopped = False

    def host(self) -> Fields:
        """The head of the report, by a process that imports the SDK."""
        ending = self._run_child(HOST, [""])
        done = [note for note in ending.notes if "outcome" in note]
        if done and done[0]["raw"]:
            facts: Fields = done[0]["raw"]
        else:
            how = ending.how or (done[0]["found"] if done else "it gave no answer")
            facts = {"python": platform.python_version(), "numpy": np.__version__, "platform": platform.platform()}
            facts.update(machine=platform.machine(), neuware_home=os.environ.get("NEUWARE_HOME"), sdk_path=None)
            facts.update(sdk_version=None, emulated=False, cards=None, problem=f"import magicmind: {how}")
        facts["cnmon"] = None if facts["emulated"] else cnmon_version()
        facts["log"] = self.clean(ending.log)
        for key in ("sdk_path", "neuware_home", "problem", "cnmon"):
            facts[key] = None if facts[key] is None else self.clean(facts[key])
        self.has_card = facts["sdk_path"] is not None and facts["cards"] != 0  # None: it could not be asked
        return facts

    def find_arch(self) -> Fields:
        """Find out what to build for; the record of the probe that did."""
        first = PROBES["foundation"]
        record = self.record(first, [self.arch] if self.arch else None)
        if not runs(record, "good") and not self.arch and self.has_card:
            more = self.record(first, FALLBACKS)
            details = dict(record["details"], **more["details"])
            record = dict(more, details=details, answer=list_findings(details), outcome=outcome_of(details))
        found = runs(record, "right") or runs(record, "good")
        if found:
            self.arch = found[0]
        elif self.has_card:
            self.problem = "no architecture gave a model that is built, loaded and run: see 'foundation'"
        return record

    def record(self, probe_: Probe, cases: Sequence[str] | None = None) -> Fields:
        """Run one probe to its end."""
        start = time.monotonic()
        base = {"name": probe_.name, "issue": probe_.issue, "question": probe_.question}
        reason = "" if not probe_.card else self.problem if self.has_card else "there is no card"
        if reason or self._stopped:
            return dict(base, outcome=NOT_TRIED, answer=reason or "interrupted", details={}, log="", seconds=0.0)
        details, logs = self._run_all(probe_, probe_.cases(self._index) if cases is None else list(cases))
        answer = self._sum_up(probe_, details)
        return dict(
            base,
            outcome=outcome_of(details),
            answer=answer,
            details=details,
            log=self.clean("\n".join(logs))[-LOG_TAIL:],
            seconds=round(time.monotonic() - start, 3),
        )

    def stop(self) -> None:
        """End all children; what was not run is "not tried"."""
        with self._lock:
            self._stopped = True
            for child in self._living.values():
                kill_group(child)

    def clean(self, text: str) -> str:
        """Without host name, home directory and temporary folders."""
        for found, shown in (
            (os.path.abspath(self._scratch), "<scratch>"),
            (os.path.abspath(self._graphs), "<graphs>"),
            (os.path.expanduser("~"), "~"),
        ):
            if len(found) > 1:
                text = text.replace(found, shown)
        host = platform.node()
        return re.sub(rf"\b{re.escape(host)}\b", "<host>", text) if host else text

    def _run_all(self, probe_: Probe, cases: list[str]) -> tuple[Details, list[str]]:
        details: Details = {}
        logs: list[str] = []
        hangs = 0
        remaining = list(cases)
        while remaining and not self._stopped:
            if hangs >= MAX_TIMEOUTS:
                for case in remaining:
                    details[case] = case_fields(NOT_TRIED, f"left out after {hangs} cases that hung")
                break
            ending = self._run_child(probe_, remaining[:1] if probe_.fresh else remaining)
            self._take(ending, remaining, details)
            hangs += ending.timed_out
            if ending.log:
                logs.append(ending.log)
            remaining = [case for case in remaining if case not in details]
        for case in remaining:
            details.setdefault(case, case_fields(NOT_TRIED, "interrupted"))
        return {case: details[case] for case in cases}, logs

    def _take(self, ending: Ending, remaining: Sequence[str], details: Details) -> None:
        for note in ending.notes:
            if "outcome" in note:
                case = note.pop("case")
                details[case] = json.loads(self.clean(json.dumps(note)))
        begun = [note["case"] for note in ending.notes if "outcome" not in note and note["case"] not in details]
        left = [case for case in remaining if case not in details]
        if begun or (left and (ending.how or not ending.notes)):
            case = begun[0] if begun else left[0]
            kind = TIMED_OUT if ending.timed_out else CRASHED
            where = "" if begun else " before the case began"
            details[case] = case_fields(kind, (ending.how or "the process ended without an answer") + where)
        elif ending.how and ending.notes:
            last = [note for note in ending.notes if note][-1]
            case = last.get("case", "") if last.get("case", "") in details else list(details)[-1]
            details[case]["raw"]["process_end"] = ending.how  # all cases were through: it went wrong on leaving

    def _sum_up(self, probe_: Probe, details: Details) -> str:
        try:
            return probe_.sum_up(details)
        except Exception as error:
            return f"{list_findings(details)} (summing up failed: {error})"

    def _run_child(self, probe_: Probe, cases: Sequence[str]) -> Ending:
        with self._lock:
            self._numbers += 1
            stem = os.path.join(self._scratch, f"{probe_.name}-{self._numbers}")
        command = [sys.executable, os.path.abspath(__file__), "--run", probe_.name, "--graphs", self._graphs]
        command += ["--scratch", self._scratch, "--notes", f"{stem}.notes", "--cases", json.dumps(list(cases))]
        command += ["--step-seconds", str(self._timeout / 4), "--arch", self.arch or ARCHS[0]]
        open(f"{stem}.notes", "w").close()
        with open(f"{stem}.log", "wb") as log:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
            with self._lock:
                self._living[child.pid] = child
            try:
                timed_out = self._wait(child, f"{stem}.notes")
            finally:
                kill_group(child)  # what it may have left behind, or all of it when this process is interrupted
                child.wait()
                with self._lock:
                    del self._living[child.pid]
        how = f"no end within {self._timeout:g} s" if timed_out else describe_exit(child.returncode)
        return Ending(read_notes(f"{stem}.notes"), how, timed_out, read_tail(f"{stem}.log"))

    def _wait(self, child: subprocess.Popen[bytes], notes: str) -> bool:
        """Wait for a child; True when it had to be ended because one case took too long."""
        seen, deadline = -1, 0.0
        while child.poll() is None:
            size = os.path.getsize(notes)
            if size != seen:
                seen, deadline = size, time.monotonic() + self._timeout
            if self._stopped or time.monotonic() > deadline:
                return not self._stopped
            time.sleep(0.02)
        return False


def runs(record: Fields, how: str) -> list[str]:
    """The cases of "foundation" that are ``good`` or ``right``."""
    return [case for case, fields in record["details"].items() if fields["raw"].get(how)]


def case_fields(outcome: str, found: str) -> Fields:
    """A case that did not end by itself."""
    return {"outcome": outcome, "found": found, "raw": {}, "seconds": 0.0}


def outcome_of(details: Details) -> str:
    """A probe's outcome from its cases': the worst of them."""
    outcomes = [fields["outcome"] for fields in details.values()]
    for outcome in (CRASHED, TIMED_OUT, ANSWERED):
        if outcome in outcomes:
            return outcome
    return NOT_TRIED


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """End a child and its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def describe_exit(code: int) -> str:
    """What a return code says; empty when all is well."""
    if code >= 0:
        return f"exit code {code}" if code else ""
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def read_notes(path: str) -> list[Fields]:
    """What a child noted; a last line that is cut short is left out."""
    found = []
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
    return found


def read_tail(path: str) -> str:
    """The end of a log."""
    with open(path, "rb") as stream:
        stream.seek(max(0, os.path.getsize(path) - LOG_TAIL))
        return stream.read().decode("utf-8", "replace").strip()


def cnmon_version() -> str | None:
    """What the vendor's monitor says of its version and the driver's (api 5), or None where it is not."""
    program = shutil.which("cnmon") or "/usr/bin/cnmon"
    if not os.access(program, os.X_OK):
        return None
    try:
        done = subprocess.run(  # noqa: S603
            [program, "version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return shorten(f"{type(error).__name__}: {error}")
    return shorten(done.stdout.decode("utf-8", "replace")) or f"exit code {done.returncode}"


def conduct(conductor: Conductor, names: Sequence[str], jobs: int, save: Callable[[Fields], None]) -> Fields:
    """Run the named probes and write the report after each.

    Returns:
        The report.
    """
    host = conductor.host()
    report: Fields = {
        "format": FORMAT,
        "title": f"{'Emulated ' if host['emulated'] else ''}MagicMind SDK: what it does",
        "emulated": host["emulated"],
        "host": host,
        "arch": None,
        "records": [],
    }
    save(report)
    if host["sdk_path"] is None:
        return report
    records: dict[str, Fields] = {}

    def add(record: Fields) -> None:
        records[record["name"]] = record
        report["records"] = [records[name] for name in order if name in records]
        save(report)
        _say(f"[{len(records)}/{len(order)}] {record['name']}: {record['outcome']}")

    order = [*names, *(item[0] for item in LEFT_OUT)] if len(names) == len(PROBES) else list(names)
    if any(PROBES[name].card or name == "foundation" for name in names) or not conductor.arch:
        found = conductor.find_arch()
        report["arch"] = conductor.arch
        if "foundation" in names:
            add(found)
    chosen = [PROBES[name] for name in names if name != "foundation"]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        pending = [pool.submit(conductor.record, each) for each in chosen if not each.alone]
        try:
            for future in concurrent.futures.as_completed(pending):
                add(future.result())
            for each in chosen:
                if each.alone:
                    add(conductor.record(each))
        except KeyboardInterrupt:
            conductor.stop()
            raise
    for name, issue, question, reason in LEFT_OUT if len(names) == len(PROBES) else ():
        base = {"name": name, "issue": issue, "question": question}
        add(dict(base, outcome=NOT_TRIED, answer=reason, details={}, log="", seconds=0.0))
    return report


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def to_markdown(report: Fields) -> str:
    """The report for people."""
    host = report["host"]
    lines = [f"# {report['title']}", ""]
    if report["emulated"]:
        lines += ["**Emulated.** This is clipmlu's emulated SDK on a CPU: nothing here says anything about a card.", ""]
    for key in ("python", "numpy", "platform", "sdk_path", "sdk_version", "cards", "cnmon", "neuware_home", "problem"):
        if host[key] is not None:
            lines.append(f"- {key.replace('_', ' ')}: {_cell(host[key])}")
    lines += [
        f"- built for: {report['arch']}",
        "",
        "| issue | probe | question | outcome | answer |",
        "|---|---|---|---|---|",
    ]
    for record in report["records"]:
        row = (record["issue"], record["name"], record["question"], record["outcome"], record["answer"])
        lines.append(f"| {' | '.join(_cell(each) for each in row)} |")
    for record in report["records"]:
        if len(record["details"]) > 1:
            lines += ["", f"## {record['name']}", "", record["question"], "", "| case | found |", "|---|---|"]
            lines += [f"| {_cell(case)} | {_cell(fields['found'])} |" for case, fields in record["details"].items()]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return shorten_cell(" ".join(str(value).split()).replace("|", "\\|"))


def shorten_cell(text: str) -> str:
    """At most 600 characters; the JSON file has all of it."""
    return text if len(text) <= 600 else text[:597] + "..."


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder of our own, removed at the end."""
    path = tempfile.mkdtemp(prefix="magicmind-probe-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def write_report(output: str, report: Fields) -> None:
    """Write both files, each whole or not at all."""
    texts = {JSON_NAME: json.dumps(report, indent=1) + "\n", MARKDOWN_NAME: to_markdown(report)}
    for name, text in texts.items():
        path = os.path.join(output, name)
        with open(f"{path}.tmp", "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(f"{path}.tmp", path)


def _leave(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def parent_main(options: argparse.Namespace) -> int:
    """All probes, or some."""
    names = list(options.only or PROBES)
    unknown = sorted(set(names) - set(PROBES))
    if unknown:
        _say(f"probes: there is no probe {', '.join(unknown)}; see --list")
        return 2
    os.makedirs(options.output, exist_ok=True)
    signal.signal(signal.SIGTERM, _leave)
    with scratch_folder() as scratch:
        conductor = Conductor(options.graphs, scratch, options.timeout, options.arch)
        try:
            report = conduct(conductor, names, options.jobs, lambda report: write_report(options.output, report))
        except KeyboardInterrupt:
            if not options.called:
                _say(f"interrupted; what was found so far is in '{options.output}'")
            return 130
    if options.called:
        return 0
    if report["host"]["sdk_path"] is None:
        _say(f"probes: there is no MagicMind SDK here: {report['host']['problem']}")
        return 1
    _say(f"written: {os.path.join(options.output, MARKDOWN_NAME)} and {JSON_NAME} beside it")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(description="Find out what the MagicMind SDK does, on tiny graphs.")
    here = os.path.dirname(os.path.abspath(__file__))
    parser.add_argument(
        "--graphs", default=os.path.join(here, "graphs"), help="folder of the graphs (default: beside this file)"
    )
    parser.add_argument("--output", default=".", help="folder of the report (default: this one)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one case (default: 120)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="probes to run (default: all)")
    parser.add_argument("--arch", help="architecture to build for (default: the first that works)")
    parser.add_argument("--jobs", type=int, default=1, help="probes at a time (default: 1)")
    parser.add_argument("--list", action="store_true", help="list the probes")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--called", action="store_true", help=argparse.SUPPRESS)  # the caller says how it went
    parser.add_argument("--cases", help=argparse.SUPPRESS)
    parser.add_argument("--notes", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    parser.add_argument("--step-seconds", type=float, default=10.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here or entry == ""]
    if options.list:
        for each in PROBES.values():
            print(f"{each.issue:5} {each.name:18} {each.question}")
        return 0
    return child_main(options) if options.run else parent_main(options)


if __name__ == "__main__":
    sys.exit(main())
