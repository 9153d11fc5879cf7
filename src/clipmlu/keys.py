"""Digests of options, used as keys: a stored result is reused only if the digests are equal."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection
from typing import Any

import msgspec


def value_digest(value: object) -> str:
    """Return the SHA-256 of a value: options, texts, numbers and containers; equal values have equal digests."""
    return hashlib.sha256(msgspec.json.encode(value, enc_hook=str, order="deterministic")).hexdigest()


def options_digest(options: Any, *, without: Collection[str] = ()) -> str:
    """Return the digest of all fields of an options dataclass; a new field is included automatically.

    Args:
        options: the dataclass.
        without: fields that do not affect the result, or are part of the key in another form.
    """
    names = [field.name for field in dataclasses.fields(options) if field.name not in without]
    return value_digest({name: getattr(options, name) for name in names})
