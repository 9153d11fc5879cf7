"""Options of labelled datasets and of calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from clipmlu.cli._completion import complete_calibration, complete_dataset
from clipmlu.cli._groups import Option, OptionGroup, is_on_command_line, under
from clipmlu.cli._options import PATH, Integer, offline_option
from clipmlu.keywords import pick_keywords

if TYPE_CHECKING:
    from clipmlu.data.calibration import CalibrationOptions
    from clipmlu.data.datasets.choice import DatasetChoice

_HEADING = "Dataset"
_KNOWN = "cifar100, cifar10, imagefolder:PATH or demo."


def _names_options(prefix: str, whose: str) -> tuple[Option, ...]:
    return (
        Option(
            f"--{prefix}class-names",
            type=PATH,
            metavar="FILE",
            help=f"Names for the classes{whose}: one per line in the order of the folders, a map folder -> name (JSON or tab-separated), "
            "or imagenet_class_index.json.",
        ),
        Option(
            f"--{prefix}folder-names",
            is_flag=True,
            help=f"Take the names of class folders{whose} even if they look like ids or splits.",
        ),
    )


def dataset_options(
    default_name: Callable[[Mapping[str, Any]], str | None] = lambda _given: None,
    default_size: int | None = None,
    is_wanted: Callable[[Mapping[str, Any]], bool] = lambda _given: True,
    **attributes: Any,
) -> OptionGroup[DatasetChoice | None]:
    """Return the options of a labelled dataset; the command gets ``images``, a ``DatasetChoice``, or None without one.

    The command must also have ``--samples``, ``--seed`` and ``--max-pixels``.

    Args:
        default_name: returns the dataset of a command without ``--dataset``, from its parameters.
        default_size: number of images of a generated dataset, without ``--samples``.
        is_wanted: returns from the parameters of a command whether it reads a dataset; if not, it gets None.
        attributes: attributes of ``--dataset``, such as ``required``, ``default`` or another ``help``.
    """

    def build(given: Mapping[str, Any]) -> DatasetChoice | None:
        from clipmlu.api import measure_keywords

        if not is_wanted(given):
            return None
        name = given["dataset"] or default_name(given)
        described = pick_keywords(given, measure_keywords.EvaluateKeywords)
        if name is None:  # options of the environment may be meant for other commands
            described = {option: value for option, value in described.items() if is_on_command_line(option)}
        return measure_keywords.dataset_choice(name, described, default_size)

    options = (
        Option("--dataset", shell_complete=complete_dataset, metavar="NAME", **{"help": _KNOWN, **attributes}),
        Option("--split", help="Split of the dataset. [default: test, or all of a folder without splits]"),
        Option(
            "--data-dir",
            envvar="CLIPMLU_DATA_DIR",
            type=PATH,
            help="Folder that holds the dataset. [default: CIFAR100_DATASETS_PATH, then the cache]",
        ),
        *_names_options("", ""),
        offline_option,
    )
    return OptionGroup("images", options, build, reads=("samples", "seed", "max_pixels"), heading=_HEADING)


def sampling_options(samples_help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--samples N``, ``--shuffle`` and ``--seed N`` of the commands that read a part of a dataset."""
    seed_help = "Seed of --shuffle and of the demo dataset."
    options = under(
        _HEADING,
        Option("--samples", type=Integer(min=1), help=samples_help),
        Option("--shuffle", is_flag=True, help="Select --samples at random instead."),
        Option("--seed", type=Integer(min=0), default=0, show_default=True, help=seed_help),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def calibration_options(**attributes: Any) -> OptionGroup[CalibrationOptions | None]:
    """Return the options of calibration data; the command gets ``calibration``, or None without ``--calib``.

    The command must also have ``--max-pixels``, and may have ``--offline``.

    Args:
        attributes: attributes of ``--calib``.
    """
    options = (
        Option("--calib", shell_complete=complete_calibration, **attributes),
        Option(
            "--calib-samples",
            type=Integer(min=1),
            default=1000,
            show_default=True,
            help="Images to calibrate with.",
        ),
        Option(
            "--calib-seed",
            type=Integer(min=0),
            default=0,
            show_default=True,
            help="Seed of the image selection.",
        ),
        Option("--calib-data-dir", type=PATH, help="Folder that holds the calibration dataset."),
        *_names_options("calib-", " of --calib"),
    )
    return OptionGroup("calibration", options, _calibration, reads=("max_pixels", "offline"), heading="Calibration")


def _calibration(given: Mapping[str, Any]) -> CalibrationOptions | None:
    from clipmlu.api import compile_keywords

    return compile_keywords.calibration_options(pick_keywords(given, compile_keywords.CalibrateKeywords))
