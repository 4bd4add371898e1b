"""A check of the doctor, and the table of them."""

from dataclasses import dataclass

PASS, FAIL, NOT_APPLICABLE = "pass", "FAIL", "n/a"


@dataclass(frozen=True)
class Check:
    name: str
    status: str
    found: str
    mend: str = ""


def checks_table(checks: list[Check]) -> str:
    """The checks, a line each; what to do stands below a failed one."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status.ljust(4)}  {check.name.ljust(width)}  {check.found}")
        if check.mend:
            lines.append(f"{'':4}  {'':{width}}  → {check.mend}")
    failed = sum(check.status == FAIL for check in checks)
    return "\n".join(
        [*lines, f"{failed} of {len(checks)} checks failed" if failed else f"{len(checks)} checks, none failed"]
    )
