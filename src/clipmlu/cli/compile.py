"""``clipmlu compile``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipmlu.cli._compiling import commands_for_bundle, compile_options
from clipmlu.cli._groups import Option, is_on_command_line
from clipmlu.cli._help import command
from clipmlu.cli._notes import is_verbose, note, note_kept, note_next
from clipmlu.cli._options import PATH, Integer, Number, bundle_argument, json_option, overwrite_option
from clipmlu.cli._progress import STEPS
from clipmlu.cli._record import given_command
from clipmlu.cli._vendor_spelling import CompilingCommand
from clipmlu.errors import GateError

if TYPE_CHECKING:
    from clipmlu.bundle.directory import CompiledBundle
    from clipmlu.compile.plan import CompileOptions
    from clipmlu.tune.trial import SearchOptions


@command(
    "compile",
    short_help="Compile an exported bundle for a target and a precision.",
    examples=(
        "clipmlu compile demo --target cpu -o demo-cpu",
        "clipmlu compile demo --precision qint8_mixed_float32 --calib demo -o int8",
        "clipmlu compile demo --target emulated-mlu --precision force_float16 -o mlu",
        "clipmlu compile demo --calib demo --max-drop 0.01 -o best",
    ),
    kind=CompilingCommand,
)
@bundle_argument
@click.option("-o", "--output", type=PATH, required=True, help="Directory of the compiled bundle.")
@compile_options
@Option(
    "--max-drop",
    heading="Search",
    type=Number(0, 1),
    help="Search quantisation options that lose at most this much top-1 accuracy against float32, such as 0.01.",
)
@Option(
    "--search-pairs",
    heading="Search",
    type=PATH,
    multiple=True,
    metavar="PAIRS",
    help="Judge the search by recall@1 in both directions on these images and texts, as 'clipmlu eval --task retrieval' reads them.",
)
@Option(
    "--search-image-column",
    heading="Search",
    metavar="NAME",
    help="Of --search-pairs, as 'clipmlu eval --image-column'.",
)
@Option("--search-text-column", heading="Search", metavar="NAME", help="As 'clipmlu eval --text-column'.")
@Option("--search-image-root", heading="Search", type=PATH, metavar="DIR", help="As 'clipmlu eval --image-root'.")
@Option("--search-split", heading="Search", metavar="NAME", help="As 'clipmlu eval --split', of --search-pairs.")
@Option(
    "--search-samples",
    heading="Search",
    type=Integer(min=1),
    help="Held-out images to evaluate on. [default: 1000 to 5000, by --max-drop]",
)
@Option("--search-templates", heading="Search", default="simple", show_default=True, help="Prompts to evaluate on.")
@Option(
    "--recipe",
    heading="Search",
    type=PATH,
    metavar="FILE|BUNDLE",
    help="Use the quantisation options of a search or of a compiled bundle.",
)
@overwrite_option
@json_option
def compile_command(
    bundle: Path,
    output: Path,
    max_drop: float | None,
    search_pairs: tuple[Path, ...],
    search_samples: int | None,
    search_templates: str,
    recipe: Path | None,
    options: CompileOptions,
    overwrite: bool,
    max_pixels: int,
    as_json: bool,
    **reading: Any,
) -> None:
    """Compile an exported BUNDLE for one target.

    Options marked MLU are for the targets mlu and emulated-mlu. As in the vendor's scripts, option names may have
    underscores, and --dynamic-shape may have the value true or false.

    With --max-drop, a search tries quantisation options, the expected fastest first, and evaluates each on the target.
    To resume an interrupted search, run the same command again. --precision limits the search to one mode.
    """
    from clipmlu.api.building import refuse_search, use_recipe
    from clipmlu.compile.compiler import compile_bundle
    from clipmlu.report.bundle import show_bundle

    options = dataclasses.replace(options, overwrite=overwrite)
    given_precision = is_on_command_line("precision")
    precision = options.precision if given_precision else None
    if recipe is not None:
        options = use_recipe(recipe, options, {"max_drop": max_drop, "precision": precision, "max_pixels": max_pixels})
    if max_drop is None:
        refuse_search(
            {
                "search_pairs": str(search_pairs[0]) if search_pairs else None,
                **reading,
                "search_samples": search_samples,
                "search_templates": search_templates if is_on_command_line("search_templates") else None,
            }
        )
        compiled = compile_bundle(bundle, output, options, on_note=note, on_step=STEPS)
    else:
        from clipmlu.api.building import search_options

        search = search_options(
            {
                "max_drop": max_drop,
                "search_pairs": search_pairs,
                **reading,
                "search_samples": search_samples,
                "search_templates": search_templates,
                "precision": precision,
                "max_pixels": max_pixels,
            }
        )
        compiled = _search(bundle, output, options, search)
    show_bundle(compiled, as_json=as_json, verbose=is_verbose())
    if compiled.manifest.layout == "towers":
        note_next(*commands_for_bundle(output, demo=compiled.manifest.model.name == "demo"))


def _search(bundle: Path, output: Path, options: CompileOptions, search: SearchOptions) -> CompiledBundle:
    from clipmlu.bundle.directory import open_exported
    from clipmlu.tune.quantise import search_bundle

    with note_kept(Path(f"{output}.search"), "What was measured", named_by=(GateError,)):
        with STEPS("verifying the exported bundle"):
            exported = open_exported(bundle)
        compiled, _report = search_bundle(
            exported, output, options, search, on_note=note, on_step=STEPS, command=given_command()
        )
    return compiled
