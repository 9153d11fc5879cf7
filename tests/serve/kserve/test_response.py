"""Answers of the KServe v2 protocol, compared with bytes written by hand as its specification says."""

from __future__ import annotations

import json
import struct

import numpy as np

from clipmlu.serve.kserve.request import InferenceRequest, WantedOutput
from clipmlu.serve.kserve.response import OutputTensor, classify_rows, write_response

SCORES = np.array([[0.25, 0.5, 0.125, 0.125], [0, 0, 0.75, 0.25]], np.float32)
RESULTS = {
    "scores": OutputTensor(SCORES, ("ant", "bee", "cat:big", "狗")),
    "class_names": OutputTensor([b"ant", "狗".encode()]),
}


def request(*outputs: WantedOutput, identifier: str | None = None) -> InferenceRequest:
    return InferenceRequest(identifier, {}, outputs or None, False)


def test_json_holds_all_outputs_flat() -> None:
    body, headers = write_response("b32", "1", request(identifier="42"), RESULTS, {"emulated": True})
    assert headers == {"Content-Type": "application/json"}
    assert json.loads(body) == {
        "model_name": "b32",
        "model_version": "1",
        "id": "42",
        "parameters": {"emulated": True},
        "outputs": [
            {
                "name": "scores",
                "datatype": "FP32",
                "shape": [2, 4],
                "data": [0.25, 0.5, 0.125, 0.125, 0, 0, 0.75, 0.25],
            },
            {"name": "class_names", "datatype": "BYTES", "shape": [2], "data": ["ant", "狗"]},
        ],
    }


def test_binary_data_follow_the_json_in_the_order_of_the_outputs() -> None:
    wanted = (WantedOutput("class_names", True), WantedOutput("scores", True))
    body, headers = write_response("b32", "1", request(*wanted), RESULTS, {})
    length = int(headers["Inference-Header-Content-Length"])
    assert headers["Content-Type"] == "application/octet-stream"
    assert json.loads(body[:length]) == {
        "model_name": "b32",
        "model_version": "1",
        "outputs": [
            {"name": "class_names", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 14}},
            {"name": "scores", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": 32}},
        ],
    }
    names = b"\x03\x00\x00\x00ant" + b"\x03\x00\x00\x00\xe7\x8b\x97"
    assert body[length:] == names + struct.pack("<8f", *SCORES.ravel().tolist())


def test_one_output_as_binary_data_and_one_in_the_json() -> None:
    wanted = (WantedOutput("scores", False), WantedOutput("class_names", True))
    body, headers = write_response("b32", "1", request(*wanted), RESULTS, {})
    length = int(headers["Inference-Header-Content-Length"])
    scores, names = json.loads(body[:length])["outputs"]
    assert scores["data"] == SCORES.ravel().tolist()
    assert "data" not in names
    assert body[length:] == b"\x03\x00\x00\x00ant" + b"\x03\x00\x00\x00\xe7\x8b\x97"


def test_a_classification_is_value_index_and_label_of_the_best_classes() -> None:
    wanted = WantedOutput("scores", False, 2)
    output = json.loads(write_response("b32", "1", request(wanted), RESULTS, {})[0])["outputs"][0]
    assert output == {
        "name": "scores",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["0.500000:1:bee", "0.250000:0:ant", "0.750000:2:cat:big", "0.250000:3:狗"],
    }
    many = WantedOutput("scores", False, 2**70)
    output = json.loads(write_response("b32", "1", request(many), RESULTS, {})[0])["outputs"][0]
    assert output["shape"] == [2, 4], "no more than there are"


def test_a_classification_without_labels_and_among_equals() -> None:
    """The example of the extension: [1, 5, 10, 4] gives the indices 2 and 1."""
    assert classify_rows(np.array([[1, 5, 10, 4]], np.float32), (), 2) == ["10.000000:2", "5.000000:1"]
    assert classify_rows(np.array([[1, 1, 1]], np.float32), (), 2) == ["1.000000:0", "1.000000:1"]
