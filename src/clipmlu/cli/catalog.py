"""``clipmlu models`` and ``clipmlu datasets``."""

from __future__ import annotations

import dataclasses

import click

from clipmlu.cli._help import command
from clipmlu.cli._options import json_option
from clipmlu.report.tables import echo_json, print_facts, print_table, words


@command(
    "models",
    short_help="List the models that can be exported.",
    examples=(
        "clipmlu models",
        "clipmlu models SigLIP2",
    ),
)
@click.argument("pattern", default="")
@json_option
def models_command(pattern: str, as_json: bool) -> None:
    """List the models that can be exported, with the tags of their weights; PATTERN selects by part of the name."""
    from clipmlu.export.catalog import list_models

    models = {name: tags for name, tags in list_models().items() if pattern.casefold() in name.casefold()}
    if as_json:
        echo_json(models)
        return
    print_facts((name, ", ".join(tags)) for name, tags in models.items())
    click.echo(
        "Also: hf-hub:org/name, local-dir:PATH. No --pretrained tag is needed for demo, hf-hub: and local-dir:.",
        err=True,
    )


@command(
    "datasets",
    short_help="List the datasets and where they are on this machine.",
    examples=("clipmlu datasets",),
)
@json_option
def datasets_command(as_json: bool) -> None:
    """List the datasets that 'clipmlu eval' reads, with their locations on this machine."""
    from clipmlu.data.datasets import DATASETS, locate_dataset

    rows = [(info, locate_dataset(info.name)) for info in DATASETS.values()]
    if as_json:
        echo_json([{**dataclasses.asdict(info), "location": location} for info, location in rows])
        return
    shown = [(info.name, ", ".join(info.splits), info.classes, location, info.description) for info, location in rows]
    print_table(words("name", "splits", "classes", "location", "what"), shown)
