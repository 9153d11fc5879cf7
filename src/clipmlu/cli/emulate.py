"""``clipmlu emulate``."""

from __future__ import annotations

import os
import subprocess

import click


@click.command(
    "emulate",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[--] COMMAND",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
def emulate_command(command: tuple[str, ...]) -> int:
    """Run a program on the emulated MagicMind SDK: `clipmlu emulate -- python gen_model.py ...`.

    COMMAND sees a package `magicmind` that computes on this CPU. The environment variables CLIPMLU_EMULATOR_MODE,
    _DEVICES, _ARCH, _LATENCY_MS, _FAULTS and others shape it; the exit code is COMMAND's own.
    """
    from clipmlu.emulator import NOTICE, emulated_environment

    click.echo(NOTICE, err=True)
    try:
        code = subprocess.run(command, env=emulated_environment(os.environ), check=False).returncode  # noqa: S603
    except OSError as error:
        click.echo(f"clipmlu: cannot run '{command[0]}': {error.strerror}", err=True)
        return 127 if isinstance(error, FileNotFoundError) else 126
    return code if code >= 0 else 128 - code
