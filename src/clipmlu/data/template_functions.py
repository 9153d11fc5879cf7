"""Templates as functions of the class name, such as the lambdas of open_clip, converted to texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clipmlu.arguments import shown
from clipmlu.errors import OptionError, first_line

PLACEHOLDER = "{}"
# Names whose change by a function would be seen: capitals, an underscore, a plural, a vowel and a consonant in front, one word.
_NAMES = ("Umbra_Kq-Vw foxes", "bolt Zx_9", "ICE-qY berry", "umkzoq", "blivfrix")
_INSTEAD = "Give a dict with the prompts of each class instead: {'cat': ['a photo of a cat.'], 'dog': [...]}."


def template_from_function(function: Callable[[str], Any], what: str) -> str:
    """Return the template of a function that puts the class name unchanged into a fixed text.

    Args:
        function: called with several made-up class names.
        what: name of the template, the subject of the messages.

    Raises:
        OptionError: the function fails, returns no text, leaves the name out, or does something else with it.
    """
    templates = [_cut(function, _ClassName(name), what) for name in _NAMES]
    other = next((template for template in templates if template != templates[0]), None)
    if other is not None:
        raise OptionError(
            f"{what} is a function whose text depends on the class name: {shown(templates[0])} for one and {shown(other)} for "
            f"another. {_INSTEAD}"
        )
    return templates[0]


class _ClassName(str):
    """A class name that records if it is looked up or compared: the text for a made-up name then says nothing of others.

    Attributes:
        compared: whether that happened.
    """

    compared = False

    def __hash__(self) -> int:
        self.compared = True
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        self.compared = True
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        self.compared = True
        return super().__ne__(other)


def _cut(function: Callable[[str], Any], name: _ClassName, what: str) -> str:
    """Call a function and return its text with the placeholder for the class name."""
    try:
        text = function(name)
    except Exception as error:  # the function is the user's
        raise OptionError(
            f"{what} is a function that fails for the class name '{name}': {type(error).__name__}: {first_line(error)}; expected one "
            "like lambda name: f'a photo of a {name}.'"
        ) from error
    if not isinstance(text, str):
        raise OptionError(f"{what} is a function that returns {shown(text)} for '{name}'; expected a text")
    if PLACEHOLDER in text:
        raise OptionError(
            f"{what} is a function whose text holds '{{}}': {shown(text)}; give that text without a function"
        )
    if name.compared:
        raise OptionError(
            f"{what} is a function that looks the class name up or compares it, so its text depends on the class name. {_INSTEAD}"
        )
    if name not in text:
        raise OptionError(
            f"{what} is a function whose text does not hold the class name as it is: {shown(text)} for '{name}'. {_INSTEAD}"
        )
    return text.replace(name, PLACEHOLDER)
