"""``clipmlu doctor``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._help import command
from clipmlu.cli._notes import note, warn
from clipmlu.cli._options import PATH, Number, json_option, overwrite_option
from clipmlu.errors import OptionError
from clipmlu.file_names import name_from_path
from clipmlu.report.tables import echo_json, print_facts, print_sentences, print_table, words

if TYPE_CHECKING:
    from clipmlu.doctor import Finding

_PROBE_OPTIONS = {"output": "--output", "emulated": "--emulated", "only": "--only", "timeout": "--timeout"}
_STATUS_MARKS = {"ok": "ok", "optional": "-", "problem": "!!"}


@command(
    "doctor",
    short_help="Check what works on this machine.",
    examples=(
        "clipmlu doctor",
        "clipmlu doctor --probe-sdk --emulated --output probe",
    ),
)
@click.option("--probe-sdk", is_flag=True, help="Test undocumented behaviour of the MagicMind SDK and write a report.")
@click.option("--emulated", is_flag=True, help="With --probe-sdk: test the emulated SDK.")
@click.option(
    "--output",
    type=PATH,
    default=Path("magicmind-probe"),
    show_default=True,
    metavar="DIR",
    help="With --probe-sdk: folder for the report, as JSON and Markdown.",
)
@click.option("--only", multiple=True, metavar="NAME", help="With --probe-sdk: run this probe; may be repeated.")
@click.option(
    "--timeout",
    type=Number(min=1),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="With --probe-sdk: longest wait for one case.",
)
@click.option(
    "--write-probe",
    type=PATH,
    metavar="DIR",
    help="Write the tests of --probe-sdk for a machine where clipmlu is not installed.",
)
@overwrite_option
@json_option
@click.pass_context
def doctor_command(
    context: click.Context,
    probe_sdk: bool,
    emulated: bool,
    output: Path,
    only: tuple[str, ...],
    timeout: float,
    write_probe: Path | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Check what works on this machine; each finding has a remedy.

    With --probe-sdk: test undocumented behaviour of the vendor's SDK on small graphs, each probe in its own process,
    and write a report; please send it to the project. The report contains neither host nor user names, and nothing is
    sent automatically.
    """
    _check_options(context, probe_sdk, write_probe)
    if write_probe is not None:
        return _write_probe(write_probe, overwrite=overwrite)
    if probe_sdk:
        return _probe_sdk(output, emulated=emulated, only=only, timeout=timeout, overwrite=overwrite, as_json=as_json)
    from clipmlu.doctor import examine

    findings = examine()
    if as_json:
        echo_json(findings)
    else:
        print_facts(_rows(findings))
    return 1 if any(finding.status == "problem" for finding in findings) else 0


def _rows(findings: Iterable[Finding]) -> Iterator[tuple[str, str]]:
    """Yield the mark and the name of each check with what was found, and below it the remedy."""
    for each in findings:
        yield f"{_STATUS_MARKS[each.status]:2}  {each.check}", each.found
        if each.remedy:
            yield "", f"remedy: {each.remedy}"


def _check_options(context: click.Context, probe_sdk: bool, write_probe: Path | None) -> None:
    if probe_sdk and write_probe is not None:
        raise OptionError("--probe-sdk and --write-probe exclude each other; leave out one of them")
    if context.params["overwrite"] and not probe_sdk and write_probe is None:
        raise OptionError("--overwrite needs --probe-sdk or --write-probe")
    given = [
        option
        for name, option in _PROBE_OPTIONS.items()
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    ]
    if given and not probe_sdk:
        raise OptionError(f"{given[0]} needs --probe-sdk")


def _probe_sdk(
    output: Path, *, emulated: bool, only: tuple[str, ...], timeout: float, overwrite: bool, as_json: bool
) -> int:
    from clipmlu.magicmind.probe.questions.report import JSON_NAME, MARKDOWN_NAME
    from clipmlu.magicmind.probe.run import probe_emulated_sdk, probe_sdk

    if emulated:
        from clipmlu.magicmind.emulator import NOTICE

        warn(NOTICE)
        report = probe_emulated_sdk(output, timeout_seconds=timeout, only=only, overwrite=overwrite)
    else:
        report = probe_sdk(output, timeout_seconds=timeout, only=only, overwrite=overwrite)
    if as_json:
        echo_json(report)
    else:
        answers = [(record.issue, record.name, record.outcome, record.answer) for record in report.records]
        print_sentences([report.title])
        print_table(words("issue", "probe", "outcome", "answer"), answers, keys=2)
    note(f"Written: {name_from_path(output / MARKDOWN_NAME)} and {name_from_path(output / JSON_NAME)}.")
    if not report.emulated:
        note("Please send both to the project: they answer questions that the SDK's public documentation leaves open.")
    return 0


def _write_probe(directory: Path, *, overwrite: bool) -> int:
    from clipmlu.magicmind.probe.run import write_probe

    program = write_probe(directory, overwrite=overwrite)
    click.echo(str(program))
    note(
        f"Copy '{directory}' to where magicmind is, and run there:\n"
        f"  python3.7 {program.name} --list\n"
        f"  python3.7 {program.name} --output ."
    )
    return 0
