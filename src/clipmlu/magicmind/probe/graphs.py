"""The graphs that the probes build and run, with their inputs and expected outputs."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from clipmlu.magicmind.probe.draft import WEIGHT, Array, Draft, random_values
from clipmlu.magicmind.probe.operators import OPERATOR_RECIPES, Recipe
from clipmlu.magicmind.probe.questions.bench import INDEX_NAME


@functools.cache
def make_graphs() -> Mapping[str, bytes]:
    """All graphs with their inputs, expected outputs and index: file name -> contents; made once, not to be changed."""
    drafts = {**_base_graphs(), **_opset_graphs(), **_newer_graphs()}
    for op, recipe in OPERATOR_RECIPES.items():
        drafts[op] = Draft("operator", tolerance=1e-2)
        recipe(drafts[op])
    files: dict[str, bytes] = {}
    index: dict[str, Any] = {}
    for name, draft in drafts.items():
        content, inputs, outputs = draft.finish()
        files[f"{name}.onnx"] = content
        for side, arrays in (("in", inputs), ("out", outputs)):
            files.update({f"{name}.{side}{number}.npy": _npy(array) for number, array in enumerate(arrays)})
        for tensor, location in draft.external.items():
            files[location] = draft.weights[tensor].tobytes()
        index[name] = {"kind": draft.kind, "inputs": len(inputs), "outputs": len(outputs), "tolerance": draft.tolerance}
    files["base.weight.npy"] = _npy(WEIGHT)
    files["half.weight.npy"] = _npy(drafts["half"].weights["w"])
    files[INDEX_NAME] = msgspec.json.format(msgspec.json.encode(index), indent=1)
    return files


def _npy(values: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()


def _base(draft: Draft) -> Draft:
    """``relu(x) @ w`` of two rows."""
    weight = draft.weight(WEIGHT, "w")
    draft.node("MatMul", draft.node("Relu", draft.feed(random_values(2, 8)), output="r"), weight, output="y")
    return draft


def _two(draft: Draft) -> None:
    total = draft.node("Add", draft.feed(random_values(2, 8)), draft.feed(random_values(2, 8, seed=2)))
    draft.node("MatMul", total, draft.weight(WEIGHT), output="y")


def _passing(draft: Draft) -> None:
    draft.node("Relu", draft.feed(random_values(2, 8)), output="y")


def _integers(draft: Draft) -> None:
    floats = draft.node("Cast", draft.feed(np.arange(6, dtype=np.int64).reshape(2, 3)), to=1)
    draft.node("Mul", floats, draft.weight(np.array([2.0], np.float32)), output="y")


def _tokens(draft: Draft) -> None:
    ids = draft.feed(np.arange(6, dtype=np.int64).reshape(2, 3))
    rows = draft.node("Gather", draft.weight(random_values(10, 8)), ids, axis=0)
    draft.node("MatMul", rows, draft.weight(WEIGHT), output="y")


def _slow(draft: Draft) -> None:
    """Sixteen rotations, after which values are as large as before."""
    rotation = draft.weight(np.linalg.qr(random_values(256, 256))[0].astype(np.float32))
    current = draft.feed(random_values(256, 256, seed=3))
    for _ in range(16):
        current = draft.node("MatMul", current, rotation)


def _double(draft: Draft) -> None:
    """Twice the input, because a product by one may be optimised away."""
    draft.node("Mul", draft.feed(random_values(1, 8)), draft.weight(np.array([2.0], np.float32)), output="y")


def _ones(draft: Draft) -> None:
    draft.node("MatMul", draft.feed(np.ones((1, 4096), np.float32)), draft.weight(np.ones((4096, 1), np.float32)))


def _half(draft: Draft) -> None:
    draft.node(
        "MatMul",
        draft.feed(random_values(8, 512, seed=4)),
        draft.weight(random_values(512, 16, seed=5), "w"),
        output="y",
    )


def _names(draft: Draft) -> None:
    middle = draft.node("Relu", draft.feed(random_values(2, 8), "in/put:0"), label="")
    middle = draft.node("MatMul", middle, draft.weight(WEIGHT), label="blocks.0/attn/MatMul:1")
    draft.node("Relu", middle, output="out/put.1")


def _twins(draft: Draft) -> None:
    middle = draft.node("Relu", draft.feed(random_values(2, 8)), label="twin")
    draft.node("MatMul", middle, draft.weight(WEIGHT), output="y", label="twin")


_BASE_RECIPES: dict[str, Recipe] = {
    "two": _two,
    "passing": _passing,
    "integers": _integers,
    "tokens": _tokens,
    "slow": _slow,
    "double": _double,
    "ones": _ones,
    "half": _half,
    "names": _names,
    "twins": _twins,
}


def _base_graphs() -> dict[str, Draft]:
    drafts = {"base": _base(Draft())}
    for name, recipe in _BASE_RECIPES.items():
        drafts[name] = Draft()
        recipe(drafts[name])
    return drafts


def _opset_graphs() -> dict[str, Draft]:
    return {f"opset {number}": _base(Draft("opset", opset=number)) for number in range(10, 19)}


def _newer_graphs() -> dict[str, Draft]:
    einsum = Draft("newer", opset=12)
    einsum.node("Einsum", einsum.feed(random_values(2, 8)), einsum.weight(WEIGHT), equation="bi,io->bo")
    norm = Draft("newer", opset=17)
    norm.node(
        "LayerNormalization",
        norm.feed(random_values(2, 8)),
        norm.weight(random_values(8)),
        norm.weight(random_values(8, seed=6)),
    )
    outside = _base(Draft("newer"))
    outside.external["w"] = "outside.bin"
    foreign = Draft("newer")
    foreign.node("NoSuchOperator", foreign.feed(random_values(2, 8)), domain="clipmlu.probe")
    foreign.expected = [random_values(2, 8)]
    attention = Draft("newer")  # softmax(q k') v, as the towers have it, in one graph
    q, k, v = (attention.feed(random_values(2, 4, 8, seed=seed)) for seed in (7, 8, 9))
    scores = attention.node("MatMul", q, attention.node("Transpose", k, perm=[0, 2, 1]))
    attention.node("MatMul", attention.node("Softmax", scores, axis=2), v)
    return {
        "Einsum at 12": einsum,
        "LayerNormalization at 17": norm,
        "weights outside": outside,
        "foreign domain": foreign,
        "attention at 11": attention,
    }
