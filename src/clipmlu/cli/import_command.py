"""``clipmlu import``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clipmlu.cli._help import command
from clipmlu.cli._notes import is_verbose, note_next, warn
from clipmlu.cli._options import PATH, Choice, Integer, Number, json_option, overwrite_option
from clipmlu.cli._progress import STEPS
from clipmlu.specs import LARGEST_LOGIT, LARGEST_SIZE, Interpolation, ResizeMode, TextCleaning


class _ImageSize(click.ParamType[Any]):
    """``224``, or ``240x320`` for height and width."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a number, or height and width."""
        parts = str(value).lower().split("x")
        if not all(part.isascii() and part.isdigit() for part in parts) or len(parts) > 2:
            self.fail(f"'{value}' is no size; expected pixels such as 224, or HEIGHTxWIDTH such as 240x320", param, ctx)
        return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


class _Colours(click.ParamType[Any]):
    """Three numbers: red, green, blue; one stands for all."""

    name = "colours"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return three numbers."""
        number = Number()
        found = tuple(number.convert(part.strip(), param, ctx) for part in str(value).split(","))
        if len(found) not in (1, 3):
            self.fail(f"'{value}' has {len(found)} numbers; expected red,green,blue", param, ctx)
        return found if len(found) == 3 else found * 3


@command(
    "import",
    short_help="Make a bundle of ONNX files of another program.",
    examples=(
        "clipmlu import image.onnx text.onnx --tokenizer tokenizer.json -o mine",
        "clipmlu import clip.onnx --tokenizer tokenizer.json -o mine",
        "clipmlu import clip-vit-base-patch32/ -o b32",
    ),
)
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...")
@click.option("-o", "--output", type=PATH, required=True, help="Directory of the exported bundle.")
@click.option("--tokenizer", type=PATH, help="A tokenizer.json, or a directory with one.")
@click.option(
    "--context-length", type=Integer(min=1), help="Token ids per text. [default: as the graph or the JSON files]"
)
@click.option(
    "--pad-id", type=Integer(min=0, max=LARGEST_SIZE), help="Id of padding. [default: as the tokenizer's files]"
)
@click.option("--clean", type=Choice(TextCleaning), help="Text cleaning before the tokenizer.")
@click.option("--image-size", type=_ImageSize(), metavar="PIXELS|HxW", help="Image size. [default: as the graph]")
@click.option("--mean", type=_Colours(), metavar="R,G,B", help="Mean of the pixels, in 0..1.")
@click.option("--std", type=_Colours(), metavar="R,G,B", help="Standard deviation of the pixels.")
@click.option("--interpolation", type=Choice(Interpolation), help="Resampling filter.")
@click.option("--resize-mode", type=Choice(ResizeMode), help="How an image of another aspect ratio is fitted.")
@click.option(
    "--logit-scale",
    type=Number(min=1 / LARGEST_LOGIT, max=LARGEST_LOGIT),
    help="Multiplier of similarities. [default: as the fused graph, else 100]",
)
@click.option("--logit-bias", type=Number(min=-LARGEST_LOGIT, max=LARGEST_LOGIT), help="Summand of similarities.")
@click.option("--image-output", metavar="NAME", help="Output of the image graph that is the embedding, among several.")
@click.option("--text-output", metavar="NAME", help="The same of the text graph.")
@click.option("--name", metavar="NAME", help="Name of the model in the bundle. [default: that of the files]")
@overwrite_option
@json_option
def import_command(files: tuple[Path, ...], output: Path, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Make an exported bundle of ONNX files that another program wrote, and compare it with them.

    FILE is a graph with both towers, as the vendor's sample and transformers export it; or IMAGE.onnx and TEXT.onnx; or a
    directory with the JSON files of Optimum or transformers.js (Xenova). All other commands then work on the bundle;
    neither torch nor transformers is needed.
    """
    from clipmlu.importing import require_packages

    require_packages()
    from clipmlu.importing.importer import ImportOptions, import_onnx
    from clipmlu.report.bundle import show_bundle

    options = ImportOptions(**given, overwrite=overwrite)
    bundle = import_onnx(files, output, options, on_note=warn, on_step=STEPS)
    show_bundle(bundle, as_json=as_json, verbose=is_verbose())
    note_next(("compile", output, "--target", "cpu", "-o", f"{output}-cpu"))
