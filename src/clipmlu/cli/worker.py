"""``clipmlu worker``."""

from __future__ import annotations

from pathlib import Path

import click

from clipmlu.cli._help import command
from clipmlu.cli._notes import note
from clipmlu.cli._options import PATH, overwrite_option
from clipmlu.file_names import name_from_path


@command(
    "worker",
    short_help="Write the worker for a machine with the vendor's SDK.",
    examples=("clipmlu worker --write .",),
)
@click.option("--write", "path", type=PATH, required=True, metavar="PATH", help="File to write, or a directory for it.")
@overwrite_option
def worker_command(path: Path, overwrite: bool) -> None:
    """Write the worker, a file that runs models on the machine with the vendor's SDK.

    Copy it into the vendor's container or to the host with the card; it needs Python 3.7 or newer, NumPy and magicmind.
    """
    from clipmlu.magicmind.client.program import write_worker

    written = write_worker(path, overwrite=overwrite)
    click.echo(name_from_path(written))
    note(
        "Start it where magicmind is:\n"
        f"  python3.7 {written.name} --info\n"
        f"  python3.7 {written.name} --serve unix:/shared/mlu.sock      # a container that shares the directory\n"
        f"  python3.7 {written.name} --serve tcp:HOST:9310 --secret-file FILE   # another host; chmod 600 FILE\n"
        "It reads files for clients below its working directory only, or the folders given with --root;\n"
        "and tell clipmlu here: CLIPMLU_MLU_WORKER=unix:/shared/mlu.sock, or tcp:HOST:9310 with CLIPMLU_WORKER_SECRET_FILE."
    )
