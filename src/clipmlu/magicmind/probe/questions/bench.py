"""The test bench of the probes: the SDK, the graphs, and models that are built, loaded and run."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .calls import Attempt, need
from .findings import Array, Fields

INDEX_NAME = "graphs.json"


RANGE = (2, 4)  # smallest and largest batch of the model "dynamic"


class Bench:
    """The SDK, the graphs and a folder for model files; builds, loads and opens models.

    Args:
        graphs: folder with the graphs and their index.
        scratch: folder for model files, shared by all probes of a run.
        arch: the architecture to build for, or one of ``FALLBACKS``.
        step_seconds: longest time that a case may wait for something it has started.
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
        """The number of cards that this process sees."""
        with self.sdk.System() as entered:
            system = entered if hasattr(entered, "device_count") else self.sdk.System()
            return int(system.device_count())

    def has_card(self) -> bool:
        """Whether there is a card; True also where the SDK fails to count them."""
        counted = Attempt(self.count)
        return not counted.good or counted.value > 0

    def path(self, graph: str) -> str:
        """The path of a graph's ONNX file."""
        return os.path.join(self.graphs, f"{graph}.onnx")

    def arrays(self, graph: str, side: str) -> list[Array]:
        """Stored inputs (``in``) or expected outputs (``out``) of a graph."""
        count = self.index[graph][f"{side}puts"]
        return [np.load(os.path.join(self.graphs, f"{graph}.{side}{number}.npy")) for number in range(count)]

    def rows(self, count: int) -> tuple[Array, Array]:
        """Input and expected output of the graph "base" for a number of rows: float32, shapes (count, 8) and (count, 5)."""
        values = np.linspace(-1.0, 2.0, count * 8).reshape(count, 8).astype(np.float32)
        weight = np.load(os.path.join(self.graphs, "base.weight.npy"))
        return values, np.maximum(values, 0) @ weight

    # building

    def network(self, graph: str, dims: Fields | None = None) -> Any:
        """A parsed network; ``dims`` maps numbers of inputs to the shapes that they get."""
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
        """A configuration made of these parts, with one call for each, as in the vendor's samples (api 2.8)."""
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
        """The parts of an ordinary configuration (api 3); ``ranges`` maps numbers of inputs to smallest and largest shape."""
        parts: list[Fields] = [
            {"precision_config": {"precision_mode": precision}},
            {"graph_shape_mutable": mutable or bool(ranges)},
        ]
        if ranges:
            parts.append({"dim_range": {key: {"min": low, "max": high} for key, (low, high) in ranges.items()}})
        return [*parts, {"opt_config": {"type64to32_conversion": narrow}}]

    def build(self, graph: str, *parts: Fields, dims: Fields | None = None, archs: Sequence[str] | None = None) -> Any:
        """Build a model of a graph."""
        config = self.config(*(parts or self.usual()), archs=archs)
        return need("build_model", self.sdk.Builder().build_model, "probe", self.network(graph, dims), config)

    def model_file(self, kind: str) -> str:
        """The file of a model that several probes use; built first where it is missing."""
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
        """A model that several probes use, read from its file."""
        model = self.sdk.Model()
        need("deserialize_from_file", model.deserialize_from_file, self.model_file(kind))
        return model

    def device(self, index: int = 0) -> Any:
        """The card with this number."""
        device = self.sdk.Device()
        device.id = index
        return device

    def session(self, kind: str, index: int = 0) -> Session:
        """A model that several probes use, opened on a card."""
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
        """Start one batch with new tensors; returns the output tensors, and last the list of input tensors."""
        inputs: list[Any] = need("create_inputs", self.context.create_inputs)
        outputs: list[Any] = []
        self.fill(inputs, feeds)
        need("enqueue", self.context.enqueue, inputs, outputs, self.queue)
        outputs.append(inputs)  # they must live until sync; the last entry is taken off by collect
        return outputs

    def fill(self, inputs: Sequence[Any], feeds: Sequence[Array]) -> None:
        """Copy arrays into input tensors."""
        for tensor, feed in zip(inputs, feeds):
            need("from_numpy", tensor.from_numpy, feed)
            Attempt(_move, tensor, self.device)  # optional: many scripts leave it out (api 2.13)

    def sync(self) -> None:
        """Wait for all batches of the queue."""
        need("sync", self.queue.sync)

    def run(self, *feeds: Array) -> list[Array]:
        """Run one batch and return copies of the results."""
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
    """Copies of the values of tensors."""
    return [np.array(tensor.asnumpy(), copy=True) for tensor in tensors]


def read_index(graphs: str) -> Fields:
    """Read the index of the graphs: name -> ``kind``, ``inputs``, ``outputs`` (numbers) and ``tolerance``."""
    with open(os.path.join(graphs, INDEX_NAME), encoding="utf-8") as stream:
        index: Fields = json.load(stream)
    return index


def graphs_of_kind(kind: str) -> Callable[[Fields], Sequence[str]]:
    """A function that lists the graphs of one kind in an index; they are the cases of a probe."""

    def find(index: Fields) -> Sequence[str]:
        return [name for name, facts in index.items() if facts["kind"] == kind]

    return find


def shapes_of(dims: Sequence[Any]) -> list[list[int]]:
    """A list of Dims as numbers."""
    return [[int(size) for size in each.GetDims()] for each in dims]


def names_of(values: Sequence[Any]) -> list[str]:
    """A list of enumeration members as text."""
    return [str(value).rpartition(".")[2] for value in values]


def slow_inputs(bench: Bench) -> list[Array]:
    """Two different inputs of the graph "slow"."""
    first = bench.arrays("slow", "in")[0]
    return [first, np.ascontiguousarray(first[::-1])]


def runs_worth(session: Session, feed: Array, seconds: float) -> int:
    """How many runs take about this many seconds, between 1 and 64."""
    session.run(feed)
    start = time.perf_counter()
    session.run(feed)
    return int(min(64, max(1, np.ceil(seconds / max(time.perf_counter() - start, 1e-6)))))
