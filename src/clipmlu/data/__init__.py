"""Input data: images, texts, prompts and datasets."""
