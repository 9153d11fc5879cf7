"""Detection output behind a parsed graph (magicmind-api.md 2.16), against darknet's formulas in plain Python."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mlu.emulator.calls import Runner, build, calibrate, configure, parse, precision, reference
from mlu.emulator.heads import ANCHORS, CELL_ANCHORS, CLASSES, CONFIDENCE, LIMIT, OVERLAP, SIZE, append_detection, heads


def darknet(
    features: list[Any],
    algorithm: str,
    *,
    scales: tuple[float, ...] = (1, 1),
    exponent: float | None = None,
    anchors: Sequence[float] = ANCHORS,
) -> list[list[tuple[float, ...]]]:
    """For each image the rows (image, class, score, left, top, right, bottom), by class, then by falling score."""

    def logistic(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
        value = shared / union if union else 0  # as darknet's box_iou
        if exponent is not None:
            hull = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
            apart = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
            value -= (apart / hull) ** exponent
        return value

    found = []
    for image in range(len(features[0])):
        boxes = []
        for head, feature in enumerate(features):
            _images, _channels, rows, columns = feature.shape
            for anchor in range(CELL_ANCHORS):
                wide, high = anchors[2 * (head * CELL_ANCHORS + anchor) :][:2]
                for row in range(rows):
                    for column in range(columns):
                        part = feature[image, anchor * (5 + CLASSES) : (anchor + 1) * (5 + CLASSES), row, column]
                        x, y, w, h, objectness, *kinds = (float(value) for value in part)
                        if algorithm == "YOLOV5":
                            x, y = (x * 2 - 0.5 + column) * SIZE / columns, (y * 2 - 0.5 + row) * SIZE / rows
                            w, h = (w * 2) ** 2 * wide, (h * 2) ** 2 * high
                            scores = [objectness * kind for kind in kinds]
                        else:
                            stretch = scales[head]
                            x = (logistic(x) * stretch - (stretch - 1) / 2 + column) / columns
                            y = (logistic(y) * stretch - (stretch - 1) / 2 + row) / rows
                            w, h = math.exp(w) * wide / SIZE, math.exp(h) * high / SIZE
                            scores = [logistic(objectness) * logistic(kind) for kind in kinds]
                        boxes.append((scores, (x - w / 2, y - h / 2, x + w / 2, y + h / 2)))
        kept: list[tuple[float, ...]] = []
        for kind in range(CLASSES):
            ranked = sorted((box for box in boxes if box[0][kind] >= CONFIDENCE), key=lambda box: -box[0][kind])
            chosen: list[tuple[float, ...]] = []
            for scores, corners in ranked:
                if all(overlap(other, corners) < OVERLAP for other in chosen):
                    chosen.append(corners)
                    kept.append((image, kind, scores[kind], *corners))
        found.append(kept)
    return found


def check(results: list[Any], expected: list[list[tuple[float, ...]]], *, tolerance: float = 1e-4) -> None:
    boxes, counts = results
    assert counts.dtype == np.int32
    assert counts.tolist() == [len(rows) for rows in expected]
    for image, rows in enumerate(expected):
        np.testing.assert_allclose(boxes[image, : len(rows)], np.array(rows), rtol=tolerance, atol=tolerance)


@pytest.fixture
def images() -> Any:
    return np.random.default_rng(1).uniform(-1, 1, (2, 3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("algorithm", ["YOLOV3", "YOLOV4", "YOLOV5"])
def test_boxes_behind_a_parsed_graph_that_was_saved_and_read(
    mm: ModuleType, mode: str, tmp_path: Path, images: Any, algorithm: str
) -> None:
    path = heads(tmp_path / "m.onnx", sigmoid=algorithm == "YOLOV5")
    network, scales = parse(mm, path), (1.2, 1.05) if algorithm == "YOLOV4" else (1, 1)
    append_detection(mm, network, algorithm, **({"aspect_ratios": (list(scales),)} if algorithm == "YOLOV4" else {}))
    model = build(mm, network, configure(mm, {"graph_shape_mutable": False}))
    assert model.serialize_to_file(str(tmp_path / "model")).ok()
    loaded = mm.Model()
    assert loaded.deserialize_from_file(str(tmp_path / "model")).ok()
    # names, types and shapes as in MC-old yolov5_v6_1_pytorch force_float16_true_4_log_perf
    assert loaded.get_output_names() == ["main/mm.detection_output:0", "main/mm.detection_output:1"]
    assert loaded.get_output_data_types() == [mm.DataType.FLOAT32, mm.DataType.INT32]
    assert [dims.GetDims() for dims in loaded.get_output_dimensions()] == [[2, LIMIT, 7], [2]]
    expected = darknet(reference(path, images), algorithm, scales=scales)
    assert min(len(rows) for rows in expected) > 5
    results = Runner(mm, loaded)(images)
    check(results, expected)
    absent = results[0][0, len(expected[0]) :]
    assert (np.isnan(absent) if mode == "strict" else absent == 0).all()


def test_suppression_by_distance_keeps_other_boxes(mm: ModuleType, tmp_path: Path, images: Any) -> None:
    path = heads(tmp_path / "m.onnx")
    network = parse(mm, path)
    append_detection(
        mm,
        network,
        "YOLOV4",
        aspect_ratios=([1.2, 1.1],),
        nms_type=(mm.INmsType.DIOU_NMS,),
        diou_power_exp=(0.6,),
    )
    features = reference(path, images)
    expected = darknet(features, "YOLOV4", scales=(1.2, 1.1), exponent=0.6)
    assert expected != darknet(features, "YOLOV4", scales=(1.2, 1.1))
    check(Runner(mm, build(mm, network, configure(mm)))(images), expected)


def test_boxes_without_area_suppress_none(mm: ModuleType, tmp_path: Path, images: Any) -> None:
    path = heads(tmp_path / "m.onnx", sigmoid=True)
    network = parse(mm, path)
    append_detection(mm, network, "YOLOV5", anchors=[0] * len(ANCHORS))
    expected = [rows for rows in darknet(reference(path, images), "YOLOV5", anchors=[0] * len(ANCHORS)) if rows]
    assert min(len(rows) for rows in expected) > CLASSES
    check(Runner(mm, build(mm, network, configure(mm)))(images), expected)


def test_heads_that_are_nhwc_need_no_permutation(mm: ModuleType, tmp_path: Path, images: Any) -> None:
    """MC yolov3_tensorflow adapter_model.py."""
    path = heads(tmp_path / "m.onnx", nhwc=True)
    network = parse(mm, path)
    append_detection(mm, network, "YOLOV3", permute=False)
    features = [feature.transpose(0, 3, 1, 2) for feature in reference(path, images)]
    check(Runner(mm, build(mm, network, configure(mm)))(images), darknet(features, "YOLOV3"))


def test_the_limit_keeps_the_best_boxes_of_all_classes(mm: ModuleType, tmp_path: Path, images: Any) -> None:
    path = heads(tmp_path / "m.onnx")
    network = parse(mm, path)
    append_detection(mm, network, "YOLOV3", limit=4)
    expected = darknet(reference(path, images), "YOLOV3")
    best = [sorted(sorted(rows, key=lambda row: -row[2])[:4], key=lambda row: (row[1], -row[2])) for rows in expected]
    boxes, counts = Runner(mm, build(mm, network, configure(mm)))(images)
    assert boxes.shape == (2, 4, 7)
    check([boxes, counts], best)


def test_the_sample_s_whole_configuration(mm: ModuleType, mode: str, tmp_path: Path) -> None:
    """UINT8 pixels in NHWC, means and variances, and a variable batch (MC yolov5_v6_1_pytorch gen_model.py)."""
    path = heads(tmp_path / "m.onnx", batch="n", sigmoid=True)
    network = parse(mm, path)
    assert network.get_input(0).set_dimension(mm.Dims([1, 3, SIZE, SIZE])).ok()
    append_detection(mm, network, "YOLOV5")
    model = build(
        mm,
        network,
        configure(
            mm,
            {"archs": [{"mtp_372": [6, 8]}]},
            {"convert_input_layout": {"0": {"src": "NCHW", "dst": "NHWC"}}},
            {"graph_shape_mutable": True},
            {"dim_range": {"0": {"min": [1, 3, SIZE, SIZE], "max": [4, 3, SIZE, SIZE]}}},
            {"insert_bn_before_firstnode": {"0": {"mean": [0, 0, 0], "var": [65025, 65025, 65025]}}},
        ),
    )
    assert [dims.GetDims() for dims in model.get_output_dimensions()] == [[-1, LIMIT, 7], [-1]]
    runner, rng = Runner(mm, model), np.random.default_rng(2)
    for batch in (3, 1):
        pixels = rng.integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)
        planes = (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)
        expected = darknet(reference(path, planes), "YOLOV5")
        assert sum(map(len, expected)) > 0
        results = runner(pixels)
        assert results[0].shape == (batch, LIMIT, 7)
        check(results, expected)


def test_calibration_before_and_after_the_node_is_added(mm: ModuleType, tmp_path: Path, images: Any) -> None:
    """ME yolov4_mish_caffe calibrates before it appends the node, MC-old yolov4_caffe behind."""
    path, results, config = heads(tmp_path / "m.onnx"), [], configure(mm, precision("qint8_mixed_float16"))
    for first in (True, False):
        network = parse(mm, path)
        if first:
            assert calibrate(mm, network, config, [images]).ok()
        append_detection(mm, network, "YOLOV3")
        if not first:
            assert calibrate(mm, network, config, [images]).ok()
        model = build(mm, network, config)
        assert set(model._info.quantisation) == {"image", "w0", "w1"}
        results.append(Runner(mm, model)(images))
    for before, after in zip(*results, strict=True):
        np.testing.assert_array_equal(before, after)
    exact = sum(map(len, darknet(reference(path, images), "YOLOV3")))
    assert abs(int(results[0][1].sum()) - exact) <= exact // 4


def test_boxes_are_computed_in_float32_in_every_mode(mm: ModuleType, tmp_path: Path, images: Any) -> None:
    path = heads(tmp_path / "m.onnx", sigmoid=True)
    network = parse(mm, path)
    append_detection(mm, network, "YOLOV5")
    boxes = Runner(mm, build(mm, network, configure(mm, precision("force_float16"))))(images)[0]
    assert (boxes[0, :5, 3:] != boxes[0, :5, 3:].astype(np.float16)).any()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no classes": ({"num_class": None}, r"set_num_class\(\) was not called; every public sample does"),
    "another number of classes": (
        {"num_class": (4,)},
        r"has the shape \[2, 2, 2, 16\]; expected NHWC with 18 channels",
    ),
    "a scale": ({"scale": (2.0,)}, r"set_scale\(\): public samples show 1.0 only, not 2.0"),
    "other anchors": ({"anchors": ANCHORS[:6]}, "8 numbers of anchors are needed, the constant has 6"),
    "a stretch for YOLOv3": (
        {"aspect_ratios": ([1.1, 1.1],)},
        "one number for each of the 2 feature maps, with YOLOV4",
    ),
    "an exponent alone": ({"diou_power_exp": (0.6,)}, "go together"),
    "no image": ({"image_shape": (-1, -1)}, "what the card makes of it is unknown"),
    "another batch": ({"batch_size": (5,)}, r"set_batch_size\(\) says 5, the network has 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_sample_shows_is_refused_by_the_build(
    mm: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    network = parse(mm, heads(tmp_path / "m.onnx"))
    append_detection(mm, network, "YOLOV3", **WRONG[name][0])
    assert mm.Builder().build_model("m", network, configure(mm)) is None
    assert re.search(WRONG[name][1], capfd.readouterr().err)


@pytest.mark.parametrize("algorithm", ["YOLOV2", "SSD", "FASTERRCNN", "REFINEDET"])
def test_other_heads_are_refused(
    mm: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str], algorithm: str
) -> None:
    network = parse(mm, heads(tmp_path / "m.onnx"))
    append_detection(mm, network, algorithm)
    assert mm.Builder().build_model("m", network, configure(mm)) is None
    assert f"no public sample shows what {algorithm} takes and gives" in capfd.readouterr().err


def test_setters_check_their_values(mm: ModuleType, tmp_path: Path) -> None:
    network = parse(mm, heads(tmp_path / "m.onnx"))
    node = append_detection(mm, network, "YOLOV5")
    assert "expected 0 to 1" in str(node.set_confidence_thresh(1.5))
    assert "expected 1 or more" in str(node.set_num_class(0))
    with pytest.raises(TypeError, match="expected IDetectionOutputAlgo, got str"):
        node.set_algo("YOLOV5")
    assert node.get_node_type() == "IDetectionOutputNode"
    assert network.find_node_by_name("main/mm.detection_output").set_num_class(80).ok()
