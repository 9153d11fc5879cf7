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
    code: str, message: str, status: int, request_id: str, headers: Mapping[str, str] | None = None, *, path: str = ""
) -> Response:
    """Return an error as a JSON answer; below ``/v2`` in the form of the KServe protocol, which is only the message.

    Args:
        code: its code.
        message: its message.
        status: HTTP status.
        request_id: id of the request.
        headers: further headers.
        path: path of the request.
    """
    return json_response(error_body(code, message, request_id, path), status, headers)


def error_body(code: str, message: str, request_id: str, path: str) -> dict[str, Any]:
    """Return the JSON of an error; see ``error_response``."""
    if path == "/v2" or path.startswith("/v2/"):
        return {"error": message}
    return {"error": {"code": code, "message": message, "request_id": request_id}}
