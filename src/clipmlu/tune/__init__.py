"""Choosing a bundle by measuring."""
