"""Classify a folder in batches with a classifier file and no text tower; one line of CSV for each image.

    clipmlu classify demo-cpu photos/ --labels labels.txt --save-classifier shapes.clf
    python examples/classify_folder.py demo-cpu shapes.clf photos/ > classes.csv

The classifier file holds the class embeddings, so this program loads neither the text tower nor the tokenizer. Images are read and prepared
while earlier ones are computed, and memory does not grow with their number. An image that cannot be read has a row with the reason.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import clipmlu


def main(bundle: str, classifier_file: str, folder: str) -> int:
    """Write the rows to stdout; returns the exit code: 1 if an image could not be read."""
    images = sorted(
        path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    )
    rows = csv.writer(sys.stdout)
    rows.writerow(["image", "class", "score", "error"])
    failed = 0
    with clipmlu.load(bundle, image_only=True) as model:
        classifier = model.load_classifier(classifier_file)
        for path, found in zip(images, classifier.predict(images, on_error="skip"), strict=True):
            if found.error is not None:
                failed += 1
                rows.writerow([path, "", "", found.error])
            else:
                rows.writerow([path, found.class_name, found.score, ""])
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} BUNDLE CLASSIFIER FOLDER")
    sys.exit(main(*sys.argv[1:]))
