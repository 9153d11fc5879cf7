"""``clipmlu lower``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._compiling import lower_options
from clipmlu.cli._completion import complete_templates
from clipmlu.cli._groups import Option
from clipmlu.cli._help import command
from clipmlu.cli._notes import note_next, warn
from clipmlu.cli._options import PATH, Choice, bundle_argument, json_option, offline_option, overwrite_option
from clipmlu.cli._progress import STEPS
from clipmlu.cli._vendor_spelling import CompilingCommand
from clipmlu.specs import Layout

if TYPE_CHECKING:
    from clipmlu.compile.lowering import LowerOptions


@command(
    "lower",
    short_help="Write the ONNX files for the vendor's parser.",
    examples=(
        "clipmlu lower demo --for mlu -o demo-onnx",
        "clipmlu lower demo --layout joint --labels labels.txt -o demo-joint",
        "clipmlu lower demo --precision qint8_mixed_float16 --calib demo -o demo-int8",
    ),
    kind=CompilingCommand,
)
@bundle_argument
@click.option(
    "--for",
    "target",
    type=Choice(["mlu"]),
    default="mlu",
    show_default=True,
    help="Target whose parser reads the files.",
)
@click.option("-o", "--output", type=PATH, required=True, help="Folder to write.")
@Option(
    "--layout",
    type=Choice(Layout),
    help="Two towers, or the fused two-input graph of the vendor's sample, to which two towers are joined. [default: as exported]",
)
@Option("--labels", metavar="FILE|LIST", help="Class names; the token ids of their prompts are written, too.")
@Option(
    "--templates",
    envvar="CLIPMLU_TEMPLATES",
    shell_complete=complete_templates,
    metavar="TEMPLATE",
    help="The one template of the prompts of --labels, or a set with one. [default: simple]",
)
@lower_options
@offline_option
@overwrite_option
@json_option
def lower_command(bundle: Path, output: Path, options: LowerOptions, as_json: bool) -> None:
    """Write the ONNX files that 'compile --target mlu' hands to the SDK's parser, for scripts of your own.

    The files have opset 11 and plain operators. README.md and lowered.json beside them describe inputs, outputs,
    preprocessing and build commands. In the modes that quantise, and with --calib, the graphs are prepared as for a
    compilation: smoothing, ranges and weights; the SDK's calibration is left to your script.
    """
    from clipmlu.compile.lowering import lower_bundle
    from clipmlu.report.lowered import show_lowered

    lowered = lower_bundle(bundle, output, options, on_note=warn, on_step=STEPS)
    show_lowered(lowered, as_json=as_json)
    note_next(
        ("emulate", "--", "python", "gen_model.py", "--onnx", next(map(lowered.graph_path, lowered.header.graphs)))
    )
