"""Networks that a script builds by hand, and detection outputs (api 7.22 to 7.28)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .bench import Bench, Session, shapes_of
from .calls import CallLog, need
from .findings import Array, Fields, Finding
from .probe import probe

SETTERS = (
    "set_layout",
    "set_algo",
    "set_confidence_thresh",
    "set_nms_thresh",
    "set_scale",
    "set_num_coord",
    "set_num_class",
    "set_num_entry",
    "set_num_anchor",
    "set_num_box_limit",
    "set_image_shape",
)
"""The setters that every public sample calls (api 2.16)."""


def _constant(bench: Bench, network: Any, kind: str, value: Array) -> Any:
    """The tensor of an added constant."""
    dtype, dims = getattr(bench.sdk.DataType, kind), bench.sdk.Dims(list(value.shape))
    return need("add_i_const_node", network.add_i_const_node, dtype, dims, value).get_output(0)


def _input(bench: Bench, network: Any, *sizes: int) -> Any:
    return need("add_input", network.add_input, bench.sdk.DataType.FLOAT32, bench.sdk.Dims(list(sizes)))


def _indices(*values: int) -> Array:
    return np.array(values, np.int32)


def _build(bench: Bench, log: CallLog, network: Any) -> Any:
    return log.make("build_model", bench.sdk.Builder().build_model, "probe", network, bench.config(*bench.usual()))


def _detection(bench: Bench, network: Any, without: str = "", **changes: Any) -> Any:
    """Add a YOLOV5 detection output to an input of 2 x 2 cells, one anchor of 4 x 4 pixels, and two classes."""
    sdk = bench.sdk
    features = _input(bench, network, 1, 2, 2, 7)
    anchors = _constant(bench, network, "FLOAT32", np.array([4, 4], np.float32))
    node = need("add_i_detection_output_node", network.add_i_detection_output_node, [features], anchors)
    arguments: Fields = {
        "set_layout": (sdk.Layout.NONE, sdk.Layout.NONE),
        "set_algo": (sdk.IDetectionOutputAlgo.YOLOV5,),
        "set_confidence_thresh": (0.1,),
        "set_nms_thresh": (0.5,),
        "set_scale": (1.0,),
        "set_num_coord": (4,),
        "set_num_class": (2,),
        "set_num_entry": (5,),
        "set_num_anchor": (1,),
        "set_num_box_limit": (8,),
        "set_image_shape": (16, 16),
    }
    arguments.update(changes)
    for name in SETTERS:
        if name != without:
            getattr(node, name)(*arguments[name])
    for index in range(node.get_output_count()):
        need("mark_output", network.mark_output, node.get_output(index))
    return node


def _cells(*scores: tuple[float, float]) -> Array:
    """Feature maps with a box in the middle of each cell; ``scores`` are those of the two classes, cell by cell."""
    cells = np.zeros((1, 2, 2, 7), np.float32)
    cells[..., :4], cells[..., 4] = 0.5, 1.0
    for index, pair in enumerate(scores):
        cells[0, index // 2, index % 2, 5:] = pair
    return cells


def _boxes(bench: Bench, cells: Array, **changes: Any) -> tuple[Array, int]:
    """Rows of the first image and the number of boxes."""
    network = bench.sdk.Network()
    _detection(bench, network, **changes)
    model = need("build_model", bench.sdk.Builder().build_model, "probe", network, bench.config(*bench.usual()))
    device = bench.device()
    need("active", device.active)
    rows, counts = Session(bench, model, device).run(cells)
    return rows.reshape(-1, 7), int(counts.reshape(-1)[0])


@probe("added-names", "7.22", "What are added inputs, nodes and tensors called?", card=False)
def _added_names(bench: Bench, _case: str) -> Finding:
    network = bench.sdk.Network()
    tensor = _input(bench, network, 2)
    nodes = [
        need("add_i_activation_node", network.add_i_activation_node, tensor, bench.sdk.IActivation.RELU)
        for _ in range(2)
    ]
    names = [node.get_node_name() for node in nodes]
    tensors = [tensor.get_tensor_name(), nodes[1].get_output(0).get_tensor_name()]
    listed = [node.get_node_name() for node in network.get_all_nodes_in_network()]
    return Finding(
        f"input {tensors[0]}, nodes {names}, result {tensors[1]}", names=names, tensors=tensors, listed=listed
    )


@probe(
    "detection-defaults",
    "7.23",
    "Which setters of a detection output can be left out?",
    cases=[f"without {name}" for name in SETTERS],
    card=False,
)
def _detection_defaults(bench: Bench, case: str) -> Finding:
    network = bench.sdk.Network()
    _detection(bench, network, without=case.partition(" ")[2])
    log = CallLog()
    _build(bench, log, network)
    return log.finding()


@probe(
    "box-order",
    "7.24",
    "Which boxes does a detection output give, and in which order (class:score)?",
    cases=("four boxes of two classes", "the same with a limit of two", "one box of two classes"),
)
def _box_order(bench: Bench, case: str) -> Finding:
    scores = [(0.5, 0.0), (0.0, 0.9), (0.7, 0.0), (0.0, 0.6)]
    if case.startswith("one"):
        scores = [(0.8, 0.6)]
    changes = {"set_num_box_limit": (2,)} if "limit" in case else {}
    rows, count = _boxes(bench, _cells(*scores), **changes)
    found = [(int(row[1]), round(float(row[2]), 3)) for row in rows[:count]]
    return Finding(" ".join(f"{kind}:{score:.2f}" for kind, score in found) or "none", rows=found)


@probe("absent-boxes", "7.25", "What do the rows behind the number of boxes hold?")
def _absent_boxes(bench: Bench, _case: str) -> Finding:
    rows, count = _boxes(bench, _cells((0.9, 0.0)))
    absent = rows[count:]
    text = "NaN" if np.isnan(absent).all() else "zeros" if not absent.any() else "other values"
    return Finding(text, count=count, first=[repr(float(value)) for value in absent[0]])


@probe(
    "image-shape",
    "7.26",
    "Does set_image_shape take the height first or the width?",
    cases=("16, 32", "-1, -1"),
)
def _image_shape(bench: Bench, case: str) -> Finding:
    sizes = tuple(int(part) for part in case.split(","))
    network = bench.sdk.Network()
    _detection(bench, network, set_image_shape=sizes)
    log = CallLog()
    model = _build(bench, log, network)
    if not log.good:
        return log.finding()
    device = bench.device()
    need("active", device.active)
    rows, counts = Session(bench, model, device).run(_cells((0.9, 0.0)))
    row = rows.reshape(-1, 7)[0]
    centre = [float(row[3] + row[5]) / 2, float(row[4] + row[6]) / 2]
    known = {(8.0, 4.0): "height first", (4.0, 8.0): "width first"}
    text = known.get((round(centre[0], 3), round(centre[1], 3)), f"centre {centre}")
    return Finding(text, count=int(counts.reshape(-1)[0]), centre=centre)


@probe(
    "index-arguments",
    "7.27",
    "Is the third argument of add_i_slice_node an end; are INT64 indices taken; which side is the first number of set_pad?",
    cases=("slice from 1, third argument 3", "axes of INT64", "pad 1, 0, 0, 0"),
    card=False,
)
def _index_arguments(bench: Bench, case: str) -> Finding:
    network, log = bench.sdk.Network(), CallLog()
    if case.startswith("slice"):
        begin, third, axes = (_constant(bench, network, "INT32", _indices(value)) for value in (1, 3, 0))
        node = log.make("slice", network.add_i_slice_node, _input(bench, network, 5), begin, third, axes)
    elif case.startswith("axes"):
        perms = _constant(bench, network, "INT64", np.array([1, 0]))
        node = log.make("permute", network.add_i_permute_node, _input(bench, network, 2, 3), perms)
    else:
        kernel = _constant(bench, network, "FLOAT32", np.ones((1, 1, 1, 1), np.float32))
        bias = _constant(bench, network, "FLOAT32", np.zeros(1, np.float32))
        node = log.make("conv", network.add_i_conv_node, _input(bench, network, 1, 4, 4, 1), kernel, bias)
        explicit = bench.sdk.IPaddingMode.EXPLICIT
        setters = {
            "set_stride": (1, 1),
            "set_pad": (1, 0, 0, 0),
            "set_dilation": (1, 1),
            "set_padding_mode": (explicit,),
        }
        for name, arguments in setters.items() if log.good else ():
            log.call(name, getattr(node, name), *arguments)
    return _dims_of(bench, log, network, node)


@probe(
    "reduce-arguments",
    "7.28",
    "What does the fourth argument of add_i_reduce_node decide, and does the axis stay?",
    cases=("False", "True"),
    card=False,
)
def _reduce_arguments(bench: Bench, case: str) -> Finding:
    network, log = bench.sdk.Network(), CallLog()
    axes = _constant(bench, network, "INT32", _indices(0))
    reduce = network.add_i_reduce_node
    node = log.make("reduce", reduce, _input(bench, network, 3), axes, bench.sdk.IReduce.MAX, case == "True")
    return _dims_of(bench, log, network, node)


def _dims_of(bench: Bench, log: CallLog, network: Any, node: Any) -> Finding:
    """Build a network with all results of a node; the finding ends with the dims that the model reports."""
    for index in range(node.get_output_count() if log.good else 0):
        log.call("mark_output", network.mark_output, node.get_output(index))
    model = _build(bench, log, network)
    if log.good:
        log.note(f"dims {shapes_of(model.get_output_dimensions())}")
    return log.finding()
