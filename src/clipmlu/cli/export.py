"""``clipmlu export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._completion import complete_model, complete_tag
from clipmlu.cli._help import command
from clipmlu.cli._notes import is_verbose, note_next, warn
from clipmlu.cli._options import PATH, Integer, json_option, layout_option, offline_option, overwrite_option
from clipmlu.cli._progress import STEPS

if TYPE_CHECKING:
    from clipmlu.specs import Layout


@command(
    "export",
    short_help="Export a model to ONNX and check it against torch.",
    examples=(
        "clipmlu export demo -o demo",
        "clipmlu export ViT-B-32::openai -o b32",
        "clipmlu export ViT-B-32 --pretrained weights.pt -o mine",
        "clipmlu export hf:OFA-Sys/chinese-clip-vit-base-patch16 -o chinese",
    ),
)
@click.argument("model", shell_complete=complete_model)
@click.option("-o", "--output", type=PATH, required=True, help="Directory of the exported bundle.")
@click.option(
    "--pretrained",
    shell_complete=complete_tag,
    metavar="TAG|FILE",
    help="Weights: an open_clip tag such as 'openai', or a checkpoint file.",
)
@click.option("--random-weights", is_flag=True, help="Untrained weights, for speed measurements.")
@click.option("--seed", type=Integer(min=0), default=0, show_default=True, help="Seed of --random-weights.")
@layout_option
@click.option("--tokenizer", type=PATH, help="A tokenizer.json, or a directory with one, instead of the model's own.")
@click.option(
    "--cache-dir",
    type=PATH,
    help="Folder of downloads. [default: Hugging Face's cache, see HF_HOME; for ms: clipmlu's own]",
)
@offline_option
@overwrite_option
@json_option
def export_command(
    model: str,
    output: Path,
    pretrained: str | None,
    random_weights: bool,
    seed: int,
    layout: Layout,
    tokenizer: Path | None,
    cache_dir: Path | None,
    offline: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Export MODEL to ONNX and check it against torch.

    MODEL is an open_clip name (ViT-B-32, with --pretrained, or ViT-B-32::openai in one string), hf-hub:org/name
    of the same library, hf:org/name of the transformers library, ms:org/name of either on ModelScope, local-dir:PATH of
    either, or demo. See 'clipmlu models'.
    """
    from clipmlu.export.exporter import ExportOptions, export_model
    from clipmlu.report.bundle import show_bundle

    options = ExportOptions(
        pretrained=pretrained,
        random_weights=random_weights,
        seed=seed,
        layout=layout,
        tokenizer=tokenizer,
        cache_dir=cache_dir,
        offline=offline,
        overwrite=overwrite,
    )
    bundle = export_model(model, output, options, on_note=warn, on_step=STEPS)
    show_bundle(bundle, as_json=as_json, verbose=is_verbose())
    note_next(("compile", output, "--target", "cpu", "-o", f"{output}-cpu"))
