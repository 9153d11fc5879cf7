"""``clipmlu embed``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._engines import engine_options, refuse_engine
from clipmlu.cli._help import command
from clipmlu.cli._inputs import input_options
from clipmlu.cli._jobs import JobChoice, check_job_output, job_options, run_job_command
from clipmlu.cli._notes import note, note_inputs, note_next, warn
from clipmlu.cli._options import PATH, RunningOptions, bundle_argument, overwrite_option, running_options
from clipmlu.cli._progress import STEPS, ProgressView
from clipmlu.cli._urls import url_options
from clipmlu.errors import InputError, OptionError, OutputError
from clipmlu.file_names import name_from_path

if TYPE_CHECKING:
    from clipmlu.data.url.options import UrlOptions
    from clipmlu.embed.file import EmbeddingFile
    from clipmlu.jobs.engines.options import EngineOptions
    from clipmlu.jobs.inputs import JobInput


@command(
    "embed",
    short_help="Write the embeddings of images or texts.",
    examples=(
        "clipmlu embed demo-cpu photos/ -o photos.npy",
        "clipmlu embed demo-cpu --texts labels.txt -o labels.npy",
        "clipmlu embed demo-cpu photos/ -o embeddings/",
    ),
)
@bundle_argument
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("--texts", type=PATH, help="Embed the lines of this file instead of images.")
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="A .npy file, with the ids in the same name with .ids.json; or the folder of a job.",
)
@overwrite_option
@input_options
@url_options
@job_options
@engine_options
@running_options
def embed_command(
    bundle: Path,
    images: JobInput,
    texts: Path | None,
    output: Path,
    overwrite: bool,
    urls: UrlOptions | None,
    job: JobChoice,
    engine: EngineOptions,
    running: RunningOptions,
) -> int:
    """Write unit-norm embeddings of images (or texts) as float32 .npy, shape (N, D), and their ids as a JSON list.

    INPUT is as for 'clipmlu classify'. If the run ends early, the finished rows are written to OUTPUT.partial.npy.

    With a folder as OUTPUT it is a job for any number of images: its shards hold a row for each image, errors.jsonl lists
    those that could not be read, and the same command goes on where it was interrupted. A job also reads the tar archives
    (WebDataset), Parquet and Arrow files (Hugging Face) that lie in folders.
    """
    if images.given == (texts is not None):
        raise OptionError("Give either INPUT or --texts.")
    if output.suffix == ".npy" and not output.is_dir():
        job.refuse("a .npy file")
        refuse_engine(engine, "a .npy file")
        return _write_file(bundle, images, texts, output, running, urls, overwrite=overwrite)
    check_job_output(output, ", or a file NAME.npy")
    if texts is not None:
        raise OptionError(f"--texts writes a file; expected -o NAME.npy, not the folder '{output}'")
    options = job.options(running, urls, overwrite=overwrite)
    return run_job_command(bundle, images, output, options, engine, "embedding", ("index",))


def _write_file(
    bundle: Path,
    images: JobInput,
    texts: Path | None,
    output: Path,
    running: RunningOptions,
    urls: UrlOptions | None,
    *,
    overwrite: bool,
) -> int:
    from clipmlu.bundle.manifest import emulated_mark
    from clipmlu.data.finding import SkippedFiles
    from clipmlu.embed.file import EmbeddingFile, check_embedding_output, embed_images_into, embed_lines_into
    from clipmlu.jobs.opening import input_items

    skipped_files = SkippedFiles()
    check_embedding_output(output, overwrite=overwrite)
    with (
        running.load(bundle, image_only=texts is None) as encoder,
        EmbeddingFile(output, encoder.embedding_dim, overwrite=overwrite) as file,
    ):
        mark = emulated_mark(encoder.bundle.compilation.emulated)
        try:
            if texts is None:
                items = input_items(images, skipped_files, urls)
                with ProgressView("embedding") as progress:
                    progress.start(None)
                    broken = embed_images_into(
                        file,
                        encoder,
                        items,
                        batch_size=running.batch_size,
                        workers=running.workers,
                        on_skipped=_note_skipped,
                        on_images=lambda count: progress.add(images=count),
                    )
            else:
                broken = 0
                embed_lines_into(file, encoder, texts, on_note=warn, on_step=STEPS)
        except BaseException:
            _keep_finished(file, mark)
            raise
        if broken and not file.rows:
            raise InputError(f"Not one of {broken} image(s) could be read; nothing was written.")
        written = file.publish()
        note(f"Wrote {file.rows} embeddings of {encoder.embedding_dim} elements to {name_from_path(written)}{mark}")
    if texts is None:
        note_next(("index", written, "--bundle", bundle))
    return note_inputs(broken, skipped_files)


def _note_skipped(error: InputError) -> None:
    warn(f"skipped: {error}")


def _keep_finished(file: EmbeddingFile, mark: str) -> None:
    """Write the finished rows of a run that ends early; a failed write does not replace the reason of the end."""
    if not file.rows:
        return
    try:
        path = file.publish(partial=True)
    except OutputError as error:
        warn(f"The {file.rows} embeddings that were finished are lost: {error}")
    else:
        warn(f"Wrote the {file.rows} embeddings that were finished to {name_from_path(path)}{mark}")
