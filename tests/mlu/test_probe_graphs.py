"""The graphs of the probes."""

from __future__ import annotations

import io
import json

import numpy as np
import onnxruntime

from clipmlu.magicmind.probe.graphs import make_graphs


def test_expected_outputs_are_those_of_onnxruntime() -> None:
    files = make_graphs()
    for name, facts in json.loads(files["graphs.json"]).items():
        if name in ("foreign domain", "weights outside", "twins"):  # not for onnxruntime, or not from memory
            continue
        session = onnxruntime.InferenceSession(files[f"{name}.onnx"], providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        arrays = [np.load(io.BytesIO(files[f"{name}.in{number}.npy"])) for number in range(facts["inputs"])]
        for number, result in enumerate(session.run(None, dict(zip(names, arrays, strict=True)))):
            expected = np.load(io.BytesIO(files[f"{name}.out{number}.npy"]))
            assert result.dtype == expected.dtype
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4, err_msg=name)
