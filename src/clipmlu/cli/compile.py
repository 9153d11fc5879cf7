"""``clipmlu compile``."""

from __future__ import annotations

from pathlib import Path

import click

from clipmlu.cli._shared import PATH, bundle_argument, json_option, note, overwrite_option, shape_options
from clipmlu.specs import Precision


@click.command("compile")
@bundle_argument
@click.option("-o", "--output", type=PATH, required=True, help="Directory of the compiled bundle.")
@click.option(
    "--target", default="auto", show_default=True, help="cpu, or auto for the first target that can be used here."
)
@click.option(
    "--precision",
    type=click.Choice([precision.value for precision in Precision]),
    default=Precision.FORCE_FLOAT32.value,
    show_default=True,
    help="Arithmetic of the compiled graphs.",
)
@shape_options
@overwrite_option
@json_option
def compile_command(
    bundle: Path,
    output: Path,
    target: str,
    precision: str,
    batch_size: int,
    dynamic_shape: bool,
    max_batch: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Compile an exported BUNDLE for one target."""
    from clipmlu.cli.info import show_bundle
    from clipmlu.compile.compiler import CompileOptions, compile_bundle

    options = CompileOptions(
        target=target,
        precision=Precision(precision),
        batch_size=batch_size,
        dynamic_shape=dynamic_shape,
        max_batch=max_batch,
        overwrite=overwrite,
    )
    compiled = compile_bundle(bundle, output, options)
    show_bundle(compiled, as_json=as_json)
    if compiled.manifest.layout == "towers":
        note(f"Next: clipmlu classify {output} photos/ --labels labels.txt")
