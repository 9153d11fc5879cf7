"""An evaluation in parts: several workers count ranges of the images, and the report equals that of one process."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import NamedTuple, TypedDict

from clipmlu.arguments import check_argument
from clipmlu.classify.classifier import DetachedClassifier
from clipmlu.data.datasets import Dataset, check_dataset
from clipmlu.data.datasets.choice import DatasetChoice
from clipmlu.embed.encoder import Encoder, EncoderRecipe
from clipmlu.errors import InputError, OptionError
from clipmlu.jobs.engines.cards import choose_cards
from clipmlu.jobs.engines.dispatch import run_tasks
from clipmlu.jobs.engines.options import THIS_PROCESS, EngineOptions
from clipmlu.jobs.work import MachineShare, Worker
from clipmlu.keys import value_digest
from clipmlu.measure.accuracy.counting import CountOptions, ImageRange, RangeCounter, RangeCounts
from clipmlu.measure.accuracy.evaluate import EvalOptions, Evaluation, evaluate, prepare_evaluation
from clipmlu.measure.accuracy.report import AccuracyReport
from clipmlu.measure.accuracy.tally import ImageResult, Tally
from clipmlu.measure.speed.load import PipelineLoad
from clipmlu.steps import StartStep, no_steps

_MOST_IMAGES = 1024
_LEAST_RANGES = 64


class _Callbacks(TypedDict):
    on_result: Callable[[ImageResult], None] | None
    on_progress: Callable[[int], None] | None
    on_load: Callable[[PipelineLoad], None] | None
    on_interrupt: Callable[[Tally, int], None] | None


class EvalTask(NamedTuple):
    """A range of images to count.

    Attributes:
        images: the range.
        digest: digest of their keys and labels.
    """

    images: ImageRange
    digest: str

    def __str__(self) -> str:
        return f"images {self.images.start} to {self.images.start + len(self.images.indices) - 1}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalWork:
    """Counts ranges of a dataset's images; see ``Work``.

    Attributes:
        recipe: how the model is loaded.
        classifier: classifier of the dataset's classes.
        dataset: how each worker opens the dataset, or an open one, which is pickled with this value.
        options: batches, threads and results.
    """

    recipe: EncoderRecipe
    classifier: DetachedClassifier
    dataset: DatasetChoice | Dataset
    options: CountOptions

    @contextlib.contextmanager
    def open(self, share: MachineShare) -> Iterator[Worker[EvalTask, RangeCounts]]:
        """Load the model and open the dataset."""
        options = dataclasses.replace(self.options, workers=self.options.workers or share.cpus)
        dataset = self.dataset.open() if isinstance(self.dataset, DatasetChoice) else self.dataset
        with _share_of(self.recipe, share).load() as encoder:
            counter = RangeCounter(self.classifier.attach(encoder), dataset, options)
            yield lambda tasks: _count(counter, tasks)


def evaluate_in_parts(
    encoder: Encoder,
    dataset: Dataset,
    options: EvalOptions | None = None,
    engine: EngineOptions = THIS_PROCESS,
    *,
    choice: DatasetChoice | None = None,
    on_result: Callable[[ImageResult], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_load: Callable[[PipelineLoad], None] | None = None,
    on_interrupt: Callable[[Tally, int], None] | None = None,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
) -> AccuracyReport:
    """Measure zero-shot accuracy with several workers.

    The report is that of ``evaluate`` with the same options, except for the time, which contains the start of the workers.

    Args:
        encoder: the model; each worker loads its bundle.
        dataset: labelled images.
        options: options of the evaluation; defaults if None.
        engine: where the workers run.
        choice: how each worker opens the dataset; None if it is to be pickled.
        on_result: see ``evaluate``.
        on_progress: see ``evaluate``.
        on_load: see ``evaluate``; loads of all workers.
        on_interrupt: see ``evaluate``.
        on_note: see ``evaluate``.
        on_step: see ``evaluate``.

    Raises:
        OptionError: the dataset cannot be pickled, or as for ``evaluate`` and ``run_tasks``.
        InputError: a worker finds other images; or as for ``evaluate``.
        ShapeError, OverlapError, SessionError: as for ``evaluate`` and ``run_tasks``.
    """
    check_argument(engine, EngineOptions, "engine")
    callbacks: _Callbacks = {
        "on_result": on_result,
        "on_progress": on_progress,
        "on_load": on_load,
        "on_interrupt": on_interrupt,
    }
    if engine == THIS_PROCESS:
        return evaluate(encoder, dataset, options, **callbacks, on_note=on_note, on_step=on_step)
    engine.check_installed()
    given = _check_picklable(dataset) if choice is None else choice
    evaluation = prepare_evaluation(encoder, dataset, options, on_note, on_step)
    work = EvalWork(
        recipe=encoder.recipe(),
        classifier=evaluation.classifier.detach(),
        dataset=given,
        options=evaluation.count_options(keep_results=on_result is not None),
    )
    parts = run_tasks(work, cut_tasks(evaluation), engine, cards=choose_cards(encoder, engine))
    with contextlib.closing(parts):
        return evaluation.collect(parts, **callbacks)


def cut_tasks(evaluation: Evaluation) -> Iterator[EvalTask]:
    """Yield the ranges of an evaluation: small enough for many workers, and for progress that is seen."""
    images, size = len(evaluation.indices), evaluation.batch_size
    batches = max(1, min(_MOST_IMAGES // size, images // (size * _LEAST_RANGES)))
    for part in evaluation.ranges(batches):
        yield EvalTask(part, _identify(evaluation.dataset, part))


def _count(counter: RangeCounter, tasks: Iterable[EvalTask]) -> Generator[RangeCounts, None, None]:
    yield from counter(_checked(counter.dataset, task) for task in tasks)


def _checked(dataset: Dataset, task: EvalTask) -> ImageRange:
    """Return the images of a task.

    Raises:
        InputError: the dataset holds others.
    """
    if max(task.images.indices) >= len(dataset) or _identify(dataset, task.images) != task.digest:
        raise InputError(
            f"A worker finds other images in '{dataset.name}', split '{dataset.split}', than the process that started it "
            f"({task}). Its files must be the same for all workers, and must not change meanwhile."
        )
    return task.images


def _identify(dataset: Dataset, images: ImageRange) -> str:
    return value_digest([(dataset.key(index), int(dataset.label(index))) for index in images.indices])


def _share_of(recipe: EncoderRecipe, share: MachineShare) -> EncoderRecipe:
    session = dataclasses.replace(recipe.options, threads=recipe.options.threads or share.cpus or 0)
    devices = recipe.devices if share.devices is None else share.devices
    return dataclasses.replace(recipe, options=session, devices=devices)


def _check_picklable(dataset: Dataset) -> Dataset:
    check_dataset(dataset)
    try:
        pickle.dumps(dataset)
    except Exception as error:
        raise OptionError(
            f"dataset '{dataset.name}' cannot be sent to other processes ({error}); evaluate it in one process, or write "
            "its class without open files, locks and local functions"
        ) from error
    return dataset
