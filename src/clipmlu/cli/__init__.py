"""The command line: one thin file per command, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from clipmlu import __version__
from clipmlu.cli._shared import LibraryNotes, note, quiet_pillow
from clipmlu.cli.bench import bench_command
from clipmlu.cli.calibrate import calibrate_command
from clipmlu.cli.catalog import datasets_command, models_command
from clipmlu.cli.classify import classify_command
from clipmlu.cli.compare import compare_command
from clipmlu.cli.compile import compile_command
from clipmlu.cli.doctor import doctor_command
from clipmlu.cli.embed import embed_command
from clipmlu.cli.emulate import emulate_command
from clipmlu.cli.evaluate import eval_command
from clipmlu.cli.export import export_command
from clipmlu.cli.info import info_command
from clipmlu.cli.run import run_command
from clipmlu.cli.sweep import sweep_command
from clipmlu.cli.worker import worker_command
from clipmlu.errors import ClipmluError

_INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


@click.group(context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="clipmlu")
def cli() -> None:
    """Export, compile, classify and measure CLIP models, on Cambricon MLU cards and on any CPU.

    \b
    Exit codes: 0 done; 1 an error, or some inputs could not be read; 2 wrong usage;
    3 a gate failed (parity, agreement, accuracy); 130 interrupted.
    """


for _command in (
    export_command,
    calibrate_command,
    compile_command,
    classify_command,
    embed_command,
    eval_command,
    compare_command,
    run_command,
    bench_command,
    sweep_command,
    emulate_command,
    worker_command,
    info_command,
    models_command,
    datasets_command,
    doctor_command,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; only a bug of ours raises."""
    try:
        with LibraryNotes() as notes, quiet_pillow():
            code = cli.main(
                args=None if arguments is None else list(arguments), prog_name="clipmlu", standalone_mode=False
            )
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ClipmluError as error:
        note(f"clipmlu: {_one_line(error)}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("clipmlu: interrupted; nothing half-written was left behind.", err=True)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader went away, as in `clipmlu classify ... | head`: leave quietly, whatever is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    code = code if isinstance(code, int) else 0
    return code or int(notes.skipped)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
