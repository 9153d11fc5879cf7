"""Digests of values: a stored result is reused only if the digests of its inputs are equal."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from typing import Any

import msgspec


def value_digest(value: object) -> str:
    """Return the SHA-256 of a value, in hexadecimal; equal values have equal digests.

    Args:
        value: options, texts, numbers, paths, and containers of them.

    Raises:
        TypeError: the value contains an unsupported type, such as an array.
    """
    plain = msgspec.to_builtins(value, str_keys=True, order="deterministic", enc_hook=_plain)
    # File names may contain lone surrogates, which JSON can only write as escapes.
    return hashlib.sha256(json.dumps(plain, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()


def make_key(**parts: object) -> dict[str, str]:
    """Return the digest of each part, by its name."""
    return {name: value_digest(part) for name, part in parts.items()}


def options_key(options: Any, *, prefix: str = "", without: Collection[str] = ()) -> dict[str, str]:
    """Return the digest of every field of an options dataclass, by its name; new fields are included automatically.

    Args:
        options: the dataclass.
        prefix: prefix of each name.
        without: fields that do not change the result, or enter the key in another way.
    """
    names = [field.name for field in dataclasses.fields(options) if field.name not in without]
    return {f"{prefix}{name}": value_digest(getattr(options, name)) for name in names}


def options_digest(options: Any, *, without: Collection[str] = ()) -> str:
    """Return one digest of the result of ``options_key``."""
    return value_digest(options_key(options, without=without))


def _plain(value: object) -> object:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} has no digest; give one of its content instead")
