"""The accuracy cost of each role: a quantised bundle is rebuilt with the operators of one role in float, for each role."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.classify.building import embed_classes
from clipmlu.data.datasets import Dataset
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.image_graph import ImageTower
from clipmlu.embed.rows import FloatArray
from clipmlu.errors import BundleError, OptionError
from clipmlu.files.publish import scratch_directory
from clipmlu.graph.roles import Role
from clipmlu.measure.compare.predictions import compare_embeddings, predict_classes
from clipmlu.measure.ranking import embed_dataset
from clipmlu.measure.statistics import count_changes, mcnemar_p_value
from clipmlu.specs import Spec, TowerName
from clipmlu.steps import StartStep, counted, no_steps

if TYPE_CHECKING:  # a report is read without onnx
    from clipmlu.measure.compare.rebuilding import Rebuilder


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
    from clipmlu.measure.compare.rebuilding import Rebuilder

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
