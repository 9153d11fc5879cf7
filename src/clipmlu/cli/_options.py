"""Options that several commands share, and their types."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipmlu.arguments import choices_of
from clipmlu.cli._completion import complete_templates
from clipmlu.cli._groups import Option, OptionGroup, is_on_command_line
from clipmlu.cli._progress import STEPS
from clipmlu.errors import did_you_mean
from clipmlu.file_names import expand_home
from clipmlu.specs import Layout, Precision

if TYPE_CHECKING:
    from clipmlu.model import Model


class _PathType(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return expand_home(os.fsdecode(super().convert(value, param, ctx)))


class Integer(click.IntRange):
    """An integer in a range."""

    name = "integer"


class Number(click.FloatRange):
    """A finite number in a range; click accepts ``nan`` and ``inf`` in any range."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a value; raises a usage error if it is not finite or out of range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"'{value}' is not a finite number.", param, ctx)
        return number


class Choice(click.Choice[str]):
    """One of several names; the error lists them all and asks whether a close one was meant.

    Args:
        choices: the names, or a type that has them: a ``Literal`` or an enum.
    """

    def __init__(self, choices: Iterable[str] | Any) -> None:
        super().__init__(choices if isinstance(choices, (list, tuple)) else choices_of(choices))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name; raises a usage error if it is not one of the choices."""
        if value not in self.choices:
            message = f"'{value}' is not one of {', '.join(self.choices)}. {did_you_mean(value, self.choices)}"
            self.fail(message.strip(), param, ctx)
        return value


class PrecisionChoice(Choice):
    """A precision under any of its names; its value is the ``Precision``."""

    def __init__(self) -> None:
        super().__init__(Precision)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the precision; raises a usage error if there is none with this name."""
        try:
            return Precision(value)
        except ValueError:
            return super().convert(value, param, ctx)


MAX_PIXELS = 178_956_970  # equals data.images.DEFAULT_MAX_PIXELS; importing that would load NumPy

PATH = _PathType(path_type=Path)
"""A path that the library checks itself; a leading ``~`` is the home folder."""


bundle_argument = click.argument("bundle", type=PATH)

json_option = Option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

threads_option = Option(
    "--threads",
    envvar="CLIPMLU_THREADS",
    type=Integer(min=0),
    default=0,
    show_default=True,
    help="CPU threads per batch; 0: the runtime decides.",
)

batch_size_option = Option(
    "--batch-size",
    envvar="CLIPMLU_BATCH_SIZE",
    type=Integer(min=1),
    default=None,
    help="Images per batch. [default: as compiled]",
)

workers_option = Option(
    "--workers",
    envvar="CLIPMLU_WORKERS",
    type=Integer(min=1),
    default=None,
    help="Threads that read, decode and preprocess images. [default: all CPUs]",
)

max_pixels_option = Option(
    "--max-pixels",
    envvar="CLIPMLU_MAX_PIXELS",
    type=Integer(min=1),
    default=MAX_PIXELS,
    show_default=True,
    help="Largest image, width x height, that is decoded.",
)

fast_preprocess_option = Option(
    "--fast-preprocess",
    is_flag=True,
    help="Decode large JPEGs at a reduced scale: faster, but pixels differ from open_clip's.",
)

templates_option = Option(
    "--templates",
    envvar="CLIPMLU_TEMPLATES",
    shell_complete=complete_templates,
    default="simple",
    show_default=True,
    metavar="TEMPLATE|SET|FILE",
    help="One template with {}, a set (simple, openai-imagenet, cifar, chinese, chinese-simple), or a file with one per line.",
)

layout_option = Option(
    "--layout",
    type=Choice(Layout),
    default="towers",
    show_default=True,
    help="Two towers, or the fused two-input graph of the vendor's sample.",
)

overwrite_option = Option("--overwrite", is_flag=True, help="Replace existing output.")

offline_option = Option(
    "--offline", envvar="CLIPMLU_OFFLINE", is_flag=True, help="Download nothing; use local files only."
)

device_option = Option(
    "--device",
    "--device-id",
    envvar="CLIPMLU_DEVICE",
    type=Integer(min=0),
    default=0,
    show_default=True,
    help="Index of the MLU card.",
)


_running_device_option = Option(
    "--device",
    "--device-id",
    envvar="CLIPMLU_DEVICE",
    type=Integer(min=0),
    default=None,
    help="Index of the MLU card. [default: 0]",
)

_devices_option = Option(
    "--devices",
    envvar="CLIPMLU_DEVICES",
    default=None,
    metavar="N[,N...]|all",
    help="Indices of the MLU cards that share the images, or all of them; instead of --device.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningOptions:
    """Options for running a bundle on images.

    Attributes:
        batch_size: images per batch; None for the bundle's own.
        threads: CPU threads per batch; 0 lets the runtime choose.
        workers: threads that read and prepare images; None for all CPUs.
        fast_preprocess: decode large JPEGs at a reduced scale.
        max_pixels: largest width x height of an image that is decoded.
        device: index of the MLU card; None for the first one.
        devices: several cards, as ``load`` takes them; None for one card.
    """

    batch_size: int | None
    threads: int
    workers: int | None
    fast_preprocess: bool
    max_pixels: int
    device: int | None
    devices: str | None

    def load(self, bundle: Path, *, image_only: bool = False) -> Model:
        """Load a compiled bundle; its threads wait passively, because images are prepared on the same CPUs."""
        from clipmlu.model import load_for_images

        with STEPS("opening the bundle"):
            return load_for_images(bundle, self, image_only=image_only)


_RUNNING = (
    batch_size_option,
    threads_option,
    workers_option,
    fast_preprocess_option,
    max_pixels_option,
    _running_device_option,
    _devices_option,
)


def _running(given: Mapping[str, Any]) -> RunningOptions:
    values = {option.name: given[option.name] for option in _RUNNING}
    for name, other in (("device", "devices"), ("devices", "device")):
        if is_on_command_line(name) and not is_on_command_line(other):
            values[other] = None
    return RunningOptions(**values)


running_options = OptionGroup(
    "running",
    _RUNNING,
    _running,
    heading="Running",
)
"""Adds the options for running a bundle; the command gets ``running``, a ``RunningOptions``."""


def comma_separated(*texts: str) -> list[str]:
    """Return the values of an option that takes several, separated by commas or by repetition."""
    return [piece.strip() for text in texts for piece in text.split(",")]
