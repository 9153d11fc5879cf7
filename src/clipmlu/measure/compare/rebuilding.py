"""Rebuilding a tower of a quantised bundle with the operators of one role in float.

The rebuilt graphs quantise everything else with the ranges in the bundle's manifest, without a new calibration. They
run on the CPU, for bundles of the CPU and of the emulated SDK, which quantise to the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnx

from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.bundle.manifest import Tower
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.graph.index import save_model
from clipmlu.graph.pixels import with_float_pixels
from clipmlu.graph.quantisation.clipping import clip_graph
from clipmlu.graph.quantisation.parameters import Array
from clipmlu.graph.quantisation.pixel_scaling import scale_pixels
from clipmlu.graph.quantisation.rewrite import rewrite_for_runtime
from clipmlu.graph.quantisation.sites import find_sites
from clipmlu.graph.quantisation.smoothing import smooth_graph
from clipmlu.graph.quantisation.undo import rounded_weights
from clipmlu.graph.quantisation.weight_rounding import with_weights
from clipmlu.graph.roles import ROLES, Role, find_operators
from clipmlu.measure.compare.tensors import lowered_model, tensor_graph
from clipmlu.specs import MluBuild, NodeType, TowerName


class Rebuilder:
    """Rebuilds one tower of a quantised bundle with more operators in float.

    Attributes:
        tower: name of the tower.
        roles: roles of the bundle's quantised operators, in the order of ``ROLES``.
    """

    def __init__(self, bundle: CompiledBundle, source: ExportedBundle, tower: TowerName) -> None:
        self._bundle = bundle
        self.tower: TowerName = tower
        self._record = bundle.compilation.quantised[tower]
        spec = source.tower(tower)
        rows = bundle.tower(tower).inputs[0].shape[0]
        model = lowered_model(source.tower_path(tower), spec, rows if isinstance(rows, int) else None)
        self._operators = find_operators(model)
        if self._record.smoothing:
            model = smooth_graph(model, find_sites(model, self._operators), self._record.smoothing)
        self._model = scale_pixels(model, self._record.pixel_scaling)
        self._rounded: dict[str, Array] = {}
        if self._record.rounded:
            self._rounded = rounded_weights(tensor_graph(bundle, tower).model, self._record)
        kept = set(self._record.float_nodes)
        self._quantised = [operator for operator in self._operators if operator.node not in kept]
        present = {operator.role for operator in self._quantised}
        self.roles: tuple[Role, ...] = tuple(role for role in ROLES if role in present)

    def nodes(self, role: Role) -> list[str]:
        """Return the names of a role's quantised operators."""
        return [operator.node for operator in self._quantised if operator.role == role]

    def macs_share(self, role: Role) -> float:
        """Return a role's share of the tower's multiply-accumulates."""
        macs = sum(operator.macs for operator in self._quantised if operator.role == role)
        return macs / max(sum(operator.macs for operator in self._operators), 1)

    def rebuild(self, in_float: Sequence[str]) -> onnx.ModelProto:
        """Return the rewritten graph for the CPU.

        Args:
            in_float: operators that stay in the mode's float type, in addition to those of the bundle.
        """
        facts = self._bundle.compilation
        how = facts.quantisation
        assert how is not None, "a bundle that quantises says how"
        kept = (*self._record.float_nodes, *in_float)
        of_float = {name for node in self._model.graph.node if node.name in in_float for name in node.input}
        rounded = {name: values for name, values in self._rounded.items() if name not in of_float}
        model, _ = clip_graph(with_weights(self._model, rounded), self._record.clipped, without=frozenset(kept))
        float_type: NodeType = facts.precision.float_type
        types = {**dict.fromkeys(kept, float_type), **(facts.mlu or MluBuild()).node_types}
        ranges = {name: (each.minimum, each.maximum) for name, each in self._record.tensors.items()}
        rewritten, _ = rewrite_for_runtime(model, facts.precision, how, ranges, types)
        return rewritten

    def write(self, in_float: Sequence[str], folder: Path) -> RunnableModel:
        """Write the rebuilt tower into a folder, for the CPU; the model has no other tower."""
        spec = with_float_pixels(self._bundle.tower(self.tower))
        tower = Tower(file=f"{self.tower}.onnx", inputs=spec.inputs, outputs=spec.outputs)
        save_model(self.rebuild(in_float), folder / tower.file)
        facts = msgspec.structs.replace(
            self._bundle.compilation,
            target="cpu",
            backend="onnxruntime",
            emulated=False,
            text_tower=None,
            uint8_input=False,
        )
        return RunnableModel(
            path=folder,
            tokenizer_path=self._bundle.tokenizer_path,
            facts=self._bundle.manifest,
            towers={self.tower: tower},
            compilation=facts,
        )
