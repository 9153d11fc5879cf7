"""Laid out as the vendor's package (api 1)."""
