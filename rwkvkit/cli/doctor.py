"""``rwkvkit doctor``: what this machine has of what is needed."""

import sys
from dataclasses import asdict

import click

from rwkvkit.cli.console import Console
from rwkvkit.cli.options import json_option
from rwkvkit.errors import SetupError
from rwkvkit.workflow.doctor import examine

_MARKS = {"ok": "ok", "note": "note", "broken": "BROKEN"}


@click.command(short_help="Check this machine, and say how to fix what is missing.")
@click.option("--arch", help="Compile the kernels for this architecture, such as sm_90a.")
@json_option
def doctor(arch: str | None, as_json: bool) -> None:
    """Check Python, torch, driver, kernels, tokenizer, caches, memory and disk.

    Exits with 0 if nothing that is needed here is broken, else with 5.
    """
    console = Console(as_json=as_json)
    findings = []
    for finding in examine(arch):
        findings.append(finding)
        console.result(f"{_MARKS[finding.status]:6}  {finding.name}: {finding.text}")
        if finding.remedy and finding.status != "ok":
            console.result(f"        hint: {finding.remedy}")
    console.finish({"findings": [asdict(finding) for finding in findings]})
    if broken := [finding.name for finding in findings if finding.status == "broken"]:
        # Raised, it would follow the one object of --json with another.
        console.note(f"error: {len(broken)} of {len(findings)} checks failed: {', '.join(broken)}")
        sys.exit(SetupError.exit_code)
    console.result("next: rwkvkit train quickstart")
