"""``clipmlu doctor --probe-sdk``: writes the program and the graphs, runs the program, and reads its report.

The program is the package ``questions`` as one file. It runs where the SDK is and needs nothing of clipmlu; what needs ``onnx``,
the graphs and their expected outputs, is made here.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from clipmlu.errors import BackendUnavailableError, UnknownNameError
from clipmlu.files.publish import check_files_free, scratch_directory, write_files
from clipmlu.host import require_graph_packages
from clipmlu.magicmind.archive import make_archive, package_files
from clipmlu.magicmind.backend import emulated_worker, real_sdk_is_importable
from clipmlu.magicmind.client.options import PYTHON_VARIABLE, WORKER_VARIABLE
from clipmlu.magicmind.probe.graphs import make_graphs
from clipmlu.magicmind.probe.questions.catalogue import PROBES
from clipmlu.magicmind.probe.questions.report import JSON_NAME, MARKDOWN_NAME
from clipmlu.magicmind.probe.records import ProbeReport

PROGRAM_NAME = "clipmlu_probe.pyz"
GRAPHS_FOLDER = "graphs"
_REPORT_NAMES = (JSON_NAME, MARKDOWN_NAME)
_START_SECONDS = 30.0  # of an interpreter, and of its NumPy on a slow disk
_POLL_SECONDS = 0.1
_END_SECONDS = 10.0


def probe_names() -> tuple[str, ...]:
    """Names of all probes."""
    return tuple(PROBES)


def make_program() -> bytes:
    """The package ``questions`` as a zip application, for Python 3.7 or newer with NumPy and ``magicmind``."""
    package = "clipmlu_probe"
    return make_archive(package_files("clipmlu.magicmind.probe.questions", package), f"{package}.command:main")


def probe_sdk(
    output: Path,
    *,
    python: str | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 120.0,
    only: Sequence[str] = (),
    jobs: int = 1,
    overwrite: bool = False,
) -> ProbeReport:
    """Run the probes on the SDK of this machine; takes minutes on a card.

    Args:
        output: folder for ``magicmind-probe.json`` and ``magicmind-probe.md``; made when it is not there.
        python: the interpreter that has the SDK; None for what CLIPMLU_MLU_PYTHON names, else this one.
        environment: the variables of the probes' processes; None for this process's own.
        timeout_seconds: longest wait for one case.
        only: names of the probes to run; all when empty.
        jobs: probes at a time.
        overwrite: replace files of these names.

    Returns:
        The report, as it was written.

    Raises:
        BackendUnavailableError: there is no SDK.
        UnknownNameError: there is no such probe.
        OutputExistsError: there is a report already, and ``overwrite`` is off.
        OutputError: the files cannot be written.
    """
    check_files_free([output / name for name in _REPORT_NAMES], overwrite=overwrite)
    for name in only:
        if name not in probe_names():
            raise UnknownNameError("probe", name, probe_names())
    interpreter = python or _find_interpreter()
    with scratch_directory() as folder:
        write_probe(folder)
        command = [interpreter, str(folder / PROGRAM_NAME), "--called", "--output", str(folder)]
        command += ["--timeout", str(timeout_seconds), "--jobs", str(jobs)]
        if only:
            command += ["--only", *only]
        try:
            # What the program leaves in its temporary folder if it is killed is removed with this one.
            surroundings = {**(os.environ if environment is None else environment), "TMPDIR": str(folder)}
            code = _run(command, surroundings, folder / JSON_NAME, 2 * timeout_seconds + _START_SECONDS)
        except KeyboardInterrupt:
            if _has_records(folder / JSON_NAME):
                _copy_report(folder, output, overwrite=overwrite)
            raise
        except OSError as error:
            raise BackendUnavailableError(f"Cannot run '{interpreter}': {error.strerror}.") from error
        report = _read_report(folder / JSON_NAME, interpreter, code)
        _copy_report(folder, output, overwrite=overwrite)
    return report


def probe_emulated_sdk(
    output: Path,
    *,
    timeout_seconds: float = 120.0,
    only: Sequence[str] = (),
    jobs: int = 2,
    overwrite: bool = False,
    **settings: Any,
) -> ProbeReport:
    """Run the probes on the emulated SDK; see ``probe_sdk``.

    Args:
        output: folder for the files.
        timeout_seconds: longest wait for one case.
        only: names of the probes to run; all when empty.
        jobs: probes at a time.
        overwrite: replace files of these names.
        settings: of the emulator, such as ``mode="lenient"``; see ``emulated_environment``.
    """
    environment = emulated_worker(**settings).environment
    return probe_sdk(
        output,
        python=sys.executable,
        environment=environment,
        timeout_seconds=timeout_seconds,
        only=only,
        jobs=jobs,
        overwrite=overwrite,
    )


def write_probe(directory: Path, *, overwrite: bool = False) -> Path:
    """Write the program and its graphs into a folder, to be copied to a machine that has the SDK but not clipmlu.

    Args:
        directory: the folder; created if missing.
        overwrite: replace files of these names.

    Returns:
        The program's path.

    Raises:
        OutputExistsError: a file exists, and ``overwrite`` is off.
        OutputError: it cannot be written.
    """
    require_graph_packages("Making the probes' graphs")
    program = directory / PROGRAM_NAME
    contents = {directory / GRAPHS_FOLDER / name: content for name, content in make_graphs().items()}
    write_files({**contents, program: make_program()}, overwrite=overwrite)
    return program


def _find_interpreter() -> str:
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        return named
    if real_sdk_is_importable():
        return sys.executable
    raise BackendUnavailableError(
        f"There is no MagicMind SDK to probe here: set {PYTHON_VARIABLE} to the interpreter that has it"
        f"{f' ({WORKER_VARIABLE} alone does not do)' if os.environ.get(WORKER_VARIABLE) else ''}, "
        "or copy the probes to its machine: clipmlu doctor --write-probe DIR"
    )


def _run(command: Sequence[str], environment: Mapping[str, str], report: Path, first_seconds: float) -> int | None:
    """Run the program; an interruption gives it ten seconds to end its children.

    Args:
        command: the program and its arguments.
        environment: the variables of its process.
        report: what it writes first when it knows its host, for which it asks the SDK in a process with a limit.
        first_seconds: longest wait for that; after it, the program itself limits each case.

    Returns:
        The exit code; None if the program did not write the report in time.
    """
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)  # noqa: S603
    try:
        deadline = time.monotonic() + first_seconds
        while not report.exists() and time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_POLL_SECONDS)
        return process.wait() if report.exists() else None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process if it runs; one that cannot be killed, as inside a driver's call, is not waited for."""
    for end in (process.terminate, process.kill):
        if process.returncode is None:
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)


def _has_records(path: Path) -> bool:
    try:
        return bool(msgspec.json.decode(path.read_bytes(), type=ProbeReport).records)
    except (OSError, msgspec.MsgspecError):
        return False


def _copy_report(folder: Path, output: Path, *, overwrite: bool) -> None:
    write_files({output / name: (folder / name).read_bytes() for name in _REPORT_NAMES}, overwrite=overwrite)


def _read_report(path: Path, interpreter: str, code: int | None) -> ProbeReport:
    if code is None:
        raise BackendUnavailableError(
            f"'{interpreter}' did not start the probes in time. Check that it runs Python at once: "
            f"{interpreter} -c 'import numpy'; or give it longer with --timeout."
        )
    try:
        report = msgspec.json.decode(path.read_bytes(), type=ProbeReport)
    except (OSError, msgspec.MsgspecError) as error:
        raise BackendUnavailableError(
            f"'{interpreter}' gave no report (exit code {code}); it must be Python 3.7 or newer with NumPy: {error}"
        ) from error
    if report.host.sdk_path is None:
        raise BackendUnavailableError(f"There is no MagicMind SDK for '{interpreter}': {report.host.problem}.")
    return report
