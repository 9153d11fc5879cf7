"""Files: atomic writing, bounded reading, and temporary folders."""
