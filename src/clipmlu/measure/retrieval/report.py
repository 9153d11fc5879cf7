"""The report of a retrieval evaluation, and its comparison with an earlier one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from clipmlu.arguments import as_path
from clipmlu.backends.provenance import Command, Provenance
from clipmlu.display import Displayed, Summary, as_plain
from clipmlu.errors import GateError, InputError, OptionError
from clipmlu.files.read import decode_json, read_small_file
from clipmlu.measure.samples import SkippedImage
from clipmlu.measure.statistics import Interval, with_interval
from clipmlu.specs import NaturalInt, Spec

SCHEMA_VERSION = 1
DEFAULT_MAX_RECALL_DROP = 0.01


class Recall(Spec, frozen=True, kw_only=True):
    """Recall at one number of results.

    Attributes:
        k: number of results.
        hits: number of queries with a match among the first ``k``, that is, of rank ``k`` or better.
        value: ``hits / queries``, 0..1.
        interval: its 95 % confidence interval; see ``intervals``.
    """

    k: int
    hits: int
    value: float
    interval: Interval


class DirectionReport(Spec, frozen=True, kw_only=True):
    """The results of one direction.

    Attributes:
        queries: number of queries.
        candidates: number of candidates that each query is compared with.
        recalls: at 1, 5 and 10, if there are more candidates than that.
        mean_rank: mean rank of the best match, from 1; see ``ranks.rank_matches``.
        median_rank: median of it; the mean of the two in the middle for an even number.
    """

    queries: int
    candidates: int
    recalls: tuple[Recall, ...]
    mean_rank: float
    median_rank: float

    @property
    def first(self) -> Recall:
        """Recall at 1."""
        return self.recalls[0]


class RankAgreement(Spec, frozen=True, kw_only=True):
    """How far the rankings of two models agree in one direction.

    Attributes:
        top1_agreement: share of the queries with the same first result, 0..1.
        top10_overlap: mean share of the first ten results that both have, in any order, 0..1; None with ten candidates or fewer.
        mean_rank_change: mean rank minus that of the reference; positive if the reference ranks matches better.
        recall_drop: recall at 1 of the reference minus that of this model.
        recall_drop_bound: upper end of its one-sided 95 % confidence interval.
        lost: number of queries whose first result is right with the reference only.
        won: number of queries whose first result is right with this model only.
    """

    top1_agreement: float
    top10_overlap: float | None
    mean_rank_change: float
    recall_drop: float
    recall_drop_bound: float
    lost: int
    won: int


class ReferenceAgreement(Spec, frozen=True, kw_only=True):
    """Agreement of the rankings with those of another bundle on the same pairs.

    Attributes:
        provenance: the other bundle.
        image_to_text: images as queries.
        text_to_image: texts as queries.
    """

    provenance: Provenance
    image_to_text: RankAgreement
    text_to_image: RankAgreement


class RecallBaseline(Spec, frozen=True, kw_only=True):
    """The comparison with an earlier report of the same pairs, in recall at 1.

    Attributes:
        bundle_digest: the bundle of the earlier report.
        image_to_text: its recall at 1 with images as queries.
        text_to_image: its recall at 1 with texts as queries.
        image_to_text_drop: ``image_to_text`` minus that of the new report.
        text_to_image_drop: the same with texts as queries.
        max_recall_drop: largest allowed drop in each direction.
    """

    bundle_digest: str
    image_to_text: float
    text_to_image: float
    image_to_text_drop: float
    text_to_image_drop: float
    max_recall_drop: float


class RetrievalReport(Displayed, Spec, frozen=True, kw_only=True):
    """The report of ``clipmlu eval --task retrieval``.

    Attributes:
        schema_version: version of the layout.
        task: ``"retrieval"``.
        provenance: the bundle, its target and versions.
        pairs: names of the files of pairs.
        data_digest: digest of the pixels of all images and of their texts; equal for the same data in any file.
        split: the split, or an empty text.
        batch_size: images per batch.
        images: number of different images, including the last partial batch.
        texts: number of different texts.
        image_to_text: images as queries: each looks for its texts.
        text_to_image: texts as queries: each looks for its images.
        groups: number of independent groups of queries: an image with its texts, and images that share a text.
        skipped: images that could not be read; their texts are left out too.
        duplicate_images: number of images that have the content of another one; they are one image with the texts of all.
        images_without_texts: number of images without a text, which are left out.
        empty_texts: number of empty texts, which are left out.
        repeated_pairs: number of texts that were given again for their image, and count once.
        shared_texts: number of texts that belong to several images; each of these is right.
        truncated_texts: number of texts that are longer than the context, and were cut.
        elapsed_s: wall time in seconds, without opening the bundle and the files.
        calibration_overlap: number of images that the bundle was calibrated with, if these were allowed; else None.
        calibration_prompts: number of texts that the text tower was calibrated with.
        fast_preprocess: True if images were decoded and shrunk by the fast path.
        reference: agreement with the rankings of another bundle, or None.
        baseline: comparison with an earlier report, or None.
        command: the command that measured it; None from Python.
    """

    schema_version: NaturalInt = SCHEMA_VERSION
    task: Literal["retrieval"] = "retrieval"
    provenance: Provenance
    pairs: str
    data_digest: str
    split: str
    batch_size: int
    images: int
    texts: int
    image_to_text: DirectionReport
    text_to_image: DirectionReport
    groups: int
    skipped: tuple[SkippedImage, ...]
    duplicate_images: int
    images_without_texts: int
    empty_texts: int
    repeated_pairs: int
    shared_texts: int
    truncated_texts: int
    elapsed_s: float
    calibration_overlap: int | None = None
    calibration_prompts: int = 0
    fast_preprocess: bool = False
    reference: ReferenceAgreement | None = None
    baseline: RecallBaseline | None = None
    command: Command | None = None

    def directions(self) -> dict[str, DirectionReport]:
        """Map the name of each direction to its results."""
        return {"image to text": self.image_to_text, "text to image": self.text_to_image}

    def left_out(self) -> dict[str, str]:
        """Return what is not counted or counted once, for people: only what occurs."""
        counts = {
            "skipped": (len(self.skipped), "image(s) could not be read; their texts are left out too"),
            "duplicates": (self.duplicate_images, "image(s) have the content of another one and are one with it"),
            "without text": (self.images_without_texts, "image(s) have no text and are left out"),
            "empty texts": (self.empty_texts, "left out"),
            "repeated pairs": (self.repeated_pairs, "counted once"),
            "shared texts": (self.shared_texts, "belong to several images, each of which is right"),
            "truncated texts": (self.truncated_texts, "longer than the context of the model"),
            "overlap": (
                self.calibration_overlap or 0,
                "of these images also served for calibration: the figures are too high",
            ),
            "prompts": (
                self.calibration_prompts,
                "of these texts also served as prompts for the calibration of the text tower",
            ),
        }
        return {name: f"{count:,} {what}" for name, (count, what) in counts.items() if count}

    def summary(self) -> Summary:
        """Return the facts that people see."""
        facts = {
            **self.provenance.facts(),
            "pairs": f"{self.pairs}" + (f", {self.split}" if self.split else ""),
            "images": f"{self.images:,}" + (f" ({len(self.skipped)} skipped)" if self.skipped else ""),
            "texts": f"{self.texts:,}",
            **{
                f"recall@1, {name}": with_interval(found.first.value, found.first.interval)
                for name, found in self.directions().items()
            },
        }
        return Summary(facts, self.provenance.emulated)

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each direction, with the recalls in columns such as ``recall_at_5``."""
        return [{"direction": name, **_flat(found)} for name, found in self.directions().items()]

    def html_records(self) -> list[dict[str, Any]]:
        """Return one row for each direction."""
        return self.records()


def _flat(found: DirectionReport) -> dict[str, Any]:
    plain = as_plain(found)
    del plain["recalls"]
    recalls = {each.k: each.value for each in found.recalls}
    return {**plain, **{f"recall_at_{k}": recalls.get(k) for k in (1, 5, 10)}}


def read_retrieval_report(path: str | os.PathLike[str]) -> RetrievalReport:
    """Read a report of ``clipmlu eval --task retrieval --output``.

    Raises:
        InputError: it is missing, has the layout of a newer clipmlu, is of another task, or is not a report.
    """
    try:
        content = read_small_file(as_path(path, "the report"))
        _check_kind(path, decode_json(content, dict[str, Any]))
        report = decode_json(content, RetrievalReport)
        if any([each.k for each in found.recalls[:1]] != [1] for found in report.directions().values()):
            raise msgspec.DecodeError("it has no recall at 1")
        return report
    except OSError as error:
        raise InputError(f"Cannot read the report '{path}': {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise InputError(
            f"'{path}' is not a report as 'clipmlu eval --task retrieval --output' writes it: {error}."
        ) from error


def _check_kind(path: str | os.PathLike[str], fields: Mapping[str, Any]) -> None:
    """Raise if a report is of another task, or has another layout."""
    if "top1" in fields:
        raise InputError(
            f"'{path}' is a report about the accuracy of classification; expected one of 'clipmlu eval --task retrieval'."
        )
    version = fields.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(f"Report '{path}' has schema {version}; this clipmlu reads up to {SCHEMA_VERSION}.")


def compare_with_recall(report: RetrievalReport, baseline: RetrievalReport, max_drop: float) -> RetrievalReport:
    """Return the report with a comparison; ``check_recall`` decides whether it passes.

    Raises:
        OptionError: the reports are about other pairs, or ``max_drop`` is not in 0..1.
    """
    if not 0 <= max_drop <= 1:
        raise OptionError(f"max recall drop is {max_drop:g}; expected a fraction, 0 to 1")
    for field in ("images", "texts", "split", "fast_preprocess"):
        ours, theirs = getattr(report, field), getattr(baseline, field)
        if ours != theirs:
            raise OptionError(f"the baseline has {field} '{theirs}', this evaluation '{ours}'; they cannot be compared")
    if report.data_digest != baseline.data_digest:
        raise OptionError(
            f"the baseline is about other images or texts ('{baseline.pairs}', digest {baseline.data_digest[:12]}) than this evaluation "
            f"('{report.pairs}', digest {report.data_digest[:12]}); they cannot be compared"
        )
    comparison = RecallBaseline(
        bundle_digest=baseline.provenance.bundle_digest,
        image_to_text=baseline.image_to_text.first.value,
        text_to_image=baseline.text_to_image.first.value,
        image_to_text_drop=baseline.image_to_text.first.value - report.image_to_text.first.value,
        text_to_image_drop=baseline.text_to_image.first.value - report.text_to_image.first.value,
        max_recall_drop=max_drop,
    )
    return msgspec.structs.replace(report, baseline=comparison)


def check_recall(report: RetrievalReport) -> None:
    """Check that the drop of recall at 1 against the baseline is allowed in both directions.

    Raises:
        GateError: one is too large; the message gives both.
    """
    found = report.baseline
    if found is None:
        return
    drops = {"image to text": found.image_to_text_drop, "text to image": found.text_to_image_drop}
    # Counted in queries, because equal fractions may differ in their last digit.
    failed = [
        f"{name} {each.first.value:.4f} is {drops[name]:.4f} below the baseline's {each.first.value + drops[name]:.4f}"
        for name, each in report.directions().items()
        if round(drops[name] * each.queries) > found.max_recall_drop * each.queries + 1e-9
    ]
    if failed:
        raise GateError(f"Recall@1 {', '.join(failed)}; allowed: {found.max_recall_drop:g} (--max-recall-drop).")
