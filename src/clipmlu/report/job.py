"""The state of a job, what a verification found, and what was exported, on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from clipmlu.bundle.manifest import emulated_mark
from clipmlu.display import counted, size_text
from clipmlu.report.tables import describe_provenance, echo_json, print_facts, print_sentences
from clipmlu.report.wrapping import Whole

if TYPE_CHECKING:
    from clipmlu.jobs.export import ExportReport
    from clipmlu.jobs.state import JobState
    from clipmlu.jobs.verify import JobCheck

_SHOWN_NAMES = 10


def show_state(state: JobState, *, as_json: bool) -> None:
    """Print the state of a job on stdout."""
    if as_json:
        echo_json(state)
    else:
        print_facts(state_facts(state))


def state_facts(state: JobState) -> Iterator[tuple[str, str]]:
    """Yield the facts of a job for display, as (name, value) pairs."""
    yield "job", Whole(state.path)
    yield "model", describe_provenance(state.provenance)
    yield "bundle", state.provenance.bundle_digest
    yield "rows", f"{', '.join(_columns(state))}; as {state.shard_format}"
    yield "images", _share(state.finished_images, state.images)
    yield "unreadable", f"{state.errors:,}"
    yield "shards", _share(state.finished_shards, state.shards)
    if state.damaged_shards:
        more = len(state.damaged_shards) - _SHOWN_NAMES
        names = ", ".join(state.damaged_shards[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
        yield "damaged", f"{names}; the command of the job computes them again"
    yield "size", size_text(state.size_bytes)
    yield "now", _activity(state)


def show_check(check: JobCheck, *, as_json: bool) -> None:
    """Print the result of a verification on stdout."""
    if as_json:
        echo_json(check)
        return
    print_sentences(
        damage.reason if damage.shard is None else f"{damage.shard}: {damage.reason}" for damage in check.damages
    )
    intact = check.checked_shards - len({damage.shard for damage in check.damages if damage.shard is not None})
    missing = check.shards - check.checked_shards
    rest = f" {missing} of {check.shards} shard(s) are not done." if missing else ""
    sentences = [f"{intact} of {check.checked_shards} finished shard(s) are intact, with {check.rows} rows.{rest}"]
    if check.bundle_checked and all(damage.shard is not None for damage in check.damages):
        sentences.append("The bundle is the one that computed them.")
    print_sentences(sentences)


def show_export(report: ExportReport, *, as_json: bool) -> str | None:
    """Print an export as JSON on stdout, or return a line for people."""
    if as_json:
        echo_json(report)
        return None
    parts = [f"Wrote {counted(report.rows, 'row')} to {report.path}{emulated_mark(report.emulated)}"]
    if report.left_out:
        parts.append(f"left out: {counted(report.left_out, 'image')} that could not be read")
    if report.missing_shards:
        parts.append(f"{report.missing_shards} shard(s) are not done")
    return "; ".join(parts)


def _columns(state: JobState) -> Iterator[str]:
    if state.embedding_dim is not None:
        yield f"embeddings of {state.embedding_dim} {state.embedding_dtype}"
    if state.classes is not None:
        yield f"the best {state.top_k} of {counted(state.classes, 'class')}"


def _share(done: int, whole: int | None) -> str:
    """Describe what is done, in per cent rounded down: not all is never 100.0."""
    if whole is None:
        return f"{done:,} done; their number is known when all are read"
    return f"{done:,} of {whole:,} done" + (f" ({1000 * done // whole / 10:.1f} %)" if whole else "")


def _activity(state: JobState) -> str:
    if state.running:
        return "a process on this machine works on it"
    if state.finished:
        return "finished"
    known = "" if state.running is None else "no process on this machine works on it; "
    return f"{known}the same command goes on"
