"""A network that ends with YOLO heads, and the samples' calls that put a detection output behind it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from onnx import helper

from mlu.emulator.calls import FLOAT, save_graph

CLASSES, CELL_ANCHORS, SIZE = 3, 2, 16
CHANNELS = CELL_ANCHORS * (5 + CLASSES)
ANCHORS = [5, 6, 9, 4, 3, 2, 2, 5]
CONFIDENCE, OVERLAP, LIMIT = 0.2, 0.1, 80


def heads(path: Path, *, batch: Any = 2, sigmoid: bool = False, nhwc: bool = False, seed: int = 0) -> Path:
    """Two heads, of 2 x 2 and 4 x 4 cells, on an image of 16 x 16, as the samples cut their networks."""
    rng = np.random.default_rng(seed)
    weights, nodes = {}, []
    for index, step in enumerate((8, 4)):
        weights[f"w{index}"] = rng.standard_normal((CHANNELS, 3, step, step)).astype(np.float32) * (1.6 / step)
        made = f"raw{index}" if sigmoid or nhwc else f"head{index}"
        nodes.append(
            helper.make_node(
                "Conv",
                ["image", f"w{index}"],
                [made],
                name=f"Conv_{index}",
                kernel_shape=[step, step],
                strides=[step, step],
            )
        )
        if sigmoid:
            nodes.append(helper.make_node("Sigmoid", [made], [f"head{index}"], name=f"Sigmoid_{index}"))
        elif nhwc:
            nodes.append(
                helper.make_node("Transpose", [made], [f"head{index}"], name=f"Transpose_{index}", perm=[0, 2, 3, 1])
            )
    outputs = [(f"head{index}", FLOAT, None) for index in range(2)]
    return save_graph(path, nodes, [("image", FLOAT, [batch, 3, SIZE, SIZE])], outputs, weights)


def append_detection(
    mm: ModuleType, network: Any, algorithm: str, *, permute: bool = True, limit: int = LIMIT, **settings: Any
) -> Any:
    """The samples' adapter_model.py, call by call; ``settings`` replaces or adds setters (None leaves one out)."""
    tensors = []
    perms = network.add_i_const_node(mm.DataType.INT32, mm.Dims([4]), np.array([0, 2, 3, 1], dtype=np.int32))
    for index in range(network.get_output_count()):
        tensor = network.get_output(index)
        if permute:
            tensor = network.add_i_permute_node(tensor, perms.get_output(0)).get_output(0)
        tensors.append(tensor)
    for _ in range(network.get_output_count()):
        network.unmark_output(network.get_output(0))
    anchors = np.array(settings.pop("anchors", ANCHORS), np.float32)
    bias = network.add_i_const_node(mm.DataType.FLOAT32, mm.Dims([len(anchors)]), anchors)
    node = network.add_i_detection_output_node(tensors, bias.get_output(0))
    calls: dict[str, Any] = {
        "algo": (getattr(mm.IDetectionOutputAlgo, algorithm),),
        "confidence_thresh": (CONFIDENCE,),
        "nms_thresh": (OVERLAP,),
        "scale": (1.0,),
        "num_coord": (4,),
        "num_class": (CLASSES,),
        "num_entry": (5,),
        "num_anchor": (CELL_ANCHORS,),
        "num_box_limit": (limit,),
        "image_shape": (SIZE, SIZE),
        "layout": (mm.Layout.NONE, mm.Layout.NONE),
        **settings,
    }
    for name, arguments in calls.items():
        if arguments is not None:
            status = getattr(node, f"set_{name}")(*arguments)
            assert status.ok(), status
    assert node.get_output_count() == 2
    for index in range(node.get_output_count()):
        assert network.mark_output(node.get_output(index)).ok()
    return node
