"""Templates, and prompts made from them."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

from clipmlu.data.class_names import existing_path
from clipmlu.data.labels import parse_entries
from clipmlu.data.textfile import Note, check_unicode, read_text, split_lines
from clipmlu.errors import OptionError, UnknownNameError
from clipmlu.file_names import prefer_known_name

PLACEHOLDER = "{}"
_log = logging.getLogger(__name__)

TEMPLATE_SETS: dict[str, str] = {
    "simple": "1 template, 'a photo of a {}.'",
    "openai-imagenet": "80 templates that OpenAI chose for ImageNet (CLIP repository, Prompt_Engineering_for_ImageNet.ipynb)",
    "cifar": "18 templates that OpenAI used for CIFAR-10 and CIFAR-100 (CLIP repository, data/prompts.md)",
}
"""Maps the name of a template set to its description."""


def resolve_templates(
    templates: str | os.PathLike[str] | Sequence[str], *, on_note: Note = _log.warning
) -> tuple[str, ...]:
    """Return a tuple of templates from the forms that users may give.

    Args:
        templates: one template (recognised by its ``{}``), the name of a set, the path of a file with one template
            per line (or a JSON list), or a sequence of templates.
        on_note: called with a line about blank lines of a file.

    Raises:
        UnknownNameError: the text is neither a template, nor a set, nor a file.
        OptionError: there is no template, or one has no ``{}``.
        InputError: the file cannot be read.
    """
    if isinstance(templates, os.PathLike):
        where = f"the template file '{templates}'"
        return _check_templates(
            parse_entries(read_text(templates, "template file"), where, on_note), f" in '{templates}'"
        )
    if not isinstance(templates, str):
        return _check_templates(templates, "")
    if PLACEHOLDER in templates:
        return _check_templates([templates], "")
    if prefer_known_name(templates, TEMPLATE_SETS, "template set"):
        return _named_templates(templates)
    path = existing_path(templates)
    if path is not None:
        return resolve_templates(path, on_note=on_note)
    if " " in templates or not templates:
        return _check_templates([templates], "")
    raise UnknownNameError("template set", templates, TEMPLATE_SETS, "Or give a file, or one template with '{}' in it.")


def fill_template(template: str, class_name: str) -> str:
    """Return the prompt for one class."""
    return template.replace(PLACEHOLDER, class_name)


def _check_templates(templates: Iterable[str], where: str) -> tuple[str, ...]:
    if isinstance(templates, (str, bytes, bytearray, set, frozenset, Mapping)) or not isinstance(templates, Iterable):
        raise OptionError(
            f"Templates{where} are of type '{type(templates).__name__}'; expected a text or a list of texts."
        )
    checked = tuple(templates)
    for position, template in enumerate(checked):
        if not isinstance(template, str):
            raise OptionError(f"Template {position}{where} is of type '{type(template).__name__}'; expected a text.")
    if not checked:
        raise OptionError(f"No templates{where}; at least one is needed.")
    for position, template in enumerate(checked):
        check_unicode(template, f"Template {position}{where}")
        if PLACEHOLDER not in template:
            raise OptionError(
                f"Template '{template}'{where} has no '{{}}' for the class name, as 'a photo of a {{}}.' has."
            )
    return checked


@functools.cache
def _named_templates(name: str) -> tuple[str, ...]:
    file = resources.files("clipmlu") / "assets" / "templates" / f"{name}.txt"
    return tuple(split_lines(file.read_text(encoding="utf-8")))
