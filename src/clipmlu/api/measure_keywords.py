"""Keywords of datasets, of running a bundle and of measurements, and the options that they make."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from clipmlu.api.compile_keywords import CalibrationKeywords, ReadingKeywords, TargetKeywords
from clipmlu.backends.several_devices import check_devices
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.data.class_names import FolderNames
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.data.finding import list_images
from clipmlu.data.pairs.reading import PairChoice
from clipmlu.data.prompts import Templates
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import InputError, OptionError
from clipmlu.jobs.engines.options import EngineName, EngineOptions
from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.measure.compare.compare import TowerChoice
from clipmlu.measure.retrieval.report import RetrievalReport
from clipmlu.measure.speed.loads import SpeedOptions
from clipmlu.measure.speed.scenarios import ScenarioName
from clipmlu.specs import NaturalInt, PositiveInt, Precision, Probability


class DatasetKeywords(TypedDict, total=False):
    """Keywords of a labelled dataset.

    Attributes:
        split: split of the dataset; None for ``test``, or for all images of a folder without splits.
        class_names: names for the classes: a file, a list in the order of the classes, or a map folder -> name.
        folder_names: take the names of class folders even if they look like ids or splits.
        data_dir: folder that holds the dataset; None for ``CIFAR100_DATASETS_PATH``, then the cache.
        samples: number of images; None for the function's default.
        seed: seed of ``shuffle`` and of the demo dataset.
    """

    split: str | None
    class_names: FolderNames | None
    folder_names: bool
    data_dir: str | os.PathLike[str] | None
    samples: PositiveInt | None
    seed: NaturalInt


class RunningKeywords(TypedDict, total=False):
    """Keywords of running a bundle on images.

    Attributes:
        batch_size: images per batch; None for the bundle's own.
        threads: CPU threads per batch; 0 lets the runtime choose.
        workers: threads that read and prepare images; None for all CPUs.
        fast_preprocess: decode large JPEGs at a reduced scale; the pixels then differ from those of open_clip.
        device: index of the MLU card; None for the first one.
        devices: several MLU cards that share the images: their indices, or ``"all"``.
    """

    batch_size: PositiveInt | None
    threads: NaturalInt
    workers: PositiveInt | None
    fast_preprocess: bool
    device: NaturalInt | None
    devices: Sequence[int] | str | None


class EngineKeywords(TypedDict, total=False):
    """Keywords of worker processes.

    Attributes:
        processes: worker processes that share the images; None for one.
        engine: ``"local"`` for this machine, ``"ray"`` for a Ray cluster.
        ray_address: address of a running cluster: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; None to start Ray here.
    """

    processes: PositiveInt | None
    engine: EngineName
    ray_address: str | None


class EvaluateKeywords(DatasetKeywords, RunningKeywords, ReadingKeywords, EngineKeywords, total=False):
    """Keywords of ``evaluate``.

    Attributes:
        shuffle: select ``samples`` images randomly; otherwise the first ones.
        templates: prompt templates: one template, the name of a set, a file, or a list.
        cache: store class embeddings in the cache directory.
        allow_overlap: also evaluate images that the bundle was calibrated with; the report counts them.
        baseline: gate: an earlier report, or its JSON file, on the same images.
        max_drop: allowed loss of top-1 accuracy against ``baseline``, a fraction; 0.01 by default.
        reject_below: also report the accuracy without images whose best class has a smaller probability, 0 to 1.
    """

    shuffle: bool
    templates: Templates
    cache: bool
    allow_overlap: bool
    baseline: str | os.PathLike[str] | AccuracyReport | None
    max_drop: float | None
    reject_below: Probability | None


class PairKeywords(TypedDict, total=False):
    """Keywords of files of images and texts.

    Attributes:
        image_column: column or field of the image's path; None for the first of the usual names, such as ``image`` or ``filepath``.
        text_column: column or field of the text, or of a list of texts; None for the first of the usual names, such as ``caption``.
        image_root: folder of relative paths of images; None for the folder of the file, and then the current folder.
        split: take the rows whose column ``split`` has this value; it must be given if there are several.
    """

    image_column: str | None
    text_column: str | None
    image_root: str | os.PathLike[str] | None
    split: str | None


class RetrievalKeywords(PairKeywords, RunningKeywords, ReadingKeywords, total=False):
    """Keywords of ``evaluate_retrieval``.

    Attributes:
        samples: number of images, with all their texts; None for all.
        shuffle: select ``samples`` images randomly; otherwise the first ones.
        seed: seed of ``shuffle``.
        allow_overlap: also evaluate images that a bundle was calibrated with; the report counts them.
        reference: another bundle, its path or a loaded ``Model``: also report how far the rankings agree with its.
        baseline: gate: an earlier report, or its JSON file, on the same pairs.
        max_recall_drop: allowed loss of recall@1 against ``baseline`` in each direction, a fraction; 0.01 by default.
    """

    samples: PositiveInt | None
    shuffle: bool
    seed: NaturalInt
    allow_overlap: bool
    reference: str | os.PathLike[str] | CompiledBundle | Encoder | None
    baseline: str | os.PathLike[str] | RetrievalReport | None
    max_recall_drop: Probability | None


class CompareKeywords(DatasetKeywords, ReadingKeywords, total=False):
    """Keywords of ``compare_bundles``.

    Attributes:
        shuffle: select ``samples`` images randomly; otherwise the first ones.
        templates: prompt templates: one template, the name of a set, a file, or a list.
        batch_size: images per batch; None for the bundles' own.
        threads: CPU threads per batch; 0 lets the runtime choose.
        workers: threads that read and prepare images; None for all CPUs.
        device: index of the MLU card.
        tower: towers whose nodes are compared.
        threshold: a node diverges if its cosine similarity is smaller, -1 to 1.
        ablate: rank the roles by their quantisation error: keep one role at a time in float.
        source: exported bundle that the first one was compiled from, if the second is another bundle.
        allow_overlap: also compare images that a bundle was calibrated with.
        cache: store class embeddings in the cache directory.
    """

    shuffle: bool
    templates: Templates
    batch_size: PositiveInt | None
    threads: NaturalInt
    workers: PositiveInt | None
    device: NaturalInt
    tower: TowerChoice
    threshold: float
    ablate: bool
    source: str | os.PathLike[str] | ExportedBundle | None
    allow_overlap: bool
    cache: bool


class SweepKeywords(TargetKeywords, CalibrationKeywords, DatasetKeywords, ReadingKeywords, total=False):
    """Keywords of ``run_sweep``.

    Attributes:
        precision: one or several precisions; a bundle is compiled for each.
        batch_size: one or several batch sizes, which are measured on every bundle; 1, 8 and 32 by default.
        templates: prompt templates of the accuracy.
        threads: CPU threads per batch; 0 lets the runtime choose.
        workers: threads that read and prepare images; None for all CPUs.
        repetitions: repetitions of each speed measurement; 3 by default.
        duration: milliseconds of a throughput repetition; 1000 by default.
        overwrite: replace existing output.
    """

    precision: Precision | str | Sequence[Precision | str]
    batch_size: PositiveInt | Sequence[PositiveInt]
    templates: Templates
    threads: NaturalInt
    workers: PositiveInt | None
    repetitions: PositiveInt
    duration: NaturalInt
    overwrite: bool


class SpeedKeywords(TypedDict, total=False):
    """Keywords of ``measure_speed``.

    Attributes:
        tower: graph to measure; None for the image tower, or the only graph of the joint layout.
        scenario: one or several loads of MLPerf Inference, in the order of measurement; ``single-stream`` and ``offline`` by default.
        batch_size: images per batch; None for the bundle's own.
        warmup: milliseconds before each scenario that are not measured; 500 by default.
        duration: minimum milliseconds of each scenario and each rate; 10,000 by default.
        iterations: minimum number of queries; of batches offline.
        threads: CPU threads per batch; 0 lets the runtime choose.
        devices: indices of the MLU cards, or ``"all"``.
        latency_bound_ms: server: largest allowed 99th percentile of the latency.
        queries_per_stream: multi-stream: images of one query.
        images: folder of photos for the stages and for http; None for generated images.
        workers: threads that read and prepare images in the pipeline; None for all CPUs.
        max_pixels: largest width x height of a photo that is decoded.
        stages: also measure the pipeline from files to embeddings, stage by stage.
        seed: random seed of inputs and arrivals.
        http: measure requests with image files to a server: True starts one with the bundle, on loopback, and stops it; or the URL
            of a server that serves the bundle under the name of its folder. Stages are then not measured.
    """

    tower: Literal["image", "text", "both", "joint"] | None
    scenario: ScenarioName | Sequence[ScenarioName]
    batch_size: PositiveInt | None
    warmup: NaturalInt
    duration: NaturalInt
    iterations: PositiveInt
    threads: NaturalInt
    devices: Sequence[int] | str
    latency_bound_ms: float | None
    queries_per_stream: PositiveInt
    images: str | os.PathLike[str] | None
    workers: PositiveInt | None
    max_pixels: PositiveInt
    stages: bool
    seed: NaturalInt
    http: bool | str


def dataset_choice(
    name: str | None, keywords: Mapping[str, Any], default_size: int | None = None
) -> DatasetChoice | None:
    """Return a labelled dataset from ``DatasetKeywords`` and ``ReadingKeywords``; None without a name.

    Args:
        name: name of the dataset.
        keywords: values of None count as not given; other keywords are left out.
        default_size: number of images of a generated dataset, without ``samples``.

    Raises:
        OptionError: a value is wrong, or it describes images, and there is no name.
    """
    given = {key: value for key, value in keywords.items() if value is not None}
    if name is None:
        if any(given.get(key) for key in ("samples", "split", "data_dir", "class_names", "folder_names")):
            raise OptionError("options about images are for measuring accuracy; give a --dataset too")
        return None
    fields = ("split", "class_names", "folder_names", "data_dir", "seed", "max_pixels")
    return DatasetChoice(
        name=name,
        download=not given.get("offline", False),
        size=given.get("samples", default_size),
        **{field: given[field] for field in fields if field in given},
    )


def pair_choice(paths: Sequence[str | os.PathLike[str]], keywords: Mapping[str, Any]) -> PairChoice:
    """Return files of pairs and how to read them, from ``PairKeywords`` and ``ReadingKeywords``.

    Args:
        paths: the files.
        keywords: values of None count as not given; other keywords are left out.

    Raises:
        OptionError: a value is wrong, or there is no file.
        InputError: the folder of the images does not exist.
    """
    names = (*PairKeywords.__annotations__, "max_pixels")
    return PairChoice(paths=tuple(paths), **{name: keywords[name] for name in names if keywords.get(name) is not None})


def engine_options(keywords: Mapping[str, Any]) -> EngineOptions:
    """Return where workers run, from ``EngineKeywords``.

    Raises:
        OptionError: a value is wrong, or an address is given without Ray.
    """
    return EngineOptions(**{name: keywords[name] for name in EngineKeywords.__annotations__ if name in keywords})


_SPEED_FIELDS = {"scenario": "scenarios", "warmup": "warmup_ms", "duration": "duration_ms"}


def speed_options(keywords: Mapping[str, Any]) -> SpeedOptions:
    """Return the options of a speed measurement from ``SpeedKeywords``.

    Raises:
        OptionError: a value is wrong, or two exclude each other.
        InputError: the folder of photos holds none that can be read.
    """
    given = {name: value for name, value in keywords.items() if name != "http"}
    if isinstance(given.get("scenario"), str):
        given["scenario"] = (given["scenario"],)
    if "scenario" in given:
        given["scenario"] = tuple(given["scenario"])
    if "devices" in given:
        given["devices"] = check_devices(given["devices"])
    if given.get("images") is not None:
        if given.get("stages") is False:
            raise OptionError("images are for the stages, which are switched off; leave out one of images and stages")
        given["images"], reasons = list_images(given["images"], lambda _line: None)
        if not given["images"]:
            raise InputError(
                f"'{keywords['images']}' is no folder that holds images; expected some to measure the stages with. "
                + " ".join(reasons)
            )
    return SpeedOptions(**{_SPEED_FIELDS.get(name, name): value for name, value in given.items()})
