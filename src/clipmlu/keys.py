"""Digests of options: what was measured or made with some is taken for others only if these are equal."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection
from typing import Any

import msgspec


def value_digest(value: object) -> str:
    """SHA-256 of a value: of options, texts, numbers and containers of them; equal values have equal digests."""
    return hashlib.sha256(msgspec.json.encode(value, enc_hook=str, order="deterministic")).hexdigest()


def options_digest(options: Any, *, without: Collection[str] = ()) -> str:
    """Digest of every field of an options dataclass, so that a new field counts without being named here.

    Args:
        options: the dataclass.
        without: fields that decide nothing about the result, or go into the key by other means.
    """
    names = [field.name for field in dataclasses.fields(options) if field.name not in without]
    return value_digest({name: getattr(options, name) for name in names})
