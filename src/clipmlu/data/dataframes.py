"""Tables and columns of pandas and polars, recognised by their methods: neither library is imported."""

from __future__ import annotations


def is_column(value: object) -> bool:
    """Return whether a value is a column of a table: a Series or an Index of pandas, or a Series of polars."""
    return hasattr(value, "to_list") and hasattr(value, "to_numpy")


def table_columns(value: object) -> tuple[str, ...] | None:
    """Return the names of a table's columns, or None for a value that is no DataFrame."""
    if is_column(value) or not (hasattr(value, "columns") and hasattr(value, "to_numpy")):
        return None
    return tuple(map(str, value.columns))
