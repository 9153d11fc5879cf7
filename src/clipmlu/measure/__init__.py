"""Stage 4: measuring accuracy and speed of a compiled bundle, and comparing bundles."""
