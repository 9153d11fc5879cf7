"""``clipmlu embed``."""

from __future__ import annotations

import io
import json
from pathlib import Path

import click

from clipmlu.cli._shared import PATH, batch_size_option, bundle_argument, device_option, note, threads_option
from clipmlu.errors import InputError, OptionError


@click.command("embed")
@bundle_argument
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("--texts", type=PATH, help="Embed the lines of this file instead of images.")
@click.option(
    "-o", "--output", type=PATH, required=True, help="The .npy file; the ids go to the same name with .ids.json."
)
@batch_size_option
@threads_option
@device_option
def embed_command(
    bundle: Path,
    inputs: tuple[str, ...],
    texts: Path | None,
    output: Path,
    batch_size: int | None,
    threads: int,
    device: int,
) -> int:
    """Write unit-norm embeddings of images (or texts) as float32 .npy, shape (N, D), and their ids as a JSON list.

    INPUT is what 'clipmlu classify' takes.
    """
    import numpy as np

    from clipmlu.bundle import write_files
    from clipmlu.classify.bulk import embed_items
    from clipmlu.classify.encoder import load
    from clipmlu.cli._inputs import image_items
    from clipmlu.data.prompts import read_lines

    if bool(inputs) == (texts is not None):
        raise OptionError("Give either INPUT or --texts.")
    broken = 0
    with load(bundle, threads=threads, device=device, image_only=texts is None) as encoder:
        if texts is not None:
            ids = read_lines(texts, "text file")
            embeddings = encoder.embed_texts(ids)
        else:
            ids, rows = [], []
            for outcome in embed_items(encoder, image_items(inputs), batch_size=batch_size):
                if outcome.embedding is None:
                    broken += 1
                    note(f"skipped: {outcome.error}")
                else:
                    ids.append(outcome.item.id)
                    rows.append(outcome.embedding)
            if not rows:
                raise InputError(f"Not one of {broken} image(s) could be read; nothing was written.")
            embeddings = np.stack(rows)
        emulated = encoder.bundle.compilation.emulated
    buffer = io.BytesIO()
    np.save(buffer, embeddings)
    write_files(
        {
            output.with_suffix(".npy"): buffer.getvalue(),
            output.with_suffix(".ids.json"): json.dumps(ids, ensure_ascii=False).encode(),
        }
    )
    note(
        f"Wrote {len(ids)} embeddings of {embeddings.shape[1]} elements to {output.with_suffix('.npy')}{' (emulated)' if emulated else ''}"
    )
    if broken:
        note(f"{broken} image(s) could not be read.")
    return 1 if broken else 0
