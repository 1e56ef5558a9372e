"""Inputs under the result's names: layers that move, repeat or are left out, and heads that are an embedding.

So the plan has one way for all: names that inputs share are merged, checked and copied, wherever their layers lay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from merge.checkpoint.formats.format import Specs
from merge.checkpoint.formats.tensors import TensorEntry
from merge.checkpoint.open import Checkpoint, specs
from merge.checkpoint.source import StateDict
from merge.errors import MergeError
from merge.plan.findings.sidecars import sidecars_of
from merge.plan.layers import SHOWN, Layers, Ranges, is_end, list_named, lists_in, nearest_list, numbered
from merge.plan.vocabulary import Vocabulary

HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|output_projection|proj_out)\.weight")
_EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|wte|shared|word_embeddings?|tok_embeddings|embed_in)\.weight")
_WRITES = re.compile(r".*(ForCausalLM|LMHeadModel|ForConditionalGeneration|ForMaskedLM)")


@dataclass(frozen=True)
class Stacked:
    """The inputs under the result's names.

    Attributes:
        inputs: the checkpoints as the plan takes them.
        sources: for every name of the result the inputs that it is made of, in the method's order; None where every
            input takes part in everything.
        origins: for every list that was put together, the first input that takes part in each layer, and its number
            there.
        lengths: for such a list how many layers each of its stretches has.
        notes: what was done beside that, in words.
        vocabulary: the result's, where rows were matched by token.
    """

    inputs: Sequence[StateDict]
    sources: Mapping[str, tuple[int, ...]] | None = None
    origins: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict[str, Sequence[tuple[int, int]]])
    lengths: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    notes: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None


WHOLE = Stacked(())  # what is said of merges in which nothing was put together


def stacked(
    inputs: Sequence[StateDict], labels: Sequence[str], layers: Layers, base: str = "", *, untie: bool
) -> Stacked:
    """Give the inputs as a recipe's `layers` put them together; with `untie` inputs get the heads that others have.

    `base` is the label of the common ancestor, which takes part everywhere. Nothing is read but names. Raises
    MergeError for layers that are not there, stretches of different lengths, and inputs whose layers do not fit.
    """
    if not layers and not untie:
        return Stacked(inputs)
    if not layers:
        whole = dict.fromkeys(dict.fromkeys(name for tensors in inputs for name in tensors), tuple(range(len(inputs))))
        found = [{name: name for name in tensors} for tensors in inputs]
        notes = _heads(inputs, labels, found, whole)
        return Stacked([_arranged(*each) for each in zip(inputs, found, strict=True)] if notes else inputs, notes=notes)
    work = _Work(inputs, labels, base)
    for wanted, stretches in layers.items():
        work.put_together(wanted, stretches)
    unused = [label for index, label in enumerate(labels) if index not in work.used]
    if unused:
        raise MergeError(f"{', '.join(unused)} is in no stretch of layers: name it in one, or leave it out")
    work.place_the_rest()
    work.names = [work.ordered(index) for index in range(len(inputs))]
    notes = _heads(inputs, labels, work.names, work.sources)
    _check_fit(inputs, labels, work)
    views = [_arranged(*each) for each in zip(inputs, work.names, strict=True)]
    return Stacked(views, work.sources, work.origins, work.lengths, notes)


def _arranged(tensors: StateDict, names: Mapping[str, str]) -> StateDict:
    """A checkpoint with tensors of it under other names; `names` are its own by the new.

    What occurs twice is two tensors, which are not tied to each other, nor is what notes alone have tied.
    """
    seen: set[str] = set()
    if not isinstance(tensors, Checkpoint):
        found: dict[str, Any] = {}
        for new, name in names.items():
            found[new] = tensors[name].clone() if name in seen else tensors[name]
            seen.add(name)
        return found
    entries: dict[str, TensorEntry] = {}
    for new, name in names.items():
        entry = tensors.entries[name]
        entries[new] = replace(entry, storage=None) if name in seen else entry
        seen.add(name)
    own = {name: tensors.stored.get(name, name) for name in tensors.entries}
    stored = {new: own[name] for new, name in names.items() if new != own[name]}
    hidden = {own[name]: entry for name, entry in tensors.entries.items() if name not in seen}
    metadata = {name: text for name, text in tensors.metadata.items() if name not in tensors.entries}
    return replace(tensors, entries=entries, metadata=metadata, stored=stored, hidden=hidden)


class _Work:
    """Names of the result while they are gathered."""

    def __init__(self, inputs: Sequence[StateDict], labels: Sequence[str], base: str):
        self.inputs, self.labels = inputs, list(labels)
        self.base = self.labels.index(base) if base else None
        self.lists = [lists_in(tensors) for tensors in inputs]
        self.names: list[dict[str, str]] = [{} for _ in inputs]  # of every input: its own name by the result's
        self.sources: dict[str, tuple[int, ...]] = {}
        self.origins: dict[str, list[tuple[int, int]]] = {}
        self.ends: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}  # who takes part first and last, by list
        self.lengths: dict[str, list[int]] = {}
        self.used: set[int] = set()

    def put_together(self, wanted: str, stretches: Sequence[Ranges]) -> None:
        """Gather the layers of one list."""
        label = next(iter(stretches[0]))
        name = list_named(wanted, self.lists[self._index(label, "layers[0]")], label)
        origins = self.origins.setdefault(name, [])
        parts: list[tuple[int, ...]] = []
        for number, ranges in enumerate(stretches):
            spans = self._spans(ranges, name, f"layers[{number}]" + (f" of {name}" if wanted else ""))
            parts.append(tuple(spans))
            donor = next((index for index in spans if index != self.base), next(iter(spans)))
            self.lengths.setdefault(name, []).append(len(spans[donor]))
            for at in range(len(spans[donor])):
                mine = {index: numbers[at] for index, numbers in spans.items()}
                self._layer(name, len(origins), mine)
                origins.append((donor, mine[donor]))
        self.ends[name] = (parts[0], parts[-1])
        self.used.update(index for part in parts for index in part)

    def _index(self, label: str, where: str) -> int:
        if label not in self.labels:
            raise MergeError(f"{where} names {label!r}, which is no input: they are {', '.join(self.labels)}")
        return self.labels.index(label)

    def _spans(self, ranges: Ranges, name: str, where: str) -> dict[int, list[int]]:
        """The numbers of the layers that every input gives to a stretch, the base's first."""
        given = dict(ranges)
        if self.base is not None and self.labels[self.base] not in given:
            if len(set(given.values())) > 1:
                base = self.labels[self.base]
                raise MergeError(f"{where}: say which layers of the base {base} are meant, as those of others differ")
            given = {self.labels[self.base]: next(iter(given.values())), **given}
        order = sorted(given, key=lambda label: self._index(label, where) != self.base)
        spans: dict[int, list[int]] = {}
        for label in order:
            index, span = self._index(label, where), given[label]
            known = self._known(index, name, where)
            if span is not None:  # numbers may be huge: of those that are not there some are enough
                span = span[0], min(span[1], max(span[0], max(known) + 1) + SHOWN + 1)
            numbers = sorted(known) if span is None else list(range(*span))
            absent = [str(number) for number in numbers if number not in known]
            if absent:
                more = ", ..." * (len(absent) > SHOWN)
                raise MergeError(
                    f"{where}: {label} has no layer {', '.join(absent[:SHOWN])}{more}: it has {len(known)}, numbered "
                    f"{min(known)} to {max(known)}"
                )
            spans[index] = numbers
        if len({len(numbers) for numbers in spans.values()}) > 1:
            each = ", ".join(f"{self.labels[index]} gives {len(numbers)}" for index, numbers in spans.items())
            raise MergeError(
                f"{where}: {each} layers: layers of one stretch are merged one by one, so all give as many"
            )
        return spans

    def _known(self, index: int, name: str, where: str) -> Mapping[int, Sequence[str]]:
        """An input's layers. Raises MergeError where its list has another name."""
        lists, label = self.lists[index], self.labels[index]
        if name in lists:
            return lists[name]
        last = name.rpartition(".")[2]
        other = next((item for item in lists if item.rpartition(".")[2] == last), next(iter(lists), ""))
        advice = f"it has {', '.join(lists) or 'no numbered layers'}"
        if lists:
            advice += f": give it the same names with rename='{label}:{other}.={name}.'"
        raise MergeError(f"{where}: {label} has no layers called {name}; {advice}")

    def _layer(self, name: str, number: int, mine: Mapping[int, int]) -> None:
        """One layer of the result, of the layers with these numbers."""
        prefix = f"{name}." if name else ""
        for index, own in mine.items():
            for rest in self.lists[index][name][own]:
                end = f".{rest}" if rest else ""
                self.names[index][f"{prefix}{number}{end}"] = f"{prefix}{own}{end}"
                self.sources[f"{prefix}{number}{end}"] = tuple(mine)

    def place_the_rest(self) -> None:
        """Take what lies before the layers from who gives the first ones, what lies behind from who gives the last."""
        for index, tensors in enumerate(self.inputs):
            every = [name for name in self.lists[index] if name not in self.origins]
            for name in tensors:
                at = numbered(name)
                if at and at[0] in self.origins:
                    continue
                whose = nearest_list(name, [*self.origins, *every])
                end = whose in self.origins and is_end(name, whose)
                whose = whose if whose in self.origins else next(iter(self.origins))
                sources = self.ends[whose][end]
                if index in sources:
                    self.names[index][name] = name
                    self.sources[name] = sources

    def ordered(self, index: int) -> dict[str, str]:
        """The names that an input gives, in its own order: a list's layers where its first one lies."""
        layers: dict[str, list[str]] = {}
        for new in self.names[index]:
            at = numbered(new)
            if at and at[0] in self.origins:
                layers.setdefault(at[0], []).append(new)
        order: list[str] = []
        for name in self.inputs[index]:
            at = numbered(name)
            if at and at[0] in self.origins:
                order += layers.pop(at[0], [])
            elif name in self.names[index]:
                order.append(name)
        return {new: self.names[index][new] for new in order}


# -- heads -----------------------------------------------------------------------------------------------------------


def _heads(
    inputs: Sequence[StateDict],
    labels: Sequence[str],
    names: Sequence[dict[str, str]],
    sources: dict[str, tuple[int, ...]],
) -> tuple[str, ...]:
    """Let an embedding stand for the head of inputs that tie the two, where the result's head is a tensor of its own.

    It is where others of the result's last inputs have one, and where the embedding comes from others than the head.
    Adds to `names` and `sources`; gives notes.
    """
    embedding = next((name for name in sources if _EMBEDDING.fullmatch(name)), "")
    first = sources.get(embedding, ())
    ends = [name for name in sources if is_end(name, embedding) and name != embedding]
    last = sources[ends[-1]] if ends else first
    head = next((name for name in sources if HEAD.fullmatch(name)), "")
    own = [index for index in last if head and head in inputs[index]]
    if not embedding or (not own and set(first) == set(last)):
        return ()
    without = [index for index in last if index not in own and _ties(inputs[index], embedding, sure=bool(own))]
    if not without:
        return ()
    head = head or next((name for tensors in inputs for name in tensors if HEAD.fullmatch(name)), "lm_head.weight")
    sources[head] = last
    for index in without:
        names[index][head] = embedding
    which = ", ".join(labels[index] for index in without)
    return (f"{head} is the embedding of {which}, where the two are tied; in the result they are not",)


def _ties(tensors: StateDict, embedding: str, *, sure: bool) -> bool:
    """Whether an input without a head has one that is its embedding; `sure`: others of its kind have a head."""
    if embedding not in tensors or any(HEAD.fullmatch(name) for name in tensors):
        return False
    config = sidecars_of(tensors).config
    kinds: Any = config.get("architectures")
    writes = isinstance(kinds, list) and any(_WRITES.fullmatch(kind) for kind in map(str, cast("list[object]", kinds)))
    return sure or writes or config.get("tie_word_embeddings") is True


# -- whether what is put together is one model -----------------------------------------------------------------------


def _check_fit(inputs: Sequence[StateDict], labels: Sequence[str], work: _Work) -> None:
    """Raise MergeError where inputs are of other sizes, or their layers made of other tensors, than the first's."""
    described = [specs(tensors) for tensors in inputs]
    for name, origins in work.origins.items():
        kinds = {index: _kinds(work.lists[index][name], described[index], name) for index in work.used}
        donor = origins[0][0]
        known = {frozenset(kind.items()) for kind in kinds[donor].values()}
        for index, number in origins:
            mine = kinds[index][number]
            if frozenset(mine.items()) not in known:
                near = min(kinds[donor].values(), key=lambda kind: len(kind.keys() ^ mine.keys()))
                raise MergeError(_unlike(mine, near, f"layer {number} of {labels[index]}", labels[donor]))
    alone = [name for name, sources in work.sources.items() if len(sources) == 1]
    rows: dict[str, tuple[int, str]] = {}
    for name in alone:
        index = work.sources[name][0]
        if _EMBEDDING.fullmatch(name) or HEAD.fullmatch(name):
            rows[name] = (described[index][work.names[index][name]].shape[0], labels[index])
    if len({count for count, _ in rows.values()}) > 1:
        each = " and ".join(f"{name} has {count} rows in {label}" for name, (count, label) in rows.items())
        raise MergeError(f"{each}: an embedding and a head need the rows of one vocabulary")


def _kinds(layers: Mapping[int, Sequence[str]], described: Specs, name: str) -> dict[int, dict[str, tuple[int, ...]]]:
    """What every layer is made of: shapes by the rests of names."""
    prefix = f"{name}." if name else ""
    return {
        number: {rest: described[f"{prefix}{number}.{rest}" if rest else f"{prefix}{number}"].shape for rest in rests}
        for number, rests in layers.items()
    }


def _unlike(mine: Mapping[str, Any], near: Mapping[str, Any], layer: str, donor: str) -> str:
    """Say how a layer differs from the most similar one of the first input."""
    for rest in sorted(mine.keys() ^ near.keys()):
        has = layer if rest in mine else f"every layer of {donor}"
        return f"{layer} is no layer as {donor} has: only {has} has {rest}"
    rest = next(rest for rest in mine if mine[rest] != near[rest])
    return f"{layer} has {rest} of shape {list(mine[rest])}, {donor} of {list(near[rest])}: together they make no model"
