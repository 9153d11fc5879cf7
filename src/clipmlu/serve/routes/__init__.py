"""Routes of the HTTP server: one module for each subject, each with a ``router``."""

from __future__ import annotations

from fastapi import APIRouter

from clipmlu.serve.routes import classify, docs, embed, kserve, page, search, status


def all_routers() -> tuple[APIRouter, ...]:
    """Return the routers of the application, in order."""
    return (
        classify.router,
        embed.router,
        search.router,
        kserve.router,
        status.router,
        docs.router,
        page.router,
    )
