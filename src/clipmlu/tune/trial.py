"""Values of the search of how to quantise: its options, its trials and its report."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from clipmlu.arguments import check_fields
from clipmlu.backends.provenance import Provenance
from clipmlu.errors import OptionError
from clipmlu.measure.statistics import Z_ONE_SIDED
from clipmlu.specs import PositiveInt, Precision, QuantisationOptions, Spec

_DISCORDANT = 0.05  # assumed share of images that only one of the two models classifies correctly
_FEWEST, _MOST = 1000, 5000

Verdict = Literal["accepted", "rejected", "stopped_early", "failed", "exploratory"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What the search must keep and how it measures it; validated on construction.

    Attributes:
        max_drop: allowed loss of top-1 against float32, 0..1.
        samples: held-out images to evaluate on; None chooses by ``max_drop``.
        templates: of the prompts; see ``prompts.resolve_templates``.
        precision: search within this mode only; None for all modes of the target.
    """

    max_drop: float
    samples: PositiveInt | None = None
    templates: str | os.PathLike[str] | Sequence[str] = "simple"
    precision: Precision | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.max_drop < 1:
            raise OptionError(f"max drop is {self.max_drop:g}; expected a fraction above 0 and below 1, such as 0.01")
        if self.precision is not None and self.precision.bits is None:
            raise OptionError(f"precision {self.precision.value} quantises nothing; there is nothing to search for")

    @property
    def templates_text(self) -> str:
        """The templates as they were given, in one text."""
        given = self.templates
        return str(given) if isinstance(given, (str, os.PathLike)) else ", ".join(given)

    @property
    def wanted_samples(self) -> int:
        """Images to evaluate on: as many as make the uncertainty about half of what is allowed."""
        if self.samples is not None:
            return self.samples
        return int(np.clip(math.ceil(_DISCORDANT * (2 * Z_ONE_SIDED / self.max_drop) ** 2), _FEWEST, _MOST))


class Trial(Spec, frozen=True, kw_only=True):
    """One way to quantise that was tried.

    Attributes:
        precision: the mode.
        quantisation: how it quantises, or None for a mode that does not.
        verdict: ``accepted``; ``rejected``; ``stopped_early`` after a part of the images; ``failed`` when it did not
            compile or a gate failed; ``exploratory`` for the effect of one role in float.
        images: images evaluated.
        top1: fraction of them that are right, or None when it failed.
        drop: float32's fraction on the same images less ``top1``, or None.
        drop_bound: upper end of its one-sided 95 % confidence interval, or None.
        agreement: share of the images that get the same class as in float32, or None.
        embedding_error: 1 less the mean cosine similarity to float32's image embeddings, or, of the joint layout, to its
            logits less their mean; or None.
        quantised_share: of the multiply-accumulate operations of both towers.
        reason: why it failed; else empty.
        elapsed_s: wall time in seconds.
    """

    precision: Precision
    quantisation: QuantisationOptions | None
    verdict: Verdict
    images: int = 0
    top1: float | None = None
    drop: float | None = None
    drop_bound: float | None = None
    agreement: float | None = None
    embedding_error: float | None = None
    quantised_share: float | None = None
    reason: str = ""
    elapsed_s: float


class SearchReport(Spec, frozen=True, kw_only=True):
    """What the search tried, in order.

    Attributes:
        provenance: the exported bundle, and what the trials ran on.
        max_drop: the allowed loss of top-1.
        confidence: of the bounds.
        dataset: where the held-out images come from.
        split: which part of it.
        images: their number.
        templates: of the prompts.
        reference_top1: float32's top-1 on them.
        trials: in order; the last one was chosen, if it is accepted.
    """

    provenance: Provenance
    max_drop: float
    confidence: float
    dataset: str
    split: str
    images: int
    templates: str
    reference_top1: float
    trials: tuple[Trial, ...] = ()


def describe_trial(trial: Trial) -> str:
    """One line for people."""
    how = trial.quantisation
    words = [trial.precision.value]
    if how is not None:
        words += [how.granularity, how.algorithm]
        words += ["asymmetric"] if how.activation == "asymmetric" else []
        words += [f"smoothing {max(how.smooth_alpha.values()):g}"] if how.smooth_alpha else []
        words += [f"float {', '.join(how.keep_float)}"] if how.keep_float else []
    verdict = trial.verdict.replace("_", " ")
    if trial.top1 is None:
        return f"{' '.join(words)}: {verdict}: {trial.reason}"
    return (
        f"{' '.join(words)}: top-1 {trial.top1:.4f}, drop {100 * (trial.drop or 0.0):.2f} points "
        f"(95 %: at most {100 * (trial.drop_bound or 0.0):.2f}) on {trial.images} images: {verdict}"
    )


def best_text(report: SearchReport) -> str:
    """The trial that loses least, for the message that none holds."""
    evaluated = [trial for trial in report.trials if trial.drop is not None and trial.verdict != "exploratory"]
    if not evaluated:
        return f"nothing could be evaluated, at last because: {report.trials[-1].reason.rstrip('.')}"
    return f"the best was {describe_trial(min(evaluated, key=lambda trial: trial.drop or 0.0))}"
