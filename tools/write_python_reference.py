"""Write docs/python.md from the docstrings of the public names: python tools/write_python_reference.py."""

from __future__ import annotations

import enum
import inspect
from pathlib import Path
from typing import Any

import clipmlu
from clipmlu.display import Displayed

PATH = Path(__file__).resolve().parent.parent / "docs" / "python.md"
FIRST = ("pipeline", "load", "Model", "ZeroShotClassifier", "Prediction", "Predictions")
INTRODUCTION = """<!-- Written by `python tools/write_python_reference.py`; do not edit. -->

# Python

```python
import clipmlu

classifier = clipmlu.pipeline("ViT-B-32::openai", labels=["cat", "dog"])
classifier("photo.jpg")
```

Each command has a function, with the words of its options as keywords; a keyword that is left out has the default of the
command. An options object may be given instead of the keywords. Paths are texts or path objects. All errors are subclasses of
`clipmlu.ClipmluError`, with a message of one line. Bundles, models, classifiers, jobs and reports show their main facts in a notebook;
`to_dict()` gives all of them for JSON. [Use it in a Python program](howto/python.md) shows the usual ones together.
"""


def render_reference() -> str:
    """Return the whole page: the functions, then the classes."""
    names = sorted(name for name in clipmlu.__all__ if name not in (*FIRST, "__version__"))
    values = {name: getattr(clipmlu, name) for name in (*FIRST, *names)}
    first = [_section(name, values[name]) for name in FIRST]
    functions = [_section(name, values[name]) for name in names if not inspect.isclass(values[name])]
    classes = [_section(name, values[name]) for name in names if inspect.isclass(values[name])]
    return "\n".join([INTRODUCTION, *first, *functions, *classes])


def _section(name: str, value: Any) -> str:
    if inspect.isclass(value):
        parts = [f"class {name}", _indented(inspect.getdoc(value)), *_members(value)]
    else:
        parts = [_signature(name, value), _indented(inspect.getdoc(value))]
    return f"## `{name}`\n\n```text\n" + "\n\n".join(part for part in parts if part) + "\n```\n"


def _members(kind: type) -> list[str]:
    """Describe the public methods and properties of a class and of its bases in the package."""
    if issubclass(kind, enum.Enum):
        return [_indented("\n".join(f"{member.name} = {member.value!r}" for member in kind))]
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("clipmlu.") and base is not Displayed:
            found |= {name: each for name, each in vars(base).items() if not name.startswith("_")}
    described = []
    for name, each in found.items():
        function = each.__func__ if isinstance(each, staticmethod | classmethod) else each
        if inspect.isfunction(function):
            described.append(_indented(f"{_signature(name, function)}\n{_indented(inspect.getdoc(function))}"))
        elif isinstance(each, property) or type(each).__name__ == "cached_property":
            described.append(_indented(f"{name}\n{_indented(inspect.getdoc(each))}"))
    return described


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [_parameter(each) for each in signature.parameters.values() if each.name not in ("self", "cls")]
    named = next((place for place, each in enumerate(parameters) if each.startswith("\0")), None)
    if named is not None and not any(each.startswith("*") for each in parameters):
        parameters.insert(named, "*")
    shown = [each.lstrip("\0") for each in parameters]
    returned = "" if signature.return_annotation is signature.empty else f" -> {signature.return_annotation}"
    line = f"{name}({', '.join(shown)}){returned}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {each},\n" for each in shown) + f"){returned}"


def _parameter(parameter: inspect.Parameter) -> str:
    text = parameter.name if parameter.kind is not parameter.VAR_KEYWORD else f"**{parameter.name}"
    if parameter.annotation is not parameter.empty:
        text += f": {parameter.annotation}"
    if parameter.default is not parameter.empty:
        text += f" = {_default(parameter.default)}"
    return f"\0{text}" if parameter.kind is parameter.KEYWORD_ONLY else text


def _default(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return repr(value.value)
    return "..." if callable(value) else repr(value)


def _indented(text: str | None) -> str:
    return "\n".join(f"    {line}".rstrip() for line in (text or "").splitlines())


def render_files() -> dict[Path, str]:
    """Return the text of each file that this tool writes."""
    return {PATH: render_reference()}


if __name__ == "__main__":
    for path, text in render_files().items():
        path.write_text(text, encoding="utf-8")
