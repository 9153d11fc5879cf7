"""Detection output: boxes from the feature maps of YOLO heads (api 2.16), computed by NumPy after the graph.

The graph of a built model ends at the feature maps, named by ``feature_name``; ``detect`` computes the model's outputs
from them. The arithmetic is float32 in every precision mode.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clipmlu.graph.quantisation.derived import ADDED
from clipmlu.magicmind.emulator.settings import switches
from clipmlu.magicmind.emulator.types import Array, Shape

Floats = npt.NDArray[np.float32]
BOX_SIZE = 7
"""Numbers of one box: image, class, score, left, top, right, bottom."""
COORDINATES, ENTRIES = 4, 5
"""Numbers of an anchor's box, and of its box with its objectness; the class scores follow."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
    """A detection output node of a built model.

    Attributes:
        boxes: index of the model's output that holds the boxes, or None if they are no output.
        counts: index of the model's output that holds the number of boxes of each image, or None.
        algorithm: how the feature maps are decoded.
        anchors: for each feature map, (width, height) of each anchor in pixels of the image.
        classes: number of classes.
        confidence: smallest score of a box, 0 to 1.
        overlap: overlap from which the box with the smaller score is dropped, 0 to 1.
        distance_exponent: exponent of the distance term of DIoU, or None for plain IoU.
        centre_scales: for each feature map, the factor that YOLOv4 stretches a cell with; 1 for the others.
        limit: largest number of boxes of one image.
        image: height and width of the network's image in pixels.
    """

    boxes: int | None
    counts: int | None
    algorithm: Literal["YOLOV3", "YOLOV4", "YOLOV5"]
    anchors: list[list[tuple[float, float]]]
    classes: int
    confidence: float
    overlap: float
    distance_exponent: float | None
    centre_scales: list[float]
    limit: int
    image: tuple[int, int]


def feature_name(detection: int, feature: int) -> str:
    """Return the name of the graph's output for one feature map of one detection output node."""
    return f"{ADDED}output_feature_{detection}_{feature}"


def result_shapes(features: Shape | None, limit: int) -> tuple[Shape, Shape]:
    """Return the shapes of boxes and counts for the shape of the first feature map."""
    images = features[0] if features else -1
    return (images, limit, BOX_SIZE), (images,)


def collect_results(named: Mapping[str, Array], detections: Sequence[Detection], outputs: int) -> list[Array]:
    """Return the model's outputs.

    Args:
        named: results of the graph, by name.
        detections: the model's detection output nodes.
        outputs: number of outputs of the model.
    """
    results = {index: named[name] for index in range(outputs) if (name := f"{ADDED}output_{index}") in named}
    for number, detection in enumerate(detections):
        features = [named[feature_name(number, index)] for index in range(len(detection.anchors))]
        boxes, counts = detect(features, detection)
        results |= {
            index: array for index, array in ((detection.boxes, boxes), (detection.counts, counts)) if index is not None
        }
    return [results[index] for index in range(outputs)]


def detect(features: Sequence[Array], detection: Detection) -> tuple[Floats, npt.NDArray[np.int32]]:
    """Decode feature maps and drop overlapping boxes.

    Args:
        features: for each head, an array of shape (N, H, W, anchors x (5 + classes)).
        detection: the node.

    Returns:
        float32 boxes, shape (N, limit, 7): image, class, score, left, top, right, bottom. YOLOV3 and YOLOV4 give
        fractions of the image, YOLOV5 pixels. The order is by class, then by falling score (unknown 7.24). Rows behind
        the number of boxes hold no box: NaN in strict mode, 0 in lenient mode (unknown 7.25).
        int32 numbers of boxes, shape (N,).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        heads = [_decode(np.asarray(feature, np.float32), detection, index) for index, feature in enumerate(features)]
        corners = np.concatenate([head[0] for head in heads], axis=1)
        scores = np.concatenate([head[1] for head in heads], axis=1)
        absent = np.nan if switches().absent_boxes_are_undefined else 0.0
        boxes = np.full((len(corners), detection.limit, BOX_SIZE), absent, np.float32)
        counts = np.zeros(len(corners), np.int32)
        for image in range(len(corners)):
            rows = _select(corners[image], scores[image], detection)
            boxes[image, : len(rows)] = np.insert(rows, 0, image, axis=1)
            counts[image] = len(rows)
    return boxes, counts


def _decode(feature: Floats, detection: Detection, index: int) -> tuple[Floats, Floats]:
    """Return corners (N, boxes, 4) and scores (N, boxes, classes) of one head."""
    images, height, width, _channels = feature.shape
    anchors = np.array(detection.anchors[index], np.float32)
    cells = feature.reshape(images, height, width, len(anchors), ENTRIES + detection.classes)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    grid = np.stack([columns, rows], axis=-1)[:, :, None]
    size = np.array([width, height], np.float32)
    image = np.array(detection.image[::-1], np.float32)
    if detection.algorithm == "YOLOV5":  # the network ends with the sigmoid (MC yolov5 patch)
        centre = (cells[..., :2] * 2 - np.float32(0.5) + grid) * (image / size)
        extent = np.square(cells[..., 2:4] * 2) * anchors
        scores = cells[..., 4:5] * cells[..., ENTRIES:]
    else:
        scale = np.float32(detection.centre_scales[index])
        centre = (_sigmoid(cells[..., :2]) * scale - (scale - 1) / 2 + grid) / size
        extent = np.exp(cells[..., 2:4]) * anchors / image
        scores = _sigmoid(cells[..., 4:5]) * _sigmoid(cells[..., ENTRIES:])
    corners = np.concatenate([centre - extent / 2, centre + extent / 2], axis=-1)
    return corners.reshape(images, -1, COORDINATES), scores.reshape(images, -1, detection.classes)


def _sigmoid(values: Floats) -> Floats:
    result: Floats = np.reciprocal(1 + np.exp(-values), dtype=np.float32)
    return result


def _select(corners: Floats, scores: Floats, detection: Detection) -> Floats:
    """Return class, score and corners of one image's boxes, by class and falling score.

    The classes do not affect one another, but the best box of all is always taken next: so the work ends when ``limit``
    boxes are kept, and these have the highest scores.
    """
    left: dict[int, npt.NDArray[Any]] = {}
    for kind in range(detection.classes):
        members = np.flatnonzero(scores[:, kind] >= detection.confidence)
        left[kind] = members[np.argsort(-scores[members, kind], kind="stable")]
    heads = [(-float(scores[members[0], kind]), kind) for kind, members in left.items() if len(members)]
    heapq.heapify(heads)
    kept: list[tuple[float, ...]] = []
    while heads and len(kept) < detection.limit:
        score, kind = heapq.heappop(heads)
        best, others = left[kind][0], left[kind][1:]
        kept.append((kind, -score, *corners[best]))
        overlap = _overlap(corners[best], corners[others], detection.distance_exponent)
        left[kind] = others[~(overlap >= detection.overlap)]  # that of two boxes without area is NaN, and drops none
        if len(left[kind]):
            heapq.heappush(heads, (-float(scores[left[kind][0], kind]), kind))
    kept.sort(key=lambda row: row[0])  # stable: the scores of a class keep their order
    return np.array(kept, np.float32).reshape(-1, BOX_SIZE - 1)


def _overlap(box: Floats, others: Floats, exponent: float | None) -> Floats:
    """Return IoU of a box and others, or DIoU: less (distance of the centres / diagonal of the hull) squared, to a power."""
    inner = np.maximum(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0)
    shared, sides = inner[:, 0] * inner[:, 1], others[:, 2:] - others[:, :2]  # a product over an axis of 2 is slow
    union = (box[2] - box[0]) * (box[3] - box[1]) + sides[:, 0] * sides[:, 1] - shared
    overlap: Floats = shared / union
    if exponent is not None:
        hull = np.maximum(box[2:], others[:, 2:]) - np.minimum(box[:2], others[:, :2])
        between = (others[:, :2] + others[:, 2:] - box[:2] - box[2:]) / 2
        overlap = overlap - (np.square(between).sum(axis=1) / np.square(hull).sum(axis=1)) ** np.float32(exponent)
    return overlap
