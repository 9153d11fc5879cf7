"""Templates, and prompts made from them."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from importlib import resources

from clipmlu.data.class_names import existing_path
from clipmlu.data.labels import parse_entries
from clipmlu.data.template_functions import PLACEHOLDER, template_from_function
from clipmlu.data.textfile import Note, check_unicode, read_text, split_lines
from clipmlu.errors import OptionError, UnknownNameError
from clipmlu.file_names import prefer_known_name

_OTHER_PLACEHOLDER = re.compile(r"\{[^{}]+\}|%s|<\w+>")  # of other programs
_log = logging.getLogger(__name__)

TEMPLATE_SETS: dict[str, str] = {
    "simple": "1 template, 'a photo of a {}.'",
    "openai-imagenet": "80 templates that OpenAI chose for ImageNet (CLIP repository, Prompt_Engineering_for_ImageNet.ipynb)",
    "cifar": "18 templates that OpenAI used for CIFAR-10 and CIFAR-100 (CLIP repository, data/prompts.md)",
    "chinese-simple": "1 template, '一张{}的照片。', with which Chinese-CLIP is used",
    "chinese": "22 templates of the same kinds as Chinese-CLIP's for ImageNet (cn_clip/eval/imagenet_zeroshot_templates.py)",
}
"""Maps the name of a template set to its description."""


Template = str | os.PathLike[str] | Callable[[str], str]
"""One template with ``{}`` or as a function of the class name; or the name of a set; or a file of templates."""

Templates = Template | Sequence[Template]
"""Accepted forms of templates; see ``resolve_templates``."""


def resolve_templates(templates: Templates, *, on_note: Note = _log.warning) -> tuple[str, ...]:
    """Return a tuple of templates from the forms that users may give.

    Args:
        templates: one template (recognised by its ``{}``), a function that puts the class name into a text, such as those of
            open_clip, the name of a set, the path of a file with one template per line (or a JSON list), or a sequence of
            these.
        on_note: called with a line about blank lines of a file.

    Raises:
        UnknownNameError: a text is neither a template, nor a set, nor a file.
        OptionError: there is no template, one has no ``{}``, or a function does more than to put the name into a text.
        InputError: the file cannot be read.
    """
    if isinstance(templates, (str, os.PathLike)) or callable(templates):
        return _resolve_one(templates, 0, on_note)
    if isinstance(templates, (bytes, bytearray, Set, Mapping)) or not isinstance(templates, Iterable):
        raise OptionError(f"Templates are of type '{type(templates).__name__}'; expected a text or a list of texts.")
    resolved = tuple(
        found for position, template in enumerate(templates) for found in _resolve_one(template, position, on_note)
    )
    if not resolved:
        raise OptionError("No templates; at least one is needed.")
    return resolved


def without_functions(templates: Templates) -> Templates:
    """Return templates with texts for functions, which have no value that could be compared or sent to another process.

    Raises:
        OptionError: a function does more than to put the name into a text.
    """
    if callable(templates):
        return template_from_function(templates, "Template 0")
    if isinstance(templates, (str, os.PathLike)) or not any(map(callable, templates)):
        return templates
    return tuple(
        template_from_function(template, f"Template {position}") if callable(template) else template
        for position, template in enumerate(templates)
    )


def _resolve_one(template: Template, position: int, on_note: Note) -> tuple[str, ...]:
    if isinstance(template, os.PathLike):
        where = f"the template file '{template}'"
        entries = parse_entries(read_text(template, "template file"), where, on_note)
        return _check_templates(entries, f" in '{template}'")
    if not isinstance(template, str):
        if callable(template):
            template = template_from_function(template, f"Template {position}")
            return _check_templates([template], "", position)
        raise OptionError(
            f"Template {position} is of type '{type(template).__name__}'; expected a text with '{{}}', the name of a set, a file or a "
            "function."
        )
    if PLACEHOLDER in template:
        return _check_templates([template], "", position)
    if prefer_known_name(template, TEMPLATE_SETS, "template set"):
        return _named_templates(template)
    path = existing_path(template)
    if path is not None:
        return _resolve_one(path, position, on_note)
    if " " in template or not template or _OTHER_PLACEHOLDER.search(template):
        return _check_templates([template], "", position)
    raise UnknownNameError("template set", template, TEMPLATE_SETS, "Or give a file, or one template with '{}' in it.")


def fill_template(template: str, class_name: str) -> str:
    """Return the prompt for one class."""
    return template.replace(PLACEHOLDER, class_name)


def _check_templates(templates: Sequence[str], where: str, first: int = 0) -> tuple[str, ...]:
    """Return the templates, of which ``first`` is the position of the first one, if each has a place for the class name."""
    if not templates:
        raise OptionError(f"No templates{where}; at least one is needed.")
    for position, template in enumerate(templates, first):
        check_unicode(template, f"Template {position}{where}")
        if PLACEHOLDER not in template:
            other = _OTHER_PLACEHOLDER.search(template)
            hint = "" if other is None else f" Write '{{}}' for '{other[0]}'."
            raise OptionError(
                f"Template '{template}'{where} has no '{{}}' for the class name, as 'a photo of a {{}}.' has.{hint}"
            )
    return tuple(templates)


@functools.cache
def _named_templates(name: str) -> tuple[str, ...]:
    file = resources.files("clipmlu") / "assets" / "templates" / f"{name}.txt"
    return tuple(split_lines(file.read_text(encoding="utf-8")))
