"""What the rules of names, shapes and dtypes refuse, as findings: `plan` lists the same in one error."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from merge.checkpoint.formats.elements import Element
from merge.plan.findings import Facts, Finding, finding
from merge.plan.findings.kinds import by_value, chosen, counted, listed, tally
from merge.plan.findings.quantised import BEFORE, CODES
from merge.plan.findings.vocabularies import HEAD
from merge.plan.policy import Policy
from merge.tools.diagnose.measure import is_large_matrix

# Findings about names that say more than that some lack them.
_NAMES = {"names-prefixed", "nothing-shared", "tied-and-untied", "adapter-factors"}


def structure_findings(facts: Facts, differing: Collection[str], found: Sequence[Finding]) -> list[Finding]:
    """Tell which names, shapes, dtypes and integers (`differing`) keep checkpoints from being merged.

    What the findings `found` say of the same tensors is not said again.
    """
    told = {name for item in found for name in item.tensors if item.severity == "refuse"}
    codes = _codes(facts, told, differing)
    told |= {name for item in codes for name in item.tensors}
    names = [] if _NAMES & {item.code for item in found} else _names(facts, told)
    return [
        *codes,
        *names,
        *_shapes(facts, told),
        *_dtypes(facts, told),
        *_integers(facts, [n for n in differing if n not in told]),
    ]


def _names(facts: Facts, told: Collection[str]) -> list[Finding]:
    wanted = [name for name in facts.wanted if name not in told]
    lacking = {
        label: [name for name in wanted if name not in spec]
        for label, spec in zip(facts.labels, facts.specs, strict=True)
    }
    lacking = {label: names for label, names in lacking.items() if names}
    if not lacking:
        return []
    every = tuple(dict.fromkeys(name for names in lacking.values() for name in names))
    text = "; ".join(
        f"{label} lacks {counted(len(names), 'tensor')}: {listed(names)}" for label, names in lacking.items()
    )
    done = {
        "keep-first": "they are taken unmerged from the first that has them",
        "zero-delta": "an expert that lacks them counts as the base there",
        "union": "they are merged among those that have them",
    }
    if facts.policy.missing in done:
        return [finding("names-partly", text, done[facts.policy.missing], every)]
    advice = (
        f"leave them as in the first that has them with {chosen('keep', every, facts.wanted)}, leave them out with "
        "drop='GLOB', or take all such with missing='keep-first'"
    )
    return [finding("names-differ", text, advice, every)]


def _shapes(facts: Facts, told: Collection[str]) -> list[Finding]:
    heads: list[str] = []
    others: list[str] = []
    for name in facts.common:
        shapes = {spec[name].shape for spec in facts.specs}
        if len(shapes) > 1 and name not in told:
            rows_only = len({shape[1:] for shape in shapes}) == 1 and all(shapes)
            (heads if rows_only and any(map(HEAD.fullmatch, name.split("."))) else others).append(name)
    found: list[Finding] = []
    if heads:
        advice = (
            "rows for other classes or words do not correspond: leave those of the first with "
            f"{chosen('keep', heads, facts.wanted)}, or leave them out with drop='GLOB' and train new ones"
        )
        found.append(finding("heads-differ", _shapes_seen(facts, heads), advice, heads))
    if others:
        glob = chosen("keep", others, facts.wanted)
        advice = f"these are models of different sizes; if only these parts differ, {glob}, or drop='GLOB'"
        found.append(finding("shapes-differ", _shapes_seen(facts, others), advice, others))
    return found


def _shapes_seen(facts: Facts, names: Sequence[str]) -> str:
    name = names[0]
    shapes = by_value(facts.labels, [str(list(spec[name].shape)) for spec in facts.specs])
    return f"{name} is {shapes}" + (f"; also {listed(names[1:])}" if len(names) > 1 else "")


def _dtypes(facts: Facts, told: Collection[str]) -> list[Finding]:
    """One finding for each combination of dtypes met."""
    groups: dict[tuple[Element, ...], list[str]] = {}
    for name in facts.common:
        dtypes = tuple(spec[name].element for spec in facts.specs)
        if name not in told and _conflicting(dtypes, facts.policy):
            groups.setdefault(dtypes, []).append(name)
    found: list[Finding] = []
    for dtypes, names in groups.items():
        kinds = by_value(facts.labels, [dtype.name for dtype in dtypes])
        if all(dtype.is_floating_point for dtype in dtypes):
            widest = max(dtypes, key=lambda dtype: dtype.bits)
            advice = f"choose the result's dtype: dtype={widest.name!r}"
        else:
            advice = f"integers are never merged: {chosen('keep', names, facts.wanted)}, or drop='GLOB'"
        text = f"{counted(len(names), 'tensor')} {'is' if len(names) == 1 else 'are'} {kinds}: {listed(names)}"
        found.append(finding("dtypes-differ", text, advice, names))
    return found


def _conflicting(dtypes: Collection[Element], policy: Policy) -> bool:
    return len(set(dtypes)) > 1 and (policy.dtype is None or not all(dtype.is_floating_point for dtype in dtypes))


def _codes(facts: Facts, told: Collection[str], differing: Collection[str]) -> list[Finding]:
    """Large matrices of 8-bit integers that differ, or stand beside floats: codes, whose scales are not known."""
    kinds: dict[str, str] = {}
    for name in facts.common:
        dtypes = tuple(spec[name].element for spec in facts.specs)
        is_code = [dtype.name in CODES and is_large_matrix(facts.first_of(name).shape) for dtype in dtypes]
        if any(is_code) and name not in told and (name in differing or _conflicting(dtypes, facts.policy)):
            held = {label: kind.name for label, kind, code in zip(facts.labels, dtypes, is_code, strict=True) if code}
            kinds[name] = by_value(list(held), list(held.values()))
    if not kinds:
        return []
    return [finding("codes-differ", f"{tally(kinds)}: {listed(list(kinds))}", BEFORE, list(kinds))]


def _integers(facts: Facts, names: Sequence[str]) -> list[Finding]:
    if not names:
        return []
    text = f"{counted(len(names), 'integer tensor')} of other values in {' and '.join(facts.labels)}: {listed(names)}"
    glob = chosen("keep", names, facts.wanted)
    advice = f"integers are never merged: leave those of the first with {glob}, or drop='GLOB'"
    return [finding("integers-differ", text, advice, names)]
