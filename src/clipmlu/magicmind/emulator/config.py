"""BuilderConfig: the JSON keys of api 3, merged deeply over repeated calls (api 2.8)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipmlu.magicmind.emulator.settings import ARCHS, switches
from clipmlu.magicmind.emulator.status import Code, StatusError, returns_status

PRECISION_MODES = (
    "force_float32",
    "force_float16",
    "qint8_mixed_float16",
    "qint8_mixed_float32",
    "qint16_mixed_float16",
    "qint16_mixed_float32",
)
LAYOUT_PAIRS = frozenset({frozenset(pair) for pair in (("NCHW", "NHWC"), ("NCT", "NTC"), ("NCDHW", "NDHWC"))})
Check = Callable[[Any], bool]


def _one_of(*allowed: str) -> Check:
    return lambda value: isinstance(value, str) and value in allowed


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, (int, float)) for item in value) and bool(value)


def _arch(value: Any) -> bool:
    # SDK 0.13 writes ``"mtp_372.41"`` (api 5).
    if isinstance(value, dict):
        return bool(value) and all(_arch(name) and _integers(counts) for name, counts in value.items())
    return isinstance(value, str) and value.split(".")[0] in (*ARCHS, "mtp_322")


def _by_index(fields: tuple[str, str], check: Check) -> Check:
    def entry(value: Any) -> bool:
        return isinstance(value, dict) and set(value) == set(fields) and all(check(item) for item in value.values())

    return lambda value: isinstance(value, dict) and all(key.isdigit() and entry(item) for key, item in value.items())


def _layouts(value: Any) -> bool:
    pairs = _by_index(("src", "dst"), lambda item: isinstance(item, str))
    return pairs(value) and all(frozenset(item.values()) in LAYOUT_PAIRS for item in value.values())


def _ranges(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(item, dict) and set(item) == {"min", "max"} and _numbers(item["min"]) and _numbers(item["max"])
        for item in value.values()
    )


KEYS: dict[str, Check | dict[str, Check]] = {
    "archs": lambda value: isinstance(value, list) and all(_arch(item) for item in value),
    "precision_config": {
        "precision_mode": _one_of(*PRECISION_MODES),
        "weight_quant_granularity": _one_of("per_tensor", "per_axis"),
        "activation_quant_algo": _one_of("symmetric", "asymmetric"),
    },
    "graph_shape_mutable": _flag,
    "dim_range": _by_index(("min", "max"), _integers),
    "insert_bn_before_firstnode": _by_index(("mean", "var"), _numbers),
    "convert_input_layout": _layouts,
    "convert_output_layout": _layouts,
    "opt_config": {
        "type64to32_conversion": _flag,
        "conv_scale_fold": _flag,
        "tfu_enable": _flag,
        "clustering_launch_enable": _flag,
    },
    "computation_preference": _one_of("auto", "fast", "high_precision"),
    "compute_determinism": _flag,
    "cross_compile_toolchain_path": lambda value: isinstance(value, str),
    "custom_ranges": _ranges,
    "debug_config": {"fusion_enable": _flag, "print_ir": lambda value: isinstance(value, dict)},
    "file_path": lambda value: isinstance(value, str),
}
"""Every key of public sources (api 3), with the check of its value."""


class BuilderConfig:
    """The configuration of a build.

    Attributes:
        mlu_archs: architecture names; same as the key ``archs``, and the last assignment wins (MC model_process.py sets
            both).
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    @property
    def mlu_archs(self) -> list[str]:
        """Names of the architectures to build for."""
        return list(arch_clusters(self._values.get("archs", [])))

    @mlu_archs.setter
    def mlu_archs(self, names: list[str]) -> None:
        # An assignment cannot return a Status; the build rejects unknown names.
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise TypeError("mlu_archs: expected a list of str")
        self._values["archs"] = list(names)

    @returns_status
    def parse_from_string(self, json_text: str) -> None:
        """Merge a JSON object: nested objects by key, later values win (TR bert; MC build_param.py)."""
        if not isinstance(json_text, str):
            raise TypeError(f"parse_from_string(): expected str, got {type(json_text).__name__}")
        self._merge(json_text, "parse_from_string")

    @returns_status
    def parse_from_file(self, path: str) -> None:
        """Merge a JSON file in the same way."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StatusError(Code.NOT_FOUND, f"parse_from_file: cannot read '{path}': {error}") from error
        self._merge(text, "parse_from_file")

    def _merge(self, text: str, call: str) -> None:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"{call}: bad JSON: {error}") from error
        if not isinstance(value, dict):
            raise StatusError(Code.INVALID_ARGUMENT, f"{call}: expected a JSON object")
        if isinstance(value.get("builder_config"), dict):  # an object around all keys (MC-old tacotron2)
            value = value["builder_config"]
        _check_keys(value, call)
        _merge_into(self._values, value)

    def check_archs(self) -> None:
        """Check that the architectures exist, since ``mlu_archs`` accepts any name.

        Raises:
            StatusError: one does not exist.
        """
        for name in self.mlu_archs:
            if name not in ARCHS:
                raise StatusError(Code.INVALID_ARGUMENT, f"unknown architecture '{name}'; known: {', '.join(ARCHS)}")

    def facts(self) -> BuildFacts:
        """Return the merged configuration, with the defaults of ``BuildFacts`` for missing keys."""
        return BuildFacts.from_values(self._values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildFacts:
    """A configuration with defaults; the SDK's are not public (7.9), these are those of the tools (api 4.2).

    Attributes:
        archs: maps an architecture to cluster counts; all three architectures if none is given.
        mode: the precision mode.
        per_axis: weight ranges per output channel.
        asymmetric: activation ranges may be asymmetric around zero.
        mutable: ``graph_shape_mutable``, or None if missing.
        dim_range: maps an input index to (smallest, largest) shape.
        batch_norm: maps an input index to (mean, variance) per channel.
        input_layouts: maps an input index to (source, destination).
        output_layouts: maps an output index to (source, destination).
        narrow: ``type64to32_conversion``.
        custom_ranges: maps a tensor name, or the empty string for all, to (minimum, maximum).
    """

    archs: dict[str, list[int]]
    mode: str = "force_float32"
    per_axis: bool = False
    asymmetric: bool = False
    mutable: bool | None = None
    dim_range: dict[int, tuple[list[int], list[int]]] = dataclasses.field(default_factory=dict)
    batch_norm: dict[int, tuple[list[float], list[float]]] = dataclasses.field(default_factory=dict)
    input_layouts: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
    output_layouts: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
    narrow: bool = False
    custom_ranges: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> BuildFacts:
        """Create it from merged JSON."""
        precision = values.get("precision_config", {})

        def pairs(key: str, first: str, second: str) -> dict[int, tuple[Any, Any]]:
            return {int(index): (item[first], item[second]) for index, item in values.get(key, {}).items()}

        return cls(
            archs=arch_clusters(values.get("archs") or list(ARCHS)),
            mode=precision.get("precision_mode", "force_float32"),
            per_axis=precision.get("weight_quant_granularity") == "per_axis",
            asymmetric=precision.get("activation_quant_algo") == "asymmetric",
            mutable=values.get("graph_shape_mutable"),
            dim_range=pairs("dim_range", "min", "max"),
            batch_norm=pairs("insert_bn_before_firstnode", "mean", "var"),
            input_layouts=pairs("convert_input_layout", "src", "dst"),
            output_layouts=pairs("convert_output_layout", "src", "dst"),
            narrow=values.get("opt_config", {}).get("type64to32_conversion", False),
            custom_ranges={
                name: (float(item["min"][0]), float(item["max"][0]))
                for name, item in values.get("custom_ranges", {}).items()
            },
        )

    @property
    def bits(self) -> int | None:
        """Bits of the quantised operators, or None if all operators are in floating point."""
        return int(self.mode.split("_")[0].removeprefix("qint")) if self.mode.startswith("qint") else None

    @property
    def half(self) -> bool:
        """Whether operators that are not quantised use binary16."""
        return self.mode.endswith("float16")


def arch_clusters(archs: list[Any]) -> dict[str, list[int]]:
    """Map each architecture to its cluster counts, from strings and from objects such as ``{"mtp_372": [2, 6, 8]}``."""
    found: dict[str, list[int]] = {}
    for item in archs:
        for name, counts in (item if isinstance(item, dict) else {item: []}).items():
            plain = name.split(".")[0]
            found["tp_322" if plain == "mtp_322" else plain] = list(counts)
    return found


def _check_keys(value: dict[str, Any], call: str) -> None:
    """Check the keys (7.8: the SDK's handling of unknown keys is not public; only strict mode rejects them)."""
    if not switches().refuse_unknown_keys:
        return
    for key, item in value.items():
        check = KEYS.get(key)
        if check is None:
            raise StatusError(Code.INVALID_ARGUMENT, f"{call}: unknown key '{key}'")
        if isinstance(check, dict):
            if not isinstance(item, dict):
                raise StatusError(Code.INVALID_ARGUMENT, f"{call}: '{key}' is no object")
            for inner, inner_value in item.items():
                if inner not in check:
                    raise StatusError(Code.INVALID_ARGUMENT, f"{call}: unknown key '{key}.{inner}'")
                if not check[inner](inner_value):
                    raise StatusError(Code.INVALID_ARGUMENT, f"{call}: bad value for '{key}.{inner}': {inner_value!r}")
        elif not check(item):
            raise StatusError(Code.INVALID_ARGUMENT, f"{call}: bad value for '{key}': {item!r}")


def _merge_into(target: dict[str, Any], value: dict[str, Any]) -> None:
    for key, item in value.items():
        if isinstance(item, dict) and isinstance(target.get(key), dict):
            _merge_into(target[key], item)
        else:
            target[key] = item
