"""A check of the doctor, and the table of them."""

from dataclasses import dataclass

from grlo_lite.wording import aligned

PASS, FAIL, NOT_APPLICABLE = "pass", "FAIL", "n/a"


@dataclass(frozen=True)
class Check:
    name: str
    status: str
    found: str
    mend: str = ""


def outcome(name: str, passed: bool, found: str, mend: str) -> Check:
    """A check that passed, or one that failed and says how to mend it."""
    return Check(name, PASS, found) if passed else Check(name, FAIL, found, mend)


def checks_table(checks: list[Check]) -> str:
    """The checks, a line each; what to do stands below a failed one."""
    rows: list[tuple[str, ...]] = []
    for check in checks:
        rows += [(check.status, check.name, check.found)] + [("", "", f"→ {check.mend}")] * bool(check.mend)
    failed = sum(check.status == FAIL for check in checks)
    return "\n".join(
        [
            *aligned(rows, left=(0, 1, 2)),
            f"{failed} of {len(checks)} checks failed" if failed else f"{len(checks)} checks, none failed",
        ]
    )
