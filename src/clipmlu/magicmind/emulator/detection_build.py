"""Checks a detection output node and ends the graph at its feature maps, for the build (api 2.16)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from clipmlu.graph.shapes import Shapes, TensorShape
from clipmlu.magicmind.emulator.detection import COORDINATES, ENTRIES, Detection, feature_name, result_shapes
from clipmlu.magicmind.emulator.sdk_lowering import DetectionNode, attributes_of
from clipmlu.magicmind.emulator.settings import switches
from clipmlu.magicmind.emulator.status import Code, StatusError
from clipmlu.magicmind.emulator.types import DataType

ALGORITHMS = ("YOLOV3", "YOLOV4", "YOLOV5")
TYPES = (DataType.FLOAT32, DataType.INT32)
"""Types of boxes and counts (MC-old yolov5_v6_1_pytorch, yolov3_caffe: logs of mm_run)."""

_SETTERS = {
    "algo": "set_algo",
    "confidence_thresh": "set_confidence_thresh",
    "nms_thresh": "set_nms_thresh",
    "scale": "set_scale",
    "num_coord": "set_num_coord",
    "num_class": "set_num_class",
    "num_entry": "set_num_entry",
    "num_anchor": "set_num_anchor",
    "num_box_limit": "set_num_box_limit",
    "image_shape": "set_image_shape",
    "layout": "set_layout",
}
"""Maps an attribute to its setter, for the setters that every public sample calls."""
_FIXED = {"scale": 1.0, "num_coord": COORDINATES, "num_entry": ENTRIES, "layout": ["NONE", "NONE"]}
"""The only values that public samples give to a setter."""


def end_at_features(graph: onnx.GraphProto, nodes: Sequence[DetectionNode]) -> None:
    """Make the feature maps outputs of a lowered graph.

    Raises:
        StatusError: another node reads the boxes or the counts.
    """
    made = {name for node in nodes for name in node.proto.output}
    for node in graph.node:
        if made & set(node.input):
            raise StatusError(Code.UNIMPLEMENTED, f"build: node '{node.name}' reads a detection output; no sample does")
    for number, node in enumerate(nodes):
        for index, feature in enumerate(node.features):
            name = feature_name(number, index)
            cast = helper.make_node("Cast", [feature], [name], name=f"{name}_end", to=TensorProto.FLOAT)
            graph.node.append(cast)
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def check_detections(nodes: Sequence[DetectionNode], outputs: Mapping[str, int], shapes: Shapes) -> list[Detection]:
    """Return the detections of a built model.

    Args:
        nodes: the nodes of the network.
        outputs: maps the name of an output of the network to its index.
        shapes: shapes of the lowered graph's tensors.

    Raises:
        StatusError: a setter was not called, or its value does not fit, or no public sample shows it.
    """
    return [_check(node, outputs, [shapes[name] for name in node.features]) for node in nodes]


def add_shapes(shapes: Shapes, detections: Sequence[Detection], prefix: str) -> None:
    """Add the shapes of boxes and counts to those of a built graph; ``prefix`` begins the names of its outputs."""
    for number, detection in enumerate(detections):
        known = shapes.get(feature_name(number, 0), TensorShape(None, 0)).shape
        for index, shape in zip(
            (detection.boxes, detection.counts), result_shapes(known, detection.limit), strict=True
        ):
            if index is not None:
                shapes[f"{prefix}{index}"] = TensorShape(shape, 0)


def _check(node: DetectionNode, outputs: Mapping[str, int], features: list[TensorShape]) -> Detection:
    name, given = node.proto.name, attributes_of(node.proto)
    for attribute, setter in _SETTERS.items():
        if attribute not in given:
            raise _wrong(
                name, f"{setter}() was not called; every public sample does, and the default is unknown (7.23)"
            )
    for attribute, value in _FIXED.items():
        if given[attribute] != value:
            raise _wrong(name, f"{_SETTERS[attribute]}(): public samples show {value} only, not {given[attribute]}")
    if given["algo"] not in ALGORITHMS:
        raise _wrong(name, f"no public sample shows what {given['algo']} takes and gives (2.16)")
    _check_features(name, given, features)
    boxes, counts = node.proto.output
    return Detection(
        boxes=outputs.get(boxes),
        counts=outputs.get(counts),
        algorithm=given["algo"],
        anchors=_anchors(name, given, node),
        classes=given["num_class"],
        confidence=given["confidence_thresh"],
        overlap=given["nms_thresh"],
        distance_exponent=_distance_exponent(name, given),
        centre_scales=_centre_scales(name, given, len(features)),
        limit=given["num_box_limit"],
        image=_image(name, given["image_shape"]),
    )


def _check_features(name: str, given: dict[str, Any], features: list[TensorShape]) -> None:
    channels = given["num_anchor"] * (ENTRIES + given["num_class"])
    for feature in features:
        shape = feature.shape
        if shape is None:
            continue
        if len(shape) != 4 or shape[3] not in (-1, channels):  # CV docs/examples/yolov7.md: "channel does not match"
            raise _wrong(
                name,
                f"a feature map has the shape {list(shape)}; expected NHWC with {channels} channels: "
                f"{given['num_anchor']} anchors x ({ENTRIES} + {given['num_class']} classes)",
            )
        if given.get("batch_size", shape[0]) != shape[0] and shape[0] != -1:
            raise _wrong(name, f"set_batch_size() says {given['batch_size']}, the network has {shape[0]}")


def _anchors(name: str, given: dict[str, Any], node: DetectionNode) -> list[list[tuple[float, float]]]:
    needed = 2 * len(node.features) * given["num_anchor"]
    if node.anchors.size != needed:
        raise _wrong(name, f"{needed} numbers of anchors are needed, the constant has {node.anchors.size}")
    sizes = np.asarray(node.anchors, np.float64).reshape(len(node.features), given["num_anchor"], 2)
    return [[(float(width), float(height)) for width, height in head] for head in sizes]


def _distance_exponent(name: str, given: dict[str, Any]) -> float | None:
    diou = given.get("nms_type") == "DIOU_NMS"
    if diou != ("diou_power_exp" in given):
        raise _wrong(name, "set_nms_type(DIOU_NMS) and set_diou_power_exp() go together (ME yolov4_mish_caffe)")
    return float(given["diou_power_exp"]) if diou else None


def _centre_scales(name: str, given: dict[str, Any], heads: int) -> list[float]:
    scales = given.get("aspect_ratios", [])
    if len(scales) != (heads if given["algo"] == "YOLOV4" else 0):
        raise _wrong(
            name, f"set_aspect_ratios() takes one number for each of the {heads} feature maps, with YOLOV4 only"
        )
    return [float(scale) for scale in scales] or [1.0] * heads


def _image(name: str, sizes: list[int]) -> tuple[int, int]:
    if min(sizes) < 1:
        raise _wrong(name, f"set_image_shape{tuple(sizes)}: what the card makes of it is unknown (7.26)")
    if sizes[0] != sizes[1] and switches().square_detections:
        raise _wrong(
            name,
            f"set_image_shape{tuple(sizes)}: public sources disagree whether height or width comes first (7.26)",
        )
    return sizes[0], sizes[1]


def _wrong(name: str, why: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"build: '{name}': {why}")
