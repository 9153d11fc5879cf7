"""Fetching one image by URL, within limits of size and time, and from public addresses only unless others are allowed."""
