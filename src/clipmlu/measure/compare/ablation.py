"""The accuracy cost of each role: a quantised bundle is rebuilt with the operators of one role in float, for each role.

The rebuilt graphs quantise everything else with the ranges in the bundle's manifest, without a new calibration. They
run on the CPU, for bundles of the CPU and of the emulated SDK, which quantise to the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx

from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.bundle.manifest import Tower
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.classify.building import embed_classes
from clipmlu.data.datasets import Dataset
from clipmlu.embed.encoder import Encoder, FloatArray
from clipmlu.embed.image_graph import ImageTower
from clipmlu.errors import BundleError, OptionError
from clipmlu.files.publish import scratch_directory
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
from clipmlu.measure.compare.predictions import compare_embeddings, predict_classes
from clipmlu.measure.compare.tensors import lowered_model, tensor_graph
from clipmlu.measure.ranking import embed_dataset
from clipmlu.measure.statistics import count_changes, mcnemar_p_value
from clipmlu.specs import MluBuild, NodeType, Spec, TowerName
from clipmlu.steps import StartStep, counted, no_steps


class RoleCost(Spec, frozen=True, kw_only=True):
    """The cost of quantising one role: the bundle's results with the role in float.

    Attributes:
        tower: tower of the operators; the other tower stays unchanged.
        role: their role.
        operators: number of the role's quantised operators.
        macs_share: their share of the tower's multiply-accumulates, 0..1.
        mean_cosine: mean cosine similarity of the tower's embeddings and those of the float source; None if one is not
            finite.
        recovered: ``mean_cosine`` minus that of the bundle itself: the loss of cosine that the role causes.
        agreement: share of images with the same best class as in float, 0..1.
        top1: share of correctly classified images.
        top1_gain: ``top1`` minus that of the bundle itself: the loss of top-1 that the role causes.
        mcnemar_p: exact two-sided p-value of McNemar's test that both classify equally well; a gain with a large
            value may be chance.
    """

    tower: TowerName
    role: Role
    operators: int
    macs_share: float
    mean_cosine: float | None
    recovered: float | None
    agreement: float
    top1: float
    top1_gain: float
    mcnemar_p: float


class Ablation(Spec, frozen=True, kw_only=True):
    """The ablation of a quantised bundle, with one role after the other in float.

    Attributes:
        images: number of images.
        mean_cosine: maps a tower to the mean cosine similarity of the bundle's embeddings and those of the float
            source.
        agreement: the bundle's share of images with the same best class as in float.
        top1: the bundle's share of correctly classified images.
        float_top1: the same of the float source.
        roles: by tower, and in a tower the role with the largest recovery first.
    """

    images: int
    mean_cosine: dict[TowerName, float | None]
    agreement: float
    top1: float
    float_top1: float
    roles: tuple[RoleCost, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Unit-norm embeddings of the same images and classes.

    Attributes:
        image: float32, shape (N, D).
        text: float32, shape (C, D).
    """

    image: FloatArray
    text: FloatArray

    def of(self, tower: TowerName) -> FloatArray:
        """Return the embeddings of one tower."""
        return self.image if tower == "image" else self.text

    def replace(self, tower: TowerName, embeddings: FloatArray) -> Embeddings:
        """Return a copy with other embeddings of one tower."""
        changes = {"image": embeddings} if tower == "image" else {"text": embeddings}
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationData:
    """The data for measuring the rebuilt graphs.

    Attributes:
        dataset: the images.
        indices: positions of readable images.
        templates: templates of the prompts.
        batch_size: images per batch; None for the bundle's own.
        threads: CPU threads; 0 for the runtime's default.
        workers: threads that read and prepare images; None for one per CPU that this process may use.
    """

    dataset: Dataset
    indices: Sequence[int]
    templates: Sequence[str]
    batch_size: int | None
    threads: int
    workers: int | None


def check_ablation(
    bundle: ExportedBundle | CompiledBundle, source: ExportedBundle | None, towers: Sequence[TowerName]
) -> None:
    """Check, before slow work begins, that a bundle can be ablated.

    Args:
        bundle: the bundle to ablate.
        source: its float source, or None.
        towers: towers whose roles are ablated.

    Raises:
        OptionError: the towers are not quantised, their ranges are not known, or the float source is missing.
        BundleError: the bundle was not compiled from the source.
    """
    if not isinstance(bundle, CompiledBundle) or bundle.compilation.precision.bits is None:
        raise OptionError(f"ablation takes roles out of the quantisation, but bundle '{bundle.path}' quantises nothing")
    records = [record for name, record in bundle.compilation.quantised.items() if name in towers]
    if bundle.compilation.quantised and not records:
        raise OptionError(f"ablation looks at the {towers[0]} tower, which bundle '{bundle.path}' does not quantise")
    if not any(record.tensors for record in records):
        raise OptionError(
            f"bundle '{bundle.path}' has no record of the quantisation of its tensors, which ablation needs; "
            "compile it for --target cpu, which quantises the same operators"
        )
    if source is None:
        raise OptionError(
            "ablation needs the float source; give the exported bundle as the second bundle, or with --source"
        )
    check_source(bundle, source)


def check_source(bundle: CompiledBundle, source: ExportedBundle) -> None:
    """Check that a bundle was compiled from a source.

    Raises:
        BundleError: it was not.
    """
    if bundle.compilation.source_digest != source.digest:
        raise BundleError(f"Bundle '{bundle.path}' was not compiled from '{source.path}', but from another export.")


def ablate_roles(
    bundle: CompiledBundle,
    source: ExportedBundle,
    own: Embeddings,
    floats: Embeddings,
    data: AblationData,
    *,
    towers: Iterable[TowerName] = ("image", "text"),
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
) -> Ablation:
    """Measure a bundle with one role after the other in float.

    Args:
        bundle: the quantised bundle; see ``check_ablation``.
        source: its float source.
        own: the bundle's embeddings of the data.
        floats: the source's embeddings of the data.
        data: the data.
        towers: towers whose roles are ablated.
        on_note: called with a line for the user at each step.
        on_step: shows the roles of each tower.
    """
    comparison = _Comparison(own, floats, data)
    cosines: dict[TowerName, float | None] = {}
    costs: list[RoleCost] = []
    for tower in towers:
        if not bundle.compilation.quantised.get(tower):
            continue  # it runs in float on the CPU
        rebuilder = Rebuilder(bundle, source, tower)
        found = []
        with on_step(f"ablating the {tower} tower", total=len(rebuilder.roles), unit="roles") as step:
            for role in counted(rebuilder.roles, step):
                on_note(f"ablation: {tower} tower with {role} in float")
                found.append(comparison.cost(rebuilder, role, _embed_without(rebuilder, role, data)))
        costs += sorted(found, key=lambda cost: -(cost.recovered if cost.recovered is not None else -np.inf))
        cosines[tower] = comparison.own_cosine(tower)
    return Ablation(
        images=len(comparison.labels),
        mean_cosine=cosines,
        agreement=float(np.mean(comparison.own_classes == comparison.float_classes)),
        top1=float(np.mean(comparison.own_classes == comparison.labels)),
        float_top1=float(np.mean(comparison.float_classes == comparison.labels)),
        roles=tuple(costs),
    )


class _Comparison:
    """Compares embeddings with those of the float source and of the bundle itself.

    Attributes:
        labels: correct classes, int64, shape (N,).
        own_classes: predictions of the bundle itself.
        float_classes: predictions of the float source.
    """

    def __init__(self, own: Embeddings, floats: Embeddings, data: AblationData) -> None:
        self._own, self._floats = own, floats
        self.labels = np.array([data.dataset.label(index) for index in data.indices], np.int64)
        self.own_classes = predict_classes(own.image, own.text)
        self.float_classes = predict_classes(floats.image, floats.text)

    def own_cosine(self, tower: TowerName) -> float | None:
        return compare_embeddings(self._own.of(tower), self._floats.of(tower)).mean_cosine

    def cost(self, rebuilder: Rebuilder, role: Role, embeddings: FloatArray) -> RoleCost:
        """Return the cost of a role from the tower's embeddings with the role in float."""
        tower = rebuilder.tower
        changed = self._own.replace(tower, embeddings)
        classes = predict_classes(changed.image, changed.text)
        cosine, before = compare_embeddings(embeddings, self._floats.of(tower)).mean_cosine, self.own_cosine(tower)
        right, own_right = classes == self.labels, self.own_classes == self.labels
        lost, won = count_changes(own_right, right)
        return RoleCost(
            tower=tower,
            role=role,
            operators=len(rebuilder.nodes(role)),
            macs_share=rebuilder.macs_share(role),
            mean_cosine=cosine,
            recovered=None if cosine is None or before is None else cosine - before,
            agreement=float(np.mean(classes == self.float_classes)),
            top1=float(right.mean()),
            top1_gain=(won - lost) / len(self.labels),
            mcnemar_p=mcnemar_p_value(won, lost),
        )


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


def _embed_without(rebuilder: Rebuilder, role: Role, data: AblationData) -> FloatArray:
    with scratch_directory() as folder:
        rebuilt = rebuilder.write(rebuilder.nodes(role), folder)
        options = SessionOptions(threads=data.threads, busy_wait=False)
        with Encoder(rebuilt, options, check_results=False) as encoder:
            if rebuilder.tower == "image":
                graph = ImageTower(encoder)
                return embed_dataset(
                    graph, data.dataset, data.indices, batch_size=data.batch_size, workers=data.workers
                ).rows
            with np.errstate(invalid="ignore", over="ignore"):
                return embed_classes(encoder, data.dataset.class_names, data.templates)
