"""Builds a model file from an ONNX file."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .calibrating import make_calibration_data, read_sources
from .calls import checked, invoke, made, made_list, optional
from .errors import DriverError
from .sdk import Cards, data_type_of, describe_ports, dtype_of, parser_module
from .spec import ALGORITHMS, check_spec
from .values import Fields


def build(sdk: Any, cards: Cards, spec: Fields) -> Fields:
    """Build a model and write its file.

    Args:
        sdk: ``magicmind.python.runtime``.
        cards: the cards of this process.
        spec: the request: onnx, output: paths of the source and of the model file; the latter is written atomically.
            label: any text; default ``"clipmlu"``. precision: one of ``PRECISIONS``. archs: architecture -> cluster
            counts, such as ``{"mtp_372": [2, 6, 8]}``; an empty list gives none. mutable: shapes may vary at run time,
            within each input's ``min`` and ``max``. inputs: for each network input in order: ``shape``; ``min`` and
            ``max`` shapes; ``dtype`` at run time; ``mean`` and ``var`` per channel for uint8 input; ``layout`` as
            (source, destination). outputs: for each output with changes: ``dtype`` and ``layout``. granularity,
            activation: ``per_tensor`` or ``per_axis``; ``symmetric`` or ``asymmetric``; for the qint modes. type64to32,
            conv_scale_fold: default true; computation_preference: default ``auto``. toolchain: path for edge builds.
            nodes: exact node name -> a float type for all its float inputs and outputs, or ``{"inputs": {index: type},
            "outputs": {index: type}}``. calibration: for the qint modes: ``algorithm`` (``linear``, ``eqnm``), ``data``
            (see ``Batches``) for each input, ``remote`` (``ip:port``), ``remote_device``, ``device`` to make active
            first. extra: other configuration of the SDK; it is set last and replaces earlier settings.

    Returns:
        ``inputs`` and ``outputs`` as reported by the model, ``bytes``, ``calibration_batches`` and ``warnings``.

    Raises:
        DriverError: a step failed.
    """
    return _Build(sdk, cards, spec).run()


class _Build:
    def __init__(self, sdk: Any, cards: Cards, spec: Fields) -> None:
        check_spec(spec)
        self._sdk = sdk
        self._cards = cards
        self._spec = spec
        self._inputs: list[Fields] = list(spec["inputs"])
        self._quantised = "qint" in spec["precision"]
        self._batches = 0
        self._warnings: list[str] = []

    def run(self) -> Fields:
        """Build the model, with calls in the order of the vendor's CLIP sample (api 6.2)."""
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
        parser_class = getattr(self._sdk, "Parser", None) or parser_module().Parser
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
        for part in builder_settings(self._spec):
            # One call per setting, as in the samples: a bad Status then identifies the setting that the SDK rejects.
            checked("parse_from_string", config.parse_from_string, json.dumps(part))
        return config

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


def builder_settings(spec: Fields) -> Iterable[Fields]:
    """Yield the parts of the SDK's configuration, in the order of the vendor's CLIP sample (api 6.2).

    Args:
        spec: the request, as for ``build``.
    """
    yield {"precision_config": {"precision_mode": spec["precision"]}}
    if "qint" in spec["precision"]:
        yield {"precision_config": {"weight_quant_granularity": spec.get("granularity", "per_tensor")}}
        yield {"precision_config": {"activation_quant_algo": spec.get("activation", "symmetric")}}
    archs = spec["archs"]
    yield {"archs": [{name: list(counts)} if counts else name for name, counts in archs.items()]}
    yield {"graph_shape_mutable": bool(spec.get("mutable", False))}
    for key, value in (("dim_range", _ranges(spec)), ("insert_bn_before_firstnode", _normalisations(spec))):
        if value:
            yield {key: value}
    for side in ("input", "output"):
        layouts = _layouts(spec.get(f"{side}s", ()))
        if layouts:
            yield {f"convert_{side}_layout": layouts}
    yield {"computation_preference": spec.get("computation_preference", "auto")}
    yield {"opt_config": {"type64to32_conversion": bool(spec.get("type64to32", True))}}
    yield {"opt_config": {"conv_scale_fold": bool(spec.get("conv_scale_fold", True))}}
    if spec.get("toolchain"):
        yield {"cross_compile_toolchain_path": spec["toolchain"]}
    if spec.get("extra"):
        yield spec["extra"]


def _ranges(spec: Fields) -> Fields:
    if not spec.get("mutable", False):
        return {}
    named = {str(i): item for i, item in enumerate(spec["inputs"]) if "min" in item}
    return {index: {"min": list(item["min"]), "max": list(item["max"])} for index, item in named.items()}


def _normalisations(spec: Fields) -> Fields:
    named = {str(i): item for i, item in enumerate(spec["inputs"]) if "mean" in item}
    return {index: {"mean": list(item["mean"]), "var": list(item["var"])} for index, item in named.items()}


def _layouts(items: Sequence[Fields]) -> Fields:
    named = {str(i): item["layout"] for i, item in enumerate(items) if item.get("layout")}
    return {index: {"src": pair[0], "dst": pair[1]} for index, pair in named.items()}
