"""Options of the engine that runs the workers of a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipmlu.cli._groups import Option, OptionGroup
from clipmlu.cli._options import Choice, Integer
from clipmlu.errors import OptionError

if TYPE_CHECKING:
    from clipmlu.jobs.engines.options import EngineOptions


def _engine(given: Mapping[str, Any]) -> EngineOptions:
    from clipmlu.jobs.engines.options import EngineOptions

    return EngineOptions(engine=given["engine_name"], processes=given["processes"], ray_address=given["ray_address"])


engine_options = OptionGroup(
    "engine",
    (
        Option(
            "--processes",
            type=Integer(min=1),
            help="Worker processes that share the images. [default: 1; with --engine ray one per card or machine]",
        ),
        Option(
            "--engine",
            "engine_name",
            type=Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Where the workers run: on this machine, or on a Ray cluster.",
        ),
        Option(
            "--ray-address",
            metavar="ADDRESS",
            help="A running Ray cluster: auto, HOST:PORT or ray://HOST:PORT. [default: Ray is started on this machine]",
        ),
    ),
    _engine,
    heading="Workers",
)
"""Adds the options of the engine; the command gets ``engine``, an ``EngineOptions``."""


def refuse_engine(engine: EngineOptions, output: str) -> None:
    """Check that only one worker was chosen, for an output that is no job.

    Args:
        engine: the choice.
        output: the output that was given.

    Raises:
        OptionError: several workers, or others, were chosen.
    """
    if not engine.is_this_process:
        name = "--processes" if engine.engine == "local" else "--engine ray"
        raise OptionError(f"{name} is for a job: give -o DIR, not {output}")
