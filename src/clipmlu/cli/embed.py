"""``clipmlu embed``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._shared import (
    PATH,
    RunningOptions,
    bundle_argument,
    note,
    note_inputs,
    overwrite_option,
    running_options,
)
from clipmlu.errors import InputError, OptionError, OutputError
from clipmlu.file_names import name_from_path

if TYPE_CHECKING:
    from clipmlu.data.finding import LeftOut
    from clipmlu.embed.encoder import Encoder
    from clipmlu.embed.file import EmbeddingFile

_TEXTS_AT_ONCE = 1024


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

    INPUT is what 'clipmlu classify' takes. Where the run ends early, the finished part is written to OUTPUT.partial.npy.
    """
    from clipmlu.backends.provenance import emulated_mark
    from clipmlu.data.finding import LeftOut
    from clipmlu.embed.file import EmbeddingFile, check_embedding_output

    left_out = LeftOut()
    if bool(inputs) == (texts is not None):
        raise OptionError("Give either INPUT or --texts.")
    check_embedding_output(output, overwrite=overwrite)
    with (
        running.load(bundle, image_only=texts is None) as encoder,
        EmbeddingFile(output, encoder.embedding_dim, overwrite=overwrite) as file,
    ):
        mark = emulated_mark(encoder.bundle.compilation.emulated)
        try:
            if texts is not None:
                broken = _embed_texts(encoder, texts, file)
            else:
                broken = _embed_images(encoder, inputs, left_out, file, running)
        except BaseException:
            _keep_finished(file, mark)
            raise
        if broken and not file.rows:
            raise InputError(f"Not one of {broken} image(s) could be read; nothing was written.")
        note(
            f"Wrote {file.rows} embeddings of {encoder.embedding_dim} elements to {name_from_path(file.publish())}{mark}"
        )
    return note_inputs(broken, left_out)


def _keep_finished(file: EmbeddingFile, mark: str) -> None:
    """Publish the rows of a run that ends early; that they cannot be written hides no reason why it ends."""
    if not file.rows:
        return
    try:
        path = file.publish(partial=True)
    except OutputError as error:
        note(f"The {file.rows} embeddings that were finished are lost: {error}")
    else:
        note(f"Wrote the {file.rows} embeddings that were finished to {name_from_path(path)}{mark}")


def _embed_images(
    encoder: Encoder,
    inputs: tuple[str, ...],
    left_out: LeftOut,
    file: EmbeddingFile,
    running: RunningOptions,
) -> int:
    """Returns how many images could not be read."""
    from clipmlu.cli._inputs import image_items
    from clipmlu.embed.images import embed_batches

    broken = 0
    batches = embed_batches(
        encoder, image_items(inputs, left_out), batch_size=running.batch_size, workers=running.workers
    )
    with contextlib.closing(batches):
        for batch in batches:
            file.append(batch.rows, [item.id for item in batch.computed()])
            broken += len(batch.errors)
            for error in batch.errors.values():
                note(f"skipped: {error}")
    return broken


def _embed_texts(encoder: Encoder, texts: Path, file: EmbeddingFile) -> int:
    from clipmlu.data.textfile import read_lines

    lines = read_lines(texts, "text file", note)
    if not lines:
        raise InputError(f"The text file '{texts}' holds no text. Expected one text a line.")
    for start in range(0, len(lines), _TEXTS_AT_ONCE):
        part = lines[start : start + _TEXTS_AT_ONCE]
        file.append(encoder.embed_texts(part), part)
    return 0
