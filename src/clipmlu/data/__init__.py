"""What goes in: images, texts, prompts and datasets."""
