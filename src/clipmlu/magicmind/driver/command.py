"""All calls into the vendor's SDK: building and running models, and serving both to another process.

This package runs where the SDK lives: Python 3.7, its standard library, NumPy and ``magicmind``; nothing else of clipmlu.
clipmlu imports it where ``magicmind`` imports, starts it in another interpreter, or reaches a copy of it in a container or
on another host. The copy is one file, a zip application that ``clipmlu worker --write PATH`` writes:

    python3.7 clipmlu_worker.pyz --info                          what is found here, as JSON
    python3.7 clipmlu_worker.pyz --serve unix:/shared/mlu.sock   one Unix socket; each connection gets a process of its own
    python3.7 clipmlu_worker.pyz --serve tcp:10.0.0.5:9310       the same over TCP; needs a shared secret

The secret comes from the file given with --secret-file or from CLIPMLU_WORKER_SECRET, never from the command line. It is
proved in both directions (HMAC-SHA256 over fresh nonces) and is not sent. What follows is not encrypted: use TCP on a
network that you trust, or through a tunnel. A client may have files read that lie in the folders given with --root, or in the
working directory; never the secret, nor a file with a second name, which may lie elsewhere. It writes into a folder of its
own connection only, which goes with it. A place among --max-clients is taken after the proof. It is given back when the
client ends, when its host does not answer for a minute and a half (TCP), or when nothing was asked for --idle-seconds; a
client that was only idle connects again by itself with its next request.

What public sources leave open about the SDK ("api 7.n": section 7 of clipmlu's record of them) is not depended on: arrays
handed over are contiguous, of exactly the declared type, inside the range that the model was built for, and untouched
until ``sync``; results are copied before anything else is enqueued; every run gets a fresh outputs list; all calls of a
process come from one thread; a context stays with its own queue.
"""

from __future__ import annotations

import argparse
import array
import collections
import contextlib
import ctypes
import difflib
import errno
import faulthandler
import functools
import hashlib
import hmac
import importlib
import json
import mmap
import os
import platform
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Dict, List, Tuple

import numpy as np

FILE_NAME = "clipmlu_worker.pyz"
PROTOCOL = 1
SECRET_VARIABLE = "CLIPMLU_WORKER_SECRET"  # noqa: S105 - the name of the variable
MIN_SECRET = 16
MAX_HEADER = 1 << 20
MAX_GREETING = 1 << 12  # what a stranger may send before it has proved the secret
MAX_PAYLOAD = 2 << 30
MAX_STRANGERS = 256  # connections that have proved nothing yet
MAX_SLOTS = 64
MAX_DEPTH = 64
MAX_SECRET = 1 << 12
MAX_NAME = 64  # characters of what a worker calls a connection
CHUNK = 16 << 20
LOG_TAIL = 16 << 10
GREETING_SECONDS = 5.0
PLACE_SECONDS = 5.0  # how long a client waits for a place, which its former connection may still hold
IDLE_SECONDS = 3600.0
KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6), ("TCP_USER_TIMEOUT", 90000))
"""A host that does not answer is given up after a minute and a half; the last value is in milliseconds."""
PRECISIONS = (
    "force_float32",
    "force_float16",
    "qint8_mixed_float16",
    "qint8_mixed_float32",
    "qint16_mixed_float16",
    "qint16_mixed_float32",
)
ALGORITHMS = {"linear": "LINEAR_ALGORITHM", "eqnm": "EQNM_ALGORITHM"}
DATA_TYPES = {
    "FLOAT16": "float16",
    "FLOAT32": "float32",
    "FLOAT64": "float64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "BOOL": "bool",
}
"""Members of the SDK's DataType (api 2.3) and the NumPy types that they stand for; nothing else travels on the wire."""
ERROR_KINDS = (
    *("status", "device_lost", "out_of_memory", "none", "exception", "unexpected", "import", "model", "device"),
    *("shape", "spec", "calibration", "not_finite", "bug"),
)
"""What a ``DriverError`` is about."""

Array = np.ndarray
Fields = Dict[str, Any]


# ---- errors ----------------------------------------------------------------------------------------------------------


class DriverError(Exception):
    """A call into the SDK failed, or was not made because it could not have worked.

    Attributes:
        call: the SDK's function, such as ``"enqueue"``, or the driver's own step, such as ``"check_shape"``.
        status: what the SDK answered (code and message as it prints them), or what is wrong.
        arguments: the call's arguments, each as a short text.
        kind: ``status`` a bad Status; ``device_lost`` and ``out_of_memory`` the same where its text says so; ``none`` a
            factory answered None; ``exception`` the SDK raised; ``unexpected`` it answered with something else; ``import``
            it cannot be imported; ``model`` a model file that it does not take; ``device`` there is no such card; ``shape``
            a batch, and ``spec`` a request, that does not fit; ``calibration`` its data; ``not_finite`` results are NaN or
            infinite twice in a row; ``bug`` an error of this file.
    """

    def __init__(self, call: str, status: str, arguments: Sequence[str] = (), kind: str = "status") -> None:
        super().__init__(f"{call}({', '.join(arguments)}): {status}")
        self.call = call
        self.status = status
        self.arguments = tuple(arguments)
        self.kind = kind

    def to_json(self) -> Fields:
        """For the wire."""
        status, arguments = self.status[:LOG_TAIL], list(self.arguments)
        return {"call": self.call, "status": status, "arguments": arguments, "kind": self.kind}

    @classmethod
    def from_json(cls, value: Any) -> DriverError:
        """The reverse of ``to_json``; its texts become one line, whoever wrote them.

        Raises:
            ProtocolError: it is no error.
        """
        form = {"call": str, "status": str, "arguments": _TEXTS, "kind": str}
        fits = isinstance(value, dict) and all(_fits(value.get(key), each) for key, each in form.items())
        if not fits or value["kind"] not in ERROR_KINDS:
            raise ProtocolError(f"an error that is none: {_shown(value)}")
        arguments = [printable(item, 200) for item in value["arguments"][:16]]
        return cls(printable(value["call"], 200), printable(value["status"], 2000), arguments, value["kind"])


class ProtocolError(Exception):
    """The other side sent what the protocol does not allow; the connection is of no more use."""


class GreetingError(Exception):
    """The other side will not talk to us, and trying again will not change that."""


class DeadlineError(Exception):
    """The other side took too long."""


# ---- calling the SDK: every Status, every None and every exception is looked at here, and nowhere else -----------------


def invoke(call: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the SDK; whether it raises or answers with a Status is not known for many mistakes (api 7.8)."""
    try:
        return function(*arguments)
    except Exception as error:
        raise DriverError(call, f"{type(error).__name__}: {error}", _brief(arguments), "exception") from error


def check_status(call: str, answer: Any, arguments: Sequence[Any] = ()) -> None:
    """Raise unless ``answer`` is a good Status."""
    if not _is_status(answer):
        raise DriverError(call, f"answered {answer!r} instead of a Status", _brief(arguments), "unexpected")
    if not answer.ok():
        text = str(answer)
        raise DriverError(call, text, _brief(arguments), _kind_of(text))


def checked(call: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Make a call that answers with a Status."""
    check_status(call, invoke(call, function, *arguments), arguments)


def made(call: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Make a call that answers with an object; None and a Status are failures."""
    answer = invoke(call, function, *arguments)
    if answer is None:
        raise DriverError(call, "answered None; the SDK's log says why", _brief(arguments), "none")
    if _is_status(answer):
        text = str(answer)
        raise DriverError(call, text, _brief(arguments), _kind_of(text))
    return answer


def made_list(call: str, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Make a call that answers with a list, or with a Status when it fails (api 2.12)."""
    answer = made(call, function, *arguments)
    if not isinstance(answer, list):
        raise DriverError(call, f"answered {answer!r} instead of a list", _brief(arguments), "unexpected")
    return answer


def optional(call: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Make a call whose answer is not documented (api 7.17): a bad Status is a failure, anything else is not."""
    answer = invoke(call, function, *arguments)
    if _is_status(answer):
        check_status(call, answer, arguments)


def _is_status(answer: Any) -> bool:
    return callable(getattr(answer, "ok", None)) and callable(getattr(answer, "error_message", None))


def _kind_of(text: str) -> str:
    """What a Status is about. Only its text can be read from Python (api 2.1), and how it prints is not known."""
    lowered = text.lower()
    if "unavailable" in lowered or "device lost" in lowered or "device is lost" in lowered:
        return "device_lost"
    if "resource_exhausted" in lowered or "out of memory" in lowered or "out of device memory" in lowered:
        return "out_of_memory"
    return "status"


def _brief(arguments: Sequence[Any]) -> list[str]:
    return [_brief_one(argument) for argument in arguments]


def _brief_one(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, (list, tuple)) and not all(isinstance(item, (int, float, str)) for item in value):
        return f"[{len(value)} items]"
    text = str(value) if hasattr(value, "GetDims") else repr(value)
    if re.match(r"<.* object at 0x[0-9a-f]+>\Z", text):
        text = type(value).__name__
    return text if len(text) <= 200 else text[:197] + "..."


# ---- the SDK's own values ----------------------------------------------------------------------------------------------


def load_sdk() -> Any:
    """``magicmind.python.runtime``, usually called ``mm`` (api 1)."""
    try:
        from magicmind.python import runtime
    except Exception as error:  # a shared library that is missing raises ImportError, a broken one anything
        raise DriverError(
            "import magicmind.python.runtime", f"{type(error).__name__}: {error}", kind="import"
        ) from error
    return runtime


def is_emulated(sdk: Any) -> bool:
    """Whether this is clipmlu's emulated SDK, which says so of itself."""
    return bool(getattr(sdk, "EMULATED", False))


def _parser_module() -> Any:
    """Where some samples find the parser (MC framework_parser.py); others take it from the runtime."""
    return importlib.import_module("magicmind.python.runtime.parser")


def data_type_of(sdk: Any, name: str) -> Any:
    """The member of DataType called ``name``, by its own name or NumPy's."""
    known = {numpy_name: member for member, numpy_name in DATA_TYPES.items()}
    member = known.get(name, name)
    if member not in DATA_TYPES or not hasattr(sdk.DataType, member):
        raise DriverError("DataType", f"there is no type '{name}'; known: {', '.join(DATA_TYPES)}", kind="spec")
    return getattr(sdk.DataType, member)


def dtype_of(sdk: Any, data_type: Any) -> str:
    """NumPy's name of a DataType; by comparison, because whether members convert to anything is not known (api 7.18)."""
    for member, name in DATA_TYPES.items():
        if getattr(sdk.DataType, member, None) == data_type:
            return name
    raise DriverError("DataType", f"{data_type} has no NumPy type", kind="unexpected")


def describe_ports(sdk: Any, model: Any) -> Fields:
    """Shapes and types of a model's inputs and outputs, as it reports them; -1 is an axis that may vary."""
    facts = {}
    for side in ("input", "output"):
        dims = made_list(f"get_{side}_dimensions", getattr(model, f"get_{side}_dimensions"))
        types = made_list(f"get_{side}_data_types", getattr(model, f"get_{side}_data_types"))
        if len(dims) != len(types):
            raise DriverError("describe_ports", f"{len(dims)} {side} shapes and {len(types)} types", kind="unexpected")
        facts[f"{side}s"] = [
            {"shape": [int(size) for size in shape.GetDims()], "dtype": dtype_of(sdk, kind)}
            for shape, kind in zip(dims, types)
        ]
    return facts


class Cards:
    """The cards of this process; makes the right one active for the calling thread before anything is done on it.

    Whether ``active()`` holds for the thread or the process is not known (api 7.15); C++ code sets it per thread.
    """

    def __init__(self, sdk: Any) -> None:
        self._sdk = sdk
        self._devices: dict[int, Any] = {}
        self._active: int | None = None

    def count(self) -> int:
        """Number of cards that this process sees."""
        with self._sdk.System() as entered:  # the sample uses the object that it made, not what the block gives
            system = entered if hasattr(entered, "device_count") else self._sdk.System()
            return int(invoke("device_count", system.device_count))

    def use(self, index: int) -> Any:
        """The card, active in this thread."""
        if index not in self._devices:
            count = self.count()
            if not 0 <= index < count:
                raise DriverError("Device", f"there is no card {index}; this process sees {count}", kind="device")
            device = invoke("Device", self._sdk.Device)
            device.id = index
            self._devices[index] = device
        device = self._devices[index]
        if self._active != index:
            self._active = None
            checked(f"active of card {index}", device.active)
            self._active = index
        return device

    def forget(self) -> None:
        """Let go of the devices."""
        self._devices.clear()
        self._active = None


# ---- building ----------------------------------------------------------------------------------------------------------

_TEXTS = [str]
_SIZES = [int]
_NUMBERS = [(int, float)]
BUILD_FORM: Fields = {
    "onnx": str,
    "output": str,
    "label": str,
    "precision": str,
    "granularity": str,
    "activation": str,
    "archs": {"*": _SIZES},
    "mutable": bool,
    "inputs": [dict],
    "outputs": [dict],
    "type64to32": bool,
    "conv_scale_fold": bool,
    "computation_preference": str,
    "toolchain": (str, None),
    "nodes": ({"*": (str, dict)}, None),
    "calibration": (dict, None),
    "extra": (dict, None),
}
INPUT_FORM: Fields = {
    "shape": _SIZES,
    "min": _SIZES,
    "max": _SIZES,
    "dtype": (str, None),
    "mean": _NUMBERS,
    "var": _NUMBERS,
    "layout": (_TEXTS, None),
}
NODE_FORM: Fields = {"inputs": {"*": str}, "outputs": {"*": str}}
OUTPUT_FORM: Fields = {"dtype": (str, None), "layout": (_TEXTS, None)}
CALIBRATION_FORM: Fields = {
    "algorithm": str,
    "data": [dict],
    "remote": (str, None),
    "remote_device": (int, None),
    "device": (int, None),
}
SOURCE_FORM: Fields = {"arrays": [(int, np.ndarray)], "files": _TEXTS, "file": str, "batch": int, "repeat": bool}
"""Key -> what its value must be; see ``_fits``."""


def build(sdk: Any, cards: Cards, spec: Fields) -> Fields:
    """Build a model and write its file.

    Args:
        sdk: ``magicmind.python.runtime``.
        cards: the cards of this process.
        spec: what to build:

            onnx, output: paths of the source and of the model file; the latter appears when it is complete.
            label: a free text; default ``"clipmlu"``.
            precision: one of ``PRECISIONS``.
            archs: architecture -> cluster counts, such as ``{"mtp_372": [2, 6, 8]}``; an empty list names none.
            mutable: shapes may vary at run time, within each input's ``min`` and ``max``.
            inputs: for each network input in order: ``shape``; ``min`` and ``max`` shapes; ``dtype`` at run time;
                ``mean`` and ``var`` per channel for uint8 input; ``layout`` as (source, destination).
            outputs: for each output, if anything is to change: ``dtype`` and ``layout``.
            granularity, activation: ``per_tensor`` or ``per_axis``; ``symmetric`` or ``asymmetric``; for the qint modes.
            type64to32, conv_scale_fold: default true; computation_preference: default ``auto``.
            toolchain: path for edge builds.
            nodes: exact node name -> a float type for all its float inputs and outputs, or
                ``{"inputs": {index: type}, "outputs": {index: type}}``.
            calibration: for the qint modes: ``algorithm`` (``linear``, ``eqnm``), ``data`` (see ``Batches``) for each
                input, ``remote`` (``ip:port``), ``remote_device``, ``device`` to make active first.
            extra: any further configuration of the SDK, merged last, so that it wins.

    Returns:
        ``inputs`` and ``outputs`` as the model reports them, ``bytes``, ``calibration_batches`` and ``warnings``.

    Raises:
        DriverError: which step failed and why.
    """
    return _Build(sdk, cards, spec).run()


class _Build:
    def __init__(self, sdk: Any, cards: Cards, spec: Fields) -> None:
        _check_spec(spec)
        self._sdk = sdk
        self._cards = cards
        self._spec = spec
        self._inputs: list[Fields] = list(spec["inputs"])
        self._quantised = "qint" in spec["precision"]
        self._batches = 0
        self._warnings: list[str] = []

    def run(self) -> Fields:
        """The order of the calls is that of the vendor's CLIP sample (api 6.2)."""
        sdk, spec = self._sdk, self._spec
        network = invoke("Network", sdk.Network)
        self._parse(network)
        self._set_dimensions(network)
        self._set_node_types(network)
        config = self._configure()
        if self._quantised:
            self._calibrate(network, config)
        self._set_io_types(network)
        builder = invoke("Builder", sdk.Builder)
        model = made("build_model", builder.build_model, spec.get("label", "clipmlu"), network, config)
        size = self._serialize(model)
        facts = describe_ports(sdk, model)
        facts.update(bytes=size, calibration_batches=self._batches, warnings=self._warnings)
        return facts

    def _parse(self, network: Any) -> None:
        path = self._spec["onnx"]
        if not os.path.isfile(path):
            raise DriverError("parse", f"there is no file '{path}'", kind="spec")
        parser_class = getattr(self._sdk, "Parser", None) or _parser_module().Parser
        parser = invoke("Parser", parser_class, self._sdk.ModelKind.kOnnx)
        checked("parse", parser.parse, network, path)
        count = invoke("get_input_count", network.get_input_count)
        if count != len(self._inputs):
            raise DriverError(
                "parse", f"'{path}' has {count} inputs; the request describes {len(self._inputs)}", kind="spec"
            )
        outputs = invoke("get_output_count", network.get_output_count)
        if len(self._spec.get("outputs", ())) > outputs:
            raise DriverError("parse", f"'{path}' has {outputs} outputs; the request describes more", kind="spec")

    def _set_dimensions(self, network: Any) -> None:
        for index, item in enumerate(self._inputs):
            tensor = made("get_input", network.get_input, index)
            checked("set_dimension", tensor.set_dimension, self._sdk.Dims(list(item["shape"])))

    def _set_node_types(self, network: Any) -> None:
        wanted = self._spec.get("nodes") or {}
        if not wanted:
            return
        nodes = made_list("get_all_nodes_in_network", network.get_all_nodes_in_network)
        by_name = {node.get_node_name(): node for node in nodes}
        for name, types in wanted.items():
            if name not in by_name:
                close = difflib.get_close_matches(name, list(by_name), n=3)
                hint = f"; close: {', '.join(close)}" if close else ""
                raise DriverError("set_precision", f"the network has no node '{name}'{hint}", kind="spec")
            self._set_types_of(by_name[name], types)

    def _set_types_of(self, node: Any, types: Any) -> None:
        if isinstance(types, str):
            inputs = [i for i in range(node.get_input_count()) if self._is_float(node.get_input, i)]
            outputs = [i for i in range(node.get_output_count()) if self._is_float(node.get_output, i)]
            types = {"inputs": dict.fromkeys(inputs, types), "outputs": dict.fromkeys(outputs, types)}
        for index, name in types.get("inputs", {}).items():
            checked("set_precision", node.set_precision, int(index), data_type_of(self._sdk, name))
        for index, name in types.get("outputs", {}).items():
            checked("set_output_type", node.set_output_type, int(index), data_type_of(self._sdk, name))

    def _is_float(self, get: Callable[[int], Any], index: int) -> bool:
        data_type = made("get_data_type", made("get_input or get_output of a node", get, index).get_data_type)
        return dtype_of(self._sdk, data_type).startswith("float")

    def _configure(self) -> Any:
        config = invoke("BuilderConfig", self._sdk.BuilderConfig)
        archs = self._spec["archs"]
        invoke("mlu_archs", setattr, config, "mlu_archs", list(archs))
        for part in self._settings():
            # One call for each setting, as the samples do: a bad Status then names the setting that the SDK refuses.
            checked("parse_from_string", config.parse_from_string, json.dumps(part))
        return config

    def _settings(self) -> Iterable[Fields]:
        spec = self._spec
        yield {"precision_config": {"precision_mode": spec["precision"]}}
        if self._quantised:
            yield {"precision_config": {"weight_quant_granularity": spec.get("granularity", "per_tensor")}}
            yield {"precision_config": {"activation_quant_algo": spec.get("activation", "symmetric")}}
        archs = spec["archs"]
        yield {"archs": [{name: list(counts)} if counts else name for name, counts in archs.items()]}
        yield {"graph_shape_mutable": bool(spec.get("mutable", False))}
        for key, value in (("dim_range", self._ranges()), ("insert_bn_before_firstnode", self._normalisations())):
            if value:
                yield {key: value}
        for side in ("input", "output"):
            layouts = self._layouts(self._spec.get(f"{side}s", ()))
            if layouts:
                yield {f"convert_{side}_layout": layouts}
        yield {"computation_preference": spec.get("computation_preference", "auto")}
        yield {"opt_config": {"type64to32_conversion": bool(spec.get("type64to32", True))}}
        yield {"opt_config": {"conv_scale_fold": bool(spec.get("conv_scale_fold", True))}}
        if spec.get("toolchain"):
            yield {"cross_compile_toolchain_path": spec["toolchain"]}
        if spec.get("extra"):
            yield spec["extra"]

    def _ranges(self) -> Fields:
        if not self._spec.get("mutable", False):
            return {}
        named = {str(i): item for i, item in enumerate(self._inputs) if "min" in item}
        return {index: {"min": list(item["min"]), "max": list(item["max"])} for index, item in named.items()}

    def _normalisations(self) -> Fields:
        named = {str(i): item for i, item in enumerate(self._inputs) if "mean" in item}
        return {index: {"mean": list(item["mean"]), "var": list(item["var"])} for index, item in named.items()}

    @staticmethod
    def _layouts(items: Sequence[Fields]) -> Fields:
        named = {str(i): item["layout"] for i, item in enumerate(items) if item.get("layout")}
        return {index: {"src": pair[0], "dst": pair[1]} for index, pair in named.items()}

    def _calibrate(self, network: Any, config: Any) -> None:
        spec = self._spec["calibration"]
        sources = read_sources(spec["data"], narrow=bool(self._spec.get("type64to32", True)))
        if len(sources) != len(self._inputs):
            status = f"{len(sources)} data sources for {len(self._inputs)} inputs"
            raise DriverError("calibrate", status, kind="calibration")
        if spec.get("device") is not None and not spec.get("remote"):
            self._cards.use(int(spec["device"]))
        data = make_calibration_data(self._sdk, sources)
        calibrator = invoke("Calibrator", self._sdk.Calibrator, data)
        algorithm = getattr(self._sdk.QuantizationAlgorithm, ALGORITHMS[spec.get("algorithm", "linear")])
        checked("set_quantization_algorithm", calibrator.set_quantization_algorithm, algorithm)
        if spec.get("remote"):
            remote = invoke("RemoteConfig", self._sdk.RemoteConfig)
            remote.address = spec["remote"]
            if spec.get("remote_device") is not None:
                remote.device_id = int(spec["remote_device"])  # an attribute in C++ only (S#49026245355)
            optional("set_remote", calibrator.set_remote, remote)
        try:
            checked("calibrate", calibrator.calibrate, network, config)
        finally:
            for item in data:
                item.raise_failure()
        self._batches = min(item.delivered for item in data)
        steps = max(len(source) for source in sources)
        if self._batches < steps:
            self._warnings.append(f"calibration took {self._batches} of {steps} batches")

    def _set_io_types(self, network: Any) -> None:
        for side, get in (("inputs", network.get_input), ("outputs", network.get_output)):
            for index, item in enumerate(self._spec.get(side, ())):
                if item.get("dtype"):
                    tensor = made(f"get_{side[:-1]}", get, index)
                    checked("set_data_type", tensor.set_data_type, data_type_of(self._sdk, item["dtype"]))

    def _serialize(self, model: Any) -> int:
        output = self._spec["output"]
        temporary = f"{output}.part-{os.getpid()}"
        try:
            checked("serialize_to_file", model.serialize_to_file, temporary)
            size = os.path.getsize(temporary) if os.path.isfile(temporary) else 0
            if not size:
                raise DriverError("serialize_to_file", "answered OK and wrote no file", [repr(temporary)], "unexpected")
            os.replace(temporary, output)
        finally:
            with contextlib.suppress(OSError):
                os.remove(temporary)
        return size


def _check_spec(spec: Fields) -> None:
    """Refuse what is misspelt or contradictory before the SDK sees it: what it would make of it is not known (api 7.8)."""
    _check_form("build", spec, BUILD_FORM, ("onnx", "output", "precision", "archs", "inputs"))
    for item in spec["inputs"]:
        _check_form("inputs", item, INPUT_FORM, ("shape",))
        if any(size < 1 for size in item["shape"]):
            raise DriverError("build", f"shape is {item['shape']}; expected sizes of 1 or more", kind="spec")
        if ("min" in item) != ("max" in item) or ("mean" in item) != ("var" in item):
            raise DriverError("build", "min needs max, and mean needs var", kind="spec")
    for item in spec.get("outputs", ()):
        _check_form("outputs", item, OUTPUT_FORM, ())
    for name, types in (spec.get("nodes") or {}).items():
        _check_node(name, types)
    for item in [*spec["inputs"], *spec.get("outputs", ())]:
        if len(item.get("layout") or "ab") != 2:
            raise DriverError("build", f"layout is {item['layout']}; expected source and destination", kind="spec")
    if spec["precision"] not in PRECISIONS:
        raise DriverError("build", f"precision is '{spec['precision']}'; known: {', '.join(PRECISIONS)}", kind="spec")
    if "qint" in spec["precision"] or spec.get("calibration"):
        _check_calibration(spec)


def _check_node(name: str, types: Any) -> None:
    if isinstance(types, str):
        return
    _check_form(f"node '{name}'", types, NODE_FORM, ())
    if not all(re.match(r"[0-9]{1,4}\Z", index) for side in types.values() for index in side):
        raise DriverError("build", f"node '{name}': {_shown(types)}; expected numbers as keys", kind="spec")


def _check_calibration(spec: Fields) -> None:
    calibration = spec.get("calibration")
    if not calibration:
        raise DriverError("build", f"{spec['precision']} needs calibration data", kind="calibration")
    _check_form("calibration", calibration, CALIBRATION_FORM, ("data",))
    algorithm = calibration.get("algorithm", "linear")
    if algorithm not in ALGORITHMS:
        raise DriverError("build", f"algorithm is '{algorithm}'; known: {', '.join(ALGORITHMS)}", kind="spec")
    if algorithm == "eqnm" and spec.get("activation", "symmetric") != "symmetric":  # MC hoitransformer comment
        raise DriverError("build", "eqnm works with symmetric activations only", kind="spec")


def _check_form(place: str, value: Fields, form: Fields, needed: Iterable[str]) -> None:
    unknown, missing = sorted(set(value) - set(form)), sorted(set(needed) - set(value))
    if unknown or missing:
        raise DriverError("build", f"{place}: unknown keys {unknown}, missing keys {missing}", kind="spec")
    for key, item in value.items():
        if not _fits(item, form[key]):
            raise DriverError("build", f"{place}: '{key}' is {_shown(item)}", kind="spec")


def _fits(value: Any, form: Any) -> bool:
    """Whether a value has a form: a type, None, several forms, ``[form of each item]`` or ``{"*": form of each value}``."""
    if isinstance(form, tuple):
        return any(_fits(value, each) for each in form)
    if isinstance(form, list):
        return isinstance(value, (list, tuple)) and all(_fits(item, form[0]) for item in value)
    if isinstance(form, dict):
        return isinstance(value, dict) and all(_fits(item, form["*"]) for item in value.values())
    if form is None:
        return value is None
    return isinstance(value, form) and (form is bool or not isinstance(value, bool))


def _shown(value: Any) -> str:
    """A value for a message, in one line that is not long."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


# ---- calibration -------------------------------------------------------------------------------------------------------


class Batches:
    """The calibration batches of one input, one at a time.

    Args:
        source: ``arrays``: a list of arrays, one batch each; or ``files``: ``.npy`` files, one batch each; or ``file`` and
            ``batch``: one ``.npy`` file that is cut into batches along its first axis, a short rest included. With
            ``repeat`` the only batch is given again at each step, as a fixed set of texts is.
        narrow: hand over int64 as int32, as the vendor's CLIP sample does (api 6.3).
    """

    def __init__(self, source: Fields, narrow: bool) -> None:
        _check_form("calibration data", source, SOURCE_FORM, ())
        self.repeat = bool(source.get("repeat", False))
        self._narrow = narrow
        self._pieces = self._cut(source)
        if not self._pieces or (self.repeat and len(self._pieces) != 1):
            status = f"a data source has {len(self._pieces)} batches; expected 1 or more, and exactly 1 to repeat"
            raise DriverError("calibrate", status, kind="calibration")

    def __len__(self) -> int:
        return len(self._pieces)

    def load(self, index: int) -> Array:
        """One batch, contiguous; a repeated one for any index."""
        batch = self._pieces[0 if self.repeat else index]()
        if batch.dtype == np.int64 and self._narrow:
            batch = narrowed(batch, "calibrate")
        return np.ascontiguousarray(batch)

    @staticmethod
    def _cut(source: Fields) -> list[Callable[[], Array]]:
        if not {"arrays", "files", "file"} & set(source) or ("file" in source and int(source.get("batch", 0)) < 1):
            raise DriverError(
                "calibrate", "a data source needs arrays, files, or a file and a batch", kind="calibration"
            )
        if "arrays" in source:
            return [functools.partial(_as_given, item) for item in source["arrays"]]
        if "files" in source:
            return [functools.partial(_load_npy, path) for path in source["files"]]
        rows, size = _load_npy(source["file"]), int(source["batch"])
        starts = range(0, len(rows), size)
        return [functools.partial(_rows_of, rows, start, start + size) for start in starts]


def _as_given(item: Array) -> Array:
    return np.asarray(item)


def _rows_of(rows: Array, start: int, stop: int) -> Array:
    return rows[start:stop]


def _load_npy(path: str) -> Array:
    try:
        loaded: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy's reader raises many kinds for a damaged file
        raise DriverError("calibrate", f"cannot read '{path}': {error}", kind="calibration") from error
    if not isinstance(loaded, np.ndarray) or not loaded.ndim:
        raise DriverError("calibrate", f"'{path}' holds no array of rows", kind="calibration")
    return loaded


def read_sources(items: Sequence[Fields], narrow: bool) -> list[Batches]:
    """The data of all inputs; those that do not repeat must have the same number of batches (api 7.10)."""
    sources = [Batches(item, narrow) for item in items]
    lengths = sorted({len(source) for source in sources if not source.repeat})
    if len(lengths) > 1:
        raise DriverError("calibrate", f"the inputs have different numbers of batches: {lengths}", kind="calibration")
    return sources


def make_calibration_data(sdk: Any, sources: Sequence[Batches]) -> list[Any]:
    """One ``CalibDataInterface`` for each input (api 2.10), all of the same length.

    An exception must not cross the SDK's code: it is kept, the data end, and ``raise_failure`` raises it afterwards.
    """
    steps = max(len(source) for source in sources)

    class Data(sdk.CalibDataInterface):  # type: ignore[misc]
        def __init__(self, source: Batches) -> None:
            super().__init__()
            self.delivered = 0
            self._source = source
            self._step = 0
            self._failure: Exception | None = None
            self._batch = source.load(0)

        def next(self) -> Any:
            if self._step >= steps:
                return sdk.Status(sdk.Code.OUT_OF_RANGE, "end of the calibration data")
            try:
                self._batch = self._source.load(self._step)
            except Exception as error:
                self._failure = error
                return sdk.Status(sdk.Code.OUT_OF_RANGE, "the calibration data cannot be read")
            self._step += 1
            self.delivered = max(self.delivered, self._step)
            return sdk.Status.OK()

        def reset(self) -> Any:
            self._step = 0
            return sdk.Status.OK()

        def get_sample(self) -> Array:
            return self._batch

        def get_shape(self) -> Any:
            return sdk.Dims(list(self._batch.shape))

        def get_data_type(self) -> Any:
            return data_type_of(sdk, self._batch.dtype.name)

        def raise_failure(self) -> None:
            if self._failure is not None:
                raise DriverError("calibrate", str(self._failure), kind="calibration") from self._failure

    return [Data(source) for source in sources]


def narrowed(values: Array, call: str) -> Array:
    """int64 as int32; what the SDK does with values that do not fit is not known (api 7.2), so they are refused."""
    limits = np.iinfo(np.int32)
    if values.size and (values.min() < limits.min or values.max() > limits.max):
        raise DriverError(call, f"values {values.min()}..{values.max()} do not fit INT32", kind="shape")
    return values.astype(np.int32)


# ---- running -----------------------------------------------------------------------------------------------------------


class BatchTimes:
    """When one batch passed which point, in seconds of ``time.perf_counter``.

    Args:
        copied_in: when copying its inputs to the card began.
        enqueued: when that was done and its work was handed to the queue.

    Attributes:
        synced: when ``sync`` came back.
        copied_out: when its results were copied from the card.
    """

    def __init__(self, copied_in: float = 0.0, enqueued: float = 0.0) -> None:
        self.copied_in = copied_in
        self.enqueued = enqueued
        self.synced = enqueued
        self.copied_out = enqueued

    def stages(self, card_free: float) -> dict[str, float]:
        """Seconds of each stage, as this host sees them; the names are those of clipmlu's stages.

        Args:
            card_free: when the batch before this one was done. Waiting for it is no computing, so that the computing of
                all batches never adds up to more than the time that passed.
        """
        return {
            "copy_in": self.enqueued - self.copied_in,
            "compute": self.synced - max(self.enqueued, card_free),
            "copy_out": self.copied_out - self.synced,
        }


class _Slot:
    """One context with its queue and input tensors: room for one batch in flight.

    C++ code has a context, a queue and tensors per thread (S#49760091045); a context that shares a queue, or has work
    pending on two, is not seen anywhere (api 7.7).
    """

    def __init__(self, engine: Any, device: Any) -> None:
        self.context = made("create_i_context", engine.create_i_context)
        self.queue = made("create_queue", device.create_queue)
        self.inputs: list[Any] = made_list("create_inputs", self.context.create_inputs)
        self.outputs: list[Any] = []
        self.feeds: list[Array] = []
        self.broken = False
        self.times = BatchTimes()

    def enqueue(self, feeds: list[Array], device: Any) -> None:
        """Start one batch; the feeds are kept, unchanged, until ``collect``."""
        self.feeds = feeds
        self.broken = True  # until everything below has worked
        begin = time.perf_counter()
        for tensor, feed in zip(self.inputs, feeds):
            checked("from_numpy", tensor.from_numpy, feed)
            optional("to", tensor.to, device)
        self.times = BatchTimes(copied_in=begin, enqueued=time.perf_counter())
        self.outputs = []
        checked("enqueue", self.context.enqueue, self.inputs, self.outputs, self.queue)
        self.broken = False

    def collect(self) -> list[Array]:
        """Wait for the batch; copies, because ``asnumpy`` may show memory that the next run overwrites (api 7.5)."""
        self.broken = True
        checked("sync", self.queue.sync)
        self.times.synced = time.perf_counter()
        results = [_copy_of(tensor) for tensor in self.outputs]
        self.times.copied_out = time.perf_counter()
        self.outputs = []
        self.broken = False
        return results

    def release(self) -> None:
        """Tensors first, then the context, then the queue (S#49216457251, "strict" order; api 5)."""
        self.outputs = []
        self.inputs = []
        self.feeds = []
        self.context = None
        self.queue = None


def _copy_of(tensor: Any) -> Array:
    if isinstance(tensor, list):  # a TENSORLIST (api 2.12), which no CLIP graph has
        raise DriverError("asnumpy", "an output is a list of tensors", kind="unexpected")
    values = invoke("asnumpy", tensor.asnumpy)
    if not isinstance(values, np.ndarray):
        raise DriverError("asnumpy", f"answered {type(values).__name__} instead of an array", kind="unexpected")
    return np.array(values, order="C", copy=True)


class Runner:
    """A model on one card, with room for several batches in flight that finish in the order of their start.

    Args:
        sdk: ``magicmind.python.runtime``.
        cards: the cards of this process.
        path: the model file.
        device: index of the card.
        depth: batches in flight; fewer when the SDK does not give so many contexts (then ``warnings`` says so).
        ranges: for each input (smallest, largest) shape that the model was built for; None to go by what it reports.
        check_finite: run a batch once more when its results are not finite, and fail when they are so again.

    Attributes:
        ports: see ``describe_ports``.
        times: seconds by stage of the batch that ``finish`` gave last; see ``BatchTimes.stages``.
    """

    def __init__(
        self,
        sdk: Any,
        cards: Cards,
        path: str,
        *,
        device: int = 0,
        depth: int = 2,
        ranges: Sequence[Any] | None = None,
        check_finite: bool = True,
    ) -> None:
        if not os.path.isfile(path):
            raise DriverError("deserialize_from_file", "there is no such file", [repr(path)], "model")
        self._cards = cards
        self._index = device
        self._check_finite = check_finite
        self._slots: list[_Slot] = []
        self._free: collections.deque[_Slot] = collections.deque()
        self._busy: collections.deque[_Slot] = collections.deque()
        self._card_free = 0.0
        self.times: dict[str, float] = {}
        self.warnings: list[str] = []
        self._device = cards.use(device)
        self._model = _load_model(sdk, path)
        self.ports = describe_ports(sdk, self._model)
        if ranges is not None and len(ranges) != len(self.ports["inputs"]):
            raise DriverError("open", f"{len(ranges)} ranges for {len(self.ports['inputs'])} inputs", kind="spec")
        self._ranges = ranges
        options = invoke("EngineConfig", sdk.Model.EngineConfig)
        options.device_type = "MLU"
        self._engine = made("create_i_engine", self._model.create_i_engine, options)
        self._make_slots(depth)

    @property
    def room(self) -> int:
        """How many more batches can be started now."""
        return len(self._free)

    def start(self, feeds: Sequence[Array]) -> None:
        """Start one batch; ``room`` must not be 0.

        Args:
            feeds: one array per input, of the type that the model reports, or int64 where it takes int32.

        Raises:
            DriverError: kind ``shape`` when the batch does not fit, before the SDK sees it.
        """
        prepared = self._prepare(feeds)
        slot = self._free[0]
        self._run(slot, prepared)
        self._busy.append(self._free.popleft())

    def finish(self) -> list[Array]:
        """Wait for the oldest batch; its outputs, in the model's order, belong to the caller."""
        slot = self._busy.popleft()
        self._free.append(slot)
        self._cards.use(self._index)
        results = slot.collect()
        self._check_count(results)
        if self._check_finite and not _finite(results):
            results = self._repeat(slot)
        self.times = slot.times.stages(self._card_free)
        self._card_free = slot.times.synced
        slot.feeds = []
        return results

    def close(self) -> None:
        """Wait for what is in flight, then release tensors, contexts and queues, the engine and the model."""
        for slot in self._busy:
            with contextlib.suppress(DriverError):
                checked("sync", slot.queue.sync)
        self._busy.clear()
        self._free.clear()
        while self._slots:
            self._slots.pop().release()
        self._engine = None
        self._model = None
        self._device = None

    def _make_slots(self, depth: int) -> None:
        for number in range(max(1, depth)):
            try:
                self._slots.append(_Slot(self._engine, self._device))
            except DriverError as error:
                if not number or error.kind == "device_lost":
                    raise
                self.warnings.append(f"batches in flight: {number} instead of {depth}: {error}")
                break
        self._free.extend(self._slots)

    def _run(self, slot: _Slot, feeds: list[Array]) -> None:
        self._cards.use(self._index)
        if slot.broken:  # what state a failed call leaves a context in is not known
            slot.release()
            slot.__init__(self._engine, self._device)  # type: ignore[misc]
        slot.enqueue(feeds, self._device)

    def _repeat(self, slot: _Slot) -> list[Array]:
        slot.broken = True
        self._run(slot, slot.feeds)
        results = slot.collect()
        self._check_count(results)
        if not _finite(results):
            raise DriverError("enqueue", "the results hold NaN or infinity, twice in a row", kind="not_finite")
        return results

    def _check_count(self, results: list[Array]) -> None:
        if len(results) != len(self.ports["outputs"]):
            status = f"gave {len(results)} outputs; the model has {len(self.ports['outputs'])}"
            raise DriverError("enqueue", status, kind="unexpected")

    def _prepare(self, feeds: Sequence[Array]) -> list[Array]:
        ports = self.ports["inputs"]
        if len(feeds) != len(ports):
            raise DriverError("check_shape", f"{len(feeds)} arrays for {len(ports)} inputs", kind="shape")
        prepared = []
        for index, (feed, port) in enumerate(zip(feeds, ports)):
            self._check_shape(index, feed, port["shape"])
            narrow = feed.dtype == np.int64 and port["dtype"] == "int32"
            fitting = narrowed(feed, "check_shape") if narrow else feed
            if fitting.dtype != np.dtype(port["dtype"]):
                status = f"input {index} takes {port['dtype']}; got {feed.dtype}"
                raise DriverError("check_shape", status, kind="shape")
            prepared.append(np.ascontiguousarray(fitting))
        return prepared

    def _check_shape(self, index: int, feed: Array, reported: Sequence[int]) -> None:
        """What the SDK does with a shape that it was not built for is not known; it may end the process (api 7.1)."""
        if self._ranges is not None and self._ranges[index] is not None:
            low, high = self._ranges[index]
        else:  # -1, or nothing at all, where the model does not say
            low = [size if size > 0 else 1 for size in reported] or [1] * feed.ndim
            high = [size if size > 0 else sys.maxsize for size in reported] or [sys.maxsize] * feed.ndim
        fits = feed.ndim == len(low) and all(a <= size <= b for a, size, b in zip(low, feed.shape, high))
        if not fits:
            status = f"input {index} takes {list(low)} to {list(high)}; got {list(feed.shape)}"
            raise DriverError("check_shape", status, kind="shape")


def _load_model(sdk: Any, path: str) -> Any:
    model = invoke("Model", sdk.Model)
    try:
        checked("deserialize_from_file", model.deserialize_from_file, path)
    except DriverError as error:
        if error.kind in ("status", "exception"):
            error.kind = "model"
        raise
    return model


def _finite(results: Sequence[Array]) -> bool:
    return all(bool(np.isfinite(values).all()) for values in results if values.dtype.kind == "f")


# ---- the files of a client ---------------------------------------------------------------------------------------------

_SYSTEM_FOLDERS = ("/proc", "/sys", "/dev")
_UPLOAD = "upload:"


class Reach:
    """Which files a client may name.

    Args:
        roots: folders whose files may be read; None for a client that started this process, and reads them itself as well.
        hidden: files that are never read, by whatever name.
    """

    def __init__(self, roots: Sequence[str] | None = None, hidden: Sequence[str] = ()) -> None:
        self._roots = None if roots is None else [os.path.realpath(root) for root in roots]
        self._hidden = list(hidden)

    @property
    def limited(self) -> bool:
        """Whether there are files that the client may not read."""
        return self._roots is not None

    def open(self, given: Any) -> Any:
        """Open a regular file for reading: the very file that was looked at, whatever its path leads to by then.

        Raises:
            DriverError: it is outside, hidden, no regular file, or cannot be read.
        """
        path = _as_path(given)
        try:
            real = os.path.realpath(path)
            self._check_inside(path, real)
            stream = _open_regular(real)
        except (OSError, ValueError) as error:
            raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error
        try:
            self._check_opened(path, real, stream.fileno())
        except BaseException:
            stream.close()
            raise
        return stream

    def readable(self, given: Any) -> str:
        """The path of a file that may be read, without links, for a library that opens it itself."""
        self.open(given).close()
        real: str = os.path.realpath(given)
        return real

    def folder(self, given: Any) -> str:
        """The path of a folder that may be used, without links."""
        path = _as_path(given)
        real: str = os.path.realpath(path)
        self._check_inside(path, real)
        if self.limited and not os.path.isdir(real):
            raise _unreadable(path, "it is no folder")
        return real if self.limited else path

    def _check_inside(self, path: str, real: str) -> None:
        if self._roots is None:
            return
        inside = [root for root in self._roots if _lies_in(real, root)]
        system = [top for top in _SYSTEM_FOLDERS if _lies_in(real, top)]
        if not inside or any(not _lies_in(root, top) for root in inside for top in system):
            raise _unreadable(path, "it is outside the folders that this worker was given (--root)")

    def _check_opened(self, path: str, real: str, descriptor: int) -> None:
        if not self.limited:
            return
        if os.path.isdir("/proc/self/fd"):  # where it really is, if a folder was exchanged for a link meanwhile
            self._check_inside(path, os.path.realpath(f"/proc/self/fd/{descriptor}"))
        facts = os.fstat(descriptor)
        for hidden in self._hidden:
            with contextlib.suppress(OSError):
                if os.path.samestat(facts, os.stat(hidden)):
                    raise _unreadable(path, "this worker keeps it to itself")
        if facts.st_nlink != 1:
            raise _unreadable(path, "it has more than one name, and another one may lie outside")


def _as_path(given: Any) -> str:
    if not isinstance(given, str) or not given or "\0" in given:
        raise DriverError("request", f"{_shown(given)} is no path", kind="spec")
    try:
        os.fsencode(given)
    except UnicodeEncodeError:
        raise DriverError("request", f"{_shown(given)} is no path", kind="spec") from None
    return given


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _unreadable(path: str, reason: str) -> DriverError:
    return DriverError("read", f"'{path}' cannot be read: {reason}", kind="spec")


def _open_regular(path: str) -> Any:
    """A file opened for reading, unless it is a link, a pipe or a device; none of these is even opened, for it may wait."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError(0, "it is no regular file")
    flags = os.O_RDONLY
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
        flags |= getattr(os, name, 0)
    stream = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(0, "it is no regular file")
    return stream


_ONNX_PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Message -> the fields that hold further ones (onnx.proto3)."""
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def check_holds_its_weights(path: str) -> None:
    """Refuse an ONNX file that has the parser read other files: they may lie anywhere, and come back in the model.

    Raises:
        DriverError: a tensor lies elsewhere, or it is no ONNX file.
    """
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        waiting = [("model", 0, size)]
        try:
            while waiting:
                kind, start, end = waiting.pop()
                for number, value, first in _protobuf_fields(data, start, end):
                    if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value)):
                        raise DriverError("parse", "weights in other files are refused here", [repr(path)], "spec")
                    if number in _ONNX_PARTS[kind] and first is not None:
                        waiting.append((_ONNX_PARTS[kind][number], first, first + value))
        except (IndexError, ValueError) as error:
            raise DriverError("parse", f"it is no ONNX file: {error}", [repr(path)], "spec") from error
        finally:
            if size:
                data.close()  # type: ignore[union-attr]


def _protobuf_fields(data: Any, position: int, end: int) -> Iterable[tuple[int, int, int | None]]:
    """The fields of a message: number, and value; or length and where it begins, for those that have one."""
    while position < end:
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value, None
            continue
        length = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            length, position = _varint(data, position)
        elif not length:
            raise ValueError(f"a field of the kind {wire}")
        if position + length > end:
            raise ValueError("a field that leaves its message")
        if wire == 2:
            yield number, length, position
        position += length


def _varint(data: Any, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number without an end")


class Scratch:
    """A folder of this process for files that do not outlive it; those of processes that were killed are removed before.

    A process holds the lock on a file in its folder as long as it lives.
    """

    def __init__(self) -> None:
        import fcntl  # not on Windows, where nothing is served

        self._sweep(fcntl)
        new = tempfile.mkdtemp(prefix=".clipmlu-worker-")
        self._lock = open(os.path.join(new, ".lock"), "wb")  # noqa: SIM115 - held until the end
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = os.path.join(os.path.dirname(new), os.path.basename(new)[1:])
        os.rename(new, self.path)  # only now can others find it

    def remove(self) -> None:
        """Remove it and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    @staticmethod
    def _sweep(fcntl: Any) -> None:
        for name in os.listdir(tempfile.gettempdir()):
            folder = os.path.join(tempfile.gettempdir(), name)
            if not name.startswith("clipmlu-worker-"):
                continue
            with contextlib.suppress(OSError):
                if os.lstat(folder).st_uid != os.geteuid():
                    continue
                with open(os.path.join(folder, ".lock"), "rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)


# ---- serving -----------------------------------------------------------------------------------------------------------


class Request:
    """One request: its header and its arrays."""

    def __init__(self, fields: Fields, arrays: Sequence[Array] = ()) -> None:
        self.fields = fields
        self.arrays = list(arrays)

    def field(self, name: str, form: Any, default: Any = None) -> Any:
        """A field that has a form; see ``_fits``.

        Raises:
            DriverError: it is missing, or is something else.
        """
        value = self.fields.get(name, default)
        if not _fits(value, form):
            raise DriverError("request", f"'{name}' is {_shown(value)}", kind="spec")
        return value

    def number(self, name: str, default: Any, low: int, high: int) -> int:
        """A field that is a whole number within bounds.

        Raises:
            DriverError: it is something else.
        """
        value: int = self.field(name, int, default)
        if not low <= value <= high:
            raise DriverError("request", f"'{name}' is {_shown(value)}; expected {low} to {high}", kind="spec")
        return value

    def array(self, index: Any) -> Array:
        """One of its arrays.

        Raises:
            DriverError: there is none of that number.
        """
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(self.arrays):
            raise DriverError("request", f"there is no array {_shown(index)} of {len(self.arrays)}", kind="spec")
        return self.arrays[index]


Reply = Tuple[Fields, List[Array]]


class Service:
    """Answers requests, one after the other: files, builds, sessions and runs. All SDK calls are made here.

    Args:
        load: gives ``magicmind.python.runtime``; called when it is first needed.
        scratch: directory for uploaded files; None to make a temporary one when it is needed.
        reach: which other files requests may name.
    """

    def __init__(
        self, load: Callable[[], Any] = load_sdk, scratch: str | None = None, reach: Reach | None = None
    ) -> None:
        self._load = load
        self._loaded: tuple[Any, Cards] | None = None
        self._scratch = scratch
        self._own_scratch: Scratch | None = None
        self._reach = reach or Reach()
        self._runners: dict[int, Runner] = {}
        self._next_session = 1

    def answer(self, request: Request) -> Reply:
        """Carry out anything but a run."""
        operation = request.fields.get("op")
        method = getattr(self, f"_on_{operation}", None) if isinstance(operation, str) else None
        if method is None:
            raise DriverError("request", f"there is no operation {_shown(operation)}", kind="spec")
        reply: Reply = method(request)
        return reply

    def runner(self, request: Request) -> Runner:
        """The session that a request is for."""
        session = request.fields.get("session")
        if not _fits(session, int) or session not in self._runners:
            raise DriverError("request", f"there is no session {_shown(session)}", kind="spec")
        return self._runners[session]

    def close(self) -> None:
        """Close all sessions, then let go of the cards."""
        while self._runners:
            self._runners.popitem()[1].close()
        if self._loaded is not None:
            self._loaded[1].forget()
        if self._own_scratch is not None:
            self._own_scratch.remove()

    def _sdk(self) -> tuple[Any, Cards]:
        if self._loaded is None:
            sdk = self._load()
            self._loaded = (sdk, Cards(sdk))
        return self._loaded

    def _on_ping(self, _request: Request) -> Reply:
        return {}, []

    def _on_check_slot(self, request: Request) -> Reply:
        """Says that requests with arrays in shared memory arrive as they left."""
        return {"token": _bytes_of(request.array(0))[:64].tobytes().hex()}, []

    def _on_info(self, _request: Request) -> Reply:
        return describe_host(self._sdk), []

    def _on_build(self, request: Request) -> Reply:
        spec = dict(request.field("spec", dict))
        _check_spec(spec)
        spec["onnx"] = self._readable(spec["onnx"])
        spec["output"] = self._writable(spec["output"])
        if self._reach.limited:
            check_holds_its_weights(spec["onnx"])
            self._check_folders_in(spec.get("extra"))
        if spec.get("toolchain"):
            spec["toolchain"] = self._reach.folder(spec["toolchain"])
        if spec.get("calibration"):
            spec["calibration"] = dict(spec["calibration"])
            spec["calibration"]["data"] = [self._source(item, request) for item in spec["calibration"]["data"]]
        sdk, cards = self._sdk()
        return build(sdk, cards, spec), []

    def _on_open(self, request: Request) -> Reply:
        model = self._readable(request.field("model", str))
        ranges = request.field("ranges", ([([_SIZES], None)], None))
        if any(each is not None and len(each) != 2 for each in ranges or ()):
            raise DriverError("request", f"'ranges' is {_shown(ranges)}; expected pairs of shapes", kind="spec")
        device = request.field("device", int, 0)
        depth = request.number("depth", 2, 1, MAX_DEPTH)
        check_finite = request.field("check_finite", bool, True)
        sdk, cards = self._sdk()
        runner = Runner(sdk, cards, model, device=device, depth=depth, ranges=ranges, check_finite=check_finite)
        session = self._next_session
        self._next_session += 1
        self._runners[session] = runner
        facts: Fields = {
            "session": session,
            "warnings": runner.warnings,
            "depth": runner.room,
            "emulated": is_emulated(sdk),
        }
        return {**facts, **runner.ports}, []

    def _on_close(self, request: Request) -> Reply:
        runner = self.runner(request)
        del self._runners[request.fields["session"]]
        runner.close()
        return {}, []

    def _on_have(self, request: Request) -> Reply:
        """Whether a file of that size and digest is at that path here too, and may be read."""
        size, digest = request.field("size", int), request.field("sha256", str)
        try:
            with self._reach.open(request.fields.get("path")) as stream:
                same = os.fstat(stream.fileno()).st_size == size and digest_of_stream(stream) == digest
        except DriverError:
            same = False
        return {"have": same}, []

    def _on_put(self, request: Request) -> Reply:
        """Write one piece of an uploaded file."""
        path = self._uploaded(request.field("name", str))
        piece = request.array(0)
        offset = request.number("offset", None, 0, sys.maxsize)
        try:
            with open(path, "r+b" if offset else "wb") as stream:
                if stream.seek(0, os.SEEK_END) != offset:
                    raise DriverError("put", f"'offset' is {offset}; expected the end of the file", kind="spec")
                stream.write(piece.tobytes())
        except OSError as error:
            raise DriverError("put", f"cannot write the file: {error.strerror}", kind="spec") from error
        return {}, []

    def _on_get(self, request: Request) -> Reply:
        """Read one piece of a file."""
        offset = request.number("offset", None, 0, sys.maxsize)
        path = request.field("path", str)
        with open(self._upload(path), "rb") if path.startswith(_UPLOAD) else self._reach.open(path) as stream:
            try:
                stream.seek(offset)
                return {}, [np.frombuffer(stream.read(CHUNK), np.uint8)]
            except OSError as error:  # an offset that no file has, or a disk that fails
                raise _unreadable(path, f"at {offset}: {error.strerror}") from error

    def _source(self, source: Fields, request: Request) -> Fields:
        """A data source whose array numbers and uploads are replaced by arrays and paths."""
        _check_form("calibration data", source, SOURCE_FORM, ())
        source = dict(source)
        if "arrays" in source:
            source["arrays"] = [
                item if isinstance(item, np.ndarray) else request.array(item) for item in source["arrays"]
            ]
        if "files" in source:
            source["files"] = [self._readable(item) for item in source["files"]]
        if "file" in source:
            source["file"] = self._readable(source["file"])
        return source

    def _check_folders_in(self, value: Any, key: str = "") -> None:
        """Settings of the SDK may name paths: those of a client elsewhere only folders that it may use."""
        if isinstance(value, dict):
            for name, item in value.items():
                self._check_folders_in(item, name)
        elif isinstance(value, list):
            for item in value:
                self._check_folders_in(item, key)
        elif isinstance(value, str) and ("/" in value or re.search("path|dir|file|folder", key)):
            self._reach.folder(value)

    def _readable(self, given: str) -> str:
        """The path of a file to read: an uploaded one, or one that the client may reach."""
        if given.startswith(_UPLOAD):
            return self._upload(given)
        return self._reach.readable(given) if self._reach.limited else _as_path(given)

    def _writable(self, given: str) -> str:
        """The path of a file to write: a client elsewhere writes beside its uploads, and fetches what it wrote."""
        if given.startswith(_UPLOAD):
            return self._uploaded(given[len(_UPLOAD) :])
        if self._reach.limited:
            raise DriverError("build", f"'{given}' is no place to write to; expected '{_UPLOAD}NAME'", kind="spec")
        return _as_path(given)

    def _upload(self, given: str) -> str:
        path = self._uploaded(given[len(_UPLOAD) :])
        if not os.path.isfile(path):
            raise DriverError("request", f"'{given}' was not uploaded", kind="spec")
        return path

    def _uploaded(self, name: str) -> str:
        if not re.match(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\Z", name):
            raise DriverError("request", f"'{name}' is no name for an uploaded file", kind="spec")
        if self._scratch is None:
            self._own_scratch = Scratch()
            self._scratch = self._own_scratch.path
        return os.path.join(self._scratch, name)


def serve_requests(channel: Any, service: Service) -> None:
    """Answer requests in their order until the channel ends (EOFError); runs are started ahead of earlier results.

    Args:
        channel: ``receive(wait)`` gives the next Request, or None when there is none now and ``wait`` is false;
            ``send(request, fields, arrays)`` answers one.
        service: what answers.
    """
    waiting: collections.deque[tuple[Request, Runner | None, DriverError | None]] = collections.deque()

    def finish_oldest() -> None:
        request, runner, error = waiting.popleft()
        _reply(channel, request, functools.partial(_finish_run, runner, error))

    try:
        while True:
            try:
                request = channel.receive(not waiting)
            except EOFError:
                while waiting:
                    finish_oldest()
                return
            if request is None:
                finish_oldest()
                continue
            if request.fields.get("op") != "run":
                while waiting:
                    finish_oldest()
                _reply(channel, request, functools.partial(service.answer, request))
                continue
            runner, error = None, None
            try:
                runner = service.runner(request)
                while not runner.room:
                    finish_oldest()
                runner.start(request.arrays)
            except DriverError as failure:
                error = failure
            except Exception as failure:
                error = _as_bug(failure)
            waiting.append((request, runner, error))
    except EOFError:
        pass
    finally:
        service.close()


def _finish_run(runner: Runner | None, error: DriverError | None) -> Reply:
    if error is not None:
        raise error
    assert runner is not None, "a run without an error was started"
    results = runner.finish()
    return {"times": runner.times}, results


def _reply(channel: Any, request: Request, work: Callable[[], Reply]) -> None:
    try:
        fields, arrays = work()
    except DriverError as error:
        fields, arrays = {"error": error.to_json()}, []
    except Exception as error:
        fields, arrays = {"error": _as_bug(error).to_json()}, []
    channel.send(request, fields, arrays)


def _as_bug(error: Exception) -> DriverError:
    traceback.print_exc()
    return DriverError("driver", f"{type(error).__name__}: {error}", kind="bug")


def describe_host(sdk: Callable[[], tuple[Any, Cards]]) -> Fields:
    """What is found here: interpreter, system, SDK and cards; never raises for a missing SDK."""
    facts: Fields = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "executable": sys.executable,
        "sdk": None,
        "emulated": False,
        "cards": None,
        "problem": None,
    }
    try:
        runtime, cards = sdk()
        package = sys.modules.get("magicmind") or runtime
        facts["emulated"] = is_emulated(runtime)
        version = getattr(package, "__version__", None) or getattr(runtime, "__version__", None)
        facts["sdk"] = {
            "path": str(getattr(package, "__file__", "")),
            "version": None if version is None else str(version),
        }
        facts["cards"] = cards.count()
    except DriverError as error:
        facts["problem"] = str(error)
    return facts


def digest_of(path: str) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as stream:
        return digest_of_stream(stream)


def digest_of_stream(stream: Any) -> str:
    """SHA-256 of what is left of an open file, in hex."""
    digest = hashlib.sha256()
    for piece in iter(lambda: stream.read(1 << 20), b""):
        digest.update(piece)
    return digest.hexdigest()


# ---- the wire ----------------------------------------------------------------------------------------------------------
#
# A frame is: b"CMW1", length of the header (4 bytes), length of the payload (8 bytes), both little-endian; the header: a
# JSON object; the payload: the bytes of the arrays that the header lists, each at a multiple of 64. An array may also lie
# in shared memory, a "slot": memory without a name, whose descriptor the client passes over a Unix socket.

_MAGIC = b"CMW1"
_PRELUDE = struct.Struct("<4sIQ")
ALIGNMENT = 64
_PIECE = 64 << 20
_PEER_GONE = 0x2000  # POLLRDHUP of Linux, which Python 3.7's select module does not name
_POLL_ERRORS = sum(getattr(select, name, 0) for name in ("POLLERR", "POLLHUP", "POLLNVAL"))  # not on Windows


class Connection:
    """Frames over a stream socket.

    Args:
        stream: a connected socket.
        takes_descriptors: take those that come with a frame; else the system drops them.
    """

    def __init__(self, stream: socket.socket, *, takes_descriptors: bool = True) -> None:
        self._stream = stream
        self._passes_descriptors = stream.family == getattr(socket, "AF_UNIX", None)
        self._takes_descriptors = takes_descriptors and self._passes_descriptors
        if not self._passes_descriptors:
            _keep_alive(stream)

    @property
    def passes_descriptors(self) -> bool:
        """Whether memory can be shared by passing its descriptor."""
        return self._passes_descriptors

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._stream.fileno()

    def send(
        self,
        header: Fields,
        arrays: Sequence[Array] = (),
        descriptors: Sequence[int] = (),
        deadline: float | None = None,
    ) -> None:
        """Send one frame.

        Args:
            header: a JSON object; ``arrays`` are listed in it.
            arrays: what the payload is made of.
            descriptors: file descriptors to pass along.
            deadline: when to give up, on the clock ``time.monotonic``; None for never.

        Raises:
            DeadlineError: it took too long.
            EOFError: the other side is gone.
        """
        listed, length = layout_of(arrays)
        text = json.dumps({**header, "arrays": [*header.get("arrays", ()), *listed]}).encode()
        start = _PRELUDE.pack(_MAGIC, len(text), length) + text
        try:
            if descriptors:
                start = start[self._send_with(start, descriptors, deadline) :]
            self._send_all(memoryview(start), deadline)
            position = 0
            for item, entry in zip(arrays, listed):
                self._send_all(memoryview(bytes(entry["offset"] - position)), deadline)
                self._send_all(_bytes_of(item).data, deadline)
                position = entry["offset"] + item.nbytes
        except OSError as error:
            raise EOFError(f"the connection broke: {error}") from error

    def receive(
        self, deadline: float | None = None, max_header: int = MAX_HEADER, max_payload: int = MAX_PAYLOAD
    ) -> tuple[Fields, Array, list[int]]:
        """Receive one frame: header, payload (uint8) and passed descriptors.

        Raises:
            ProtocolError: it is no frame, or larger than allowed.
            DeadlineError, EOFError: as ``send``.
        """
        start, descriptors = self._receive_start(deadline)
        try:
            header_length, payload_length = _check_start(start, max_header, max_payload)
            header = _header_from(self._receive_exactly(header_length, deadline).tobytes())
            if payload_length:
                _check_payload(header, payload_length)
            payload = self._receive_payload(payload_length, deadline)
        except BaseException:
            _close_all(descriptors)
            raise
        return header, payload, descriptors

    def readable(self, seconds: float | None) -> bool:
        """Whether something arrives, or the other side goes, within that time; None to wait for ever."""
        return bool(self._poll(select.POLLIN, seconds))

    def peer_gone(self, seconds: float) -> bool:
        """Whether the other side goes within that time, whatever is still to be read."""
        return any(event & (_PEER_GONE | _POLL_ERRORS) for _, event in self._poll(_PEER_GONE, seconds))

    def abort(self) -> None:
        """End the connection, also for a thread that is sending or receiving, and for a process that shares it."""
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give up this end."""
        self._stream.close()

    def _poll(self, events: int, seconds: float | None) -> list[tuple[int, int]]:
        poller = select.poll()
        poller.register(self._stream.fileno(), events)
        return poller.poll(None if seconds is None else max(0, seconds) * 1000)

    def _await(self, events: int, deadline: float | None) -> None:
        if deadline is not None and not self._poll(events, deadline - time.monotonic()):
            raise DeadlineError("the other side took too long")

    def _send_with(self, start: bytes, descriptors: Sequence[int], deadline: float | None) -> int:
        """Send the beginning of a frame with descriptors; how many bytes went with them."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        while True:
            self._await(select.POLLOUT, deadline)
            with contextlib.suppress(BlockingIOError):
                return self._stream.sendmsg([start], ancillary, 0 if deadline is None else socket.MSG_DONTWAIT)

    def _send_all(self, view: memoryview, deadline: float | None) -> None:
        while view.nbytes:
            if deadline is None:
                self._stream.sendall(view)
                return
            self._await(select.POLLOUT, deadline)
            with contextlib.suppress(BlockingIOError):
                view = view[self._stream.send(view, socket.MSG_DONTWAIT) :]

    def _receive_start(self, deadline: float | None) -> tuple[bytes, list[int]]:
        """The fixed part of a frame, with the descriptors that came along."""
        self._await(select.POLLIN, deadline)
        descriptors: list[int] = []
        try:
            if self._takes_descriptors:
                room = socket.CMSG_SPACE(4 * struct.calcsize("i"))
                flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
                start, ancillary, _flags, _address = self._stream.recvmsg(_PRELUDE.size, room, flags)
                descriptors = _descriptors_in(ancillary)
            else:
                start = self._stream.recv(_PRELUDE.size)
            if not start:
                raise EOFError("the other side closed the connection")
            rest = self._receive_exactly(_PRELUDE.size - len(start), deadline)
        except OSError as error:
            _close_all(descriptors)
            raise EOFError(f"the connection broke: {error}") from error
        except BaseException:
            _close_all(descriptors)
            raise
        return start + rest.tobytes(), descriptors

    def _receive_payload(self, count: int, deadline: float | None) -> Array:
        """As ``_receive_exactly``; the memory grows with what arrives, however much was announced."""
        payload = self._receive_exactly(min(count, _PIECE), deadline)
        try:
            while payload.nbytes < count:
                more = self._receive_exactly(min(count - payload.nbytes, payload.nbytes), deadline)
                payload = np.concatenate([payload, more])
        except MemoryError as error:
            raise ProtocolError(f"there is no memory for a payload of {count} bytes") from error
        return payload

    def _receive_exactly(self, count: int, deadline: float | None) -> Array:
        buffer = np.empty(count, np.uint8)
        view = buffer.data
        while view.nbytes:
            self._await(select.POLLIN, deadline)
            try:
                received = self._stream.recv_into(view)
            except OSError as error:
                raise EOFError(f"the connection broke: {error}") from error
            if not received:
                raise EOFError("the other side closed the connection in the middle of a frame")
            view = view[received:]
        return buffer


def _keep_alive(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side is gone already
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE:
            if hasattr(socket, name):
                stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _check_start(start: bytes, max_header: int, max_payload: int) -> tuple[int, int]:
    magic, header_length, payload_length = _PRELUDE.unpack(start)
    if magic != _MAGIC:
        raise ProtocolError(f"no frame begins with {start[:8]!r}")
    if header_length > max_header or payload_length > max_payload:
        raise ProtocolError(
            f"a frame with {header_length} bytes of header and {payload_length} of payload; "
            f"allowed are {max_header} and {max_payload}"
        )
    return header_length, payload_length


def _header_from(text: bytes) -> Fields:
    try:
        header = json.loads(
            text.decode("utf-8"), parse_int=_whole_number, parse_float=_fraction, parse_constant=_no_number
        )
    except RecursionError:
        raise ProtocolError("a header that is nested too deeply") from None
    except ValueError as error:
        raise ProtocolError(f"a header that is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise ProtocolError("a header that is no object")
    return header


def _whole_number(digits: str) -> int:
    if len(digits) > 40:  # reading long ones takes Python for ever
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _fraction(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{_shown(text)} is too large")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _check_payload(header: Fields, length: int) -> None:
    """Before memory is taken for it: the payload is exactly the arrays that the header lists."""
    entries = _entries_in(header)
    end = max([entry.offset + entry.nbytes for entry in entries if entry.slot is None] or [0])
    if end != length:
        raise ProtocolError(f"a payload of {length} bytes for arrays that end at {end}")


def _descriptors_in(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _bytes_of(values: Array) -> Array:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def layout_of(arrays: Sequence[Array], start: int = 0) -> tuple[list[Fields], int]:
    """Where arrays go when they are put one behind the other, and where the last one ends."""
    listed, end = [], start
    for item in arrays:
        if item.dtype.name not in DATA_TYPES.values():
            raise DriverError("send", f"arrays of {item.dtype} do not travel", kind="spec")
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        listed.append({"dtype": item.dtype.name, "shape": list(item.shape), "offset": offset})
        end = offset + item.nbytes
    return listed, end


def arrays_in(header: Fields, payload: Array, slots: dict[int, Array]) -> list[Array]:
    """The arrays that a header lists, as views of the payload or of a slot.

    Raises:
        ProtocolError: an entry is not what ``layout_of`` writes, or leaves its buffer.
    """
    return [_array_in(entry, payload, slots) for entry in _entries_in(header)]


_Entry = collections.namedtuple("_Entry", ["dtype", "shape", "offset", "nbytes", "slot"])


def _entries_in(header: Fields) -> list[_Entry]:
    listed = header.get("arrays", [])
    if not isinstance(listed, list):
        raise ProtocolError(f"a bad list of arrays: {_shown(listed)}")
    return [_entry_from(entry) for entry in listed]


def _entry_from(entry: Any) -> _Entry:
    form = {"dtype": str, "shape": _SIZES, "offset": int, "slot": (int, None)}
    if not isinstance(entry, dict) or not all(_fits(entry.get(key), each) for key, each in form.items()):
        raise ProtocolError(f"a bad array: {_shown(entry)}")
    name, shape, offset = entry["dtype"], entry["shape"], entry["offset"]
    sizes_fit = len(shape) <= 8 and all(0 <= size <= MAX_PAYLOAD for size in shape)
    if name not in DATA_TYPES.values() or not sizes_fit or not 0 <= offset <= MAX_PAYLOAD:
        raise ProtocolError(f"a bad array: {_shown(entry)}")
    nbytes = np.dtype(name).itemsize
    for size in shape:
        nbytes *= size
    if nbytes > MAX_PAYLOAD:
        raise ProtocolError(f"an array of {nbytes} bytes: {_shown(entry)}")
    return _Entry(np.dtype(name), shape, offset, nbytes, entry.get("slot"))


def _array_in(entry: _Entry, payload: Array, slots: dict[int, Array]) -> Array:
    if entry.slot is not None and entry.slot not in slots:
        raise ProtocolError(f"there is no shared memory {entry.slot}")
    buffer = payload if entry.slot is None else slots[entry.slot]
    if entry.offset + entry.nbytes > buffer.nbytes:
        raise ProtocolError(f"an array that leaves its buffer: {entry.dtype}{entry.shape} at {entry.offset}")
    try:
        if not entry.nbytes:
            return np.empty(entry.shape, entry.dtype)
        count = entry.nbytes // entry.dtype.itemsize
        return np.frombuffer(buffer, entry.dtype, count, entry.offset).reshape(entry.shape)
    except ValueError as error:  # an empty array with sizes that NumPy does not multiply
        raise ProtocolError(f"a bad array: {entry.dtype}{entry.shape}: {error}") from error


_ADD_SEALS, _GET_SEALS = 1033, 1034  # F_ADD_SEALS and F_GET_SEALS of linux/fcntl.h, which Python 3.7 does not name
_SEAL_SEAL, _SEAL_SIZE = 1, 2 | 4  # F_SEAL_SEAL; F_SEAL_SHRINK and F_SEAL_GROW


def seal_size(descriptor: int) -> None:
    """Have the kernel keep the size of shared memory: who touches what the other side has cut off is killed.

    Raises:
        OSError: this system does not do it, or not for this descriptor.
    """
    import fcntl

    fcntl.fcntl(descriptor, _ADD_SEALS, _SEAL_SIZE | _SEAL_SEAL)


def map_slot(descriptor: int, size: int) -> Array:
    """Shared memory as bytes; it stays mapped as long as the array, or a view of it, lives.

    Raises:
        OSError, ValueError: it is smaller, it is no shared memory, or its size may change.
    """
    import fcntl

    if fcntl.fcntl(descriptor, _GET_SEALS) & _SEAL_SIZE != _SEAL_SIZE:
        raise ValueError("its size may change")
    return np.frombuffer(mmap.mmap(descriptor, size), np.uint8)


class SocketChannel:
    """Requests from, and replies to, a connection.

    Args:
        connection: a connection that has been greeted.
        idle_seconds: end when nothing is asked for so long; 0 for never.
    """

    def __init__(self, connection: Connection, idle_seconds: float = 0) -> None:
        self._connection = connection
        self._idle_seconds = idle_seconds
        self._slots: dict[int, Array] = {}

    def receive(self, wait: bool) -> Request | None:
        """The next request; None when there is none now and ``wait`` is false."""
        while wait or self._connection.readable(0):
            if wait and self._idle_seconds and not self._connection.readable(self._idle_seconds):
                log_line(f"ended a connection on which nothing was asked for {self._idle_seconds:g} s")
                raise EOFError("nothing was asked for a while")
            header, payload, descriptors = self._connection.receive(self._deadline())
            if not self._is_about_slots(header, descriptors):
                self._check_reply(header)
                return Request(header, arrays_in(header, payload, self._slots))
        return None

    def send(self, request: Request, fields: Fields, arrays: Sequence[Array]) -> None:
        """Answer; the arrays go into the slot that the request offers when they fit there."""
        header = {**fields, "id": request.fields.get("id")}
        place = request.fields.get("reply") or {}
        slot = self._slots.get(place.get("slot", -1))
        if slot is not None and arrays:
            listed, end = layout_of(arrays, start=place["offset"])
            if end <= slot.nbytes:
                for entry, values in zip(listed, arrays):
                    into = slot[entry["offset"] : entry["offset"] + values.nbytes]
                    into[:] = _bytes_of(values)
                    entry["slot"] = place["slot"]
                self._connection.send({**header, "arrays": listed}, deadline=self._deadline())
                return
        self._connection.send(header, arrays, deadline=self._deadline())

    def _deadline(self) -> float | None:
        """A client that stops in the middle of a frame, or does not take its answer, is idle too."""
        return time.monotonic() + self._idle_seconds if self._idle_seconds else None

    @staticmethod
    def _check_reply(header: Fields) -> None:
        place = header.get("reply") or {"slot": 0, "offset": 0}
        fits = isinstance(place, dict) and all(_fits(place.get(key), int) for key in ("slot", "offset"))
        if not fits or not 0 <= place["offset"] <= MAX_PAYLOAD:
            raise ProtocolError(f"a bad place for results: {_shown(place)}")
        if not _fits(header.get("id"), (int, None)):
            raise ProtocolError(f"a bad number of a request: {_shown(header.get('id'))}")

    def _is_about_slots(self, header: Fields, descriptors: list[int]) -> bool:
        """Requests without a reply: ``share`` brings memory, ``unshare`` lets it go."""
        try:
            if header.get("op") not in ("share", "unshare"):
                if descriptors:
                    raise ProtocolError("descriptors came with a request that takes none")
                return False
            number, size = header.get("slot"), header.get("size", 0)
            if not isinstance(number, int) or not _fits(size, int):
                raise ProtocolError(f"bad shared memory: {_shown(number)} of {_shown(size)} bytes")
            if header["op"] == "unshare":
                self._slots.pop(number, None)
            elif len(descriptors) != 1 or not 0 < size <= MAX_PAYLOAD or len(self._slots) >= MAX_SLOTS:
                raise ProtocolError(f"bad shared memory: {len(descriptors)} descriptors, {size} bytes")
            else:
                self._slots[number] = map_slot(descriptors[0], size)
        except (OSError, ValueError) as error:
            # The client finds out when it checks the slot, and goes on without shared memory.
            log_line(f"cannot map shared memory: {error}")
        finally:
            _close_all(descriptors)
        return True


def log_line(text: str) -> None:
    """Tell who serves; one line, whatever a stranger sent."""
    with contextlib.suppress(OSError):
        print(f"clipmlu worker: {printable(text, 400)}", file=sys.stderr, flush=True)


def printable(text: str, most: int) -> str:
    """A text of somebody else as one line of at most so many characters."""
    line = " ".join(text[: 4 * most].split())
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:most]


# ---- the greeting ------------------------------------------------------------------------------------------------------


_WRITE_AGAIN = f"write it again with: clipmlu worker --write PATH, and start {FILE_NAME} in its place"


def accept_greeting(
    connection: Connection, secret: bytes | None, digest: str, on_accept: Callable[[Fields], Fields] = lambda _hello: {}
) -> None:
    """The serving side: show who we are, and refuse strangers and other versions.

    Args:
        connection: a fresh connection.
        secret: what the client must prove to know; None to ask for nothing.
        digest: SHA-256 of this worker's file, which the client must know as its own.
        on_accept: takes the client's greeting and gives what else to tell it, or raises a GreetingError to refuse it.

    Raises:
        GreetingError: the client was refused, and told why.
        ProtocolError, EOFError, DeadlineError: it is no client of ours.
    """
    deadline = time.monotonic() + GREETING_SECONDS
    nonce = os.urandom(32).hex()
    connection.send(
        {"clipmlu_worker": PROTOCOL, "digest": digest, "nonce": nonce, "auth": secret is not None}, deadline=deadline
    )
    hello, _payload, descriptors = connection.receive(deadline, MAX_GREETING, 0)
    _close_all(descriptors)
    answer: Fields = {"ok": True}
    problem = ""
    if secret is not None:
        theirs = str(hello.get("nonce", ""))
        proof = _proof(secret, "client", nonce, theirs)
        if len(theirs) < 32 or not _same(proof, hello.get("proof")):
            problem = "the secret is wrong or missing"
        else:
            answer["proof"] = _proof(secret, "server", nonce, theirs)
    if not problem and hello.get("digest") != digest:
        problem = (
            f"this worker is another version of the driver ({digest[:12]}) than the client's "
            f"({str(hello.get('digest'))[:12]}); {_WRITE_AGAIN}"
        )
    try:
        if problem:
            raise GreetingError(problem)
        answer.update(on_accept(hello))
    except GreetingError as error:
        connection.send({"ok": False, "error": str(error)}, deadline=deadline + PLACE_SECONDS)
        raise
    connection.send(answer, deadline=deadline + PLACE_SECONDS)


def send_greeting(
    connection: Connection,
    secret: bytes | None,
    digest: str,
    *,
    replaces: str | None = None,
    needs_secret: bool = False,
    seconds: float = GREETING_SECONDS,
) -> Fields:
    """The client's side; gives what the worker tells about itself.

    Raises:
        GreetingError: it is another version, does not know the secret, or refuses us.
        ProtocolError, EOFError, DeadlineError: it is no worker of ours.
    """
    deadline = time.monotonic() + seconds
    theirs, _payload, _none = connection.receive(deadline, MAX_GREETING, 0)
    if "clipmlu_worker" not in theirs or not isinstance(theirs.get("nonce"), str):
        raise ProtocolError("what answers there is no clipmlu worker")
    if theirs.get("digest") != digest or theirs["clipmlu_worker"] != PROTOCOL:
        raise GreetingError(
            f"the worker is another version of the driver ({_shown(str(theirs.get('digest'))[:12])}) than ours "
            f"('{digest[:12]}'); {_WRITE_AGAIN}"
        )
    if needs_secret and not theirs.get("auth"):
        raise GreetingError("the worker does not ask for a secret, which it must over TCP")
    if theirs.get("auth") and secret is None:
        raise GreetingError(f"the worker asks for a secret; set {SECRET_VARIABLE}")
    nonce = os.urandom(32).hex()
    hello: Fields = {"digest": digest, "nonce": nonce, "replaces": replaces}
    proved = secret is not None and theirs.get("auth")
    if secret is not None and proved:
        hello["proof"] = _proof(secret, "client", str(theirs["nonce"]), nonce)
    connection.send(hello, deadline=deadline)
    answer, _payload, _none = connection.receive(deadline, MAX_HEADER, 0)
    if not answer.get("ok"):
        raise GreetingError(f"the worker refuses: {printable(str(answer.get('error')), 400)}")
    if secret is not None and proved:
        proof = _proof(secret, "server", str(theirs["nonce"]), nonce)
        if not _same(proof, answer.get("proof")):
            raise GreetingError("what answers there does not know the secret")
    return answer


def _proof(secret: bytes, side: str, server_nonce: str, client_nonce: str) -> str:
    text = f"clipmlu worker {PROTOCOL} {side} {server_nonce} {client_nonce}"
    return hmac.new(secret, text.encode("utf-8", "backslashreplace"), hashlib.sha256).hexdigest()


def _same(proof: str, given: Any) -> bool:
    return hmac.compare_digest(proof.encode(), str(given).encode("utf-8", "backslashreplace"))


def read_secret(path: str | None) -> bytes | None:
    """The shared secret, from a file or from the environment; None when there is neither.

    Raises:
        GreetingError: the file cannot be read, everybody may read it, or it holds no secret.
    """
    if path:
        where = f"secret file '{path}'"
        secret = _secret_in(path, where).strip()
        if not secret:
            raise GreetingError(f"{where} is empty; expected a secret of {MIN_SECRET} or more characters")
    else:
        where = f"variable {SECRET_VARIABLE}"
        secret = os.fsencode(os.environ.get(SECRET_VARIABLE, "")).strip()
    if secret and len(secret) < MIN_SECRET:
        raise GreetingError(f"the secret has {len(secret)} characters; expected {MIN_SECRET} or more ({where})")
    return secret or None


def _secret_in(path: str, where: str) -> bytes:
    try:
        with _open_regular(os.path.realpath(path)) as stream:
            if os.name == "posix" and os.fstat(stream.fileno()).st_mode & 0o007:
                raise GreetingError(f"{where} is open to every user of this machine; run: chmod 600 {path}")
            secret: bytes = stream.read(MAX_SECRET + 1)
    except (OSError, ValueError) as error:
        raise GreetingError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(secret) > MAX_SECRET:
        raise GreetingError(f"{where} is longer than {MAX_SECRET} bytes; expected a secret")
    return secret


def parse_address(text: str, *, least_port: int = 1) -> tuple[str, Any]:
    """``unix:PATH`` as ("unix", path), ``tcp:HOST:PORT`` as ("tcp", (host, port)), ``fd:N`` as ("fd", n).

    Args:
        text: the address.
        least_port: 0 where any free port may be taken.
    """
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return kind, rest
    if kind == "fd" and re.match(r"[0-9]{1,9}\Z", rest):
        return kind, int(rest)
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host.strip("[]") and re.match(r"[0-9]{1,9}\Z", port):
        if not least_port <= int(port) <= 65535:
            raise GreetingError(f"'{text}' has the port {port}; expected {least_port} to 65535")
        return kind, (host.strip("[]"), int(port))
    raise GreetingError(f"'{text}' is no address; expected unix:PATH or tcp:HOST:PORT")


# ---- the processes -----------------------------------------------------------------------------------------------------


def start_child(
    command: Sequence[str], descriptors: Sequence[int], environment: dict[str, str], echo: bool
) -> tuple[subprocess.Popen[bytes], LogTail]:
    """Start a process that inherits descriptors; the last of what it and the vendor's library print is kept.

    The process ends with the thread that calls this (see ``die_with_parent``), so that has to be one that lives on.
    """
    reading, writing = os.pipe()
    try:
        child = subprocess.Popen(  # noqa: S603 - an interpreter that the caller names, and this program
            command,
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            pass_fds=tuple(descriptors),
            env=environment,
            start_new_session=True,  # Ctrl-C is for the client, which then ends its worker
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return child, LogTail(os.fdopen(reading, "rb"), echo)


def die_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, even if the SDK hangs at that time."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG


def serve_descriptor(descriptor: int, service: Service, *, digest: str, greeted: bool, idle_seconds: float) -> None:
    """Serve one connection that is open already, until it ends.

    Args:
        descriptor: its socket.
        service: what answers.
        digest: see ``accept_greeting``.
        greeted: the process that started this one has accepted the client.
        idle_seconds: end when nothing is asked for so long; 0 for never.
    """
    connection = Connection(socket.socket(fileno=descriptor))
    try:
        if not greeted:
            accept_greeting(connection, None, digest)
        serve_requests(SocketChannel(connection, idle_seconds), service)
    except (ProtocolError, GreetingError, DeadlineError) as error:
        log_line(f"ended a connection: {error}")
        with contextlib.suppress(EOFError, DeadlineError):
            told = {"error": DriverError("request", str(error), kind="spec").to_json(), "id": None}
            connection.send(told, deadline=time.monotonic() + 1)
    except EOFError:
        pass
    finally:
        connection.abort()
        connection.close()


class Strangers:
    """Connections that have proved nothing yet: not more than ``most``, so that a silent one costs next to nothing.

    One too many ends the oldest one of whoever has the most of them, so that a client of another host is not in their way.
    """

    def __init__(self, most: int = MAX_STRANGERS) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._hosts: dict[Connection, str] = {}  # the oldest first

    def enter(self, connection: Connection, host: str) -> None:
        """Note a new one."""
        with self._lock:
            self._hosts[connection] = host
            if len(self._hosts) > self._most:
                self._drop_one()

    def leave(self, connection: Connection) -> bool:
        """It has proved itself, or has ended; whether it had not been dropped."""
        with self._lock:
            return self._hosts.pop(connection, None) is not None

    def make_room(self) -> None:
        """Drop one, if there is one."""
        with self._lock:
            if self._hosts:
                self._drop_one()

    def _drop_one(self) -> None:
        counts = collections.Counter(self._hosts.values())
        most = max(counts.values())
        dropped = next(each for each, host in self._hosts.items() if counts[host] == most)
        del self._hosts[dropped]
        dropped.abort()  # its thread closes it


class Server:
    """Listens, and gives each connection a process of its own, so that a crash in the SDK ends nothing else.

    Args:
        address: ``unix:PATH`` or ``tcp:HOST:PORT``.
        program: the contents of the worker's file. The processes run a copy, which nobody else can replace meanwhile.
        secret: what clients must prove to know; needed for TCP.
        socket_mode: permissions of a Unix socket.
        max_clients: clients at a time; strangers do not count.
        idle_seconds: end a connection on which nothing was asked for so long; 0 for never.
        roots: folders whose files clients may have read.
        hidden: files that they may not.
    """

    def __init__(
        self,
        address: str,
        program: bytes,
        secret: bytes | None,
        *,
        socket_mode: int,
        max_clients: int,
        idle_seconds: float,
        roots: Sequence[str] = (),
        hidden: Sequence[str] = (),
    ) -> None:
        self._kind, self._where = parse_address(address, least_port=0)
        if self._kind == "tcp" and secret is None:
            raise GreetingError(f"TCP needs a shared secret: give --secret-file or set {SECRET_VARIABLE}")
        self._program = program
        self._digest = hashlib.sha256(program).hexdigest()
        self._secret = secret
        self._mode = socket_mode
        self._idle_seconds = idle_seconds
        self._roots = list(roots)
        self._hidden = list(hidden)
        self._strangers = Strangers()
        self._max_clients = max_clients
        self._places = threading.BoundedSemaphore(max_clients)
        self._lock = threading.Lock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._endings: dict[str, Fields] = {}
        self._scratch: Scratch | None = None

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C."""
        awake, wake = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT):  # an exception could be lost in a destructor
            signal.signal(number, lambda *_: os.write(wake, b"."))
        listener = self._listen()
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        poller.register(awake, select.POLLIN)
        try:
            self._scratch = Scratch()
            with open(os.path.join(self._scratch.path, FILE_NAME), "wb") as copy:
                copy.write(self._program)
            log_line(f"serving on {listener.getsockname()}; files in: {', '.join(self._roots) or 'no folder'}")
            while all(ready != awake for ready, _ in poller.poll()):
                self._accept(listener)
        finally:
            listener.close()
            if self._kind == "unix":
                with contextlib.suppress(OSError):
                    os.unlink(self._where)
            self._end_children()
            if self._scratch is not None:
                self._scratch.remove()

    def _accept(self, listener: socket.socket) -> None:
        try:
            stream, address = listener.accept()
        except OSError as error:  # it has gone again; or there are no descriptors left
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._strangers.make_room()
                time.sleep(0.02)
            return
        connection = Connection(stream, takes_descriptors=False)
        host = str(address[0]) if self._kind == "tcp" else ""
        self._strangers.enter(connection, host)
        try:
            threading.Thread(target=self._attend, args=(connection, host), daemon=True).start()
        except RuntimeError as error:  # there is no room for another thread
            log_line(f"refused a client: {error}")
            self._strangers.leave(connection)
            connection.close()

    def _listen(self) -> socket.socket:
        if self._kind == "tcp":
            host, port = self._where
            try:
                family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            except (OSError, UnicodeError) as error:
                raise GreetingError(
                    f"there is no host '{host}': {getattr(error, 'strerror', None) or error}"
                ) from error
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
        else:
            _remove_stale(self._where)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            before = os.umask(0o777 & ~self._mode)
            try:
                listener.bind(self._where)
            finally:
                os.umask(before)
        listener.listen(MAX_STRANGERS)
        listener.setblocking(False)  # what waits may have gone before it is accepted
        return listener

    def _attend(self, connection: Connection, host: str) -> None:
        worker = os.urandom(16).hex()
        placed: list[bool] = []

        def admit(hello: Fields) -> Fields:
            if not self._strangers.leave(connection):
                raise GreetingError("too many connections at once")
            facts = self._introduce(worker, hello)
            if not self._places.acquire(timeout=PLACE_SECONDS):
                raise GreetingError(f"all {self._max_clients} places are taken (--max-clients)")
            placed.append(True)
            return facts

        try:
            accept_greeting(connection, self._secret, self._digest, admit)
            self._run_child(connection, worker)
        except (GreetingError, ProtocolError, DeadlineError, EOFError, OSError) as error:
            log_line(f"refused a client{' of ' if host else ''}{host}: {error}")
        finally:
            self._strangers.leave(connection)
            connection.abort()
            connection.close()
            if placed:
                self._places.release()

    def _introduce(self, worker: str, hello: Fields) -> Fields:
        """Give the connection a name; a client that comes again is told how its last process ended."""
        former = str(hello.get("replaces"))
        with self._lock:
            child = self._children.get(former)
        if child is not None:
            child.kill()
            child.wait()
            time.sleep(0.1)  # for the last of its log
        with self._lock:
            return {"worker": worker, "previous": self._endings.pop(former, None)}

    def _run_child(self, connection: Connection, worker: str) -> None:
        assert self._scratch is not None, "it is made before the first client is accepted"
        scratch = os.path.join(self._scratch.path, worker)
        os.mkdir(scratch, 0o700)
        environment = {name: value for name, value in os.environ.items() if name != SECRET_VARIABLE}
        copy = os.path.join(self._scratch.path, FILE_NAME)
        command = [sys.executable, copy, "--serve", f"fd:{connection.fileno()}", "--greeted"]
        command += ["--scratch", scratch, "--idle-seconds", str(self._idle_seconds)]
        command += [f"--root={root}" for root in self._roots] + [f"--hidden={path}" for path in self._hidden]
        try:
            child, tail = start_child(command, [connection.fileno()], environment, echo=True)
            with self._lock:
                self._children[worker] = child
            self._watch(connection, child)
            with self._lock:
                del self._children[worker]
                self._endings[worker] = {"exit": describe_exit(child.returncode), "log": tail.text()}
                while len(self._endings) > 16:
                    del self._endings[next(iter(self._endings))]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @staticmethod
    def _watch(connection: Connection, child: subprocess.Popen[bytes]) -> None:
        """Wait for the child's end; end it when its client is gone and it does not notice, because the SDK hangs."""
        while child.poll() is None:
            if connection.peer_gone(0.2):
                try:
                    child.wait(2)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()

    def _end_children(self) -> None:
        with self._lock:
            children = list(self._children.values())
        for child in children:
            child.kill()
        for child in children:
            child.wait()
        time.sleep(0.3 if children else 0)  # for the threads that remove their files


class LogTail:
    """The last lines of a process's error stream, where the vendor's library writes its log.

    Args:
        stream: a pipe, read on a thread of its own until it ends.
        echo: also copy it to this process's error stream.
    """

    def __init__(self, stream: Any, echo: bool = False) -> None:
        self._stream = stream
        self._echo = echo
        self._tail = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self, wait_seconds: float = 1.0) -> str:
        """The tail; waits a little for the stream to end."""
        self._thread.join(wait_seconds)
        return self._tail.decode("utf-8", "replace").strip()

    def _read(self) -> None:
        with self._stream:
            for piece in iter(lambda: self._stream.read1(1 << 16), b""):
                self._tail = (self._tail + piece)[-LOG_TAIL:]
                if self._echo:
                    with contextlib.suppress(OSError):
                        os.write(2, piece)


def describe_exit(code: int | None) -> str:
    """What a return code says."""
    if code is None:
        return "still running"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _remove_stale(path: str) -> None:
    """Remove the socket of a worker that was killed; nothing else is removed, whatever its name."""
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise GreetingError(f"'{path}' exists and is no socket; give another path")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            raise GreetingError(f"cannot tell whether '{path}' is served: {error}") from error
    raise GreetingError(f"something is serving on '{path}' already")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the worker's file; see the top."""
    options = _parser().parse_args(arguments)
    try:
        with open(sys.argv[0], "rb") as stream:
            program = stream.read()
        return _run(options, program)
    except (GreetingError, OSError) as error:
        log_line(str(error))
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="clipmlu worker: runs MagicMind models for another process.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--serve", metavar="ADDRESS", help="unix:PATH or tcp:HOST:PORT; the host is always named")
    what.add_argument("--info", action="store_true", help="print what is found here as JSON")
    parser.add_argument(
        "--secret-file",
        metavar="FILE",
        help=f"file with the shared secret, readable by its owner only; default: the variable {SECRET_VARIABLE}",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        action="append",
        help="a folder whose files clients may have read; may be given again (default: the working directory, unless that "
        "is /); files that they send go elsewhere and need none",
    )
    parser.add_argument("--socket-mode", default="600", help="permissions of a Unix socket, octal (default: 600)")
    parser.add_argument("--max-clients", type=int, default=8, help="clients at a time that are served (default: 8)")
    parser.add_argument(
        "--idle-seconds",
        type=float,
        default=IDLE_SECONDS,
        help="give back the place and the card of a client that asks for nothing for so long; it gets both again with its "
        f"next request (default: {IDLE_SECONDS:g}; 0: never)",
    )
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    parser.add_argument("--hidden", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--greeted", action="store_true", help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace, program: bytes) -> int:
    digest = hashlib.sha256(program).hexdigest()
    if options.info:
        service = Service()
        facts, _none = service.answer(Request({"op": "info"}))
        print(json.dumps({**facts, "driver": digest}, indent=2))
        service.close()
        return 0
    kind, where = parse_address(options.serve, least_port=0)
    if kind == "fd":
        die_with_parent()
        faulthandler.enable()
        reach = Reach(options.root or [], options.hidden) if options.greeted else Reach()
        service = Service(scratch=options.scratch, reach=reach)
        serve_descriptor(where, service, digest=digest, greeted=options.greeted, idle_seconds=options.idle_seconds)
        return 0
    _check_options(options)
    server = Server(
        options.serve,
        program,
        read_secret(options.secret_file),
        socket_mode=int(options.socket_mode, 8),
        max_clients=options.max_clients,
        idle_seconds=options.idle_seconds,
        roots=_roots(options.root),
        hidden=[os.path.abspath(path) for path in (options.secret_file, sys.argv[0]) if path],
    )
    server.run()
    return 0


def _check_options(options: argparse.Namespace) -> None:
    if options.max_clients < 1:
        raise GreetingError(f"--max-clients is {options.max_clients}; expected 1 or more")
    if not 0 <= options.idle_seconds < float("inf"):
        raise GreetingError(f"--idle-seconds is {options.idle_seconds:g}; expected 0 (never) or more")
    if not re.match(r"[0-7]{1,4}\Z", options.socket_mode):
        raise GreetingError(f"--socket-mode is '{options.socket_mode}'; expected an octal number such as 600")


def _roots(given: Sequence[str] | None) -> list[str]:
    """The folders whose files clients may have read."""
    if given is None:
        return [here for here in [os.path.realpath(os.getcwd())] if here != "/"]
    for root in given:
        if not root or not os.path.isdir(root):
            raise GreetingError(f"--root '{root}' is no folder")
    return [os.path.realpath(root) for root in given]
