"""JSON has no NaN: a report that holds one is refused with its place, instead of saying null."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest

from clipmlu.errors import OutputError
from clipmlu.files.publish import encode_json
from clipmlu.specs import Spec


class _Row(Spec, frozen=True, kw_only=True):
    rate: float
    parts: dict[str, tuple[float, ...]]


def test_json_is_what_the_standard_library_reads() -> None:
    row = _Row(rate=1e-5, parts={"a": (1.0, 2.5), "ä": ()})
    assert json.loads(encode_json(row)) == {"rate": 1e-5, "parts": {"a": [1.0, 2.5], "ä": []}}
    assert encode_json(row).endswith(b"}\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["rate", "parts.a[1]"])
def test_a_float_that_is_no_number_is_refused_with_its_place(value: float, place: str) -> None:
    row = _Row(rate=1.0, parts={"a": (1.0, 2.0)})
    fields: dict[str, Any] = {"rate": value} if place == "rate" else {"parts": {"a": (1.0, value)}}
    with pytest.raises(OutputError) as caught:
        encode_json([msgspec.structs.replace(row, **fields)])
    assert f"'[0].{place}' is {value}" in str(caught.value)
