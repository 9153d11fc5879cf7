"""Stage 1: a model name becomes an exported bundle. torch and open_clip are imported in here only, and only in functions."""
