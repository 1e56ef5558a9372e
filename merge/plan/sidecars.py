"""Files that say what the tensors are, edited to say what the merged ones are: `config.json`, and the tokenizer."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checkpoint.open import Checkpoint
from merge.checkpoint.parts import beside
from merge.errors import MergeError
from merge.plan.depth import Depth, follow
from merge.plan.layers import lists_in
from merge.plan.policy import Policy
from merge.plan.renumbered import renumber, tokenizer_files
from merge.plan.rows import VOCABULARY
from merge.plan.stacked import WHOLE, Stacked
from merge.plan.tokens import CONFIG as TOKENIZER_CONFIG
from merge.plan.tokens import TEMPLATE, TOKENIZER, read_json, tokens_of
from merge.plan.units import Unit
from merge.plan.vocabulary import Vocabulary

CONFIG, GENERATION = "config.json", "generation_config.json"
_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|output_projection)\.weight")
_DTYPES = ("dtype", "torch_dtype")  # of old and new configurations
_QUANTISED = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class Sidecars:
    """What becomes of files beside the weights, by relative name: text, another input's file, or (None) left out."""

    files: Mapping[str, bytes | Path | None]
    notes: tuple[str, ...]


def sidecars(
    like: Checkpoint,
    checkpoints: Sequence[Checkpoint],
    labels: Sequence[str],
    units: Sequence[Unit],
    policy: Policy,
    stack: Stacked = WHOLE,
) -> Sidecars:
    """Say how the configuration and the tokenizer of `like` (the first input, with all parts) follow the result.

    `checkpoints` are the inputs as they lie there, `stack` how they were put together.
    Raises MergeError where they cannot: rows that are other tokens in different inputs, or whose tokens nobody knows.
    """
    files: dict[str, bytes | Path | None] = {}
    notes: list[str] = []
    lying = [beside(item).taken for item in (like, *checkpoints)]
    for prefix in like.parts or ("",):
        mine = [part for unit in units if (part := _in_part(unit, prefix, like.parts))]
        changes = _Changes(prefix, mine, checkpoints, stack)
        holder = None if stack.vocabulary else changes.holder()
        known = [{n.removeprefix(prefix): p for n, p in its.items() if n.startswith(prefix)} for its in lying]
        if holder is not None:
            taken = _tokenizer(known[1:], labels, holder)
            files |= {prefix + name: path for name, path in taken.items()}
            if taken:
                notes.append(f"the tokenizer is that of {labels[holder]}, which has the rows of the result")
        config = read_json(known[0].get(CONFIG))
        others = [read_json(its.get(CONFIG)) for its in known[1:]] if stack.origins else []
        told = changes.edit(config, policy, others) if config else []
        if stack.vocabulary and not prefix:
            files |= tokenizer_files(stack.vocabulary, {n: p for n, p in known[0].items() if TOKENIZER.fullmatch(n)})
            told += _renumbered(config, CONFIG, checkpoints[0], stack.vocabulary)
            generation = read_json(known[0].get(GENERATION))
            if ids := _renumbered(generation, GENERATION, checkpoints[0], stack.vocabulary):
                files[GENERATION] = _text(generation)
                notes.append(f"{GENERATION} follows the vocabulary: {', '.join(ids)}")
        if policy.chat_template and (prefix == "" or any(map(TOKENIZER.fullmatch, known[0]))):
            place = prefix + TOKENIZER_CONFIG
            said = files[place] if place in files else known[0].get(TOKENIZER_CONFIG)
            files |= {prefix + name: text for name, text in _templates(said, policy.chat_template).items()}
            notes.append(f"{prefix}{TEMPLATE} is the template that was asked for")
        if config and told:
            files[prefix + CONFIG] = _text(config)
            notes.append(f"{prefix}{CONFIG} follows the weights: {', '.join(told)}")
    return Sidecars(files, tuple(notes))


def _text(config: Mapping[str, Any]) -> bytes:
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"


def _in_part(unit: Unit, prefix: str, parts: Mapping[str, Checkpoint]) -> tuple[list[str], Unit] | None:
    """A unit with its names in one part, without the prefix; None where it has none there."""
    names = [
        name.removeprefix(prefix)
        for name in unit.names
        if prefix == max((other for other in parts or ("",) if name.startswith(other)), key=len, default="")
    ]
    return (names, unit) if names else None


class _Changes:
    """How the tensors of one part of the result differ from the first input's."""

    def __init__(
        self,
        prefix: str,
        units: Sequence[tuple[list[str], Unit]],
        checkpoints: Sequence[Checkpoint],
        stack: Stacked,
    ):
        self.tables = stack.vocabulary.tables if stack.vocabulary else frozenset[str]()
        self.prefix, self.units, self.first = prefix, units, checkpoints[0].entries
        self.checkpoints, self.stack = checkpoints, stack
        self.vocabulary = [
            (name, unit) for names, unit in units for name in names[:1] if VOCABULARY.fullmatch(name) and unit.shape
        ]

    def holder(self) -> int | None:
        """Give the input whose rows the result has, where they are not simply the first's."""
        for name, unit in self.vocabulary:
            whole = self.prefix + name
            if self.stack.origins and _HEAD.fullmatch(name):
                continue  # the tokenizer goes with what reads it
            if (unit.kind == "copy" or self.stack.origins) and len(unit.sources) == 1 and unit.assembly is None:
                if unit.sources[0] != 0 and whole in self.first:
                    return unit.sources[0]
            elif unit.assembly is not None and unit.assembly.put is not None:
                sizes = [item.entries[whole].shape[0] if whole in item.entries else 0 for item in self.checkpoints]
                if unit.shape[0] in sizes and len(set(sizes) - {0}) > 1:
                    return sizes.index(unit.shape[0])
        return None

    def edit(self, config: dict[str, Any], policy: Policy, others: Sequence[Mapping[str, Any]]) -> list[str]:
        """Change a configuration to what the result is; tells what was changed. `others` are those of all inputs."""
        told: list[str] = []
        for depth in self._depths():
            told += follow(config, others, depth, self.prefix + CONFIG)
        for key, old, new in self._sizes():
            places = [place for place in _places(config) if place.get(key) == old]
            for place in places:
                place[key] = new
            told += [f"{key} {new}"] if places else []
            if not places and any(key in place for place in _places(config)):
                raise MergeError(
                    f"{self.prefix}{CONFIG} says another {key} than the {old} of the first input's weights, which "
                    f"become {new}: correct it there first"
                )
        if self._untied():
            place = next((item for item in _places(config) if "tie_word_embeddings" in item), config)
            if place.get("tie_word_embeddings") is not False:
                place["tie_word_embeddings"] = False
                told.append("tie_word_embeddings false")
        dtype = self._dtype(policy)
        for key in _DTYPES if dtype else ():
            places = [place for place in _places(config) if key in place and place[key] != dtype]
            for place in places:
                place[key] = dtype
            told += [f"{key} {dtype}"] if places else []
        for key in _QUANTISED if getattr(policy, "dequantize", False) else ():
            places = [place for place in _places(config) if key in place]
            for place in places:
                del place[key]
            told += [f"no {key}"] if places else []
        return told

    def _sizes(self) -> Iterator[tuple[str, int, int]]:
        """The sizes that a configuration names and that have changed: its key, the first input's and the result's."""
        found: dict[str, tuple[int, int]] = {}
        for names, unit in self.units:
            entry = self.first.get(self.prefix + names[0])
            if entry is None or len(entry.shape) != len(unit.shape):
                continue
            words = VOCABULARY.fullmatch(names[0]) or (names[0] in self.tables and len(unit.shape) == 2)
            if words and entry.shape[0] != unit.shape[0]:
                found.setdefault("vocab_size", (entry.shape[0], unit.shape[0]))
            elif unit.assembly is not None and unit.assembly.axis == 1 and entry.shape[1] != unit.shape[1]:
                found.setdefault("in_channels", (entry.shape[1], unit.shape[1]))
        yield from ((key, *sizes) for key, sizes in found.items())

    def _depths(self) -> Iterator[Depth]:
        """The lists of this part that were put together."""
        lists = {name: len(its) for name, its in lists_in(self.first).items() if name.startswith(self.prefix)}
        for name, origins in self.stack.origins.items():
            if name in lists:
                mine, *others = (other.removeprefix(self.prefix) for other in (name, *(lists.keys() - {name})))
                yield Depth(mine, others, lists[name], origins)

    def _untied(self) -> bool:
        """Whether the result has an output projection of its own where the first input has none, or a tied one."""
        words = [name for name in self.first if VOCABULARY.fullmatch(name) and not _HEAD.fullmatch(name)]
        embeddings = {self.first[name].tie for name in words}
        givers = {unit.sources for name, unit in self.vocabulary if not _HEAD.fullmatch(name)}
        for names, unit in self.units:
            heads = [name for name in names if _HEAD.fullmatch(name)]
            entry = self.first.get(self.prefix + heads[0]) if heads else None
            tied = entry is None or (entry.tie is not None and entry.tie in embeddings)
            tied |= bool(self.stack.origins) and givers != {unit.sources}
            if heads and len(heads) == len(names) and embeddings and tied:
                return True
        return False

    def _dtype(self, policy: Policy) -> str:
        """The dtype of most of the result's floating elements, where it is another than in the first input."""
        after, before = Counter[str](), Counter[str]()
        for names, unit in self.units:
            entry = self.first.get(self.prefix + names[0])
            if unit.element.is_floating_point:
                after[unit.element.name] += unit.nbytes
            if entry is not None and entry.element.is_floating_point:
                before[entry.element.name] += entry.nbytes
        most = [max(each, key=each.__getitem__, default="") for each in (after, before)]
        return most[0] if most[0] != most[1] or policy.dtype is not None else ""


def _places(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A configuration and those of the models in it (`text_config`, `decoder`, ...)."""
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _places(value)


# -- chat templates --------------------------------------------------------------------------------------------------


def _templates(said: bytes | Path | None, text: str) -> dict[str, bytes]:
    """Give the files that say a chat template: its own, and the tokenizer's configuration where that says one too."""
    found = {TEMPLATE: text.encode()}
    config: dict[str, Any] = json.loads(said) if isinstance(said, bytes) else read_json(said)
    if "chat_template" in config:
        found[TOKENIZER_CONFIG] = _text({**config, "chat_template": text})
    return found


# -- tokenizers ------------------------------------------------------------------------------------------------------


def _renumbered(config: dict[str, Any], name: str, first: Checkpoint, vocabulary: Vocabulary) -> list[str]:
    """Let a configuration of the first input name the result's rows of tokens; tells what was changed."""
    known = tokens_of(first)
    assert known is not None
    if all(vocabulary.tokens.get(token) == row for token, row in known.rows.items()):
        return []
    place = next(iter(vocabulary.base.files.values()), None)
    return renumber(config, name, known, vocabulary, read_json(place.with_name(name) if place else None))


def _tokenizer(lying: Sequence[Mapping[str, Path]], labels: Sequence[str], holder: int) -> dict[str, Path | None]:
    """Give the tokenizer's files of the input whose rows the result has; empty where they are the first's already.

    That the tokens of the rows that several have are the same is a finding of the plan. Raises MergeError where that
    input has no tokenizer and the first has.
    """
    files = [{name: path for name, path in its.items() if TOKENIZER.fullmatch(name)} for its in lying]
    if files[0] and not files[holder]:
        raise MergeError(
            f"the result has the rows of {labels[holder]}, beside which no tokenizer lies, and the tokenizer of "
            f"{labels[0]} has other rows: put the tokenizer's files beside the weights of {labels[holder]}"
        )
    return {name: files[holder].get(name) for name in {**files[0], **files[holder]}} if holder else {}
