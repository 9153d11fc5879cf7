"""``clipmlu compare``: two bundles of one model on the same images, from the nodes to the predictions."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from clipmlu.arguments import check_argument, check_fields
from clipmlu.backends.provenance import Command
from clipmlu.bundle.directory import Bundle, CompiledBundle, ExportedBundle, open_exported
from clipmlu.classify.building import build_classifier
from clipmlu.classify.scoring import PREFER_TOWERS
from clipmlu.data.datasets import Dataset, check_dataset
from clipmlu.data.feeds import Array
from clipmlu.data.preprocess import Preprocessor
from clipmlu.data.prompts import Templates, fill_template, resolve_templates, without_functions
from clipmlu.data.tokenizer import Tokenizer
from clipmlu.display import Displayed, Summary, as_plain, counted
from clipmlu.embed.rows import FloatArray
from clipmlu.errors import OptionError
from clipmlu.file_names import name_from_path
from clipmlu.host import require_graph_packages
from clipmlu.measure.compare.ablation import (
    Ablation,
    AblationData,
    Embeddings,
    ablate_roles,
    check_ablation,
    check_source,
)
from clipmlu.measure.compare.nodes import NodeComparison, TowerComparison, compare_tower, hidden_tower
from clipmlu.measure.compare.predictions import (
    EmbeddingComparison,
    PredictionComparison,
    best_classes,
    compare_embeddings,
    compare_predictions,
    predict_classes,
)
from clipmlu.measure.compare.sides import Side, SideFacts, check_same_model, hidden_reason, open_side
from clipmlu.measure.ranking import EmbeddedImages, IntArray, embed_dataset
from clipmlu.measure.samples import Overlap, SkippedImage, choose_images
from clipmlu.measure.statistics import fraction_text
from clipmlu.specs import ModelId, NaturalInt, PositiveInt, Spec, TowerName
from clipmlu.steps import StartStep, no_steps

DEFAULT_SAMPLES = 256
DEFAULT_THRESHOLD = 0.99
_JOINT_IS_HIDDEN = (
    "Nodes are compared of two bundles with two towers each, and one of these has the joint layout: "
    "only logits and predictions are compared."
)

TowerChoice = Literal["image", "text", "both"]
BundleLike = str | os.PathLike[str] | Bundle


class ComparisonReport(Displayed, Spec, frozen=True, kw_only=True):
    """The report of ``clipmlu compare A B``; all figures measure A against B.

    Attributes:
        measured: A.
        reference: B.
        dataset: the dataset's name.
        split: the split.
        templates: templates of the prompts.
        images: number of images that both sides embedded.
        skipped: images that could not be read.
        calibration_overlap: number of images that a side was calibrated with, if these were allowed; else None.
        calibration_prompts: number of prompts that a side's text tower was calibrated with.
        threshold: smallest cosine of a node that does not diverge.
        towers: maps a tower to its nodes. Float32 kernels on the CPU compute their values, see ``measure.tensors``.
        embeddings: maps a tower to its embeddings, of images or of classes, from the bundles' own runtimes; empty if a
            side has the joint layout, which returns none.
        predictions: zero-shot predictions, from the same runtimes.
        logits: the logits of the images over the classes if there are no embeddings; else None.
        ablation: the cost of each role, or None if it was not requested.
        elapsed_s: wall time in seconds.
        command: the command that compared them; None from Python, or in reports of an older clipmlu.
    """

    measured: SideFacts
    reference: SideFacts
    dataset: str
    split: str
    templates: tuple[str, ...]
    images: int
    skipped: tuple[SkippedImage, ...]
    calibration_overlap: int | None
    calibration_prompts: int
    threshold: float
    towers: dict[TowerName, TowerComparison]
    embeddings: dict[TowerName, EmbeddingComparison]
    predictions: PredictionComparison
    logits: EmbeddingComparison | None = None
    ablation: Ablation | None
    elapsed_s: float
    command: Command | None = None

    @property
    def model(self) -> ModelId:
        """The model of both sides."""
        return self.measured.provenance.model

    @property
    def emulated(self) -> bool:
        """True if the emulated vendor SDK was used for either side."""
        return self.measured.provenance.emulated or self.reference.provenance.emulated

    @property
    def first_divergences(self) -> dict[TowerName, NodeComparison]:
        """Maps each tower with a divergent node to the first one."""
        return {
            name: tower.first_divergence for name, tower in self.towers.items() if tower.first_divergence is not None
        }

    def summary(self) -> Summary:
        """Return the facts that people see."""
        found = self.predictions
        facts = {
            "model": str(self.model),
            "measured": f"{self.measured.describe()} ({self.measured.path})",
            "reference": f"{self.reference.describe()} ({self.reference.path})",
            "dataset": f"{self.dataset}, {self.split}, {counted(self.images, 'image')}",
            "agreement": fraction_text(found.agreement),
            "top-1": f"{fraction_text(found.top1)} against {fraction_text(found.reference_top1)}",
        }
        for name, node in self.first_divergences.items():
            facts[f"first divergence, {name}"] = f"{node.place} ({node.node})"
        return Summary(facts, self.emulated)

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each compared node, with its ``tower``."""
        return [{"tower": name, **as_plain(node)} for name, tower in self.towers.items() for node in tower.nodes]

    def html_records(self) -> list[dict[str, Any]]:
        """Return the differences of the embeddings, or of the logits."""
        rows = [{"embeddings": name, **as_plain(row)} for name, row in self.embeddings.items()]
        return rows if self.logits is None else [*rows, {"embeddings": "logits", **as_plain(self.logits)}]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of a comparison; validated on construction.

    Attributes:
        samples: number of images; None for 256, or all if there are fewer. Also the largest number of prompts.
        shuffle: select images randomly; otherwise the first ones.
        seed: random seed of the selection.
        batch_size: images per batch; None for the bundles' own.
        templates: see ``prompts.resolve_templates``.
        tower: tower whose nodes are compared and whose roles are ablated.
        threshold: a node with a smaller cosine diverges.
        ablate: measure A with one role after the other in float.
        source: the exported bundle of A if that is not B; for ``ablate``, and for the roles.
        allow_overlap: also use images that a bundle was calibrated with; the report counts them.
        cache: store class embeddings in the cache directory.
        threads: CPU threads per batch; 0 for the runtime's default.
        workers: threads that read and prepare images; None for one per CPU that this process may use.
        device: index of the MLU card.
    """

    samples: PositiveInt | None = None
    shuffle: bool = False
    seed: NaturalInt = 0
    batch_size: PositiveInt | None = None
    templates: Templates = "simple"
    tower: TowerChoice = "both"
    threshold: float = DEFAULT_THRESHOLD
    ablate: bool = False
    source: str | os.PathLike[str] | ExportedBundle | None = None
    allow_overlap: bool = False
    cache: bool = True
    threads: NaturalInt = 0
    workers: PositiveInt | None = None
    device: NaturalInt = 0

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "templates", without_functions(self.templates))
        if not -1 <= self.threshold <= 1:
            raise OptionError(f"threshold is {self.threshold:g}; expected a cosine, -1 to 1")

    @property
    def towers(self) -> tuple[TowerName, ...]:
        """The towers whose nodes are compared."""
        return ("image", "text") if self.tower == "both" else (self.tower,)


def compare_bundles(
    measured: BundleLike,
    reference: BundleLike,
    dataset: Dataset,
    options: CompareOptions | None = None,
    *,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
) -> ComparisonReport:
    """Measure one bundle against another of the same model.

    Either may be an exported bundle, which represents its own float graphs: they run in float32 on the CPU, smoothed
    like the other side, so that names and values of all tensors correspond. If two bundles were smoothed differently,
    their smoothed tensors are different by design; these are skipped and counted.

    Nodes run on the CPU in float32 kernels that simulate the mode, for bundles of any target; embeddings and
    predictions are those of the bundles' own runtimes. Bundles for real cards have predictions only. If a side has the
    joint layout, logits are compared instead of embeddings, and no nodes.

    Args:
        measured: A, a bundle or its path.
        reference: B, the reference for A.
        dataset: labelled images.
        options: options of the comparison; defaults if None.
        on_note: called with a line for the user at each step.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Raises:
        BundleError: one of them is not a bundle, or they are of different models.
        OptionError: an option does not fit the bundles or the dataset.
        ShapeError: a bundle does not support the batch size.
        InputError: no image can be read.
        OverlapError: a bundle was calibrated with an image, and ``allow_overlap`` is False.
        BackendUnavailableError: a bundle's runtime cannot be used on this machine.
        MissingDependencyError: nodes are compared, and the packages that read graphs are not installed.
    """
    options = check_argument(options, CompareOptions | None, "options") or CompareOptions()
    check_dataset(dataset)
    start = time.perf_counter()
    with on_step("verifying the bundles"):
        a, b = open_side(measured), open_side(reference)
    check_same_model(a, b)
    source = _find_source(a, b, options)
    if _reads_nodes(a, b, options):
        require_graph_packages("Comparing nodes")
    comparison = _Comparison(a, b, source, dataset, options, on_note, on_step)
    return comparison.run(start)


def _find_source(a: Side, b: Side, options: CompareOptions) -> ExportedBundle | None:
    """Return A's float source, checked for the options."""
    source: ExportedBundle | None = None
    if options.source is not None:
        source = options.source if isinstance(options.source, ExportedBundle) else open_exported(options.source)
        if isinstance(a.given, CompiledBundle):
            check_source(a.given, source)
    elif isinstance(b.given, ExportedBundle):
        source = b.given
    if options.ablate and _is_joint(a, b):
        raise OptionError(f"ablation needs two towers, whose embeddings it compares; {PREFER_TOWERS}")
    if options.ablate:
        check_ablation(a.given, source, options.towers)
    return source


def _reads_nodes(a: Side, b: Side, options: CompareOptions) -> bool:
    """Return whether the nodes of a tower are compared, whose names are those of the lowered graph."""
    visible = (all(hidden_reason(side.given, tower) is None for side in (a, b)) for tower in options.towers)
    return not _is_joint(a, b) and (options.ablate or any(visible))


def _is_joint(*sides: Side) -> bool:
    return any(side.given.manifest.layout == "joint" for side in sides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Result:
    """The results of one side for the images.

    Attributes:
        embedded: its rows, with their images.
        overlap: number of these that a bundle was calibrated with.
        logits: logits of the rows, shape (N, C).
        embeddings: embeddings of images and classes; None for the joint layout.
    """

    embedded: EmbeddedImages
    overlap: int
    logits: FloatArray
    embeddings: Embeddings | None

    @property
    def predicted(self) -> IntArray:
        """The best class of each image."""
        if self.embeddings is None:
            return best_classes(self.logits)
        return predict_classes(self.embeddings.image, self.embeddings.text)


class _Comparison:
    """The state of one comparison."""

    def __init__(
        self,
        a: Side,
        b: Side,
        source: ExportedBundle | None,
        dataset: Dataset,
        options: CompareOptions,
        on_note: Callable[[str], None],
        on_step: StartStep,
    ) -> None:
        self._a, self._b = a, b
        self._source = source
        self._dataset = dataset
        self._options = options
        self._note = on_note
        self._step = on_step
        self._templates = resolve_templates(options.templates)
        samples = min(DEFAULT_SAMPLES, len(dataset)) if options.samples is None else options.samples
        self._indices = choose_images(dataset, samples, shuffle=options.shuffle, seed=options.seed)
        self._prompts = [fill_template(template, name) for template in self._templates for name in dataset.class_names]
        seen = [side.seen for side in (a, b)]
        self._seen_images = {image for data in seen for image in data.images}
        self._seen_prompts = {prompt for data in seen for prompt in data.prompts}

    def run(self, start: float) -> ComparisonReport:
        a, b = self._embed(self._a, "A"), self._embed(self._b, "B")
        measured, own, theirs = a.embedded, a.embeddings, b.embeddings
        assert measured.indices == b.embedded.indices, "both read the same files"
        predictions = compare_predictions(self._dataset, measured, a.predicted, b.predicted)
        ablation, logits = None, None
        embeddings: dict[TowerName, EmbeddingComparison] = {}
        if own is None or theirs is None:
            towers: dict[TowerName, TowerComparison] = {"joint": hidden_tower(_JOINT_IS_HIDDEN)}
            logits = compare_embeddings(a.logits, b.logits)
        else:
            towers = {tower: self._compare_tower(tower, measured.indices) for tower in self._options.towers}
            ablation = self._ablate(measured.indices, own, theirs) if self._options.ablate else None
            embeddings = {
                "image": compare_embeddings(own.image, theirs.image),
                "text": compare_embeddings(own.text, theirs.text),
            }
        return ComparisonReport(
            measured=self._a.describe(self._options.device),
            reference=self._b.describe(self._options.device),
            dataset=self._dataset.name,
            split=self._dataset.split,
            templates=self._templates,
            images=len(measured.indices),
            skipped=measured.skipped,
            calibration_overlap=a.overlap if self._options.allow_overlap else None,
            calibration_prompts=len(self._seen_prompts.intersection(self._prompts)),
            threshold=self._options.threshold,
            towers=towers,
            embeddings=embeddings,
            predictions=predictions,
            logits=logits,
            ablation=ablation,
            elapsed_s=time.perf_counter() - start,
        )

    def _embed(self, side: Side, name: str) -> _Result:
        self._note(f"embedding {len(self._indices)} images with {name}, '{name_from_path(side.given.path)}'")
        options = self._options
        with side.encoder(options.threads, options.device) as encoder, np.errstate(invalid="ignore", over="ignore"):
            classifier = build_classifier(
                encoder, self._dataset.class_names, self._templates, cache=options.cache, on_step=self._step
            )
            if cost := classifier.scorer.describe_cost(encoder.check_batch_size(options.batch_size)):
                self._note(cost)
            overlap = Overlap(
                self._seen_images, "a compared bundle", "Compare on others", allowed=options.allow_overlap
            )
            with self._step(f"embedding images with {name}", total=len(self._indices), unit="images") as step:
                embedded = embed_dataset(
                    classifier.scorer,
                    self._dataset,
                    self._indices,
                    batch_size=options.batch_size,
                    workers=options.workers,
                    check=overlap.check,
                    on_images=step.advance,
                )
            logits = classifier.scorer.logits(embedded.rows)  # NaN is reported, not an error
            embeddings = None
            if not _is_joint(side):
                embeddings = Embeddings(image=embedded.rows, text=classifier.class_embeddings)
        return _Result(embedded=embedded, overlap=len(overlap.found), logits=logits, embeddings=embeddings)

    def _compare_tower(self, tower: TowerName, indices: Sequence[int]) -> TowerComparison:
        sides = (self._a, self._b)
        for side in sides:
            if reason := hidden_reason(side.given, tower):
                return hidden_tower(reason)
        fixed = {rows for side in sides if (rows := side.fixed_rows(tower)) is not None}
        if len(fixed) > 1:
            sizes = " and ".join(str(rows) for rows in sorted(fixed))
            return hidden_tower(
                f"The bundles take batches of exactly {sizes} rows, so no batch goes through both: "
                "only outputs and predictions are compared."
            )
        from clipmlu.measure.compare.tensors import lowered_model, tensor_graph

        self._note(f"comparing the nodes of the {tower} tower")
        rows = next(iter(fixed), None)
        graphs = [tensor_graph(side.given, tower, rows) for side in sides]
        measured, reference = graphs[0].smoothed_like(graphs[1]), graphs[1].smoothed_like(graphs[0])
        structure = next((graph.lowered for graph in (measured, reference) if graph.lowered is not None), None)
        if structure is None and self._source is not None:
            structure = lowered_model(self._source.tower_path(tower), self._source.tower(tower), rows)
        return compare_tower(
            measured,
            reference,
            structure if structure is not None else reference.structure,
            lambda count: cut_rows(self._rows(tower, indices), count, fixed=rows is not None),
            rows or self._options.batch_size or self._a.runs.compilation.batch_size,
            threshold=self._options.threshold,
            fixed=rows is not None,
            threads=self._options.threads,
            row_count=len(indices) if tower == "image" else min(len(self._prompts), self._text_rows),
            on_step=self._step,
        )

    @property
    def _text_rows(self) -> int:
        """Largest number of prompts whose nodes are compared."""
        return self._options.samples or DEFAULT_SAMPLES

    def _rows(self, tower: TowerName, indices: Sequence[int]) -> Iterable[Array]:
        """Return the input rows of a tower: uint8 pixels, or token ids of prompts, which begin with each class once."""
        given = self._a.given
        if tower == "image":
            preprocess = Preprocessor(given.manifest.preprocess)
            return (preprocess.pixels(self._dataset.image(index)).transpose(2, 0, 1) for index in indices)
        tokenizer = Tokenizer.load(given.tokenizer_path, given.manifest.tokenizer)
        rows: Iterable[Array] = tokenizer(self._prompts[: self._text_rows])
        return rows

    def _ablate(self, indices: Sequence[int], own: Embeddings, theirs: Embeddings) -> Ablation:
        assert self._source is not None, "_find_source checked it"
        assert isinstance(self._a.given, CompiledBundle), "_find_source checked it"
        is_source = self._b.given.digest == self._source.digest
        floats = theirs if is_source else self._embed(open_side(self._source), "the source").embeddings
        assert floats is not None, "_find_source refused the joint layout"
        data = AblationData(
            dataset=self._dataset,
            indices=indices,
            templates=self._templates,
            batch_size=self._options.batch_size,
            threads=self._options.threads,
            workers=self._options.workers,
        )
        towers = self._options.towers
        return ablate_roles(
            self._a.given, self._source, own, floats, data, towers=towers, on_note=self._note, on_step=self._step
        )


def cut_rows(rows: Iterable[Array], count: int, *, fixed: bool) -> Iterator[Array]:
    """Yield batches of ``count`` rows; if the size is fixed, the last one is filled with the first rows."""
    first: list[Array] = []
    batch: list[Array] = []
    for row in rows:
        batch.append(row)
        if len(batch) == count:
            first = first or batch
            yield np.stack(batch)
            batch = []
    if batch:
        front = first or batch
        missing = count - len(batch) if fixed else 0
        yield np.stack([*batch, *(front[number % len(front)] for number in range(missing))])
