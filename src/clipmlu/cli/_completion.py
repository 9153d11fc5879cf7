"""Completion by the shell: names of models, tags, datasets and template sets. It loads no torch and never fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

_Names = Callable[[click.Context, str], Iterable[str]]
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completer(names: _Names, *, files: bool = False) -> Completer:
    """Return click's callback for some names; with ``files``, paths too if no name begins like the text."""

    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            found = [name for name in names(context, incomplete) if name.startswith(incomplete)]
        except Exception:
            found = []
        if files and not found:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(name) for name in found]

    return complete


def _models(_context: click.Context, incomplete: str) -> Iterable[str]:
    from clipmlu.export.catalog import list_models

    name, separator, _ = incomplete.partition("::")
    models = list_models()
    return [f"{name}::{tag}" for tag in models.get(name, ())] if separator else models


def _tags(context: click.Context, _incomplete: str) -> Iterable[str]:
    from clipmlu.export.catalog import list_models

    # While an option has no value yet, click leaves the arguments before it unparsed.
    models = list_models()
    given = (context.params.get("model"), *context.args)
    return next((models[name] for name in given if name in models), ())


def _datasets(_context: click.Context, _incomplete: str) -> Iterable[str]:
    from clipmlu.data.datasets import DATASETS

    return [name.removesuffix("PATH") for name in DATASETS]


def _template_sets(_context: click.Context, _incomplete: str) -> Iterable[str]:
    from clipmlu.data.prompts import TEMPLATE_SETS

    return TEMPLATE_SETS


complete_model = _completer(_models)
complete_tag = _completer(_tags, files=True)
complete_dataset = _completer(_datasets)
complete_calibration = _completer(_datasets, files=True)
complete_templates = _completer(_template_sets, files=True)
