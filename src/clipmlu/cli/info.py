"""``clipmlu info``."""

from __future__ import annotations

from pathlib import Path

import click

from clipmlu.cli._options import bundle_argument, json_option


@click.command("info")
@bundle_argument
@json_option
def info_command(bundle: Path, as_json: bool) -> None:
    """Verify the digests of a BUNDLE and show its contents."""
    from clipmlu.bundle.directory import open_bundle
    from clipmlu.report.bundle import show_bundle

    show_bundle(open_bundle(bundle), as_json=as_json)
