"""``clipmlu emulate``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import click

from clipmlu.cli._help import command
from clipmlu.cli._notes import warn
from clipmlu.cli._signals import Terminated


@command(
    "emulate",
    short_help="Run a program on the emulated MagicMind SDK.",
    examples=(
        "clipmlu emulate -- python gen_model.py",
        "CLIPMLU_EMULATOR_DEVICES=2 clipmlu emulate -- python gen_model.py",
        "clipmlu emulate -- mm_run --magicmind_model demo-mlu/image.mm --batch_size 32",
        "clipmlu emulate --compat -- python infer.py",
    ),
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[OPTIONS] [--]",
)
@click.option(
    "--compat", is_flag=True, help="Add names that old scripts use and newer versions of NumPy, Pillow and Python lack."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARGUMENTS]...")
def emulate_command(compat: bool, command: tuple[str, ...]) -> int:
    """Run a program on the emulated MagicMind SDK: `clipmlu emulate -- python gen_model.py ...`.

    COMMAND imports a package `magicmind` that computes on this CPU, and finds a tool `mm_run` that times it there, also
    under MM_RUN_PATH. The environment variables CLIPMLU_EMULATOR_MODE, _DEVICES, _ARCH, _LATENCY_MS, _FAULTS,
    _MM_RUN_ITERATIONS and others configure it. The exit code is that of COMMAND.
    """
    if command[0].startswith("-"):
        raise click.NoSuchOption(command[0], ctx=click.get_current_context())
    from clipmlu.magicmind.emulator import NOTICE
    from clipmlu.magicmind.emulator.program import program_environment

    with program_environment(os.environ, compat=compat) as environment:
        warn(NOTICE)
        try:
            process = subprocess.Popen(command, env=environment)  # noqa: S603
        except OSError as error:
            warn(
                f"clipmlu: Cannot run '{command[0]}': {error.strerror}. Give a program, such as: clipmlu emulate -- python x.py"
            )
            return 127 if isinstance(error, FileNotFoundError) else 126
        code = _wait(process)
    return code if code >= 0 else 128 - code


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a program and return its return code; termination signals are passed on to it."""
    while True:
        try:
            return process.wait()
        except Terminated as signalled:
            # A terminal sends Ctrl-C to both processes; without one, only this process received the signal.
            if signalled.number != signal.SIGINT or sys.stdin is None or not sys.stdin.isatty():
                process.send_signal(signalled.number)
