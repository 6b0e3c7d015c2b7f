"""What `tq doctor` finds: one line for each check, and what to do next."""

import sys
from typing import Literal

from msgspec import Struct

from taskqueue.cli.output import Form

Verdict = Literal["ok", "warn", "fail", "skip"]

_COLORS = {"ok": 32, "warn": 33, "fail": 31, "skip": 90}


class Finding(Struct, frozen=True):
    """What one check came to. `advice` is what to do next, where there is something to do."""

    check: str
    verdict: Verdict
    detail: str
    advice: str = ""


def ok(check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", detail)


def warn(check: str, detail: str, advice: str) -> Finding:
    """It works, but somebody should look at it."""
    return Finding(check, "warn", detail, advice)


def fail(check: str, detail: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, "fail", detail, advice)


def skip(check: str, detail: str, advice: str = "") -> Finding:
    """It could not be found out."""
    return Finding(check, "skip", detail, advice)


def print_line(finding: Finding, form: Form) -> None:
    """Print a finding at once, for people: verdict, check, detail, and the advice if any."""
    detail, advice = _one_line(finding.detail), _one_line(finding.advice)
    verdict = f"{finding.verdict:<4}" if sys.stdout.isatty() else finding.verdict
    if form.is_colored:
        verdict = f"\x1b[{_COLORS[finding.verdict]}m{verdict}\x1b[0m"
    if not sys.stdout.isatty():
        print("\t".join((verdict, finding.check, detail, advice)), flush=True)
        return
    print(f"{verdict}  {finding.check}: {detail}", flush=True)
    if advice:
        print(f"      next: {advice}", flush=True)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
