"""Answers to inference requests: tensors, classifications and metadata as JSON and binary data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from clipmlu.classify.probabilities import rank_classes
from clipmlu.serve.kserve.request import LENGTH_HEADER, InferenceRequest, WantedOutput
from clipmlu.serve.kserve.tensors import binary_from_values, datatype_of, json_from_values

JSON, BINARY = "application/json", "application/octet-stream"


class OutputTensor(NamedTuple):
    """A result.

    Attributes:
        values: an array, or texts in UTF-8.
        labels: names of the positions of the last axis, for a classification; empty if there are none.
    """

    values: npt.NDArray[Any] | Sequence[bytes]
    labels: Sequence[str] = ()


class Answer(NamedTuple):
    """Body and headers of an HTTP answer."""

    body: bytes
    headers: dict[str, str]


def write_response(
    model: str,
    version: str,
    request: InferenceRequest,
    results: Mapping[str, OutputTensor],
    parameters: Mapping[str, str | bool | int],
) -> Answer:
    """Write the answer to a request.

    Args:
        model: name of the model.
        version: its version.
        request: the request, whose outputs are all in ``results``.
        results: maps the name of each output to its values.
        parameters: parameters of the answer; none are written if empty.
    """
    wanted = request.outputs
    if wanted is None:
        wanted = tuple(WantedOutput(name, request.binary_output) for name in results)
    outputs, chunks = [], []
    for output in wanted:
        described, data = _write_output(output, results[output.name])
        outputs.append(described)
        if data is not None:
            chunks.append(data)
    content: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        content["id"] = request.id
    if parameters:
        content["parameters"] = dict(parameters)
    text = msgspec.json.encode({**content, "outputs": outputs})
    if not any(output.binary for output in wanted):
        return Answer(text, {"Content-Type": JSON})
    return Answer(b"".join([text, *chunks]), {"Content-Type": BINARY, LENGTH_HEADER: str(len(text))})


def _write_output(wanted: WantedOutput, result: OutputTensor) -> tuple[dict[str, Any], bytes | None]:
    values, labels = result
    if isinstance(values, np.ndarray):
        shape, datatype = list(values.shape), str(datatype_of(values.dtype))
        if wanted.classes:
            rows = values.reshape(-1, values.shape[-1])
            texts = classify_rows(rows, labels, wanted.classes)
            values, datatype = [text.encode() for text in texts], "BYTES"
            shape[-1] = len(texts) // len(rows)
    else:
        shape, datatype = [len(values)], "BYTES"
    described: dict[str, Any] = {"name": wanted.name, "datatype": datatype, "shape": shape}
    if not wanted.binary:
        return {**described, "data": json_from_values(values)}, None
    data = binary_from_values(values)
    return {**described, "parameters": {"binary_data_size": len(data)}}, data


def classify_rows(rows: npt.NDArray[Any], labels: Sequence[str], count: int) -> list[str]:
    """Return the best positions of each row as ``value:index:label``, in the order of Triton's classification extension.

    Args:
        rows: shape (N, C).
        labels: names of the C positions; without names ``:label`` is left out.
        count: number of positions, at most C.
    """
    best = rank_classes(rows, min(count, rows.shape[1]))
    names = [f":{label}" for label in labels] or [""] * rows.shape[1]
    return [f"{row[place]:f}:{place}{names[place]}" for row, places in zip(rows, best, strict=True) for place in places]
