"""Answers: results and errors as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import Response


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a value as a JSON answer."""
    return Response(msgspec.json.encode(value), status, headers=dict(headers or {}), media_type="application/json")


def error_response(
    code: str, message: str, status: int, request_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error as a JSON answer."""
    return json_response({"error": {"code": code, "message": message, "request_id": request_id}}, status, headers)
