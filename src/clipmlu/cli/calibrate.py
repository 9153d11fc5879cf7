"""``clipmlu calibrate``."""

from __future__ import annotations

from pathlib import Path

import click

from clipmlu.cli._datasets import calibration_names_options
from clipmlu.cli._shared import (
    PATH,
    bundle_argument,
    json_option,
    max_pixels_option,
    note,
    offline_option,
    overwrite_option,
)
from clipmlu.file_names import name_from_path
from clipmlu.report.tables import print_facts


@click.command("calibrate")
@bundle_argument
@click.option("--calib", required=True, metavar="DATASET|FOLDER", help="Whose train split, or which folder of images.")
@click.option("--calib-samples", type=click.IntRange(min=1), default=1000, show_default=True, help="Number of images.")
@click.option(
    "--calib-seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the choice of images."
)
@click.option("--calib-data-dir", type=PATH, help="Folder that holds the dataset.")
@calibration_names_options[0]
@calibration_names_options[1]
@max_pixels_option
@click.option("-o", "--output", type=PATH, required=True, help="Directory of the calibration set.")
@offline_option
@overwrite_option
@json_option
def calibrate_command(
    bundle: Path,
    calib: str,
    calib_samples: int,
    calib_seed: int,
    calib_data_dir: Path | None,
    calib_class_names: Path | None,
    calib_folder_names: bool,
    max_pixels: int,
    output: Path,
    offline: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draw calibration data for BUNDLE and keep them, for 'clipmlu compile --calib' on this or another machine.

    The images are kept as the model sees them, the prompts as texts: the set fits all models that take images of the same
    size. It is verified by digest when it is used.
    """
    from clipmlu.bundle.directory import open_bundle
    from clipmlu.data.calibration import CalibrationOptions, obtain_calibration
    from clipmlu.report.tables import echo_json

    options = CalibrationOptions(
        dataset=calib,
        samples=calib_samples,
        seed=calib_seed,
        data_dir=calib_data_dir,
        download=not offline,
        class_names=calib_class_names,
        folder_names=calib_folder_names,
        max_pixels=max_pixels,
    )
    drawn = obtain_calibration(open_bundle(bundle), options)
    drawn.save(output, overwrite=overwrite)
    record = drawn.record
    if as_json:
        echo_json(record)
    else:
        print_facts(
            [
                ("set", name_from_path(output)),
                ("images", f"{record.samples} of {record.dataset}, {record.split}, seed {record.seed}"),
                ("texts", str(record.texts)),
                ("digest", record.digest),
            ]
        )
    note(
        f"Next: clipmlu compile {name_from_path(bundle)} --precision qint8_mixed_float32 --calib {name_from_path(output)} -o DIR"
    )
