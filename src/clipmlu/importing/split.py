"""Splitting a fused graph into two towers, and finding its logit scale and bias.

The towers end where their results meet, in a matrix product. From its operands back to the embeddings, and from its result on
to the logits, there may only be transpositions and arithmetic with constants: their product is the logit scale.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from clipmlu.errors import ExportError
from clipmlu.graph.index import GraphIndex, attributes_of
from clipmlu.graph.shapes import NodeEvaluator
from clipmlu.importing.interface import GraphInputs, checked_output, choose_output
from clipmlu.importing.reading import describe

_IMAGE, _TEXT = 1, 2  # bits of the inputs that a tensor depends on
_BOTH = _IMAGE | _TEXT
_SIZES_ONLY = ("Shape", "Size")
_OF_GIVEN_SIZE = ("ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample")
"""Operators whose few inputs may stand for a result of any size."""
_UNCHANGED = ("Identity", "Cast", "Dropout")
_LARGEST_CONSTANT = 16  # elements; a logit scale is a scalar
_SAME = 1e-6  # relative difference of two logit scales that are one, in float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine:
    """A number for each cosine similarity: ``scale`` times it, plus ``bias``.

    Attributes:
        scale: the factor.
        bias: the summand.
        turned: True if rows and columns are exchanged.
    """

    scale: float = 1.0
    bias: float = 0.0
    turned: bool = False

    def after(self, first: Affine) -> Affine:
        """Return the result of applying ``first`` and then this one."""
        return Affine(
            scale=first.scale * self.scale,
            bias=first.bias * self.scale + self.bias,
            turned=first.turned != self.turned,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """The parts of a fused graph.

    Attributes:
        image: the tensor of image embeddings.
        text: the tensor of text embeddings.
        logits: maps each output of logits to its values, with images as rows unless ``turned``.
    """

    image: str
    text: str
    logits: dict[str, Affine]

    @property
    def values(self) -> Affine | None:
        """Logit scale and bias, or None if the graph has no logits."""
        return next(iter(self.logits.values()), None)


def split_graph(
    model: onnx.ModelProto, inputs: GraphInputs, outputs: tuple[str | None, str | None], where: str
) -> Split:
    """Find the embeddings and the logits of a fused graph.

    Args:
        model: the graph.
        inputs: its inputs.
        outputs: the user's names of the outputs that are the embeddings of images and of texts; None to find them.
        where: the graph, for messages.

    Raises:
        ExportError: the towers meet in another way; the message names the node.
    """
    return _Splitter(model, inputs, where).split(outputs)


class _Splitter:
    def __init__(self, model: onnx.ModelProto, inputs: GraphInputs, where: str) -> None:
        self._model = model
        self._index = GraphIndex(model)
        self._where = where
        self._opsets = list(model.opset_import)
        self._depends = _dependence(model, inputs)
        self._joins: dict[str, Affine] = {}  # result of a product -> its values
        self._embeddings: dict[int, str] = {}
        self._arrays: dict[
            str, npt.NDArray[Any] | None
        ] = {}  # tensor -> its values if they are few and always the same

    def split(self, outputs: tuple[str | None, str | None]) -> Split:
        for node in self._model.graph.node:
            if self._is_join(node):
                self._add_join(node)
        logits = {
            value.name: self._logits_of(value.name)
            for value in self._model.graph.output
            if self._depends.get(value.name) == _BOTH
        }
        image, text = (
            self._given_output(outputs[place], name) or self._embeddings.get(bit) or self._output_of(bit, name)
            for place, (bit, name) in enumerate(((_IMAGE, "image"), (_TEXT, "text")))
        )
        self._check_equal(logits)
        return Split(image=image, text=text, logits=logits)

    def _is_join(self, node: onnx.NodeProto) -> bool:
        kinds = {self._depends.get(name, 0) for name in node.input if name} - {0}
        return self._depends.get(node.output[0]) == _BOTH and kinds != {_BOTH}

    def _add_join(self, node: onnx.NodeProto) -> None:
        attributes = attributes_of(node)
        kinds = [self._depends.get(name, 0) for name in node.input]
        if node.op_type not in ("MatMul", "Gemm") or set(kinds[:2]) != {_IMAGE, _TEXT}:
            raise self._refusal(node, "where image and text meet; expected a matrix product of the two embeddings")
        values = [self._trace(name) for name in node.input[:2]]
        bias = self._constant(node.input[2]) if len(node.input) > 2 else 0.0
        if bias is None or any(each.bias for each in values):
            raise self._refusal(node, "which adds something to the similarities that is not constant")
        first_turned = values[0].turned != bool(attributes.get("transA", 0))
        second_turned = values[1].turned != bool(attributes.get("transB", 0))
        if first_turned or not second_turned:
            raise self._refusal(node, "whose operands are not rows of embeddings")
        scale = attributes.get("alpha", 1.0) * values[0].scale * values[1].scale
        self._joins[node.output[0]] = Affine(
            scale=scale, bias=bias * attributes.get("beta", 1.0), turned=kinds[0] == _TEXT
        )

    def _trace(self, name: str) -> Affine:
        """Follow an operand back to the embeddings."""
        side = self._depends[name]
        done = Affine()
        while (step := self._step(name)) is not None:
            name, change = step
            done = done.after(change)
        if self._embeddings.setdefault(side, name) != name:
            raise ExportError(
                f"{self._where} multiplies '{name}' and '{self._embeddings[side]}'; expected one embedding of each tower."
            )
        return done

    def _logits_of(self, output: str) -> Affine:
        """Follow an output back to a product of embeddings."""
        name, done = output, Affine()
        while name not in self._joins:
            step = self._step(name)
            if step is None:
                raise self._refusal(
                    self._index.producers[name],
                    f"before the output '{output}'; expected scaled similarities, without probabilities",
                )
            name, change = step
            done = done.after(change)
        return done.after(self._joins[name])

    def _step(self, name: str) -> tuple[str, Affine] | None:
        """Return the input of a node that only transposes or computes with constants, and what it does; else None."""
        node = self._index.producers.get(name)
        if node is None:
            return None
        varying = [place for place, each in enumerate(node.input) if self._depends.get(each, 0)]
        if len(varying) != 1:
            return None
        place = varying[0]
        source = node.input[place]
        if node.op_type in _UNCHANGED:
            return source, Affine()
        if node.op_type == "Transpose":
            return (source, Affine(turned=True)) if attributes_of(node).get("perm", [1, 0]) == [1, 0] else None
        if node.op_type not in ("Mul", "Div", "Add", "Sub") or len(node.input) != 2:
            return None
        number = self._constant(node.input[1 - place])
        change = None if number is None else _arithmetic(node.op_type, number, place)
        return None if change is None else (source, change)

    def _constant(self, name: str) -> float | None:
        """Return the number that a tensor of one element always is, or None."""
        array = self._array(name)
        return None if array is None or array.size != 1 else float(array.reshape(()))

    def _array(self, name: str) -> npt.NDArray[Any] | None:
        """Return the small array that a tensor always is, or None; every node is evaluated once."""
        waiting = [name]
        while waiting:
            current = waiting[-1]
            node = self._index.producers.get(current)
            given = node.input if node is not None and self._is_constant(node) else ()
            missing = [each for each in given if each and each not in self._arrays]
            waiting.extend(missing)
            if not missing:
                waiting.pop()
                if current not in self._arrays:
                    self._arrays[current] = self._compute(current, node)
        return self._arrays[name]

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        """Return whether a node's results are always the same, and can be computed."""
        varies = any(self._depends.get(each, 0) for each in node.output)
        return not varies and node.op_type not in (*_SIZES_ONLY, *_OF_GIVEN_SIZE)

    def _compute(self, name: str, node: onnx.NodeProto | None) -> npt.NDArray[Any] | None:
        """Return a weight, or the result of a node whose inputs are known."""
        weight = self._index.weights.get(name)
        if weight is not None:
            array = numpy_helper.to_array(weight) if np.prod(weight.dims) <= _LARGEST_CONSTANT else None
            return array.astype(np.float32) if array is not None and weight.data_type == TensorProto.BFLOAT16 else array
        if node is None or not self._is_constant(node):
            return None
        feeds = {each: self._arrays[each] for each in node.input if each}
        if any(array is None for array in feeds.values()):
            return None
        try:
            found = NodeEvaluator(node, self._opsets).run(
                {each: array for each, array in feeds.items() if array is not None}
            )
        except Exception:  # the reference evaluator lacks some operators
            return None
        array = found.get(name)
        return array if array is not None and array.size <= _LARGEST_CONSTANT else None

    def _given_output(self, wanted: str | None, name: str) -> str | None:
        return None if wanted is None else checked_output(self._model, name, wanted, self._where)

    def _output_of(self, bit: int, name: str) -> str:
        """Return the output that is the embedding of a tower, in a graph without logits."""
        part = onnx.ModelProto()
        part.graph.output.extend(value for value in self._model.graph.output if self._depends.get(value.name) == bit)
        return choose_output(part, name, None, self._where)

    def _check_equal(self, logits: dict[str, Affine]) -> None:
        for name, found in logits.items():
            first = next(iter(logits.values()))
            if not np.allclose([found.scale, found.bias], [first.scale, first.bias], rtol=_SAME, atol=_SAME):
                raise ExportError(
                    f"{self._where} has other logits in '{name}' than in '{next(iter(logits))}': scale {found.scale:g} and bias "
                    f"{found.bias:g}, not {first.scale:g} and {first.bias:g}."
                )

    def _refusal(self, node: onnx.NodeProto, what: str) -> ExportError:
        return ExportError(f"{self._where} cannot be split into towers: it has the {describe(node)} {what}.")


def _arithmetic(op_type: str, number: float, place: int) -> Affine | None:
    """Return what an operator with a constant does; ``place`` is the index of its other operand."""
    if op_type == "Mul":
        return Affine(scale=number)
    if op_type == "Add":
        return Affine(bias=number)
    if op_type == "Sub":
        return Affine(bias=-number) if place == 0 else Affine(scale=-1.0, bias=number)
    return Affine(scale=1.0 / number) if place == 0 and number else None


def _dependence(model: onnx.ModelProto, inputs: GraphInputs) -> dict[str, int]:
    """Map each tensor to the inputs whose values it depends on, as bits."""
    found = {value.name: _TEXT for value in model.graph.input}
    if inputs.pixels is not None:
        found[inputs.pixels.name] = _IMAGE
    for node in model.graph.node:
        bits = 0
        for name in () if node.op_type in _SIZES_ONLY else node.input:
            bits |= found.get(name, 0)
        found.update(dict.fromkeys(node.output, bits))
    return found
