"""Where a training file keeps weights: every mapping of names to tensors, at any depth, and what else there is.

A section's name is the way to it, keys and positions joined with dots: `state_dict`, `extra_state.ema`, `models.0`.
Where two ways would be called alike, a dot inside a key is written `\\.`.
"""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merge.checkpoint.formats.format import WHOLE
from merge.checkpoint.formats.pickle.values import Opaque
from merge.checkpoint.formats.tensors import TensorEntry
from merge.checkpoint.formats.torch_zip.tree import TensorLeaf
from merge.errors import MergeError

# What most training programs call the weights: with one of these in it a file needs no `--section`.
USUAL = ("model", "state_dict", "module", "model_ema", "state_dict_ema", "extra_state.ema")
# By which program a section is the one to use, where a file has several.
CONVENTIONS = {
    "extra_state.ema": "published VQA experts are evaluated with extra_state.ema",
    "params_ema": "Real-ESRGAN and BasicSR use params_ema",
    "g_ema": "StyleGAN's programs sample with g_ema",
    "G_ema": "StyleGAN's programs sample with G_ema",
    "ema": "programs that keep an ema evaluate with it",
    "model_ema": "timm evaluates with model_ema when asked to",
    "state_dict_ema": "timm evaluates with state_dict_ema when asked to",
}
SHOWN = 20
DEEPEST, ALIASES = 50, 1000  # how far and how often one thing is followed
TEXT = 60  # characters of another entry's value that are shown
# Keys under which training keeps what no model needs, and names that optimizers give the tensors of one parameter.
_TRAINING = re.compile(
    r"(.*_)?([Oo]ptim(izer)?s?|([Ll]r_?)?[Ss]ched(uler)?s?|grad_scaler)([A-Z_]\w*)?|fp32_\w*groups"
    r"|(.*_)?opt(_?(state\w*|[dg]|gen\w*|dis\w*))?"
)
_MOMENTS = {
    "step",
    "exp_avg",
    "exp_avg_sq",
    "exp_inf",
    "max_exp_avg_sq",
    "momentum_buffer",
    "square_avg",
    "sum",
    "acc_delta",
}
_PREFIXES = re.compile(r"(module|_orig_mod|model|ema|shadow|teacher|student)\.")


@dataclass(frozen=True)
class Section:
    """A mapping of names to tensors: the way to it, the dictionary itself, its tensors, in the order of the file."""

    way: tuple[str | int, ...]
    part: dict[Any, Any]
    leaves: Mapping[Any, TensorLeaf]

    @property
    def numel(self) -> int:
        return sum(leaf.entry.numel for leaf in self.leaves.values())

    @property
    def rank(self) -> int:
        """How sure it is that these are weights: 0 with a matrix, 1 with a vector, 2 with numbers only."""
        return 2 - min(2, max(len(leaf.entry.shape) for leaf in self.leaves.values()))


class Sections(Mapping[str, Mapping[str, TensorEntry]]):
    """The sections of a file by name, the likeliest first. Names of tensors are checked when one is looked up."""

    def __init__(self, path: Path, tree: Any):
        self.path, self.tree = path, tree
        found = sorted(_found(tree), key=lambda section: section.rank)
        plain = Counter(".".join(map(str, section.way)) for section in found)
        self.by_name: dict[str, Section] = {}
        for section in found:
            name = ".".join(map(str, section.way))
            if plain[name] > 1:
                name = ".".join(str(key).replace("\\", "\\\\").replace(".", "\\.") for key in section.way)
            self.by_name[_printable(name) or WHOLE] = section

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def __getitem__(self, name: str) -> dict[str, TensorEntry]:
        """Where every tensor of a section lies. Raises MergeError for tensors whose names are no texts."""
        leaves = self.by_name[name].leaves
        odd = [type(key).__name__ for key in leaves if type(key) is not str]
        if odd:
            raise MergeError(
                f"{self.path}: {len(odd)} tensors of section {name!r} have no text for a name, but {odd[0]}"
            )
        broken = [key for key in leaves if _printable(key) != key]
        if broken:
            raise MergeError(
                f"{self.path}: the name {_printable(broken[0][:80])!r} of a tensor is no text (surrogates)"
            )
        return {key: leaf.entry for key, leaf in leaves.items()}

    @property
    def default(self) -> str:
        """The section that is taken where none is asked for; empty where one must be chosen."""
        usual = [name for name in USUAL if name in self.by_name]
        if usual:
            return usual[0] if len({id(self.by_name[name].part) for name in usual}) == 1 else ""
        best = [
            name for name, section in self.by_name.items() if section.rank == next(iter(self.by_name.values())).rank
        ]
        large = max(best, key=lambda name: self.by_name[name].numel)
        rest = {id(self.by_name[name].part): self.by_name[name].numel for name in best}
        rest.pop(id(self.by_name[large].part))
        return large if 100 * sum(rest.values()) < self.by_name[large].numel else ""

    @property
    def advice(self) -> str:
        """Which section the file's own program uses, where that is known."""
        known = ((name, text) for name, text in CONVENTIONS.items() if name in self.by_name)
        return next((f"{text}; choose one, as section={name!r}" for name, text in known), "")

    def others(self) -> dict[str, str]:
        """Whatever else lies at the file's top, each in a few words."""
        flat = any(section.part is self.tree for section in self.by_name.values())
        items = contents(self.tree) if not isinstance(self.tree, TensorLeaf) else ()
        return {
            called(key): in_words(value)
            for key, value, _ in items
            if called(key) not in self.by_name and not (flat and isinstance(value, TensorLeaf))
        }


def sections_of(path: Path, tree: Any) -> Sections:
    """Find the weights in a file. Raises MergeError where there are none, saying what there is."""
    if isinstance(tree, TensorLeaf):
        if path.suffix == ".distcp":
            raise MergeError(f"{path}: a part of a torch distributed checkpoint: give its folder, with .metadata in it")
        raise MergeError(f"{path}: holds one tensor without a name, not a dictionary of tensors")
    found = Sections(path, tree)
    if isinstance(tree, dict):
        _refuse_deepspeed(path, tree, found)
    if not found:
        if _is_training(None, tree) or any(_is_training(key, value) for key, value, _ in contents(tree)):
            raise MergeError(f"{path}: no weights found, only the state of a training: give the model's file")
        odd = next(_found(tree, named=False), None)
        if odd is not None and not isinstance(tree, (list, tuple)):
            kind, way = type(next(iter(odd.leaves))).__name__, ".".join(map(called, odd.way)) or WHOLE
            raise MergeError(
                f"{path}: {len(odd.leaves)} tensors of section {way!r} have no text for a name, but {kind}"
            )
        if not isinstance(tree, (dict, Opaque)):
            raise MergeError(f"{path}: holds a {type(tree).__name__}, not a dictionary of tensors")
        entries = [called(key) for key, _, _ in contents(tree)][:SHOWN]
        raise MergeError(f"{path}: no weights found; its entries are {', '.join(entries)}")
    return found


def _refuse_deepspeed(path: Path, tree: dict[Any, Any], found: Sections) -> None:
    """Name the files among which DeepSpeed's ZeRO spreads weights: shards of an optimizer, and placeholders."""
    state = tree.get("optimizer_state_dict")
    shard = isinstance(state, dict) and ("zero_stage" in state or "fp32_flat_groups" in state)
    empty = "ds_version" in tree or "param_shapes" in tree
    empty = empty and all(not section.numel for section in found.by_name.values())
    if shard or empty:
        what = "a shard of an optimizer" if shard else "placeholders of size 0 for weights that lie in other files"
        advice = "`python zero_to_fp32.py FOLDER OUTPUT`, which lies beside it, gathers the weights"
        raise MergeError(f"{path}: DeepSpeed ZeRO wrote it: it holds {what}; {advice}")


def contents(value: Any) -> Iterator[tuple[Any, Any, dict[Any, Any] | None]]:
    """Keys and values inside a value, each with the dictionary it hangs in; None in lists."""
    if isinstance(value, dict):
        yield from ((key, item, value) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((index, item, None) for index, item in enumerate(value))
    elif isinstance(value, Opaque):
        for inner in (value.items, value.state, *value.args[:1]):
            if isinstance(inner, dict):
                yield from ((key, item, inner) for key, item in inner.items())


def _found(tree: Any, named: bool = True) -> Iterator[Section]:
    """Every mapping of (named: text) keys to tensors outside of the state of a training, in the order of the file."""
    seen: dict[int, list[Section]] = {}
    again = 0

    def search(value: Any, way: tuple[str | int, ...]) -> Iterator[Section]:
        nonlocal again
        if id(value) in seen:  # what hangs in two places has two names, but is not searched again
            again += 1
            yield from (replace(section, way=way) for section in seen[id(value)] if again < ALIASES)
            return
        leaves: dict[int, tuple[dict[Any, Any], dict[Any, TensorLeaf]]] = {}
        for key, item, part in contents(value):
            if part is not None and isinstance(item, TensorLeaf):
                leaves.setdefault(id(part), (part, {}))[1][key] = item
        seen[id(value)] = [
            Section(way, part, some)
            for part, some in leaves.values()
            if (not named or any(type(key) is str for key in some)) and not _MOMENTS.issuperset(some)
        ]
        yield from seen[id(value)]
        for key, item, _ in contents(value) if len(way) < DEEPEST else ():
            if (
                isinstance(item, (dict, list, tuple, Opaque))
                and type(key) in (str, int)
                and not _is_training(key, item)
            ):
                yield from search(item, (*way, key))

    return search(tree, ()) if not _is_training(None, tree) else iter(())


def _is_training(key: Any, value: Any) -> bool:
    """Whether a value is the state of an optimizer or the like, by its key or by what optimizers call their parts."""
    if isinstance(key, str) and _TRAINING.fullmatch(key):
        return True
    return isinstance(value, dict) and "state" in value and "param_groups" in value


def stale(tree: Any, merged: Section) -> tuple[set[tuple[int, Any]], list[str]]:
    """What would be stale in the output: places (the dictionary's identity, the key) to leave out, and notes on them.

    These are the state of a training, as far as it holds tensors, and sets of weights other than the merged one: with
    its names or (in lists) shapes, or with matrices and at least a hundredth of its size. Numbers, texts and small
    tables stay.
    """
    left_out: set[tuple[int, Any]] = set()
    notes: list[str] = []
    names = {_PREFIXES.sub("", name) for name in merged.leaves}
    shapes = Counter(leaf.entry.shape for leaf in merged.leaves.values())
    size = merged.numel
    tensors: dict[int, bool] = {}

    def has_tensors(value: Any) -> bool:
        if isinstance(value, TensorLeaf):
            return True
        if not isinstance(value, (dict, list, tuple, Opaque)):
            return False
        if id(value) not in tensors:
            tensors[id(value)] = False  # a cycle adds nothing
            tensors[id(value)] = any(has_tensors(item) for _, item, _ in contents(value))
        return tensors[id(value)]

    def is_second(value: Any) -> bool:
        leaves = {key: item for key, item, _ in contents(value) if isinstance(item, TensorLeaf)}
        if not leaves or any(part is merged.part for _, _, part in contents(value)):
            return False
        if isinstance(value, (list, tuple)):  # averages without names, as torch_ema keeps them
            return not Counter(leaf.entry.shape for leaf in leaves.values()) - shapes
        alike = sum(isinstance(key, str) and _PREFIXES.sub("", key) in names for key in leaves)
        matrix = any(len(leaf.entry.shape) > 1 for leaf in leaves.values())
        return 2 * alike >= len(leaves) or (matrix and 100 * sum(leaf.entry.numel for leaf in leaves.values()) >= size)

    seen: set[int] = set()

    def search(value: Any, way: tuple[Any, ...]) -> None:
        if id(value) in seen or value is merged.part:
            return
        seen.add(id(value))
        for key, item, part in contents(value):
            if not isinstance(item, (dict, list, tuple, Opaque)) or not has_tensors(item):
                continue
            name = ".".join(map(called, (*way, key)))
            training = _is_training(key, item) or (
                isinstance(item, (list, tuple)) and any(_is_training(None, i) for i in item)
            )
            second = is_second(item) or (isinstance(item, (list, tuple)) and any(map(is_second, item)))
            if part is not None and (training or second):
                left_out.add((id(part), key))
                what = "the state of a training that is over" if training else "weights that were not merged"
                notes.append(f"left out {name}: {what}")
            else:
                search(item, (*way, key))

    search(tree, ())
    return left_out, notes


def in_words(value: Any) -> str:
    """Give a value in a few words."""
    if isinstance(value, TensorLeaf):
        return f"{value.entry.element} {list(value.entry.shape)}"
    if isinstance(value, Opaque):
        return str(value.factory)
    if hasattr(value, "__len__") and not isinstance(value, str):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to print the longest
        return f"an integer of {value.bit_length()} bits"
    text = repr(value[: 2 * TEXT] if isinstance(value, str) else value)
    return (
        text
        if len(text) <= TEXT
        else f"{text[:TEXT]}... ({len(value) if isinstance(value, str) else len(text):,} characters)"
    )


def called(key: Any) -> str:
    """Give a key as it is printed."""
    return _printable(key[: 2 * TEXT]) if isinstance(key, str) else in_words(key)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
