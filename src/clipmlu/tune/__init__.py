"""Searches and sweeps that choose a compiled bundle by measurement."""
