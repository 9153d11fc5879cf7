"""Values that the emulator's modules exchange: ports, calibration results, and facts of a built model."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from clipmlu.magicmind.emulator.detection import Detection
from clipmlu.magicmind.emulator.types import DataType, Shape
from clipmlu.specs import TensorQuantisation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output of a built model.

    Attributes:
        name: the ONNX name (7.14: logs show that ONNX names are kept).
        dtype: element type at run time.
        dims: the shape; -1 for variable axes; empty if even the rank is unknown.
        minimum: smallest shape of a mutable input, or None if unbounded.
        maximum: largest shape of a mutable input, or None if unbounded.
        ranked: whether the rank is known; it is not for inputs that a script added without dims (api 2.16).
    """

    name: str
    dtype: DataType
    dims: Shape
    minimum: Shape | None = None
    maximum: Shape | None = None
    ranked: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectedRanges:
    """The result of a calibration.

    Attributes:
        ranges: maps the name of a quantised tensor to the (smallest, largest) value that the algorithm chose.
        least_noise: True if the algorithm was EQNM.
        batches: number of batches.
    """

    ranges: dict[str, tuple[float, float]]
    least_noise: bool
    batches: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Facts of a built model, stored as JSON in the file's header.

    Attributes:
        label: the name given to ``build_model``.
        mode: precision mode.
        archs: maps an architecture to the cluster counts of the build.
        inputs: in the network's order.
        outputs: in the network's order.
        quantisation: maps a tensor name to bits, scale, zero point and range, for the ``qintN`` modes.
        detections: detection output nodes, which are computed after the graph.
    """

    label: str
    mode: str
    archs: dict[str, list[int]]
    inputs: list[Port]
    outputs: list[Port]
    quantisation: dict[str, TensorQuantisation]
    detections: list[Detection] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that is marked as emulated."""
        values = dataclasses.asdict(self)
        for port in (*values["inputs"], *values["outputs"]):
            port["dtype"] = port["dtype"].name
        values["quantisation"] = msgspec.to_builtins(self.quantisation)
        return {"emulated": True, "maker": "clipmlu emulated MagicMind SDK", **values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelInfo:
        """Create it from the result of ``to_json``."""

        def port(item: dict[str, Any]) -> Port:
            sizes = {key: item[key] and tuple(item[key]) for key in ("minimum", "maximum")}
            dtype, ranked = DataType[item["dtype"]], item.get("ranked", True)
            return Port(name=item["name"], dtype=dtype, dims=tuple(item["dims"]), ranked=ranked, **sizes)

        return cls(
            label=values["label"],
            mode=values["mode"],
            archs=values["archs"],
            inputs=[port(item) for item in values["inputs"]],
            outputs=[port(item) for item in values["outputs"]],
            quantisation=msgspec.convert(values["quantisation"], dict[str, TensorQuantisation]),
            detections=msgspec.convert(values.get("detections", []), list[Detection]),
        )
