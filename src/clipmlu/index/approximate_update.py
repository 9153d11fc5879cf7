"""Making and updating the approximate index when the segments of an index have changed, with its recall measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipmlu.classify.open_set import DEFAULT_BACKGROUND
from clipmlu.errors import ClipmluError, InputError, reason_of
from clipmlu.file_names import path_from_name
from clipmlu.files.publish import output_errors
from clipmlu.files.read import open_regular
from clipmlu.files.workspace import Workspace
from clipmlu.index.approximate import (
    FEWEST_ROWS,
    MEASURED_HITS,
    Clusters,
    measure_recall,
    must_train,
)
from clipmlu.index.manifest import ApproximateRecord, IndexManifest
from clipmlu.index.options import IndexOptions
from clipmlu.index.state import IndexState
from clipmlu.model import load
from clipmlu.steps import StartStep

_NAME_DIGITS = 32


def update_approximate(
    folder: Path,
    manifest: IndexManifest,
    stored: ApproximateRecord | None,
    wanted: float,
    *,
    on_note: Callable[[str], object],
    on_step: StartStep,
) -> ApproximateRecord | None:
    """Write the approximate index of the segments of a manifest, and return its record; None if the index has too few rows.

    Args:
        folder: folder of the index.
        manifest: the manifest, whose segments are written.
        stored: record of the approximate index whose clusters are taken; None to compute them.
        wanted: share of the best rows that must be found.
        on_note: called with a line for people.
        on_step: shows the steps.

    Raises:
        OutputError: it cannot be written.
    """
    if manifest.rows < FEWEST_ROWS:
        on_note(
            f"{manifest.rows:,} rows are too few for an approximate index (at least {FEWEST_ROWS:,}); searches are exact"
        )
        return None
    state = IndexState(folder, manifest)
    clusters = None if stored is None else _stored_clusters(folder, stored, on_note)
    if stored is None or clusters is None or must_train(stored, state.rows):
        with on_step("computing clusters"):
            clusters, trained = Clusters.train(state), state.rows
    else:
        trained = stored.trained_rows
    with on_step("adding rows to the clusters"):
        clusters.update(state.segments())
    with on_step("measuring the recall"):
        measured = measure_recall(clusters, state, wanted, _text_vectors(manifest, on_note))
    with output_errors(folder), Workspace(folder) as workspace:
        file = clusters.write(workspace.new())
        name = f"approximate-{file.sha256[:_NAME_DIGITS]}.faiss"
        os.replace(workspace.new(), folder / name)
    record = ApproximateRecord(
        name=name,
        file=file,
        slots=tuple(clusters.slots),
        trained_rows=trained,
        lists=clusters.lists,
        probes=measured.probes,
        wanted_recall=wanted,
        recall=measured.recall,
        queries=measured.queries,
        text_recall=measured.text_recall,
    )
    _note_recall(record, on_note)
    return record


def is_current(record: ApproximateRecord, manifest: IndexManifest, options: IndexOptions, folder: Path) -> bool:
    """Return whether an approximate index holds the segments of a manifest, and has the recall that is asked for."""
    same_rows = {name for name in record.slots if name} == {each.name for each in manifest.segments() if each.rows}
    try:
        whole = (folder / record.name).stat().st_size == record.file.size
    except OSError:
        whole = False
    return same_rows and whole and options.recall in (None, record.wanted_recall) and not options.verify


def _stored_clusters(folder: Path, stored: ApproximateRecord, on_note: Callable[[str], object]) -> Clusters | None:
    path = folder / stored.name
    try:
        with open_regular(path) as stream:
            return Clusters.read(path, np.frombuffer(stream.read(), np.uint8), stored)
    except (OSError, InputError) as error:
        on_note(f"the approximate index is made anew: {reason_of(error)}")
        return None


def _text_vectors(manifest: IndexManifest, on_note: Callable[[str], object]) -> npt.NDArray[np.float32] | None:
    """Return embeddings of some texts, which lie elsewhere than those of images; None if the bundle cannot be opened."""
    if manifest.bundle is None:
        return None
    try:
        with load(path_from_name(manifest.bundle)) as model:
            return model.embed_texts([f"a photo of a {name}." for name in DEFAULT_BACKGROUND])
    except ClipmluError as error:
        on_note(f"the recall of searches by text is not measured: {error}")
        return None


def _note_recall(record: ApproximateRecord, on_note: Callable[[str], object]) -> None:
    found = [record.recall] if record.text_recall is None else [record.recall, record.text_recall]
    if min(found) < record.wanted_recall:
        on_note(
            f"the approximate index finds {min(found):.1%} of the {MEASURED_HITS} best rows, less than the {record.wanted_recall:.1%} that "
            "are asked for; --exact searches all rows"
        )
