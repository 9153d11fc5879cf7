"""Command line: one module per command. This module turns errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

import click

from clipmlu.cli._help import GroupedCommands
from clipmlu.cli._notes import LibraryNotes, warn
from clipmlu.cli._progress import STEPS
from clipmlu.cli._signals import TerminationSignals
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
from clipmlu.cli.import_command import import_command
from clipmlu.cli.index import index_command
from clipmlu.cli.info import info_command
from clipmlu.cli.job import job_command
from clipmlu.cli.lower import lower_command
from clipmlu.cli.report import report_command
from clipmlu.cli.run import run_command
from clipmlu.cli.search import search_command
from clipmlu.cli.serve import serve_command
from clipmlu.cli.sweep import sweep_command
from clipmlu.cli.worker import worker_command
from clipmlu.errors import ClipmluError, did_you_mean
from clipmlu.file_names import name_from_path
from clipmlu.host import quiet_pillow

_INTERRUPTED = 130  # exit code of a shell for a program ended by Ctrl-C
_SIGNALLED = 128  # plus the signal number: exit code for a program ended by another signal


@click.group(
    cls=GroupedCommands,
    examples=(
        "clipmlu run demo",
        "clipmlu export demo -o demo",
        "clipmlu compile demo -o demo-cpu",
        'clipmlu classify demo-cpu photos/ --labels "red circle,blue square"',
    ),
    context_settings={"max_content_width": 100},
)
def cli() -> None:
    """Export, compile, classify and measure CLIP models, on Cambricon MLU cards and on any CPU.

    \b
    Exit codes: 0 done; 1 an error, or some inputs could not be read;
    2 wrong usage; 3 a gate failed (parity, agreement, accuracy);
    130 interrupted; 143 ended by SIGTERM.
    """


cli.add_section("Start", (run_command, doctor_command))
cli.add_section("Models", (export_command, import_command, calibrate_command, compile_command))
cli.add_section("Classify and embed", (classify_command, embed_command, job_command, serve_command))
cli.add_section("Search", (index_command, search_command))
cli.add_section("Measure", (eval_command, compare_command, bench_command, sweep_command, report_command))
cli.add_section("MLU cards", (lower_command, emulate_command, worker_command))
cli.add_section("Look things up", (info_command, models_command, datasets_command))

#: Errors of a path that the user gave: no permission, or the name is too long.
_OF_THE_PATH = (errno.EACCES, errno.ENAMETOOLONG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; an exception that leaves this function is a bug of clipmlu."""
    if sys.stdout is None:  # started with `>&-`: the next opened file would get its descriptor
        warn("clipmlu: Standard output is closed, and results are written there. Redirect it, to /dev/null if need be.")
        return 1
    if sys.stderr is None:  # started with `2>&-`: likewise, and libraries would write their messages into that file
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 -- open until the process ends
    with _notes_may_fail():
        return _run_until_interrupted(arguments)


@contextlib.contextmanager
def _notes_may_fail() -> Iterator[None]:
    """Drop what standard error did not take: from Python 3.14 on the interpreter would end with 120 for it."""
    try:
        yield
    finally:
        try:
            sys.stderr.flush()
        except OSError:
            _drop(sys.stderr)
        except ValueError:  # it is closed
            pass


def _run_until_interrupted(arguments: Sequence[str] | None) -> int:
    with TerminationSignals(ends_process=arguments is None) as signals:
        try:
            with contextlib.closing(STEPS):
                return _run(arguments)
        except (KeyboardInterrupt, click.Abort):
            pass
        except Exception:
            if signals.received is None:  # otherwise a library turned the interruption into another error
                raise
    warn("clipmlu: interrupted; no incomplete files remain.")
    return _INTERRUPTED if signals.received is None else _SIGNALLED + signals.received


def _run(arguments: Sequence[str] | None) -> int:
    """Run the command line; errors become messages and exit codes, interruptions are raised."""
    try:
        with LibraryNotes() as notes, quiet_pillow():
            words = sys.argv[1:] if arguments is None else list(arguments)
            code = cli.main(args=words, prog_name="clipmlu", standalone_mode=False, obj=tuple(words))
        sys.stdout.flush()
    except click.ClickException as error:
        _show_usage_error(error)
        return error.exit_code
    except ClipmluError as error:
        warn(f"clipmlu: {_one_line(error)}")
        return error.exit_code
    except MemoryError as error:
        warn(f"clipmlu: Out of memory: {_one_line(error) or 'none is left'}. Use smaller batches or fewer workers.")
        return 1
    except BrokenPipeError:
        # The reader ended, as in `clipmlu classify ... | head`: end without a message, even if output is still
        # buffered.
        _drop(sys.stdout)
        return 1
    except OSError as error:
        if error.errno in _OF_THE_PATH and error.filename is not None:
            warn(f"clipmlu: Cannot access '{name_from_path(error.filename)}': {error.strerror}. Give another path.")
            return 1
        if error.filename is not None or not _output_fails():
            raise
        _drop(sys.stdout)
        warn(
            f"clipmlu: Cannot write to standard output: {error.strerror}. Unwritten output is lost; run the command again."
        )
        return 1
    code = code if isinstance(code, int) else 0
    return code or int(notes.skipped)


def _show_usage_error(error: click.ClickException) -> None:
    """Print an error about the command line as one line that names the command's help."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # since click 8.2
        with contextlib.suppress(OSError):  # standard error is closed
            error.show()
        return
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.NoSuchOption) and context is not None:
        known = [name for parameter in context.command.params for name in parameter.opts]
        meant = did_you_mean(error.option_name, known)  # click ranks by letters alone
        error = click.NoSuchOption(error.option_name, f"No such option '{error.option_name}'. {meant}", ctx=context)
    command = "clipmlu" if context is None else context.command_path
    message = " ".join(error.format_message().split()).rstrip(".")
    end = "" if message.endswith(("?", "?)")) else "."
    warn(f"clipmlu: {message}{end} Try '{command} --help'.")


def _output_fails() -> bool:
    """Whether standard output fails; an empty line is written to test it, because the error names no file."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _drop(stream: TextIO) -> None:
    """Redirect a standard stream to the null device, so that the interpreter ends without another error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
