"""``clipmlu report``: one HTML page, and the same as Markdown, about what the commands measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipmlu.arguments import as_path, check_argument, shown
from clipmlu.backends.provenance import Command
from clipmlu.display import Displayed, Summary, size_text
from clipmlu.errors import OptionError
from clipmlu.file_names import expand_home, name_from_path
from clipmlu.files.publish import check_files_free, write_files
from clipmlu.host import require
from clipmlu.report.document.build import build_document
from clipmlu.report.document.thumbnails import Thumbnails
from clipmlu.report.html.document import write_html
from clipmlu.report.html.pages import check_renderable
from clipmlu.report.inputs import Input, read_inputs
from clipmlu.report.markdown import write_markdown
from clipmlu.specs import NaturalInt, Spec
from clipmlu.steps import StartStep, no_steps

_PURPOSE = "Writing a report"
_EXTRA = "report"
_SUFFIXES = (".html", ".htm")


class WrittenReport(Displayed, Spec, frozen=True, kw_only=True):
    """What ``clipmlu report`` wrote.

    Attributes:
        path: the HTML page.
        markdown_path: the same as Markdown, beside it.
        size_bytes: size of the page.
        results: number of reports that it is made of.
        emulated: some of them come from the emulated vendor SDK.
    """

    path: str
    markdown_path: str
    size_bytes: NaturalInt
    results: NaturalInt
    emulated: bool

    def summary(self) -> Summary:
        """Return the facts that people see."""
        facts = {"path": self.path, "markdown": self.markdown_path, "size": size_text(self.size_bytes)}
        return Summary({**facts, "results": str(self.results)}, self.emulated)


def write_report(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    title: str | None = None,
    thumbnails: bool | None = None,
    overwrite: bool = False,
    on_note: Callable[[str], None] = lambda _message: None,
    on_step: StartStep = no_steps,
) -> WrittenReport:
    """Write an HTML page about what eval, bench, compare, sweep, a search, run or bulk jobs measured, as ``clipmlu report`` does.

    The page is one file: it needs no network and runs no script. The same is written as Markdown beside it, with the suffix
    ``.md``. The same reports and arguments give the same files.

    Args:
        inputs: report files, and folders with reports: of a run, a sweep, a job, or of a bundle that a search chose.
        output: the page, ``.html``.
        title: title of the page; None for one that names the model.
        thumbnails: show the images of some mistakes, if their data set is on this machine. True shows those of any folder; None only
            those below the folder of a report or the current one, because a report from somebody else could name any folder.
        overwrite: replace existing files.
        on_note: called with a line for the user, such as about a damaged file in a folder.
        on_step: begins each step that may take seconds; see ``clipmlu.steps``.

    Returns:
        Paths and size of what was written.

    Raises:
        OptionError: the output does not end in ``.html``, would replace an input, or an argument is of another type.
        MissingDependencyError: jinja2 or matplotlib is not installed.
        InputError: an input is no report, or cannot be read.
        OutputExistsError: a file exists, and ``overwrite`` is False.
        OutputError: a file cannot be written.
    """
    page = as_path(output, "the report")
    paths = _paths(inputs)
    for value, kind, what in (
        (title, str | None, "title"),
        (thumbnails, bool | None, "thumbnails"),
        (overwrite, bool, "overwrite"),
    ):
        check_argument(value, kind, what)
    if page.suffix.lower() not in _SUFFIXES:
        raise OptionError(f"the report is '{name_from_path(page)}'; expected a name that ends in .html")
    check_report_packages()
    given = own_command(paths, page, title=title, thumbnails=thumbnails, overwrite=overwrite)
    targets = [page, page.with_suffix(".md")]
    for target in targets:
        if target.resolve() in {path.resolve() for path in paths}:
            raise OptionError(
                f"'{name_from_path(target)}' is one of the reports, which the page would replace; give another output"
            )
    check_files_free(targets, overwrite=overwrite)
    with on_step("reading the reports"):
        found = read_inputs(paths, on_note)
    with on_step("writing the page"):
        trusted = [Path(), *(path if path.is_dir() else path.parent for path in paths)]
        photos = Thumbnails(wanted=thumbnails is not False, trusted=trusted if thumbnails is None else None)
        written = publish_report(found, page, photos, command=given, title=title, overwrite=overwrite)
    for dataset in sorted(photos.withheld):
        on_note(
            f"images of '{dataset}' are not shown: they are neither below the folder of the report nor below the current one; "
            "--thumbnails (thumbnails=True) shows them"
        )
    return written


def check_report_packages() -> None:
    """Check that a report can be written.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    check_renderable(_PURPOSE, _EXTRA)
    require("matplotlib", _EXTRA, _PURPOSE)


def publish_report(
    inputs: Sequence[Input],
    page: Path,
    thumbnails: Thumbnails,
    *,
    command: Command,
    title: str | None = None,
    overwrite: bool = False,
) -> WrittenReport:
    """Write the page and the Markdown of reports that were read; see ``write_report``, and ``own_command``."""
    document = build_document(inputs, title, thumbnails, command)
    content = write_html(document).encode()
    markdown = page.with_suffix(".md")
    write_files({markdown: write_markdown(document).encode(), page: content}, overwrite=overwrite)
    return WrittenReport(
        path=name_from_path(page),
        markdown_path=name_from_path(markdown),
        size_bytes=len(content),
        results=len(inputs),
        emulated=document.emulated,
    )


def own_command(
    paths: Sequence[Path],
    page: Path,
    *,
    title: str | None = None,
    thumbnails: bool | None = None,
    overwrite: bool = False,
) -> Command:
    """Return the command line that writes a page again; for the arguments see ``write_report``."""
    pictures = {True: ["--thumbnails"], False: ["--no-thumbnails"], None: []}[thumbnails]
    titled = [] if title is None else [f"--title={title}"]
    inputs, output = [_argument(path) for path in paths], _argument(page)
    words = [*inputs, "-o", output, *titled, *pictures, *(["--overwrite"] if overwrite else [])]
    return Command(arguments=("clipmlu", "report", *map(name_from_path, words)), environment={})


def _argument(path: Path) -> str:
    """Return a path as a word of a command, which is no option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _paths(inputs: Any) -> list[Path]:
    if isinstance(inputs, str | os.PathLike):
        return [expand_home(as_path(inputs, "the report"))]
    if not isinstance(inputs, Sequence) or isinstance(inputs, bytes):
        raise OptionError(f"the reports are {shown(inputs)}; expected a path or a list of paths")
    if not inputs:
        raise OptionError("there are no reports; give files that 'clipmlu eval --output' and others wrote, or folders")
    return [expand_home(as_path(path, "the report")) for path in inputs]
