"""Inference requests of the KServe v2 protocol, written by hand as its specification says, and read."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from clipmlu.errors import InputError
from clipmlu.serve.kserve.request import InferenceRequest, WantedOutput, read_request
from clipmlu.serve.kserve.tensors import Datatype, TensorFacts

ROWS = 8
INPUTS = {
    name: TensorFacts(name, datatype, shape, ROWS)
    for name, datatype, shape in (
        ("pixel_values", "FP32", (-1, 3, 2, 2)),
        ("raw_pixels", "UINT8", (-1, 4)),
        ("input_ids", "INT64", (-1, 4)),
        ("images", "BYTES", (-1,)),
        ("texts", "BYTES", (-1,)),
    )
}
OUTPUTS = {
    "image_embeds": TensorFacts("image_embeds", "FP32", (-1, 5)),
    "class_names": TensorFacts("class_names", "BYTES", (-1,)),
}


def read(body: bytes | dict[str, Any], header: str | None = None) -> InferenceRequest:
    return read_request(body if isinstance(body, bytes) else json.dumps(body).encode(), header, INPUTS, OUTPUTS)


def one(name: str, shape: list[Any], datatype: Datatype, data: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}], **more}


def with_binary(content: dict[str, Any], *data: bytes) -> tuple[bytes, str]:
    """A body with binary data after its JSON, and the header that says where they begin."""
    text = json.dumps(content).encode()
    return b"".join([text, *data]), str(len(text))


def described(name: str, shape: list[int], datatype: Datatype, size: int) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}


def elements(*each: bytes) -> bytes:
    """BYTES elements: a little-endian length of four bytes, and the bytes."""
    return b"".join(struct.pack("<I", len(element)) + element for element in each)


@pytest.mark.parametrize("data", [[[1, 2, 3, 4], [5, 6, 7, 8]], [1, 2, 3, 4, 5, 6, 7, 8]], ids=["nested", "flat"])
def test_json_numbers_may_be_nested_or_flat(data: list[Any]) -> None:
    found = read(one("input_ids", [2, 4], "INT64", data, id="42"))
    values = found.inputs["input_ids"].values
    assert isinstance(values, np.ndarray)
    assert values.dtype == np.int64
    assert values.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert found._replace(inputs={}) == InferenceRequest("42", {}, None, False)


def test_json_numbers_keep_every_integer_of_64_bits() -> None:
    extremes = [-(2**63), 2**63 - 1, 2**53 + 1, 0]
    assert np.array_equal(read(one("input_ids", [1, 4], "INT64", extremes)).inputs["input_ids"].values, [extremes])


def test_json_floats_become_float32() -> None:
    numbers = [0.1, -2, 3e38, 1e-45, *range(8)]
    found = read(one("pixel_values", [1, 3, 2, 2], "FP32", numbers)).inputs["pixel_values"].values
    assert isinstance(found, np.ndarray)
    assert found.tobytes() == struct.pack("<12f", *numbers)


def test_json_texts_are_utf8_and_images_may_be_base64() -> None:
    texts = ["a cat", "一只狗", 'quoted ","', "\\", ""]
    found = read(one("texts", [5], "BYTES", texts)).inputs["texts"].values
    assert found == [text.encode() for text in texts]
    image = one("images", [1], "BYTES", ["/9j/AA=="])
    image["inputs"][0]["parameters"] = {"content_type": "base64"}
    assert read(image).inputs["images"].values == [b"\xff\xd8\xff\x00"]


def test_binary_data_follow_the_json_in_the_order_of_the_inputs() -> None:
    pixels, tokens = [float(number) for number in range(12)], [7, -1, 2**40, 0]
    content = {
        "inputs": [
            described("images", [2], "BYTES", 4 + 3 + 4),
            {"name": "texts", "shape": [1], "datatype": "BYTES", "data": ["between"]},
            described("pixel_values", [1, 3, 2, 2], "FP32", 48),
            described("input_ids", [1, 4], "INT64", 32),
        ]
    }
    body, header = with_binary(
        content, elements(b"abc", b""), struct.pack("<12f", *pixels), struct.pack("<4q", *tokens)
    )
    found = read(body, header).inputs
    assert found["images"].values == [b"abc", b""]
    assert found["texts"].values == [b"between"]
    assert np.asarray(found["pixel_values"].values).ravel().tolist() == pixels
    assert np.asarray(found["input_ids"].values).tolist() == [tokens]


@pytest.mark.parametrize("shift", range(4))
def test_binary_numbers_are_aligned_in_memory(shift: int) -> None:
    content = {"inputs": [described("pixel_values", [1, 3, 2, 2], "FP32", 48)], "x": "x" * shift}
    found = read(*with_binary(content, struct.pack("<12f", *range(12)))).inputs["pixel_values"].values
    assert isinstance(found, np.ndarray)
    assert found.flags.aligned
    assert found.flags.c_contiguous


def test_a_raw_binary_request_is_one_image() -> None:
    found = read(b"\xff\xd8 a file", "0")
    assert found.inputs["images"] == ([b"\xff\xd8 a file"], (1,))
    assert found.binary_output


def test_outputs_override_what_the_request_says_about_binary_data() -> None:
    outputs = [
        {"name": "image_embeds", "parameters": {"binary_data": False, "classification": 3, "unknown": [1]}},
        {"name": "class_names"},
    ]
    found = read(one("texts", [1], "BYTES", ["x"], outputs=outputs, parameters={"binary_data_output": True}))
    assert found.outputs == (WantedOutput("image_embeds", False, 3), WantedOutput("class_names", True, 0))


DEEP = b"[" * 1_000_000
HUGE = b"1" * 5000
BAD_JSON = {
    "nothing": (b"", "no JSON"),
    "a list": (b"[]", "Expected `object`"),
    "no inputs": (b'{"inputs":[]}', "no inputs; expected 1 to 16"),
    "many inputs": (
        b'{"inputs":[' + b",".join([b'{"name":"x","shape":[],"datatype":"x"}'] * 17) + b"]}",
        "of at most length 16",
    ),
    "nested for ever": (b'{"x":' + DEEP, "recursion|overflow"),
    "data nested for ever": (
        b'{"inputs":[{"name":"texts","shape":[1],"datatype":"BYTES","data":' + DEEP,
        "recursion|overflow",
    ),
    "NaN": (
        b'{"inputs":[{"name":"raw_pixels","shape":[1,4],"datatype":"UINT8","data":[NaN,1,1,1]}]}',
        "malformed",
    ),
    "bytes after it": (b'{"inputs":[{"name":"texts","shape":[1],"datatype":"BYTES","data":["x"]}]}x', "trailing"),
    "an endless shape": (
        b'{"inputs":[{"name":"texts","shape":[' + HUGE + b'],"datatype":"BYTES","data":["x"]}]}',
        "out of range",
    ),
    "an endless number": (
        b'{"inputs":[{"name":"raw_pixels","shape":[1,4],"datatype":"UINT8","data":[1,2,3,' + HUGE + b"]}]}",
        "out of range",
    ),
    "a million inputs": (
        b'{"inputs":[' + b'{"name":"","shape":[],"datatype":""},' * 1_000_000 + b"0]}",
        "of at most length 16",
    ),
    "a million outputs": (
        b'{"inputs":[],"outputs":[' + b'{"name":""},' * 1_000_000 + b"0]}",
        "of at most length 16",
    ),
    "a million axes": (
        b'{"inputs":[{"name":"","shape":[' + b"1," * 1_000_000 + b"1]",
        "of at most length 8",
    ),
    "a long name": (json.dumps(one("x" * 1_000_000, [1], "BYTES", ["x"])).encode(), "length <= 256"),
    "a long id": (json.dumps(one("texts", [1], "BYTES", ["x"], id="x" * 257)).encode(), "length <= 256"),
    "half a character": (
        b'{"inputs":[{"name":"texts","shape":[1],"datatype":"BYTES","data":["\\ud800"]}]}',
        "no JSON",
    ),
}


@pytest.mark.parametrize(("body", "expected"), BAD_JSON.values(), ids=BAD_JSON)
def test_json_that_is_no_request_is_refused(body: bytes, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        read(body)


IDS, PIXELS = "inputs\\[0\\] \\('input_ids'\\)", "inputs\\[0\\] \\('pixel_values'\\)"
BAD_INPUTS = {
    "an unknown name": (one("pixel_valeus", [1], "FP32", [1]), "'pixel_valeus'; expected.*Did you mean 'pixel_values'"),
    "another type": (one("input_ids", [1, 4], "FP32", [1, 2, 3, 4]), f"{IDS} has datatype 'FP32'; expected INT64"),
    "fewer axes": (one("input_ids", [4], "INT64", [1, 2, 3, 4]), f"{IDS} has shape \\[4\\]; expected \\[-1, 4\\]"),
    "another size": (one("input_ids", [1, 5], "INT64", [1] * 5), f"{IDS} has shape \\[1, 5\\]"),
    "a negative size": (one("input_ids", [-1, 4], "INT64", [1] * 4), f"{IDS}.*may be 1 to 8"),
    "no rows": (one("input_ids", [0, 4], "INT64", []), f"{IDS}.*may be 1 to 8"),
    "too many rows": (one("input_ids", [9, 4], "INT64", [1] * 36), f"{IDS}.*may be 1 to 8"),
    "beyond any memory": (one("input_ids", [2**62, 4], "INT64", [1]), f"{IDS}.*may be 1 to 8"),
    "beyond 64 bits": (one("input_ids", [2**70, 4], "INT64", [1]), f"{IDS}.*may be 1 to 8"),
    "too few numbers": (one("input_ids", [1, 4], "INT64", [1, 2, 3]), f"{IDS} has 3 elements.*says 4"),
    "too many numbers": (one("input_ids", [1, 4], "INT64", [1] * 5), f"{IDS} has 5 elements.*says 4"),
    "too many texts": (one("texts", [1], "BYTES", ["a"] * 9), "9 elements.*says 1"),
    "another nesting": (one("input_ids", [1, 4], "INT64", [[1, 2], [3, 4]]), "data of shape \\[2, 2\\]"),
    "ragged lists": (one("input_ids", [1, 4], "INT64", [[1, 2, 3], [4]]), "lists of different lengths"),
    "a fraction": (one("input_ids", [1, 4], "INT64", [1, 2, 3, 4.5]), "something else than integers"),
    "texts for numbers": (one("input_ids", [1, 4], "INT64", ["1", "2", "3", "4"]), "something else than integers"),
    "nothing for a number": (one("pixel_values", [1, 3, 2, 2], "FP32", [None] * 12), "something else than numbers"),
    "65 bits": (one("input_ids", [1, 4], "INT64", [2**63] * 4), "9223372036854775808; INT64 holds"),
    "65 bits among others": (one("input_ids", [1, 4], "INT64", [1, 2, 3, 2**63]), "integers of up to 64 bits"),
    "9 bits": (one("raw_pixels", [1, 4], "UINT8", [1, 2, 3, 256]), "256; UINT8 holds 0 to 255"),
    "below zero": (one("raw_pixels", [1, 4], "UINT8", [1, 2, 3, -1]), "-1; UINT8 holds"),
    "beyond float32": (one("pixel_values", [1, 3, 2, 2], "FP32", [1e39] * 12), f"{PIXELS} holds NaN or infinity"),
    "a number for a text": (one("texts", [1], "BYTES", [1]), "element 0 is 1; expected a text"),
    "a number for data": (one("texts", [1], "BYTES", 1), "data 1; expected a list"),
    "no data": ({"inputs": [{"name": "texts", "shape": [1], "datatype": "BYTES"}]}, "one of 'data' and"),
    "data twice": (
        {"inputs": [{**described("texts", [1], "BYTES", 5), "data": ["x"]}]},
        "one of 'data' and the parameter 'binary_data_size'",
    ),
    "an input twice": (
        {"inputs": one("texts", [1], "BYTES", ["x"])["inputs"] * 2},
        "inputs\\[1\\] \\('texts'\\) is given twice",
    ),
    "shared memory": (
        {"inputs": [{"name": "texts", "shape": [1], "datatype": "BYTES", "parameters": {"shared_memory_region": "r"}}]},
        "shared memory",
    ),
    "an unknown output": (
        one("texts", [1], "BYTES", ["x"], outputs=[{"name": "image_embed"}]),
        "outputs\\[0\\] is 'image_embed'.*Did you mean 'image_embeds'",
    ),
    "an output twice": (one("texts", [1], "BYTES", ["x"], outputs=[{"name": "class_names"}] * 2), "requested twice"),
    "classes of texts": (
        one("texts", [1], "BYTES", ["x"], outputs=[{"name": "class_names", "parameters": {"classification": 1}}]),
        "'class_names' has classification 1",
    ),
    "binary without its header": ({"inputs": [described("texts", [1], "BYTES", 5)]}, "no header Inference-Header"),
}


@pytest.mark.parametrize(("content", "expected"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_inputs_that_do_not_fit_are_refused_with_their_name(content: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        read(content)


def test_base64_that_is_none_is_refused() -> None:
    content = one("images", [1], "BYTES", ["not base64!"])
    content["inputs"][0]["parameters"] = {"content_type": "base64"}
    with pytest.raises(InputError, match="element 0 is not base64"):
        read(content)


@pytest.mark.parametrize("header", ["", "-1", "+2", "1.0", "0x10", "٣", "9" * 30, "2 2", "99999"])
def test_a_wrong_length_of_the_json_is_refused(header: str) -> None:
    with pytest.raises(InputError, match="Inference-Header-Content-Length is"):
        read(b"{}", header)


@pytest.mark.parametrize("length", [1, 20])
def test_a_length_that_cuts_the_json_is_refused(length: int) -> None:
    with pytest.raises(InputError, match="no JSON"):
        read(one("texts", [1], "BYTES", ["x"]) | {}, str(length))


BAD_BINARY = {
    "more than there are": (12, elements(b"abc", b""), "binary_data_size of 12, but 11 bytes follow"),
    "a negative size": (-1, elements(b"abc", b""), "binary_data_size of -1"),
    "bytes left over": (11, elements(b"abc", b"") + b"x", "1 bytes follow the binary data"),
    "too few elements": (7, elements(b"abc"), "1 elements.*says 2"),
    "too many elements": (12, elements(b"", b"", b""), "more than 2 elements"),
    "an element beyond the data": (11, struct.pack("<I", 8) + b"abcdefg", "element 0 does not end"),
    "the longest length": (11, b"\xff\xff\xff\xffabcdefg", "element 0 does not end.*4294967295"),
    "half a length": (9, elements(b"abc") + b"\x00\x00", "element 1 does not end"),
}


@pytest.mark.parametrize(("size", "data", "expected"), BAD_BINARY.values(), ids=BAD_BINARY)
def test_binary_elements_end_with_their_data(size: int, data: bytes, expected: str) -> None:
    body, header = with_binary({"inputs": [described("images", [2], "BYTES", size)]}, data)
    with pytest.raises(InputError, match=expected):
        read(body, header)


@pytest.mark.parametrize("size", [0, 47, 49, 12])
def test_binary_numbers_have_the_length_of_their_shape(size: int) -> None:
    body, header = with_binary({"inputs": [described("pixel_values", [1, 3, 2, 2], "FP32", size)]}, bytes(size))
    with pytest.raises(InputError, match=f"{size} bytes of binary data; shape .* of FP32 has 48"):
        read(body, header)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_binary_numbers_are_finite(value: float) -> None:
    content = {"inputs": [described("pixel_values", [1, 3, 2, 2], "FP32", 48)]}
    with pytest.raises(InputError, match="NaN or infinity"):
        read(*with_binary(content, struct.pack("<12f", *[1.0] * 11, value)))
