"""``GET /docs``: the routes as a page, without scripts and without anything from elsewhere."""

from __future__ import annotations

import html

from fastapi import APIRouter, Request, Response

router = APIRouter(include_in_schema=False)
_STYLE = (
    ":root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
    "code{font-family:ui-monospace,monospace}dt{margin-top:1rem}"
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Return the page."""
    schema = request.app.openapi()
    rows = [
        f"<dt><code>{method.upper()} {html.escape(path)}</code></dt><dd>{html.escape(facts.get('description', ''))}</dd>"
        for path, methods in schema["paths"].items()
        for method, facts in methods.items()
    ]
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>clipmlu API</title><style>{_STYLE}</style><h1>clipmlu {html.escape(schema['info']['version'])}</h1>"
        f"<p>As <a href=/openapi.json>OpenAPI</a>; <code>docs/serving.md</code> of the package describes requests and answers."
        f"<dl>{''.join(rows)}</dl></html>"
    )
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": _POLICY})
