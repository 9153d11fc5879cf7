"""``clipmlu info``."""

from __future__ import annotations

from pathlib import Path

from clipmlu.cli._help import command
from clipmlu.cli._notes import is_verbose
from clipmlu.cli._options import bundle_argument, json_option


@command(
    "info",
    short_help="Verify a bundle and show what it holds.",
    examples=(
        "clipmlu info demo-cpu",
        "clipmlu info demo-cpu -v",
    ),
)
@bundle_argument
@json_option
def info_command(bundle: Path, as_json: bool) -> None:
    """Verify the digests of a BUNDLE and show what it holds: the facts that matter most, or all with -v or --json."""
    from clipmlu.bundle.directory import open_bundle
    from clipmlu.report.bundle import show_bundle

    show_bundle(open_bundle(bundle), as_json=as_json, verbose=is_verbose())
