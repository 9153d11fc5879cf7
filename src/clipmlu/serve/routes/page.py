"""``GET /``: the page that people open in a browser, and its files."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from clipmlu._version import __version__
from clipmlu.data.prompts import TEMPLATE_SETS
from clipmlu.serve.http.answers import json_response
from clipmlu.serve.page import HEADERS, INDEX, is_known, page_files
from clipmlu.serve.refusal import Refusal

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index(request: Request) -> Response:
    """Return the page; it asks for the API key itself, so that it needs none."""
    return _answer(INDEX, request)


@router.get("/page/settings.json")
async def settings() -> Response:
    """Return what the page shows of this version: its number, and the names of the sets of templates."""
    return json_response({"version": __version__, "templates": list(TEMPLATE_SETS)}, headers=HEADERS)


@router.get("/page/{name}")
async def page_file(name: str, request: Request) -> Response:
    """Return a file of the page."""
    return _answer(name, request)


def _answer(name: str, request: Request) -> Response:
    file = page_files().get(name)
    if file is None:
        raise Refusal("not_found", f"The page has no file '{name}'.")
    headers = {**HEADERS, "ETag": file.etag}
    if is_known(file.etag, request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
