"""Resizing of images: sizes, and a compiled kernel that gives Pillow's pixels."""
