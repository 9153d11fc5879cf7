"""``clipmlu job``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipmlu.cli._help import command
from clipmlu.cli._notes import note, warn
from clipmlu.cli._options import PATH, json_option, overwrite_option
from clipmlu.cli._progress import ProgressView
from clipmlu.errors import OptionError

if TYPE_CHECKING:
    from clipmlu.jobs.job import Job


@command(
    "job",
    short_help="Show, verify or export a bulk job.",
    examples=(
        "clipmlu job embeddings/",
        "clipmlu job embeddings/ --verify",
        "clipmlu job embeddings/ --export all.npy",
    ),
)
@click.argument("folder", type=PATH, metavar="DIR")
@click.option(
    "--verify", is_flag=True, help="Compare all files of the finished shards with their SHA-256, and the rows."
)
@click.option(
    "--repair", is_flag=True, help="Verify, and mark damaged shards as not done: the job's command redoes them."
)
@click.option("--bundle", type=PATH, help="With --verify: a bundle that must be the one of the job.")
@click.option("--export", type=PATH, metavar="FILE", help="Write all rows to one .parquet, .npy, .csv or .jsonl file.")
@click.option("--partial", is_flag=True, help="With --export: the finished shards of a job that is not finished.")
@overwrite_option
@json_option
def job_command(
    folder: Path,
    verify: bool,
    repair: bool,
    bundle: Path | None,
    export: Path | None,
    partial: bool,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Show, verify or export the job in the folder DIR, also while it runs.

    The exit code of --verify and --repair is 1 if something is damaged. A .npy file holds the embeddings of the images
    that could be read, and its .ids.json their names, as 'clipmlu embed' writes them; the other formats have a row for
    every image.
    """
    from clipmlu.jobs.job import open_job
    from clipmlu.report.job import show_export, show_state

    if export is not None and (verify or repair):
        raise OptionError("Give either --export or --verify; an export compares all digests, too.")
    if export is None and (partial or overwrite):
        raise OptionError("--partial and --overwrite are for --export.")
    if bundle is not None and not (verify or repair):
        raise OptionError("--bundle is for --verify.")
    job = open_job(folder)
    if verify or repair:
        return _verify(job, bundle, repair=repair, as_json=as_json)
    if export is None:
        show_state(job.state(), as_json=as_json)
        return 0
    with ProgressView("exporting") as progress:
        progress.start(job.manifest.inputs.images)
        report = job.export(
            export, overwrite=overwrite, partial=partial, on_rows=lambda rows: progress.add(images=rows)
        )
    if line := show_export(report, as_json=as_json):
        note(line)
    return 0


def _verify(job: Job, bundle: Path | None, *, repair: bool, as_json: bool) -> int:
    from clipmlu.report.job import show_check

    with ProgressView("verifying") as progress:
        progress.start(job.manifest.shards, unit="shards")
        if repair:
            check = job.repair(bundle, on_shard=lambda _name: progress.add(shards=1), on_note=note)
        else:
            check = job.verify(bundle, on_shard=lambda _name: progress.add(shards=1))
    show_check(check, as_json=as_json)
    damaged = any(damage.shard is not None for damage in check.damages)
    if damaged and repair:
        warn("The damaged shards are marked as not done. Run the command of the job again: it computes them.")
    elif damaged:
        warn("Run this again with --repair, and then the command of the job, which computes the damaged shards again.")
    return 1 if check.damages else 0
