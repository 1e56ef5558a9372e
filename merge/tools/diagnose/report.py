"""Can these checkpoints be merged, and is it likely to work?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from merge.checkpoint.scaled import dequantized, stated
from merge.checkpoint.source import Source, opened, opened_all
from merge.errors import MergeError
from merge.plan.checks import COUNTERS
from merge.plan.findings import ORDER, Facts, Finding, accepted, examine
from merge.plan.policy import Policy, policy_of
from merge.plan.stacked import stacked
from merge.plan.units import decisions, plan
from merge.plan.vocabulary import matched
from merge.tools.diagnose.measure import Progress, measure_all
from merge.tools.diagnose.relations import Pair, differences, relate_all, relation_findings
from merge.tools.diagnose.sources import BASE, labels_for
from merge.tools.diagnose.structure import structure_findings
from merge.tools.diagnose.tables import Shown, number, table
from merge.tools.diagnose.values import value_findings


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """What `doctor` found: findings, the gravest first, and the measurements behind them."""

    labels: tuple[str, ...]
    findings: tuple[Finding, ...]
    pairs: tuple[Pair, ...]

    @property
    def verdict(self) -> str:
        """ "can be merged", "can be merged, but: ..." or "cannot be merged: ..."."""
        refused, warnings = (
            ", ".join(dict.fromkeys(finding.code for finding in self.findings if finding.severity == severity))
            for severity in ("refuse", "warn")
        )
        if refused:
            return f"cannot be merged: {refused}"
        return f"can be merged, but: {warnings}" if warnings else "can be merged"

    @property
    def exit_code(self) -> int:
        """1 where a merge would be refused, else 0."""
        return int(any(finding.severity == "refuse" for finding in self.findings))

    def __repr__(self) -> str:
        return f"<Report on {', '.join(self.labels)}: {self.verdict}>"

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON data."""
        return {**asdict(self), "verdict": self.verdict, "exit_code": self.exit_code}

    def text(self) -> str:
        """As printed on a terminal."""
        lines = [line for finding in self.findings for line in _finding_lines(finding)]
        return "\n".join([*lines, *_pair_lines(self.pairs), f"{', '.join(self.labels)}: {self.verdict}"])


def doctor(
    checkpoints: Sequence[Source],
    base: Source | None = None,
    *,
    names: Sequence[str] | None = None,
    section: str = "auto",
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Report:
    """Examine checkpoints (paths, open checkpoints or state dicts) before a merge.

    Weights are read once, in bounded memory; the report is the same whatever the number of threads. `policy` is that
    of the merge to come: what it keeps or drops is not examined, what it accepts is a note. `progress` is called with
    the bytes read.

        >>> import torch
        >>> same = {"w": torch.zeros(2)}
        >>> doctor([same, same], names=["vqa", "caption"]).verdict
        'can be merged, but: equal-inputs'

    Raises MergeError for a file that cannot be opened, fewer than two checkpoints, and a policy that does not fit them.
    """
    given = opened_all(checkpoints, section).values()
    sources = [*([] if base is None else [opened(base, section)]), *given]
    if len(sources) < 2:
        raise MergeError(f"{len(sources)} checkpoint was given; two are needed, or one and its base")
    labels = (*([] if base is None else [BASE]), *labels_for(checkpoints, names))
    policy = policy_of(policy)
    accepted(policy.accept)
    if policy.dequantize:
        sources = [dequantized(source) for source in sources]
    sources = list(matched(sources, labels, policy, has_base=base is not None).inputs)
    described = tuple(stated(source) for source in sources)
    facts = Facts(labels, described, policy, base is not None, sources, decisions(sources, described, labels, policy))
    headers = examine(facts)
    codes = {name for item in headers if item.code in ("scaled-weights", "no-arithmetic") for name in item.tensors}
    alike = [name for name in facts.common if name not in codes and len({spec[name].shape for spec in described}) == 1]
    measured = measure_all(sources, alike, base=facts.has_base, progress=progress)
    differing = [
        name
        for name, item in measured.items()
        if not (item.floating or name.endswith(COUNTERS) or all(c.equal for c in item.contrasts.values()))
        and len({spec[name].element for spec in described}) == 1
    ]
    relations = relate_all(facts, measured)
    found = [
        *headers,
        *structure_findings(facts, differing, headers),
        *value_findings(facts, measured, sources, weights=not differences(relations)),
        *relation_findings(facts, relations),
    ]
    found = [replace(item, severity="note") if item.code in policy.accept else item for item in found]
    if not any(finding.severity == "refuse" for finding in found):
        # The engine's own plan has the last word: what it refuses, no report may call mergeable.
        sources = stacked(sources, labels, {}, untie=policy.untie).inputs
        plan(sources, labels, policy, has_base=facts.has_base, told=lambda _: None)
    found.sort(key=lambda finding: ORDER[finding.severity])
    return Report(labels, tuple(found), tuple(relation.pair for relation in relations if relation.pair.tensors))


# -- text --------------------------------------------------------------------------------------------------------------


def _finding_lines(finding: Finding) -> list[str]:
    return [f"{finding.severity}: {finding.code}: {finding.text}", f"    -> {finding.advice}"]


def _pair_lines(pairs: Sequence[Pair]) -> list[str]:
    if not pairs:
        return []
    header = ["pair", "equal tensors", "matrices", "cosine", "distance", "scale"]
    based = any(pair.sign_conflict is not None for pair in pairs)
    rows = [
        [
            f"{pair.first}, {pair.second}",
            f"{pair.equal:,} of {pair.tensors:,}",
            f"{pair.matrices:,}",
            number(pair.cosine),
            number(pair.distance),
            number(pair.scale, 3),
            *([number(pair.task_cosine, 3), number(pair.sign_conflict, 3)] if based else []),
        ]
        for pair in pairs
    ]
    return ["", *table([*header, *(["task cosine", "sign conflict"] if based else [])], rows), ""]
