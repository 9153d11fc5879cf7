"""``clipmlu models`` and ``clipmlu datasets``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import click

from clipmlu.cli._completion import complete_model
from clipmlu.cli._help import command
from clipmlu.cli._notes import note, note_next
from clipmlu.cli._options import PATH, json_option, overwrite_option
from clipmlu.errors import OptionError, UnknownNameError
from clipmlu.file_names import name_from_path
from clipmlu.report.tables import echo_json, print_facts, print_table, words

_FEW = 12  # models whose tags are all shown


@command(
    "models",
    short_help="List the models that can be exported.",
    examples=(
        "clipmlu models",
        "clipmlu models SigLIP2",
    ),
)
@click.argument("pattern", default="", shell_complete=complete_model)
@json_option
def models_command(pattern: str, as_json: bool) -> None:
    """List the models that can be exported, with the tags of their weights; PATTERN selects by part of the name.

    A long list has the recommended tags of each model only; 'clipmlu models ViT-B-32' has all of them.
    """
    from clipmlu.export.catalog import OTHER_MODELS, TRANSFORMERS_EXAMPLES, list_models
    from clipmlu.export.model_names import near_models

    known = list_models()
    models = {name: tags for name, tags in known.items() if pattern.casefold() in name.casefold()}
    if not models:
        elsewhere = [name for name in TRANSFORMERS_EXAMPLES if pattern.casefold() in name.casefold()]
        hint = f"'clipmlu models' lists those of open_clip. {OTHER_MODELS}"
        raise UnknownNameError("model", pattern, known, hint, meant=elsewhere or near_models(pattern))
    if as_json:
        echo_json(models)
        return
    _show_models(models, whole=len(models) <= _FEW)
    note(f"{OTHER_MODELS} No tag is needed for these and demo.")


def _show_models(models: Mapping[str, tuple[str, ...]], *, whole: bool) -> None:
    """Print the models under the headings of their families, each with all tags or the recommended ones."""
    from clipmlu.export.catalog import by_family, recommended_tags

    for family, names in by_family(models).items():
        click.echo(family)
        shown = {name: models[name] if whole else recommended_tags(models[name]) for name in names}
        rest = {name: len(models[name]) - len(shown[name]) for name in names}
        print_facts(
            (f"  {name}", ", ".join(shown[name]) + (f", and {rest[name]} more" if rest[name] else "")) for name in names
        )


@command(
    "datasets",
    short_help="List the datasets and where they are on this machine.",
    examples=(
        "clipmlu datasets",
        "clipmlu datasets --write-samples samples",
    ),
)
@click.option(
    "--write-samples",
    type=PATH,
    metavar="DIR",
    help="Write ten drawn pictures to DIR/photos, their class names to DIR/labels.txt and captions to DIR/captions.csv instead, to try "
    "commands with.",
)
@overwrite_option
@json_option
def datasets_command(write_samples: Path | None, overwrite: bool, as_json: bool) -> None:
    """List the datasets that 'clipmlu eval' reads, with their locations on this machine."""
    from clipmlu.data.datasets import DATASETS, locate_dataset

    if write_samples is not None:
        _write_samples(write_samples, overwrite=overwrite)
        return
    if overwrite:
        raise OptionError("--overwrite needs --write-samples")
    rows = [(info, locate_dataset(info.name)) for info in DATASETS.values()]
    if as_json:
        echo_json([{**dataclasses.asdict(info), "location": location} for info, location in rows])
        return
    shown = [(info.name, ", ".join(info.splits), info.classes, location, info.description) for info, location in rows]
    print_table(words("name", "splits", "classes", "location", "what"), shown)


def _write_samples(folder: Path, *, overwrite: bool) -> None:
    from clipmlu.data.datasets.samples import write_samples

    photos, labels = write_samples(folder, overwrite=overwrite)
    note(f"Wrote {name_from_path(photos)} and {name_from_path(labels)}")
    note_next(("classify", "demo-cpu", photos, "--labels", labels))
