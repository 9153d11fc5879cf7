"""Labels of a classifier: class names, or a dict that gives each class prompts of its own."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, TypeAlias

from clipmlu.arguments import shown
from clipmlu.data.class_names import ClassNames, check_class_names, resolve_class_names
from clipmlu.data.label_lines import in_order
from clipmlu.data.prompts import Templates, fill_template, resolve_templates
from clipmlu.data.textfile import Note, check_unicode
from clipmlu.errors import InputError, OptionError

ClassLabels: TypeAlias = ClassNames | Mapping[str, str | Sequence[str]] | Mapping[int, str] | Mapping[str, int]
"""Accepted forms of a classifier's labels: class names; or a map from each name to its prompts; or, as other libraries have it, a
map from positions to names or from names to positions."""

OwnPrompts: TypeAlias = dict[str, tuple[str, ...]]
"""Maps the name of each class, in order, to its prompts."""

_EXPECTED = "expected a prompt, such as 'a photo of a cat.', or a list of prompts"
_DEFAULT = "simple"  # set of templates
_CHINESE = re.compile("[\u4e00-\u9fff]")
_JAPANESE = re.compile("[\u3040-\u30ff]")  # kana
_log = logging.getLogger(__name__)


def resolve_labels(labels: ClassLabels, *, on_note: Note = _log.warning) -> tuple[str, ...] | OwnPrompts:
    """Return class names, or the classes with their own prompts, from the forms that users may give.

    Args:
        labels: see ``ClassLabels``. In a prompt ``{}`` stands for the class name.
        on_note: see ``resolve_class_names``.

    Raises:
        InputError: as for ``resolve_class_names``; or a class has no prompt, or one that is blank.
        OptionError: a name or a prompt is not a text, or a dict may mean names as well as prompts.
    """
    if not isinstance(labels, Mapping):
        return resolve_class_names(labels, on_note=on_note)
    keys, values = list(labels), list(labels.values())
    if values and all(map(_is_position, keys)) and all(isinstance(value, str) for value in values):
        return check_class_names(in_order(values, keys, "the dict of labels"))
    if values and all(map(_is_position, values)) and all(isinstance(key, str) for key in keys):
        return check_class_names(in_order(keys, values, "the dict of labels"))
    names = check_class_names(keys, " of the dict of labels")
    if len(set(names)) < len(names):
        raise OptionError("The dict of labels has a name more than once, but for white space. Give each class once.")
    if all(map(str.isdecimal, names)) and all(isinstance(value, str) for value in values):
        raise OptionError(
            f"Labels are a dict with '{names[0]}': {shown(values[0])}, which may map positions to names or names to prompts. Give "
            f"list(labels.values()) for the names, or lists of prompts: {{'{names[0]}': [{shown(values[0])}]}}."
        )
    return {name: _own_prompts(name, value) for name, value in zip(names, values, strict=True)}


def _is_position(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _own_prompts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, (bytes, bytearray, Mapping, Set, os.PathLike)) or not isinstance(value, Iterable):
        raise OptionError(f"The prompts of class '{name}' are {shown(value)}; {_EXPECTED}")
    prompts = (value,) if isinstance(value, str) else tuple(value)
    if not prompts:
        raise InputError(f"Class '{name}' has an empty list of prompts; at least one is needed.")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise OptionError(f"A prompt of class '{name}' is {shown(prompt)}; expected a text")
        if not prompt.strip():
            raise InputError(f"Class '{name}' has a prompt that is blank; give a text such as 'a photo of a {name}.'.")
        check_unicode(prompt, f"A prompt of class '{name}',")
    return tuple(fill_template(prompt.strip(), name) for prompt in prompts)


def resolve_prompts(
    labels: tuple[str, ...] | OwnPrompts,
    templates: Templates | None,
    *,
    background: bool = False,
    on_note: Note = _log.warning,
) -> tuple[str, ...]:
    """Return the templates for what has no prompts of its own; none if there is no such name.

    Args:
        labels: result of ``resolve_labels``.
        templates: see ``resolve_templates``; None for the set ``simple``.
        background: whether there are background classes, which templates complete.
        on_note: called with a line about Chinese names with an English template.

    Raises:
        OptionError: there are templates, and nothing that they could complete.
    """
    if isinstance(labels, dict) and not background:
        if templates is not None:
            raise OptionError(
                f"templates are {shown(templates)}, but the labels are a dict, in which each class has prompts of its own; give a list "
                "of names with templates, or the dict without"
            )
        return ()
    templates = _DEFAULT if templates is None else templates
    if isinstance(templates, str) and templates == _DEFAULT and not isinstance(labels, dict):
        _note_chinese(labels, on_note)
    return resolve_templates(templates)


def find_chinese(names: Iterable[str]) -> str | None:
    """Return the first name with Chinese characters and no Japanese ones, or None."""
    return next((name for name in names if _CHINESE.search(name) and not _JAPANESE.search(name)), None)


def _note_chinese(names: Sequence[str], on_note: Note) -> None:
    """Tell that Chinese class names get an English template."""
    found = find_chinese(names)
    if found is not None:
        on_note(
            f"class names such as '{found}' are Chinese, but the template is English, 'a photo of a {{}}.'; for a Chinese model give "
            "the templates chinese or chinese-simple"
        )


def prompts_of(name: str, templates: Sequence[str], own: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Return the prompts of a class: its own, or the templates with its name."""
    found = own.get(name)
    return found if found is not None else [fill_template(template, name) for template in templates]
