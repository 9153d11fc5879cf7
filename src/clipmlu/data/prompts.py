"""Class names and templates, and the prompts made of them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from clipmlu.errors import InputError, OptionError, UnknownNameError

PLACEHOLDER = "{}"

TEMPLATE_SETS: dict[str, str] = {
    "simple": "1 template, 'a photo of a {}.'",
    "openai-imagenet": "80 templates that OpenAI chose for ImageNet (CLIP repository, Prompt_Engineering_for_ImageNet.ipynb)",
    "cifar": "18 templates that OpenAI used for CIFAR-10 and CIFAR-100 (CLIP repository, data/prompts.md)",
}
"""Named template sets and what they are."""


def resolve_templates(templates: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Turn what a user gives as templates into a tuple of templates.

    Args:
        templates: one template (recognised by its ``{}``), the name of a set, the path of a file with one template
            per line, or a sequence of templates.

    Raises:
        UnknownNameError: the text is neither a template, nor a set, nor a file.
        OptionError: there is no template, or one has no ``{}``.
        InputError: the file cannot be read.
    """
    if isinstance(templates, Path):
        return _check_templates(read_lines(templates, "template file"), f" in '{templates}'")
    if not isinstance(templates, str):
        return _check_templates(templates, "")
    if PLACEHOLDER in templates:
        return (templates,)
    if templates in TEMPLATE_SETS:
        return _named_templates(templates)
    if Path(templates).is_file():
        return resolve_templates(Path(templates))
    if " " in templates or not templates:
        return _check_templates([templates], "")
    raise UnknownNameError("template set", templates, TEMPLATE_SETS, "Or give a file, or one template with '{}' in it.")


def resolve_class_names(labels: str) -> tuple[str, ...]:
    """Class names from a file with one name per line, or from a comma-separated list.

    Raises:
        InputError: the file cannot be read, or there is an empty list or a name twice.
    """
    path = Path(labels)
    if labels.strip() and ("," not in labels or path.is_file()):
        if not path.is_file():
            raise InputError(
                f"Label file '{labels}' does not exist. Give a file with one name per line, or a list: 'cat,dog'."
            )
        return check_class_names(read_lines(path, "label file"), f" in '{labels}'")
    return check_class_names([name.strip() for name in labels.split(",") if name.strip()], "")


def check_class_names(names: Iterable[str], where: str = "") -> tuple[str, ...]:
    """Class names as a tuple; order is kept, since a label is an index into it.

    Raises:
        InputError: there are none, one is blank, or one occurs twice.
    """
    checked = tuple(names)
    if not checked:
        raise InputError(f"No class names{where}; at least one is needed.")
    if any(not name.strip() for name in checked):
        raise InputError(f"A class name{where} is blank; every class needs a name.")
    repeated = [name for name, count in Counter(checked).items() if count > 1]
    if repeated:
        listed = ", ".join(f"'{name}'" for name in repeated[:5])
        raise InputError(f"Class names{where} occur more than once: {listed}. Remove the duplicates.")
    return checked


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a UTF-8 text file, without surrounding white space; blank ones are left out.

    Raises:
        InputError: the file cannot be read or is not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"The {what} '{path}' is not UTF-8 text.") from error
    except OSError as error:
        raise InputError(f"Cannot read the {what} '{path}': {error.strerror}.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def fill_template(template: str, class_name: str) -> str:
    """The prompt for one class."""
    return template.replace(PLACEHOLDER, class_name)


def _check_templates(templates: Iterable[str], where: str) -> tuple[str, ...]:
    checked = tuple(templates)
    if not checked:
        raise OptionError(f"No templates{where}; at least one is needed.")
    for template in checked:
        if PLACEHOLDER not in template:
            raise OptionError(
                f"Template '{template}'{where} has no '{{}}' for the class name, as 'a photo of a {{}}.' has."
            )
    return checked


@functools.cache
def _named_templates(name: str) -> tuple[str, ...]:
    file = resources.files("clipmlu") / "assets" / "templates" / f"{name}.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())
