"""``clipmlu calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._datasets import calibration_options
from clipmlu.cli._help import command
from clipmlu.cli._notes import note_next
from clipmlu.cli._options import PATH, bundle_argument, json_option, max_pixels_option, offline_option, overwrite_option
from clipmlu.cli._progress import STEPS
from clipmlu.file_names import name_from_path
from clipmlu.report.tables import print_facts
from clipmlu.report.wrapping import Whole

if TYPE_CHECKING:
    from clipmlu.data.calibration import CalibrationOptions


@command(
    "calibrate",
    short_help="Select and save calibration data, for 8 and 16 bits.",
    examples=(
        "clipmlu calibrate demo --calib demo -o demo-set",
        "clipmlu calibrate demo --calib photos/ --calib-samples 500 -o photo-set",
    ),
)
@bundle_argument
@calibration_options(required=True, metavar="DATASET|FOLDER", help="Dataset (its train split) or folder of images.")
@max_pixels_option
@click.option("-o", "--output", type=PATH, required=True, help="Directory of the calibration set.")
@offline_option
@overwrite_option
@json_option
def calibrate_command(
    bundle: Path,
    calibration: CalibrationOptions,
    output: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Select calibration data for BUNDLE and save them, for 'clipmlu compile --calib' on this or another machine.

    The images are saved as preprocessed pixels, the prompts as texts; the set can be used with all models of the same
    image size. Its digest is verified when it is used.
    """
    from clipmlu.bundle.directory import ExportedBundle, open_bundle
    from clipmlu.data.calibration import obtain_calibration
    from clipmlu.report.tables import echo_json

    with STEPS("verifying the bundle"):
        opened = open_bundle(bundle)
    drawn = obtain_calibration(opened, calibration, STEPS)
    drawn.save(output, overwrite=overwrite)
    record = drawn.record
    if as_json:
        echo_json(record)
    else:
        print_facts(
            [
                ("set", Whole(name_from_path(output))),
                ("images", f"{record.samples} of {record.dataset}, {record.split}, seed {record.seed}"),
                ("texts", str(record.texts)),
                ("digest", record.digest),
            ]
        )
    if isinstance(opened, ExportedBundle):
        note_next(("compile", bundle, "--precision", "int8", "--calib", output, "-o", f"{bundle}-int8"))
