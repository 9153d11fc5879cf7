"""Retrieval between images and texts: ranks, recall with confidence intervals, and agreement of two models."""
