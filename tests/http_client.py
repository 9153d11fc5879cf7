"""Requests to an application of the server, in process, and images for them."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import httpx

import support


def call_app(app: Any, method: str, path: str, **request: Any) -> httpx.Response:
    """The answer of an application to one request; arguments as for httpx."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


def png(number: int) -> bytes:
    """A picture of the tiny model as a file."""
    file = io.BytesIO()
    support.picture(number).save(file, "png")
    return file.getvalue()


def base64_images(*contents: bytes) -> list[str]:
    """Files as the JSON of a request has them."""
    return [base64.b64encode(each).decode() for each in contents]
