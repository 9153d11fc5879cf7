"""The process that holds the SDK, seen from ours."""
