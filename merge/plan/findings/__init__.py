"""What is noticed of checkpoints before they are merged: the kinds of findings are one table, `FINDINGS`.

`plan` asks every check of the table that reads headers and what lies beside the weights; `doctor` shows the same
findings, and those of the values, which it alone reads. A finding that refuses stops every merge, in files, memory and
live models, unless its code is accepted (`Policy(accept="CODE")`).
"""

from __future__ import annotations

from merge.plan.findings.facts import Facts
from merge.plan.findings.gate import ORDER, accepted, examine, finding, refuse, warn
from merge.plan.findings.kinds import Finding, Kind, Seen, Severity
from merge.plan.findings.table import FINDINGS

__all__ = [
    "FINDINGS",
    "ORDER",
    "Facts",
    "Finding",
    "Kind",
    "Seen",
    "Severity",
    "accepted",
    "examine",
    "finding",
    "refuse",
    "warn",
]
