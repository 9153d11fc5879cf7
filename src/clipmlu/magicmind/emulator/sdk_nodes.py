"""The SDK's nodes with setters, which scripts add to a network (api 2.16)."""

from __future__ import annotations

import operator
from typing import Any

from onnx import helper

from clipmlu.magicmind.emulator.network_graph import INode
from clipmlu.magicmind.emulator.status import Code, StatusError, returns_status
from clipmlu.magicmind.emulator.types import IDetectionOutputAlgo, INmsType, IPaddingMode, Layout


class NodeWithSetters(INode):
    """A node whose settings are attributes of its node in the graph; the keyword names of setters are unknown (7.17)."""

    def store(self, name: str, value: Any) -> None:
        """Set an attribute of the node; shapes may depend on it."""
        others = [item for item in self.proto.attribute if item.name != name]
        del self.proto.attribute[:]
        self.proto.attribute.extend([*others, helper.make_attribute(name, value)])
        self.network.forget_shapes()

    def store_integers(self, name: str, values: tuple[int, ...], least: int) -> None:
        """Set an attribute to integers that are not less than ``least``."""
        numbers = [operator.index(value) for value in values]
        if min(numbers) < least:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"'{self.proto.name}': {name} is {numbers}; expected {least} or more"
            )
        self.store(name, numbers)

    def store_count(self, name: str, value: int) -> None:
        """Set an attribute to a positive integer."""
        if operator.index(value) < 1:
            raise StatusError(Code.INVALID_ARGUMENT, f"'{self.proto.name}': {name} is {value}; expected 1 or more")
        self.store(name, operator.index(value))

    def store_fraction(self, name: str, value: float) -> None:
        """Set an attribute to a number from 0 to 1 (the range of both thresholds in cnplugin.h)."""
        if not 0 <= float(value) <= 1:
            raise StatusError(Code.INVALID_ARGUMENT, f"'{self.proto.name}': {name} is {value}; expected 0 to 1")
        self.store(name, float(value))


class IConvNode(NodeWithSetters):
    """A convolution in NHWC (S#33777239416)."""

    @returns_status
    def set_stride(self, height: int, width: int, /) -> None:
        """Set the strides."""
        self.store_integers("stride", (height, width), 1)

    @returns_status
    def set_pad(self, top: int, bottom: int, left: int, right: int, /) -> None:
        """Set the padding; the order is that of ODLA and of torch_mlu."""
        self.store_integers("pad", (top, bottom, left, right), 0)

    @returns_status
    def set_dilation(self, height: int, width: int, /) -> None:
        """Set the dilations."""
        self.store_integers("dilation", (height, width), 1)

    @returns_status
    def set_padding_mode(self, mode: IPaddingMode, /) -> None:
        """Set how the padding is found; Python code shows EXPLICIT only."""
        _check_type("set_padding_mode", mode, IPaddingMode)
        self.store("padding_mode", mode.name)


class IDetectionOutputNode(NodeWithSetters):
    """Boxes from the feature maps of YOLO heads (MC yolov5_v6_1_pytorch adapter_model.py)."""

    @returns_status
    def set_algo(self, algo: IDetectionOutputAlgo, /) -> None:
        """Set how the feature maps are decoded."""
        _check_type("set_algo", algo, IDetectionOutputAlgo)
        self.store("algo", algo.name)

    @returns_status
    def set_confidence_thresh(self, threshold: float, /) -> None:
        """Set the smallest score of a box."""
        self.store_fraction("confidence_thresh", threshold)

    @returns_status
    def set_nms_thresh(self, threshold: float, /) -> None:
        """Set the overlap from which the box with the smaller score is dropped."""
        self.store_fraction("nms_thresh", threshold)

    @returns_status
    def set_nms_type(self, kind: INmsType, /) -> None:
        """Set the measure of the overlap (ME yolov4_mish_caffe)."""
        _check_type("set_nms_type", kind, INmsType)
        self.store("nms_type", kind.name)

    @returns_status
    def set_diou_power_exp(self, exponent: float, /) -> None:
        """Set the exponent of DIoU's distance term (ME yolov4_mish_caffe)."""
        self.store("diou_power_exp", float(exponent))

    @returns_status
    def set_aspect_ratios(self, ratios: list[float], /) -> None:
        """Set YOLOv4's ``scale_x_y`` for each feature map (MC yolov4_caffe)."""
        self.store("aspect_ratios", [float(ratio) for ratio in ratios])

    @returns_status
    def set_scale(self, scale: float, /) -> None:
        """Set a scale whose meaning is not public; public samples pass 1."""
        self.store("scale", float(scale))

    @returns_status
    def set_num_coord(self, count: int, /) -> None:
        """Set the number of coordinates of a box: 4."""
        self.store_count("num_coord", count)

    @returns_status
    def set_num_class(self, count: int, /) -> None:
        """Set the number of classes."""
        self.store_count("num_class", count)

    @returns_status
    def set_num_entry(self, count: int, /) -> None:
        """Set the numbers of an anchor before its class scores: 5."""
        self.store_count("num_entry", count)

    @returns_status
    def set_num_anchor(self, count: int, /) -> None:
        """Set the anchors of each cell."""
        self.store_count("num_anchor", count)

    @returns_status
    def set_num_box_limit(self, count: int, /) -> None:
        """Set the largest number of boxes of one image."""
        self.store_count("num_box_limit", count)

    @returns_status
    def set_batch_size(self, count: int, /) -> None:
        """Set the number of images (a course script for YOLOv5 only, S#25373068745)."""
        self.store_count("batch_size", count)

    @returns_status
    def set_image_shape(self, first: int, second: int, /) -> None:
        """Set the size of the network's image; sources disagree on the order (7.26)."""
        self.store("image_shape", [operator.index(first), operator.index(second)])

    @returns_status
    def set_layout(self, feature_layout: Layout, result_layout: Layout, /) -> None:
        """Set the layouts; public samples pass NONE twice."""
        for layout in (feature_layout, result_layout):
            _check_type("set_layout", layout, Layout)
        self.store("layout", [feature_layout.name, result_layout.name])


def _check_type(call: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{call}(): expected {kind.__name__}, got {type(value).__name__}")
