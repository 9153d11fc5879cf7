"""Rendering of results: terminal tables, JSON, drawings and the vendor's files."""
