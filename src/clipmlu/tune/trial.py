"""Options, trials and report of the search of quantisation options."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from clipmlu.arguments import check_fields
from clipmlu.backends.provenance import Command, Provenance
from clipmlu.data.pairs.reading import PairChoice
from clipmlu.data.prompts import Templates, without_functions
from clipmlu.display import Displayed, Summary, as_plain, counted
from clipmlu.errors import OptionError
from clipmlu.measure.statistics import Z_ONE_SIDED, fraction_text
from clipmlu.specs import PositiveInt, Precision, QuantisationOptions, Spec

_DISCORDANT = 0.05  # assumed share of images that only one of the two models classifies correctly
_FEWEST, _MOST = 1000, 5000

Verdict = Literal["accepted", "rejected", "stopped_early", "failed", "exploratory"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of a search; validated on construction.

    Attributes:
        max_drop: allowed loss of top-1 accuracy against float32, above 0 and below 1; with ``pairs`` of recall@1 in each
            direction.
        pairs: evaluate by the recall of these images and texts; None for the accuracy on images of the calibration's dataset.
        samples: number of held-out images; None chooses it from ``max_drop``.
        templates: prompt templates; see ``prompts.resolve_templates``.
        precision: search within this mode only; None for all modes of the target.
    """

    max_drop: float
    pairs: PairChoice | None = None
    samples: PositiveInt | None = None
    templates: Templates = "simple"
    precision: Precision | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "templates", without_functions(self.templates))
        if not 0 < self.max_drop < 1:
            raise OptionError(f"max drop is {self.max_drop:g}; expected a fraction above 0 and below 1, such as 0.01")
        if self.precision is not None and self.precision.bits is None:
            raise OptionError(f"precision {self.precision.value} quantises nothing; there is nothing to search for")

    @property
    def templates_text(self) -> str:
        """The given templates as one text."""
        given = self.templates
        return ", ".join(map(str, given)) if isinstance(given, Sequence) and not isinstance(given, str) else str(given)

    @property
    def wanted_samples(self) -> int:
        """Number of images to evaluate; by default the standard error of the drop is then about half of ``max_drop``."""
        if self.samples is not None:
            return self.samples
        return int(np.clip(math.ceil(_DISCORDANT * (2 * Z_ONE_SIDED / self.max_drop) ** 2), _FEWEST, _MOST))


class RecallFigures(Spec, frozen=True, kw_only=True):
    """Recall at 1 of pairs of images and texts, 0..1, with images and with texts as queries."""

    image_to_text: float
    text_to_image: float

    def __str__(self) -> str:
        return f"recall@1 {fraction_text(self.image_to_text)} (image to text) and {fraction_text(self.text_to_image)} (text to image)"


class Trial(Spec, frozen=True, kw_only=True):
    """Result of one candidate.

    Attributes:
        precision: the mode.
        quantisation: quantisation options; None for a float mode.
        verdict: ``accepted``; ``rejected``; ``stopped_early`` after a part of the images; ``failed`` if it did not
            compile or a gate failed; ``exploratory`` if it measured the effect of one role in float.
        images: number of evaluated images.
        top1: top-1 accuracy, 0..1; None if the trial failed, or the search is judged by recall.
        recall: recall of the pairs; None if the trial failed, or the search is judged by accuracy.
        drop: float32's top-1 on the same images minus ``top1``, or the larger drop of recall@1 of the two directions; or None.
        drop_bound: upper end of the one-sided 95 % confidence interval of the drop, the larger one of two directions; or None.
        agreement: share of the images with the same predicted class as float32, or the smaller share of the queries with the
            same first result; or None.
        embedding_error: 1 minus the mean cosine similarity to float32's image embeddings (joint layout: to its
            mean-centred logits; with pairs: mean of the images' and the texts'), or None.
        quantised_share: quantised share of the multiply-accumulate operations of both towers, or None.
        reason: reason of a failure; else empty.
        elapsed_s: wall time in seconds.
    """

    precision: Precision
    quantisation: QuantisationOptions | None
    verdict: Verdict
    images: int = 0
    top1: float | None = None
    recall: RecallFigures | None = None
    drop: float | None = None
    drop_bound: float | None = None
    agreement: float | None = None
    embedding_error: float | None = None
    quantised_share: float | None = None
    reason: str = ""
    elapsed_s: float


class SearchReport(Displayed, Spec, frozen=True, kw_only=True):
    """Report of a search.

    Attributes:
        provenance: the exported bundle, and the software and hardware of the trials.
        max_drop: allowed loss of top-1 accuracy, or of recall@1 in each direction.
        confidence: confidence level of the bounds.
        dataset: dataset of the held-out images, or the files of pairs.
        split: split of the dataset.
        images: number of held-out images.
        templates: prompt templates.
        reference_top1: top-1 accuracy of float32 on the held-out images; None if the search is judged by recall.
        reference_recall: recall of float32 on the pairs; None if the search is judged by accuracy.
        trials: in order; if the last one is accepted, it was chosen.
        command: the command that searched; None from Python, or in reports of an older clipmlu.
    """

    provenance: Provenance
    max_drop: float
    confidence: float
    dataset: str
    split: str
    images: int
    templates: str
    reference_top1: float | None
    reference_recall: RecallFigures | None = None
    trials: tuple[Trial, ...] = ()
    command: Command | None = None

    @property
    def chosen(self) -> Trial | None:
        """The trial that was chosen, or None."""
        return self.trials[-1] if self.trials and self.trials[-1].verdict == "accepted" else None

    def summary(self) -> Summary:
        """Return the facts that people see."""
        facts = {
            **self.provenance.facts(),
            "dataset": f"{self.dataset}, {self.split}, {counted(self.images, 'image')}",
            "allowed drop": f"{100 * self.max_drop:g} points",
            **({} if self.reference_top1 is None else {"float32 top-1": fraction_text(self.reference_top1)}),
            **({} if self.reference_recall is None else {"float32": str(self.reference_recall)}),
            "trials": str(len(self.trials)),
            "chosen": "none" if self.chosen is None else describe_trial(self.chosen),
        }
        return Summary(facts, self.provenance.emulated)

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each trial, in order."""
        return [{"trial": describe_trial(trial), **as_plain(trial)} for trial in self.trials]

    def html_records(self) -> list[dict[str, Any]]:
        """Return the main figures of each trial."""
        names = ("precision", "verdict", "images", "top1", "drop", "drop_bound", "agreement", "reason")
        return [{name: row[name] for name in names} for row in self.records()]


def describe_trial(trial: Trial) -> str:
    """Describe a trial in one line."""
    words = list(filter(None, [trial.precision.value, describe_quantisation(trial.quantisation)]))
    verdict = trial.verdict.replace("_", " ")
    if trial.drop is None:
        return f"{' '.join(words)}: {verdict}: {trial.reason}"
    found = str(trial.recall) if trial.top1 is None else f"top-1 {fraction_text(trial.top1)}"
    return (
        f"{' '.join(words)}: {found}, drop {100 * (trial.drop or 0.0):.2f} points "
        f"(95 %: at most {100 * (trial.drop_bound or 0.0):.2f}) on {trial.images} images: {verdict}"
    )


def describe_quantisation(how: QuantisationOptions | None) -> str:
    """Describe quantisation options in a few words; empty for none."""
    if how is None:
        return ""
    words: list[str] = [how.granularity, how.algorithm]
    words += ["asymmetric"] if how.activation == "asymmetric" else []
    words += [f"smoothing {how.smoothing_text}"] if how.is_smoothed else []
    words += [how.weight_rounding] if how.weight_rounding != "nearest" else []
    words += [f"float {', '.join(how.keep_float)}"] if how.keep_float else []
    return " ".join(words)


def best_text(report: SearchReport) -> str:
    """Describe the trial with the smallest drop, for the message of a failed search."""
    evaluated = [trial for trial in report.trials if trial.drop is not None and trial.verdict != "exploratory"]
    if not evaluated:
        return f"no trial could be evaluated; last reason: {report.trials[-1].reason.rstrip('.')}"
    return f"the best was {describe_trial(min(evaluated, key=lambda trial: trial.drop or 0.0))}"
