"""Stage 4: how accurate, and later how fast, a compiled bundle is."""
