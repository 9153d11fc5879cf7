"""Throughput and latency."""
