"""A request: its header and its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, List, Tuple

from .errors import DriverError
from .values import Array, Fields, has_form, show_value


class Request:
    """One request: its header and its arrays."""

    def __init__(self, fields: Fields, arrays: Sequence[Array] = ()) -> None:
        self.fields = fields
        self.arrays = list(arrays)

    def field(self, name: str, form: Any, default: Any = None) -> Any:
        """Return a field after a check of its form; see ``has_form``.

        Raises:
            DriverError: the field is missing or has another form.
        """
        value = self.fields.get(name, default)
        if not has_form(value, form):
            raise DriverError("request", f"'{name}' is {show_value(value)}", kind="spec")
        return value

    def number(self, name: str, default: Any, low: int, high: int) -> int:
        """Return an integer field within bounds.

        Raises:
            DriverError: the field is not such a number.
        """
        value: int = self.field(name, int, default)
        if not low <= value <= high:
            raise DriverError("request", f"'{name}' is {show_value(value)}; expected {low} to {high}", kind="spec")
        return value

    def array(self, index: Any) -> Array:
        """Return one of its arrays.

        Raises:
            DriverError: there is no array with this index.
        """
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(self.arrays):
            raise DriverError("request", f"there is no array {show_value(index)} of {len(self.arrays)}", kind="spec")
        return self.arrays[index]


Reply = Tuple[Fields, List[Array]]
