"""Options, output and progress that several commands share."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipmlu.cli._groups import Option, OptionGroup
from clipmlu.data.skipping import SKIPPED
from clipmlu.file_names import expand_home, name_from_path, printable

if TYPE_CHECKING:
    from clipmlu.data.finding import LeftOut
    from clipmlu.measure.samples import SkippedImage
    from clipmlu.model import Model


class _PathType(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return expand_home(os.fsdecode(super().convert(value, param, ctx)))


class Number(click.FloatRange):
    """A finite number in a range; click accepts ``nan`` and ``inf`` in any range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a value; raises a usage error if it is not finite or out of range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"'{value}' is not a finite number.", param, ctx)
        return number


MAX_PIXELS = 178_956_970  # equals data.images.DEFAULT_MAX_PIXELS; importing that would load NumPy

PATH = _PathType(path_type=Path)
"""A path that the library checks itself; a leading ``~`` is the home folder."""


bundle_argument = click.argument("bundle", type=PATH)

json_option = Option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

threads_option = Option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="CPU threads per batch; 0: the runtime decides.",
)

batch_size_option = Option(
    "--batch-size", type=click.IntRange(min=1), default=None, help="Images per batch. [default: as compiled]"
)

workers_option = Option(
    "--workers",
    type=click.IntRange(min=1),
    default=None,
    help="Threads that read, decode and preprocess images. [default: all CPUs]",
)

max_pixels_option = Option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=MAX_PIXELS,
    show_default=True,
    help="Largest image, width x height, that is decoded.",
)

fast_preprocess_option = Option(
    "--fast-preprocess",
    is_flag=True,
    help="Decode JPEGs at a reduced scale and shrink in two steps: faster, but pixels differ from open_clip's.",
)

templates_option = Option(
    "--templates",
    default="simple",
    show_default=True,
    metavar="TEMPLATE|SET|FILE",
    help="One template with {}, a set (simple, openai-imagenet, cifar), or a file with one per line.",
)

layout_option = Option(
    "--layout",
    type=click.Choice(["towers", "joint"]),
    default="towers",
    show_default=True,
    help="Two towers, or the fused two-input graph of the vendor's sample.",
)

overwrite_option = Option("--overwrite", is_flag=True, help="Replace existing output.")

offline_option = Option("--offline", is_flag=True, help="Download nothing; use local files only.")

device_option = Option(
    "--device",
    "--device-id",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Index of the MLU card.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningOptions:
    """Options for running a bundle on images.

    Attributes:
        batch_size: images per batch; None for the bundle's own.
        threads: CPU threads per batch; 0 lets the runtime choose.
        workers: threads that read and prepare images; None for all CPUs.
        fast_preprocess: decode at a reduced scale and shrink in two steps.
        max_pixels: largest width x height of an image that is decoded.
        device: index of the MLU card.
    """

    batch_size: int | None
    threads: int
    workers: int | None
    fast_preprocess: bool
    max_pixels: int
    device: int

    def load(self, bundle: Path, *, image_only: bool = False) -> Model:
        """Load a compiled bundle; its threads wait passively, because images are prepared on the same CPUs."""
        from clipmlu.model import load

        return load(
            bundle,
            threads=self.threads,
            device=self.device,
            image_only=image_only,
            fast_preprocess=self.fast_preprocess,
            max_pixels=self.max_pixels,
            busy_wait=False,
        )


_RUNNING = (
    batch_size_option,
    threads_option,
    workers_option,
    fast_preprocess_option,
    max_pixels_option,
    device_option,
)
running_options = OptionGroup(
    "running", _RUNNING, lambda given: RunningOptions(**{option.name: given[option.name] for option in _RUNNING})
)
"""Adds the options for running a bundle; the command gets ``running``, a ``RunningOptions``."""


def note(message: str) -> None:
    """Print a message on stderr; a closed stderr is ignored."""
    with contextlib.suppress(OSError):
        click.echo(printable(message), err=True)


def note_inputs(broken: int, left_out: LeftOut) -> int:
    """Print the number of unreadable inputs and of skipped files, and return the exit code of the command."""
    passed_over = left_out.note()
    if passed_over is not None:
        note(passed_over)
    if broken:
        note(f"{broken} image(s) could not be read.")
    return 1 if broken else 0


def note_skipped(skipped: Iterable[SkippedImage]) -> int:
    """Print the images that could not be read, and return the exit code of the command."""
    code = 0
    for image in skipped:
        note(f"skipped: {image.reason}")
        code = 1
    return code


@contextlib.contextmanager
def note_kept(folder: Path, content: str, *, named_by: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """If the block fails and the folder exists, print that it holds the content, from which the same command resumes.

    Args:
        folder: the folder.
        content: its content, as the beginning of a sentence.
        named_by: errors whose message names the folder; nothing is printed for them.
    """
    try:
        yield
    except named_by:
        raise
    except BaseException:
        if folder.is_dir():
            note(f"{content} is kept in {name_from_path(folder)}; the same command goes on from there.")
        raise


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Suppress Pillow's messages on stderr inside the block; images that it cannot read are reported as errors."""
    logger, handler = logging.getLogger("PIL"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logger.removeHandler(handler)


class LibraryNotes(logging.Handler):
    """Print the library's log records from ``WARNING`` on to stderr inside the block, each text once in one line.

    Attributes:
        skipped: an input was skipped because it could not be read.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.skipped = False
        self._printed: set[str] = set()

    def __enter__(self) -> LibraryNotes:
        logging.getLogger("clipmlu").addHandler(self)
        return self

    def __exit__(self, *_error: object) -> None:
        logging.getLogger("clipmlu").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record if it is new."""
        message = " ".join(record.getMessage().split())
        self.skipped |= getattr(record, SKIPPED, False)
        if message not in self._printed:
            self._printed.add(message)
            note(message)


@contextlib.contextmanager
def progress_bar(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr if that is a terminal; yields a function to call with numbers of finished items."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)
