"""Serving over HTTP: a service that is independent of HTTP, and the FastAPI application around it."""
