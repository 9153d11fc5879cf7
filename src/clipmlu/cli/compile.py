"""``clipmlu compile``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._compiling import CompilingCommand, compile_options
from clipmlu.cli._shared import PATH, bundle_argument, json_option, note, overwrite_option

if TYPE_CHECKING:
    from clipmlu.compile.compiler import CompileOptions


@click.command("compile", cls=CompilingCommand)
@bundle_argument
@click.option("-o", "--output", type=PATH, required=True, help="Directory of the compiled bundle.")
@compile_options
@overwrite_option
@json_option
def compile_command(bundle: Path, output: Path, options: CompileOptions, overwrite: bool, as_json: bool) -> None:
    """Compile an exported BUNDLE for one target.

    Options that say MLU are for the targets mlu and emulated-mlu. Their names are also taken with underscores, and
    --dynamic-shape with true or false, as the vendor's scripts write them.
    """
    from clipmlu.cli.info import show_bundle
    from clipmlu.compile.compiler import compile_bundle

    compiled = compile_bundle(bundle, output, dataclasses.replace(options, overwrite=overwrite))
    show_bundle(compiled, as_json=as_json)
    if compiled.manifest.layout == "towers":
        note(f"Next: clipmlu classify {output} photos/ --labels labels.txt")
