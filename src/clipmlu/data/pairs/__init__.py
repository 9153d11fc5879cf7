"""Pairs of images and texts: tables, JSON and WebDataset archives."""
