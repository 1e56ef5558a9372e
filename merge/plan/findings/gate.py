"""How findings are asked for, made, accepted, refused and told."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Sequence

from merge.errors import MergeError, MergeWarning
from merge.plan.findings.facts import Facts
from merge.plan.findings.kinds import Finding
from merge.plan.findings.table import FINDINGS

ORDER = {"refuse": 0, "warn": 1, "note": 2}
_TOLD = 3  # findings that one error tells in full


def finding(code: str, text: str, advice: str, tensors: Sequence[str] = ()) -> Finding:
    """Make a finding of a kind."""
    return Finding(code, FINDINGS[code].severity, text, advice, tuple(tensors))


def examine(facts: Facts) -> list[Finding]:
    """Everything that headers and what lies beside the weights tell, in the order of the table.

    Nothing of checkpoints of which one alone decides every tensor: that is no merge.
    """
    if not facts.wanted or len(facts.specs) < 2:
        return []
    asked = {code: kind for code, kind in FINDINGS.items() if not (facts.stacked and kind.whole)}
    return [
        finding(code, *seen) for code, kind in asked.items() if kind.check is not None for seen in kind.check(facts)
    ]


def accepted(codes: Collection[str]) -> None:
    """Raise MergeError for codes that there are not, or that cannot be accepted."""
    for code in codes:
        if code not in FINDINGS:
            close = difflib.get_close_matches(code, FINDINGS, 3, 0.4)
            known = close or [name for name, kind in FINDINGS.items() if kind.acceptable and kind.severity == "refuse"]
            raise MergeError(
                f"accept={code!r}: there is no such finding; {'did you mean' if close else 'known are'} "
                f"{', '.join(known)}"
            )
        if not FINDINGS[code].acceptable:
            raise MergeError(f"accept={code!r}: cannot be accepted, only resolved: {FINDINGS[code].advice}")


def refuse(findings: Sequence[Finding], codes: Collection[str]) -> None:
    """Raise MergeError where a finding refuses and its code is not accepted."""
    refused = [item for item in findings if item.severity == "refuse" and item.code not in codes]
    if refused:
        told = [f"{item}{_way_by(item.code)}" for item in refused[:_TOLD]]
        more = [item.code for item in refused[_TOLD:]]
        raise MergeError(". Also: ".join([*told, *([", ".join(more)] if more else [])]))


def _way_by(code: str) -> str:
    return f" (merge all the same with accept={code!r})" if FINDINGS[code].acceptable else f" ({code})"


def warn(finding: Finding) -> None:
    """Issue a finding as a warning of Python's, which tells the same text once."""
    warnings.warn(str(finding), MergeWarning, stacklevel=4)
