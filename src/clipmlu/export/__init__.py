"""Stage 1: export of a model to a bundle. Only functions of this package import torch and open_clip."""
