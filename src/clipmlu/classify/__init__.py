"""Stage 3: classifying images with a compiled bundle."""
