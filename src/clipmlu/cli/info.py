"""``clipmlu info``, and how bundles are shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._shared import bundle_argument, echo_json, json_option, print_facts
from clipmlu.file_names import name_from_path

if TYPE_CHECKING:
    from clipmlu.bundle.directory import Bundle


@click.command("info")
@bundle_argument
@json_option
def info_command(bundle: Path, as_json: bool) -> None:
    """Show what is in a BUNDLE, after verifying its digests."""
    from clipmlu.bundle.directory import open_bundle

    show_bundle(open_bundle(bundle), as_json=as_json)


def show_bundle(bundle: Bundle, *, as_json: bool) -> None:
    """Print a bundle's facts on stdout."""
    from clipmlu.doctor import bundle_facts

    if as_json:
        import msgspec

        encoded = msgspec.json.encode(
            {"path": name_from_path(bundle.path), "digest": bundle.digest, "manifest": bundle.manifest}
        )
        echo_json(msgspec.json.format(encoded, indent=2))
        return
    print_facts(bundle_facts(bundle))
