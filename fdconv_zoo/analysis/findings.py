"""Findings of the checks of `fdconv-zoo diagnose`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["fault", "warning", "note", "ok"]
SEVERITIES: tuple[Severity, ...] = ("fault", "warning", "note", "ok")  # the worst first


@dataclass(frozen=True)
class Finding:
    """A finding of a check.

    Attributes:
        check: Name of the check.
        severity: ``"fault"``: a part of FDConv does not work. ``"warning"``: a part may not work as well as it could.
            ``"note"``: something could not be checked, or is unusual. ``"ok"``: nothing is wrong.
        message: What was found, in a sentence.
        layers: Names of the affected layers.
        value: The worst measured value.
        limit: The limit that the value was compared with.
        remedy: What to do.
    """

    check: str
    severity: Severity
    message: str
    layers: tuple[str, ...] = ()
    value: float | None = None
    limit: float | None = None
    remedy: str = ""


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by severity; those of the same severity keep their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
