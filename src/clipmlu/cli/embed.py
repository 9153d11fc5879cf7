"""``clipmlu embed``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._notes import note, note_inputs
from clipmlu.cli._options import PATH, RunningOptions, bundle_argument, overwrite_option, running_options
from clipmlu.errors import InputError, OptionError, OutputError
from clipmlu.file_names import name_from_path

if TYPE_CHECKING:
    from clipmlu.embed.file import EmbeddingFile


@click.command("embed")
@bundle_argument
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("--texts", type=PATH, help="Embed the lines of this file instead of images.")
@click.option(
    "-o", "--output", type=PATH, required=True, help="The .npy file; the ids go to the same name with .ids.json."
)
@overwrite_option
@running_options
def embed_command(
    bundle: Path,
    inputs: tuple[str, ...],
    texts: Path | None,
    output: Path,
    overwrite: bool,
    running: RunningOptions,
) -> int:
    """Write unit-norm embeddings of images (or texts) as float32 .npy, shape (N, D), and their ids as a JSON list.

    INPUT is as for 'clipmlu classify'. If the run ends early, the finished rows are written to OUTPUT.partial.npy.
    """
    from clipmlu.bundle.manifest import emulated_mark
    from clipmlu.data.finding import SkippedFiles
    from clipmlu.data.listing import find_inputs
    from clipmlu.embed.file import EmbeddingFile, check_embedding_output, embed_images_into, embed_lines_into
    from clipmlu.embed.items import items_from_found

    skipped_files = SkippedFiles()
    if bool(inputs) == (texts is not None):
        raise OptionError("Give either INPUT or --texts.")
    check_embedding_output(output, overwrite=overwrite)
    with (
        running.load(bundle, image_only=texts is None) as encoder,
        EmbeddingFile(output, encoder.embedding_dim, overwrite=overwrite) as file,
    ):
        mark = emulated_mark(encoder.bundle.compilation.emulated)
        try:
            if texts is None:
                items = items_from_found(find_inputs(inputs, skipped_files))
                broken = embed_images_into(
                    file,
                    encoder,
                    items,
                    batch_size=running.batch_size,
                    workers=running.workers,
                    on_skipped=_note_skipped,
                )
            else:
                broken = 0
                embed_lines_into(file, encoder, texts, on_note=note)
        except BaseException:
            _keep_finished(file, mark)
            raise
        if broken and not file.rows:
            raise InputError(f"Not one of {broken} image(s) could be read; nothing was written.")
        note(
            f"Wrote {file.rows} embeddings of {encoder.embedding_dim} elements to {name_from_path(file.publish())}{mark}"
        )
    return note_inputs(broken, skipped_files)


def _note_skipped(error: InputError) -> None:
    note(f"skipped: {error}")


def _keep_finished(file: EmbeddingFile, mark: str) -> None:
    """Write the finished rows of a run that ends early; a failed write does not replace the reason of the end."""
    if not file.rows:
        return
    try:
        path = file.publish(partial=True)
    except OutputError as error:
        note(f"The {file.rows} embeddings that were finished are lost: {error}")
    else:
        note(f"Wrote the {file.rows} embeddings that were finished to {name_from_path(path)}{mark}")
