"""Option syntax of the vendor's scripts, for the compiling commands."""

from __future__ import annotations

from collections.abc import Callable

import click

from clipmlu.cli._help import ExampleCommand
from clipmlu.specs import MLU_ARCHS

_SWITCHES = {
    "--dynamic-shape": {"true": "--dynamic-shape", "false": "--static-shape"},
    "--conv-scale-fold": {"true": "--conv-scale-fold", "false": "--no-conv-scale-fold"},
}
"""Flags here that take true or false in the vendor's scripts."""
_LISTS: dict[str, Callable[[str], bool]] = {"--cluster-num": str.isdigit, "--mlu-arch": MLU_ARCHS.__contains__}
"""Options that take several values in the vendor's scripts, each with a test of a value."""
_QUANTISING = ("--weight-quant-granularity", "--activation-quant-algo", "--calibration-algo")
"""The vendor's names of the quantisation options; they change the options of the vendor's sample."""


class CompilingCommand(ExampleCommand):
    """A command that also accepts options as in the vendor's scripts (magicmind_cloud, python_common/build_param.py).

    ``--batch_size 8 --dynamic_shape true --cluster_num 2 6 8`` means ``--batch-size 8 --dynamic-shape --cluster-num 2
    --cluster-num 6 --cluster-num 8``. The vendor's names of quantisation options imply ``--quantisation vendor``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Convert the arguments to the syntax of clipmlu and parse them."""
        return super().parse_args(ctx, rewrite_arguments(args))


def rewrite_arguments(args: list[str]) -> list[str]:
    """Return the arguments in the syntax of clipmlu; see ``CompilingCommand``."""
    result: list[str] = []
    values_of = ""  # the option that the next values belong to
    for argument in args:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            values_of = name.replace("_", "-")
            result.append(values_of + equals + value)
        elif values_of in _SWITCHES and result[-1] == values_of and argument.lower() in ("true", "false"):
            result[-1] = _SWITCHES[values_of][argument.lower()]
        elif values_of in _LISTS and result[-1] != values_of and _LISTS[values_of](argument):
            result += [values_of, argument]
        else:
            values_of = values_of if result and result[-1] == values_of else ""
            result.append(argument)
    given = {argument.partition("=")[0] for argument in result}
    if given.intersection(_QUANTISING) and "--quantisation" not in given:
        result[:0] = ["--quantisation", "vendor"]  # in front: what follows a -- is no option
    return result
