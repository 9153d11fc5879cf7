"""The HTTP server: models, their queue and the routes."""
