"""``clipmlu doctor``."""

from __future__ import annotations

import click

from clipmlu.cli._shared import console, echo_json, json_option


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> int:
    """Check what works on this machine; every finding comes with its remedy."""
    from clipmlu.diagnostics import examine

    findings = examine()
    if as_json:
        import msgspec

        echo_json(msgspec.json.format(msgspec.json.encode(findings), indent=2))
    else:
        from rich.table import Table

        table = Table("", "check", "found", "remedy", box=None)
        for finding in findings:
            table.add_row(
                {"ok": "ok", "optional": "-", "problem": "!!"}[finding.status],
                finding.check,
                finding.found,
                finding.remedy,
            )
        console().print(table)
    return 1 if any(finding.status == "problem" for finding in findings) else 0
