"""Which columns of a table hold the images and their ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from clipmlu.errors import InputError, OptionError
from clipmlu.host import require

ImageKind = Literal["path", "bytes", "struct"]
"""A column of paths, of the bytes of image files, or of structs of both (``Image`` of Hugging Face's datasets)."""

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "path", "file", "filename", "filepath", "url")
_COLUMNS_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a table that are read.

    Attributes:
        image: column of the images; a field of a struct as ``column.field``.
        id: column of the ids, or None for the row numbers.
        paths: whether values of the images' column may be paths.
    """

    image: str
    id: str | None = None
    paths: bool = dataclasses.field(default=True, compare=False)


def import_pyarrow(module: str = "pyarrow") -> Any:
    """Import a module of the package ``pyarrow``.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return require(module, "bulk", "Reading Parquet and Arrow files")


def choose_columns(schema: Any, where: str, image: str | None = None, id_column: str | None = None) -> Columns:
    """Return the columns to read.

    Without ``image``, the first of the names image, img, jpg, jpeg, png, path, file, filename, filepath and url, in any case, that has a
    fitting type is used, else the only column of bytes or structs, else the only one of text.

    Args:
        schema: the ``pyarrow.Schema``.
        where: the file, for messages.
        image: column of the images as the user gave it, or None.
        id_column: column of the ids as the user gave it, or None.

    Raises:
        InputError: the table has no such column, a column's name is not UTF-8, or none or several may hold the images.
        OptionError: a column that the user gave has another type.
    """
    try:
        return _choose(schema, where, image, id_column)
    except UnicodeDecodeError as error:
        raise InputError(f"Cannot read '{where}': the name of a column is not UTF-8.") from error


def _choose(schema: Any, where: str, image: str | None, id_column: str | None) -> Columns:
    if image is None:
        image = _find_image_column(schema, where)
    elif image_kind(field_type(schema, image, where)) is None:
        raise OptionError(
            f"column '{image}' of '{where}' has the type {field_type(schema, image, where)}; expected paths, bytes of images, or "
            "structs of both"
        )
    if id_column is not None and not _is_id(field_type(schema, id_column, where)):
        raise OptionError(
            f"column '{id_column}' of '{where}' has the type {field_type(schema, id_column, where)}; expected ids: text or integers"
        )
    return Columns(image, id_column, image_kind(field_type(schema, image, where)) != "bytes")


def field_type(schema: Any, name: str, where: str) -> Any:
    """Return the type of a column, or of a field ``column.field``; see ``value_type``.

    Raises:
        InputError: there is none, or the name occurs twice.
    """
    top, fields = split_name(schema, name)
    indices = schema.get_all_field_indices(top)
    if len(indices) != 1:
        what = "two columns" if indices else "no column"
        raise InputError(f"'{where}' has {what} '{top}'; it has {_shown(schema)}.")
    kind = value_type(schema.field(indices[0]).type)
    for field in fields:
        if not import_pyarrow().types.is_struct(kind) or kind.get_field_index(field) < 0:
            raise InputError(f"Column '{top}' of '{where}' has no field '{field}': its type is {kind}.")
        kind = value_type(kind.field(field).type)
    return kind


def split_name(schema: Any, name: str) -> tuple[str, list[str]]:
    """Return the column and the fields of a name such as ``column.field``; a column that has a full stop in its name wins."""
    if name in schema.names:
        return name, []
    top, *fields = name.split(".")
    return top, fields


def value_type(kind: Any) -> Any:
    """Return the type of the values: that of a dictionary's values, and the storage of an extension type."""
    pyarrow = import_pyarrow()
    while True:
        if isinstance(kind, pyarrow.BaseExtensionType):
            kind = kind.storage_type
        elif pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def image_kind(kind: Any) -> ImageKind | None:
    """Return how values of a type give images, or None if they do not."""
    if _is_text(kind):
        return "path"
    if _is_bytes(kind):
        return "bytes"
    fields = image_fields(kind)
    fitting = [_is_bytes(field) if name == "bytes" else _is_text(field) for name, field in fields.items()]
    return "struct" if fitting and all(fitting) else None


def image_fields(kind: Any) -> dict[str, Any]:
    """Return the types of the fields ``bytes`` and ``path`` of a struct; one without values in the whole file does not count."""
    types = import_pyarrow().types
    if not types.is_struct(kind):
        return {}
    fields = {field.name: value_type(field.type) for field in kind if field.name in ("bytes", "path")}
    return {name: field for name, field in fields.items() if not types.is_null(field)}


def _find_image_column(schema: Any, where: str) -> str:
    names: list[str] = schema.names
    kinds = {name: image_kind(value_type(schema.field(index).type)) for index, name in enumerate(names)}
    fitting = [name for name, kind in kinds.items() if kind is not None]
    named = sorted((_IMAGE_NAMES.index(name.lower()), name) for name in fitting if name.lower() in _IMAGE_NAMES)
    if named:
        return named[0][1]
    not_text = [name for name in fitting if kinds[name] != "path"]
    for candidates in (not_text, fitting):
        if len(candidates) == 1:
            return candidates[0]
    what = "several columns that may hold the images" if fitting else "no column of paths or of image bytes"
    raise InputError(f"'{where}' has {what}: {_shown(schema)}. Choose one with --image-column.")


def _shown(schema: Any) -> str:
    shown = [f"'{field.name}' ({field.type})" for field in _first_fields(schema)]
    return ", ".join(shown) + (", ..." if len(schema) > _COLUMNS_SHOWN else "") if shown else "no columns"


def _first_fields(schema: Any) -> Iterator[Any]:
    for index in range(min(len(schema), _COLUMNS_SHOWN)):
        yield schema.field(index)


def _is_text(kind: Any) -> bool:
    types = import_pyarrow().types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_bytes(kind: Any) -> bool:
    types = import_pyarrow().types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_id(kind: Any) -> bool:
    return _is_text(kind) or bool(import_pyarrow().types.is_integer(kind))
