"""What a search is asked for, what it tried, and its report."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from clipmlu.arguments import check_fields
from clipmlu.errors import OptionError
from clipmlu.files.publish import encode_json
from clipmlu.measure.statistics import _Z_ONE_SIDED
from clipmlu.specs import PositiveInt, Precision, QuantisationOptions, Spec

_DISCORDANT = 0.05  # share of images that change sides, for the choice of how many to look at
_FEWEST, _MOST = 1000, 5000

Verdict = Literal["accepted", "rejected", "hopeless", "broken", "probe"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What is demanded and how it is judged; validated on construction.

    Attributes:
        max_drop: allowed loss of top-1 against float32, 0..1.
        samples: held-out images to judge with; None chooses by ``max_drop``.
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
        """Images to judge with: as many as make the uncertainty about half of what is allowed."""
        if self.samples is not None:
            return self.samples
        return int(np.clip(math.ceil(_DISCORDANT * (2 * _Z_ONE_SIDED / self.max_drop) ** 2), _FEWEST, _MOST))


class Rung(Spec, frozen=True, kw_only=True):
    """One thing that was tried.

    Attributes:
        precision: the mode.
        quantisation: how it quantises, or None for a mode that does not.
        verdict: ``accepted``; ``rejected``; ``hopeless`` after a part of the images; ``broken`` when it did not
            compile or a gate failed; ``probe`` for a look at what one role costs.
        images: images judged.
        top1: fraction of them that are right, or None when broken.
        drop: float32's fraction on the same images less ``top1``, or None.
        drop_bound: upper end of its one-sided 95 % confidence interval, or None.
        agreement: share of the images that get the same class as in float32, or None.
        embedding_error: 1 less the mean cosine similarity to float32's image embeddings, or, of the joint layout, to its
            logits less their mean; or None.
        quantised_share: of the multiply-accumulate operations of both towers.
        reason: why it is broken; else empty.
        elapsed_s: wall time in seconds.
    """

    precision: Precision
    quantisation: QuantisationOptions | None
    verdict: Verdict
    images: int
    top1: float | None
    drop: float | None
    drop_bound: float | None
    agreement: float | None
    embedding_error: float | None
    quantised_share: float | None
    reason: str = ""
    elapsed_s: float


class SearchReport(Spec, frozen=True, kw_only=True):
    """The ladder as it was climbed.

    Attributes:
        target: where it was judged.
        emulated: on the emulated vendor SDK.
        max_drop: what was allowed.
        confidence: of the bounds.
        dataset: where the held-out images come from.
        split: which part of it.
        images: their number.
        templates: of the prompts.
        reference_top1: float32's top-1 on them.
        rungs: in the order of climbing; the last one is what was chosen, if it is accepted.
    """

    target: str
    emulated: bool
    max_drop: float
    confidence: float
    dataset: str
    split: str
    images: int
    templates: str
    reference_top1: float
    rungs: tuple[Rung, ...] = ()


def encode_search(report: SearchReport) -> bytes:
    """The ladder as indented JSON."""
    return encode_json(report)


def describe_rung(rung: Rung) -> str:
    """One line for people."""
    how = rung.quantisation
    words = [rung.precision.value]
    if how is not None:
        words += [how.granularity, how.algorithm]
        words += ["asymmetric"] if how.activation == "asymmetric" else []
        words += [f"smoothing {max(how.smooth_alpha.values()):g}"] if how.smooth_alpha else []
        words += [f"float {', '.join(how.keep_float)}"] if how.keep_float else []
    if rung.top1 is None:
        return f"{' '.join(words)}: {rung.verdict}: {rung.reason}"
    return (
        f"{' '.join(words)}: top-1 {rung.top1:.4f}, drop {100 * (rung.drop or 0.0):.2f} points "
        f"(95 %: at most {100 * (rung.drop_bound or 0.0):.2f}) on {rung.images} images: {rung.verdict}"
    )


def best_text(report: SearchReport) -> str:
    """The trial that loses least, for the message that none holds."""
    judged = [rung for rung in report.rungs if rung.drop is not None and rung.verdict != "probe"]
    if not judged:
        return f"nothing could be judged, at last because: {report.rungs[-1].reason.rstrip('.')}"
    return f"the best was {describe_rung(min(judged, key=lambda rung: rung.drop or 0.0))}"
