"""Building and updating an index: new and changed shards become segments, and ``index.json`` is published when all are written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from clipmlu.bundle.manifest import current_tool_versions
from clipmlu.bundle.space import EmbeddingSpace
from clipmlu.errors import BundleExistsError, InputError, OptionError
from clipmlu.file_names import name_from_path
from clipmlu.files.folder_lock import lock_folder
from clipmlu.files.publish import StagedFiles, encode_json, output_errors
from clipmlu.files.workspace import is_workspace_name, sweep
from clipmlu.index.approximate import import_faiss
from clipmlu.index.approximate_update import is_current, update_approximate
from clipmlu.index.manifest import (
    INDEX_FILE,
    SEGMENTS_FOLDER,
    ApproximateRecord,
    IndexManifest,
    Segment,
    Source,
    read_index_manifest,
)
from clipmlu.index.opened import JOB_INDEX
from clipmlu.index.options import DEFAULT_RECALL, IndexOptions
from clipmlu.index.report import Changes, IndexReport
from clipmlu.index.sources import SourceContent, check_source, open_source
from clipmlu.index.store import SegmentStore, remove_unused
from clipmlu.jobs.rows import EmbeddingDtype
from clipmlu.steps import StartStep, no_steps

_ADVISED_BYTES = 2_000_000_000  # some tenths of a second for each query on two cores


def default_output(sources: Sequence[Path]) -> Path:
    """Return where the index of one source is written: ``index`` in the folder of a job, ``NAME.index`` beside ``NAME.npy``.

    Raises:
        OptionError: there is not exactly one source.
    """
    different = _different(sources)
    if len(different) != 1:
        raise OptionError(
            f"the output is not given, and only one source names it by itself, not {len(different)}; give the folder of the index (-o)"
        )
    (source,) = different
    return source.with_suffix(".index") if source.suffix == ".npy" and not source.is_dir() else source / JOB_INDEX


def build(
    sources: Sequence[Path],
    output: Path,
    options: IndexOptions,
    *,
    on_note: Callable[[str], object] = lambda _note: None,
    on_step: StartStep = no_steps,
) -> IndexReport:
    """Make an index, or take new and changed shards into it; see ``clipmlu.build_index``."""
    for source in sources:
        check_source(source)
    check_output(output)
    name = name_from_path(output)

    def note() -> None:
        on_note(f"waiting for another process that works on the index in {name}")

    with lock_folder(output, note):
        check_output(output)
        return _Build(sources, output, options, on_note, on_step).run()


def check_output(output: Path) -> None:
    """Check that a path is free or holds an index.

    Raises:
        BundleExistsError: it holds something else.
        OutputError: it cannot be accessed.
    """
    sweep(output)
    with output_errors(output):
        if not os.path.lexists(output) or (output / INDEX_FILE).is_file():
            return
        if output.is_dir():
            names = [each.name for each in output.iterdir() if not is_workspace_name(each.name)]
            if set(names) <= {SEGMENTS_FOLDER}:  # a first run that was killed
                return
    raise BundleExistsError(f"Output '{output}' exists and is not an index; it is not changed. Choose another path.")


def _different(sources: Sequence[Path]) -> list[Path]:
    """Return the sources without those that are named twice, perhaps by a link."""
    return list({os.path.realpath(path): path for path in reversed(sources)}.values())[::-1]


class _Build:
    """One run of ``build``, while it holds the lock of the folder."""

    def __init__(
        self,
        sources: Sequence[Path],
        output: Path,
        options: IndexOptions,
        on_note: Callable[[str], object],
        on_step: StartStep,
    ) -> None:
        self._output = output
        self._options = options
        self._on_note = on_note
        self._on_step = on_step
        self._stored = None if options.overwrite else read_index_manifest(output)
        if options.approximate or (self._stored is not None and self._stored.approximate is not None):
            import_faiss()  # before slow work
        self._contents = [
            open_source(path, options.bundle_path) for path in _different(sources) or self._known_sources()
        ]
        self._changes = Counter[str]()
        given = {os.path.realpath(content.path) for content in self._contents}
        stored = self._stored
        self._known = set() if stored is None else {os.path.realpath(each.place(output)) for each in stored.sources}
        replaced = stored is None or (given and self._known <= given)
        self._kept = None if replaced else stored
        """The stored index if some of its rows stay whatever the given sources hold: these must then fit to them."""

    def run(self) -> IndexReport:
        """Update the index and return what was done."""
        stored = self._stored
        if not self._contents and stored is None:
            raise OptionError("there are no sources; expected the folder of a job, or a .npy file")
        self._dim = self._check_dims()
        self._dtype = self._check_dtype()
        manifest = IndexManifest(
            embedding_dim=self._dim,
            dtype=self._dtype,
            bundle=self._bundle(),
            space=self._check_spaces(),
            sources=self._merged_sources(),
            tool_versions=current_tool_versions("numpy"),
        )
        manifest = msgspec.structs.replace(manifest, approximate=self._approximate(manifest))
        if manifest != stored:
            self._publish(manifest)
        remove_unused(self._output, manifest)
        self._advise(manifest)
        return IndexReport.of(self._output, manifest, Changes(**self._changes))

    def _known_sources(self) -> list[Path]:
        """Return the paths of the index's sources that still exist."""
        found = []
        for source in () if self._stored is None else self._stored.sources:
            place = source.place(self._output)
            if source.is_at(place):
                found.append(place)
            else:
                self._on_note(f"'{name_from_path(place)}' is gone; its rows stay in the index")
        return found

    def _check_dims(self) -> int:
        """Return the size of the vectors."""
        known = [(each.dim, each.path) for each in self._contents]
        if (kept := self._kept) is not None:
            known.insert(0, (kept.embedding_dim, self._output))
        dim, first = known[0]
        for other, path in known:
            if other != dim:
                raise InputError(
                    f"'{name_from_path(path)}' has vectors of {other}, '{name_from_path(first)}' of {dim}; one index holds one "
                    "size. Make an index for each model."
                )
        return dim

    def _check_dtype(self) -> EmbeddingDtype:
        wanted, stored = self._options.dtype, self._stored
        if stored is None:
            return wanted or "float32"
        if wanted not in (None, stored.dtype):
            raise OptionError(
                f"dtype is {wanted}; the index has {stored.dtype}. Leave it out, or make the index anew with --overwrite"
            )
        return stored.dtype

    def _check_spaces(self) -> EmbeddingSpace | None:
        """Return the embedding space of all sources, or None if none of them says it."""
        known = [(each.space, each.path) for each in self._contents if each.space is not None]
        silent = [each.path for each in self._contents if each.space is None]
        new = [path for path in silent if os.path.realpath(path) not in self._known]
        stored = self._stored if self._kept is not None or len(new) < len(silent) else None
        if stored is not None and stored.space is not None:
            known.insert(0, (stored.space, self._output))
        if not known:
            self._on_note(
                "the sources do not say which model computed them; name its bundle with --bundle to search by text or image"
            )
            return None
        space, first = known[0]
        for other, path in known:
            if other != space:
                raise InputError(
                    f"'{name_from_path(path)}' was computed with another model, '{other.model}', than '{name_from_path(first)}', "
                    f"'{space.model}': their vectors cannot be compared. Make an index for each model."
                )
        for path in new:
            self._on_note(
                f"'{name_from_path(path)}' does not say which model computed it, and is taken for one of '{space.model}'; --bundle says it"
            )
        return space

    def _bundle(self) -> str | None:
        found = [each.bundle for each in self._contents if each.bundle is not None]
        if found:
            return name_from_path(found[-1])
        return None if self._stored is None else self._stored.bundle

    def _merged_sources(self) -> tuple[Source, ...]:
        """Return the sources: those of the index in their order, updated if they are given, and then new ones."""
        sources = (
            {} if self._stored is None else {source.place(self._output): source for source in self._stored.sources}
        )
        self._gone = [place for place, source in sources.items() if not source.is_at(place)]
        with self._on_step("indexing", total=sum(len(each.shards) for each in self._contents), unit="shards") as step:
            for content in self._contents:
                before = self._place_before(content, sources)
                earlier = sources.get(before)
                updated = self._source(content, earlier, tuple(self._take_shards(content, earlier, step.advance)))
                if before != content.path:  # it was moved: the new path gets the place of the old one
                    sources = {content.path if place == before else place: each for place, each in sources.items()}
                sources[content.path] = updated
        return tuple(sources.values())

    def _source(self, content: SourceContent, earlier: Source | None, segments: tuple[Segment, ...]) -> Source:
        """Return the record of a source; what a file does not say itself stays as it was when it came into the index."""
        known = earlier if content.kind == "file" else None
        return Source(
            path=self._relative(content.path),
            kind=content.kind,
            images_folder=name_from_path(content.images_folder) if known is None else known.images_folder,
            emulated=content.emulated if known is None or content.space is not None else known.emulated,
            segments=segments,
        )

    def _place_before(self, content: SourceContent, sources: dict[Path, Source]) -> Path:
        """Return the path under which a source is in the index: its own, another of the same folder or file, or that from where it was moved."""
        if content.path in sources:
            return content.path
        for place in sources:
            if os.path.realpath(place) == os.path.realpath(content.path):
                return place
        if self._gone:
            keys = {shard.key(shard.known or shard.digests()) for shard in content.shards}
            for place in self._gone:
                if place in sources and keys & {segment.key for segment in sources[place].segments}:
                    self._on_note(f"'{name_from_path(content.path)}' was at '{name_from_path(place)}' before")
                    return place
        return content.path

    def _relative(self, path: Path) -> str:
        """Return the path of a source: relative if the index lies in it, so that both can be moved together."""
        output = Path(os.path.abspath(self._output))
        return name_from_path(os.path.relpath(path, output) if output.is_relative_to(path) else path)

    def _take_shards(
        self, content: SourceContent, before: Source | None, on_shard: Callable[[], object]
    ) -> Iterator[Segment]:
        """Yield a segment for each shard; those of unchanged shards are taken as they are."""
        known = {} if before is None else {segment.shard: segment for segment in before.segments}
        if content.missing:
            self._on_note(
                f"{content.missing} shard(s) of '{name_from_path(content.path)}' are not done; index it again when they are"
            )
        store = SegmentStore(self._output, self._dim, self._dtype, self._changes, verify=self._options.verify)
        for shard in content.shards:
            yield store.take(shard, known.pop(shard.name, None))
            on_shard()
        self._changes.update(removed=len(known))

    def _approximate(self, manifest: IndexManifest) -> ApproximateRecord | None:
        """Return the approximate index of the present segments: an index that has one keeps it up to date."""
        stored = self._stored
        had = None if stored is None else stored.approximate
        if had is None and not self._options.approximate:
            return None
        if had is not None and is_current(had, manifest, self._options, self._output):
            return had
        same = stored is not None and (stored.space, stored.embedding_dim) == (manifest.space, manifest.embedding_dim)
        return update_approximate(
            self._output,
            manifest,
            had if same else None,  # clusters of another model are of no use
            self._options.recall or (DEFAULT_RECALL if had is None else had.wanted_recall),
            on_note=self._on_note,
            on_step=self._on_step,
        )

    def _advise(self, manifest: IndexManifest) -> None:
        size = manifest.rows * manifest.embedding_dim * (4 if manifest.dtype == "float32" else 2)
        if manifest.approximate is None and size > _ADVISED_BYTES:
            self._on_note(
                f"an exact search reads {size / 1e9:.1f} GB for each query; with --approximate it takes a fraction of the time"
            )

    def _publish(self, manifest: IndexManifest) -> None:
        target = self._output / INDEX_FILE
        with StagedFiles([target], overwrite=True) as staged:
            with output_errors(target):
                staged.paths[0].write_bytes(encode_json(manifest))
            staged.publish()
