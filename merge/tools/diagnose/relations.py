"""How the weights of several checkpoints stand to each other: evidence of a common ancestor, and what speaks against.

The thresholds of similarity come from a trial of our own: networks of 64-128-128-10 units on scikit-learn's digits, two
finetuned from one training (on noisy images, on shifted ones) at rising rates, three seeds. Medians over the
matrices, and by how much the mean of the two lies above the chord of their accuracies, over both tasks:

    distance from the base   0.05  0.36  0.50  0.70  0.80  1.0   1.5   2.1    trained apart
    cosine of the two        1.00  0.89  0.82  0.76  0.72  0.65  0.48  0.37   0.02
    mean above the chord     .02   .09   .11   .12   .11   .12   .06   .02    -.13 (one task)
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from merge.plan.findings import Facts, Finding, finding
from merge.plan.findings.kinds import chosen, counted, listed
from merge.plan.units import BATCHNORM
from merge.tools.diagnose.measure import Contrast, Measured, is_large_matrix, pooled

# Between weights trained apart and the farthest descendants of one ancestor in the trial above.
UNRELATED = 0.2
# ||expert - base|| / ||base|| from which on the task vector outweighs the ancestor; beyond it the gain above fades.
FAR = 1.0
# The cosine of two experts whose task vectors have that size and are orthogonal: the same bound without a base.
FAR_APART = 1 / (1 + FAR**2)
# An expert nearer than FAR to its base has at most twice its norm: a larger factor is no finetuning.
SCALED = 1 + FAR
# `row_mismatch` of normal matrices drawn anew was never below 0.4 in 400 trials with 8 rows, nor below 0.6 with 16 or
# more; that of a permuted copy was 0, and with 1 % noise on top below 0.3 up to 768 rows. More noise hides it.
PERMUTED = 0.3
# Task vectors of unlike tasks are close to orthogonal (Task arithmetic, arXiv 2212.04089); how far from it is worth a
# word is a convention of ours.
SAME_TASK = 0.9
OPPOSED = -0.2
# Norms of two task vectors that differ by this factor: an average is then next to the smaller one's base. A convention.
UNLIKE = 10.0


@dataclass(frozen=True)
class Pair:
    """Two checkpoints against each other.

    Attributes:
        tensors, equal: floating tensors compared, and how many of them are equal bit by bit.
        matrices: how many the medians are of: large, finite, neither equal nor constant.
        cosine, distance, scale: medians of cosine, `||first - second|| / ||first||` and `||second|| / ||first||`.
        task_cosine, sign_conflict: of the differences from the base, over all elements; None without a base.
    """

    first: str
    second: str
    tensors: int
    equal: int
    matrices: int
    cosine: float | None
    distance: float | None
    scale: float | None
    task_cosine: float | None
    sign_conflict: float | None

    @property
    def twins(self) -> bool:
        """Whether the two are one and the same."""
        return self.tensors > 0 and self.equal == self.tensors


@dataclass(frozen=True)
class Relation:
    """A pair with the matrices that it is judged by; those without a small angle are apart, permuted or negated.

    `task_ratio` is the norm of the second's difference from the base over that of the first's, in these matrices.
    `throughout` says whether the two are of one architecture and nearly all tensors of one are larger, vectors too.
    """

    pair: Pair
    with_base: bool
    matrices: Mapping[str, Contrast]
    apart: tuple[str, ...]
    permuted: tuple[str, ...]
    negated: tuple[str, ...]
    task_ratio: float | None
    throughout: bool

    @property
    def unrelated(self) -> bool:
        """Most matrices have nothing in common."""
        return 2 * len(self.apart) > len(self.matrices)

    @property
    def smaller(self) -> str:
        """Which of the two is too small, and points too far from the other, to descend from it; "" where none is.

        A model of another architecture or training may be as small in its matrices; it is not in all else.
        """
        scale = self.pair.scale or 1.0
        if not self.throughout or 1 / SCALED <= scale <= SCALED or abs(self.pair.cosine or 0) > FAR_APART:
            return ""
        return self.pair.second if scale < 1 else self.pair.first

    @property
    def label(self) -> str:
        return f"{self.pair.first} and {self.pair.second}"

    @property
    def rescaled(self) -> list[str]:
        """Related matrices whose norms differ by a factor that finetuning does not give."""
        strange = {*self.apart, *self.permuted, *self.negated}
        related = {name: item.norm_ratio or 0 for name, item in self.matrices.items() if name not in strange}
        return [name for name, ratio in related.items() if not 1 / SCALED <= ratio <= SCALED]


def relate_all(facts: Facts, measured: Mapping[str, Measured]) -> list[Relation]:
    """Give every pair of checkpoints."""
    floating = {name: item for name, item in measured.items() if item.floating}
    return [_relate(facts, floating, pair) for pair in itertools.combinations(range(len(facts.labels)), 2)]


def _relate(facts: Facts, measured: Mapping[str, Measured], pair: tuple[int, int]) -> Relation:
    everything = [item.contrasts[pair] for item in measured.values()]
    finite = [item.contrasts[pair] for item in measured.values() if item.finite]
    matrices = {name: item.contrasts[pair] for name, item in measured.items() if _telling(item, pair)}
    low = [name for name, contrast in matrices.items() if (contrast.cosine or 0) < UNRELATED]
    negated = tuple(name for name in low if (matrices[name].cosine or 0) < -UNRELATED)
    low = [name for name in low if name not in negated]
    permuted = tuple(name for name in low if _is_permuted(matrices[name]))
    total = pooled(finite)
    evidence = Pair(
        facts.labels[pair[0]],
        facts.labels[pair[1]],
        len(everything),
        sum(contrast.equal for contrast in everything),
        len(matrices),
        _median([contrast.cosine for contrast in matrices.values()]),
        _median([contrast.relative_distance for contrast in matrices.values()]),
        _median([contrast.norm_ratio for contrast in matrices.values()]),
        total.task_cosine,
        total.sign_conflict,
    )
    apart = tuple(name for name in low if not _is_permuted(matrices[name]))
    moved = pooled(matrices.values())
    ratio = math.sqrt(moved.task_second / moved.task_first) if moved.task_first > 0 else None
    based = facts.has_base and pair[0] == 0
    throughout = _throughout(facts, {k: v for k, v in measured.items() if v.finite}, pair)
    return Relation(evidence, based, matrices, apart, permuted, negated, ratio, throughout)


def _throughout(facts: Facts, measured: Mapping[str, Measured], pair: tuple[int, int]) -> bool:
    """Whether two have the same names and most of their tensors' norms differ by a factor, all the same way."""
    mine, theirs = (facts.specs[index] for index in pair)
    shared = sum(name in theirs and theirs[name].shape == spec.shape for name, spec in mine.items())
    if 10 * shared < 9 * max(len(mine), len(theirs)):
        return False
    norms = [item.contrasts[pair] for name, item in measured.items() if not name.endswith(BATCHNORM)]
    ratios = [item.norm_ratio for item in norms if item.first > 0 and item.second > 0]
    large, small = (
        sum(r is not None and (r > SCALED if up else r < 1 / SCALED) for r in ratios) for up in (True, False)
    )
    return 10 * max(large, small) >= 8 * len(ratios)


def _telling(item: Measured, pair: tuple[int, int]) -> bool:
    constant = any(item.constant[index] for index in pair)
    contrast = item.contrasts[pair]
    return is_large_matrix(item.shape) and item.finite and not (constant or contrast.equal or contrast.cosine is None)


def _is_permuted(contrast: Contrast) -> bool:
    return contrast.row_mismatch is not None and contrast.row_mismatch < PERMUTED


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


# -- findings ---------------------------------------------------------------------------------------------------------


def relation_findings(facts: Facts, relations: Sequence[Relation]) -> list[Finding]:
    """Give what the pairs show, one finding of a kind. Pairs that are one and the same give that finding alone."""
    distinct = [relation for relation in relations if not relation.pair.twins]
    strange = differences(relations)
    found = [*_twins(relations), _differences(distinct, strange)]
    distinct = [relation for relation in distinct if not {relation.pair.first, relation.pair.second} & strange]
    found += [_unrelated(distinct), _negated(distinct), _permuted(distinct)]
    found += [
        _parts_apart(facts, distinct),
        _rescaled(facts, distinct),
        _far(facts, distinct),
        *_task_vectors(distinct),
    ]
    return [finding for finding in found if finding is not None]


def _twins(relations: Sequence[Relation]) -> list[Finding]:
    found: list[Finding] = []
    untrained = [relation.pair.second for relation in relations if relation.with_base and relation.pair.twins]
    if untrained:
        seen = f"{' and '.join(untrained)} equal{'s' * (len(untrained) == 1)} the base in all tensors"
        found.append(finding("equal-to-base", seen, "leave out what was never finetuned; is it the right file?"))
    same = [r for r in relations if r.pair.twins and not r.with_base and r.pair.second not in untrained]
    if same:
        seen = "; ".join(f"{relation.label} are equal in all {relation.pair.tensors} tensors" for relation in same)
        found.append(finding("equal-inputs", seen, "one of them is enough; is it the right file?"))
    return found


def _unrelated(relations: Sequence[Relation]) -> Finding | None:
    bad = [relation for relation in relations if relation.unrelated]
    if not bad:
        return None
    seen = "; ".join(
        f"{r.label}: median cosine {r.pair.cosine:.2f} over {counted(r.pair.matrices, 'matrix', 'matrices')}"
        for r in bad
    )
    advice = (
        "weights trained apart do not average (nor do those whose units were put into another order): merge "
        "checkpoints finetuned from one ancestor"
    )
    return finding("unrelated-weights", seen + f" (finetuned from one ancestor: above {UNRELATED})", advice)


def differences(relations: Sequence[Relation]) -> set[str]:
    """Which checkpoints look like differences from a base: beside the base, where there is one, else beside another."""
    based = any(relation.with_base for relation in relations)
    judged = [relation for relation in relations if relation.with_base == based]
    return {r.smaller for r in judged if r.smaller and not (based and r.smaller == r.pair.first)}


def _differences(relations: Sequence[Relation], strange: Collection[str]) -> Finding | None:
    bad = {relation.smaller: relation for relation in reversed(relations) if relation.smaller in strange}
    if not bad:
        return None
    seen = "; ".join(
        f"{label} has {min(r.pair.scale or 0, 1 / (r.pair.scale or 1)):.2g} times the norm of "
        f"{r.pair.first if label == r.pair.second else r.pair.second} and another direction (median cosine "
        f"{r.pair.cosine or 0:.2f})"
        for label, r in bad.items()
    )
    advice = "is it a task vector, expert - base? add it to its base first: merge.TaskVector(vector).apply(base)"
    return finding("a-difference", seen, advice)


def _negated(relations: Sequence[Relation]) -> Finding | None:
    bad = [relation for relation in relations if relation.negated]
    if not bad:
        return None
    seen = "; ".join(
        f"{r.label}: {len(r.negated)} of {counted(len(r.matrices), 'matrix', 'matrices')} point the other way: "
        f"{listed([f'{name} {r.matrices[name].cosine or 0:.2f}' for name in r.negated])}"
        for r in bad
    )
    advice = (
        "to forget a task, subtract its task vector from the base, not its weights: task-arithmetic with a negative "
        "weight"
    )
    return finding("negated-weights", seen, advice, _union(relation.negated for relation in bad))


def _permuted(relations: Sequence[Relation]) -> Finding | None:
    bad = [relation for relation in relations if relation.permuted]
    if not bad:
        return None
    seen = "; ".join(
        f"{r.label}: {len(r.permuted)} of {counted(len(r.matrices), 'matrix', 'matrices')} have rows of the same norms "
        f"in another order: {listed(r.permuted)}"
        for r in bad
    )
    advice = (
        "put the units of one into the order of the other first (arXiv 2209.04836; UnIVAL models: unival-merge align, "
        "others: merge.tools.align), or convert both the same way"
    )
    return finding("permuted-units", seen, advice, _union(relation.permuted for relation in bad))


def _parts_apart(facts: Facts, relations: Sequence[Relation]) -> Finding | None:
    """Single matrices without a common past. Beside permuted ones they are those of the neighbouring layers."""
    bad = [relation for relation in relations if relation.apart and not (relation.unrelated or relation.permuted)]
    if not bad:
        return None
    names = _union(relation.apart for relation in bad)
    seen = "; ".join(
        f"{r.label}: {len(r.apart)} of {counted(len(r.matrices), 'matrix', 'matrices')} with cosine below {UNRELATED}: "
        f"{listed([f'{name} {r.matrices[name].cosine or 0:.2f}' for name in r.apart])}"
        for r in bad
    )
    advice = f"these look initialised anew: leave those of one input with {chosen('keep', names, facts.wanted)}"
    return finding("parts-unrelated", seen, advice, names)


def _rescaled(facts: Facts, relations: Sequence[Relation]) -> Finding | None:
    bad = {relation.label: relation for relation in relations if relation.rescaled}
    if not bad:
        return None
    names = _union(relation.rescaled for relation in bad.values())
    seen = "; ".join(
        f"{label}: {len(r.rescaled)} of {counted(len(r.matrices), 'matrix', 'matrices')} with another norm: "
        f"{listed([f'{name} x {r.matrices[name].norm_ratio or 0:.3g}' for name in r.rescaled])}"
        for label, r in bad.items()
    )
    advice = (
        f"was a scale folded into one of them? undo it, or leave these out with {chosen('keep', names, facts.wanted)}"
    )
    return finding("scales-differ", seen, advice, names)


def _far(facts: Facts, relations: Sequence[Relation]) -> Finding | None:
    """Related, but farther than finetuning goes: from the base where there is one, else from each other."""
    related = [r for r in relations if not (r.unrelated or r.permuted or r.negated or _median_rescaled(r))]
    if facts.has_base:
        bad = [r for r in related if r.with_base and (r.pair.distance or 0) > FAR]
        seen = [
            f"{r.pair.second} is {r.pair.distance:.2f} times the base's norm away from it (bound {FAR:g})" for r in bad
        ]
    else:
        bad = [r for r in related if r.pair.cosine is not None and r.pair.cosine < FAR_APART]
        seen = [f"{r.label}: median cosine {r.pair.cosine:.2f} (bound {FAR_APART:.2f})" for r in bad]
    advice = "the middle may fall behind both ends: finetune with fewer steps or a lower rate, or stay near an end"
    return finding("far-apart", "; ".join(seen), advice) if bad else None


def _median_rescaled(relation: Relation) -> bool:
    return relation.pair.scale is not None and not 1 / SCALED <= relation.pair.scale <= SCALED


def _task_vectors(relations: Sequence[Relation]) -> list[Finding]:
    """Angles between what experts of the base learned; strangers to the base all share its absence."""
    strangers = {r.pair.second for r in relations if r.with_base and (r.unrelated or r.permuted or r.negated)}
    experts = [r for r in relations if not r.with_base and not {r.pair.first, r.pair.second} & strangers]
    angles = [(r.label, r.pair.task_cosine) for r in experts if r.pair.task_cosine is not None]
    same = [f"{label}: cosine {cosine:.2f}" for label, cosine in angles if cosine > SAME_TASK]
    opposed = [f"{label}: cosine {cosine:.2f}" for label, cosine in angles if cosine < OPPOSED]
    found: list[Finding] = []
    if same:
        advice = "they learned the same: average them, since a sum of task vectors counts it twice"
        found.append(finding("task-vectors-agree", "; ".join(same), advice))
    if opposed:
        advice = "what one adds the other removes: choose one, or a share near an end"
        found.append(finding("task-vectors-opposed", "; ".join(opposed), advice))
    return [*found, *_unlike(relations, experts)]


def _unlike(relations: Sequence[Relation], experts: Sequence[Relation]) -> list[Finding]:
    """Task vectors of very different norms, where nothing else is the matter with either."""
    ill = {
        r.pair.second
        for r in relations
        if r.with_base and (r.apart or r.negated or r.rescaled or (r.pair.distance or 0) > FAR)
    }
    healthy = [(r.pair, r.task_ratio) for r in experts if not {r.pair.first, r.pair.second} & ill]
    seen = [
        f"that of {pair.second} is {ratio:.3g} times as long as that of {pair.first}"
        for pair, ratio in healthy
        if ratio and not 1 / UNLIKE <= ratio <= UNLIKE
    ]
    advice = (
        "an average is all but the longer one's: was its learning rate too high, or the other hardly trained? Give the "
        "shorter a larger share or scale"
    )
    return [finding("task-vectors-unlike", "; ".join(seen), advice)] if seen else []


def _union(parts: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part))
