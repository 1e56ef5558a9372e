"""Write docs/findings.md: the table of findings, from `FINDINGS`. Run after a change: python docs/write_findings.py."""

from __future__ import annotations

from pathlib import Path

from merge.plan.findings import FINDINGS, Kind

HEAD = """# Findings

What is noticed of checkpoints before they are merged. Every command that merges asks the first table, and so do the
functions of Python, sweeps, task vectors and live models; `unival-merge doctor` shows both. This page is written by
`python docs/write_findings.py` from `merge.plan.findings.FINDINGS`.

- **refuse**: nothing is merged. `--accept CODE` (`Policy(accept="CODE")`) merges all the same; the recipe says so.
- **warn**: merged, with one line on stderr (in Python a `merge.MergeWarning`) and in the recipe's `output`;
  `--accept CODE` silences it.
- **note**: shown by `doctor` alone.

Checks of a merge read headers and the files beside the weights, of tensors only small tables of indices and codebooks.
Of configurations, keys on a list of neutral ones may differ (names, versions, dropout, settings of generation, ...).
Keys that change what the same tensors compute are refused; any other is a warning, since nobody here knows what it
means. A key that is not there counts as its known default, or as empty.

8-bit floats with scales beside them are merged properly by `--dequantize` (`Policy(dequantize=True)`): codes times
scales in float32, one number, one a row or one a block, merged and rounded once to bfloat16 (or `--dtype`). The scales
are gone from the result.
"""


def page() -> str:
    """Give the page's text."""
    asked = {code: kind for code, kind in FINDINGS.items() if kind.check is not None}
    told = {code: kind for code, kind in FINDINGS.items() if kind.check is None}
    return "\n".join(
        [
            HEAD,
            "## Asked by every merge",
            "",
            *_table(asked),
            "",
            "## Shown by `doctor` alone, which reads the values",
            "",
            "Those that refuse and cannot be accepted are errors of every merge too, all listed at once.",
            "",
            *_table(told),
            "",
        ]
    )


def _table(kinds: dict[str, Kind]) -> list[str]:
    rows = [
        f"| `{code}` | {_severity(kind)} | {kind.looks} | {kind.means} | {kind.advice} | {kind.example[0]} | "
        f"{kind.example[1]} |"
        for code, kind in kinds.items()
    ]
    return [
        "| code | severity | looks at | means | advice | yields it | does not |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def _severity(kind: Kind) -> str:
    return kind.severity if kind.acceptable else f"{kind.severity}, cannot be accepted"


if __name__ == "__main__":
    Path(__file__).with_name("findings.md").write_text(page(), encoding="utf-8")
