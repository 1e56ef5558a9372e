"""One vocabulary for inputs with several: every table with a row for each token is seen in the result's rows.

Then methods merge row by row as ever, wherever a token's row lies; an input that lacks a token has a row that stands in
for it, by a stated policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoint.formats.format import Specs
from merge.checkpoint.formats.tensors import TensorEntry
from merge.checkpoint.gathered import MADE, MEAN, Table, gathered
from merge.checkpoint.open import Checkpoint
from merge.checkpoint.source import StateDict
from merge.errors import MergeError, shortened
from merge.plan.findings.vocabularies import TABLES, TIED
from merge.plan.policy import Policy
from merge.plan.rows import VOCABULARY
from merge.plan.tokens import PLAIN, Tokens, read_json, tokens_at, tokens_of

if TYPE_CHECKING:
    import numpy as np

# Tables of tokens under further names, where they have as many rows as the embedding; none is in a numbered layer.
_FURTHER = re.compile(
    r"(.*\.)?(((lm_|output_)?head|output_layer|predictions|final_logits)[._](weight|bias)|final_logits_bias)"
)
_SHOWN = 5
MISSING_ROWS = ("", "zero-delta", "mean", "zero", "error")
Rows = tuple[tuple[int, int], ...]  # rows, each an input's, whose mean another is


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a result.

    Attributes:
        tokens: the row of every token.
        holder: the input whose tokenizer it is, None for one of no input.
        base: what the tokenizer's files say, but for `new`.
        new: settings of the tokens that those files lack, by token.
        rows: of every table, with those that are no token's.
        tables: the names of the tables.
        notes: for every input what was dropped and made up, in words.
    """

    tokens: Mapping[str, int]
    holder: int | None
    base: Tokens
    new: Mapping[str, Mapping[str, Any]]
    rows: int = 0
    tables: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Matched:
    """Inputs whose tables have the rows of one vocabulary; None where they are merged as they are."""

    inputs: Sequence[StateDict]
    vocabulary: Vocabulary | None = None


def matched(inputs: Sequence[StateDict], labels: Sequence[str], policy: Policy, *, has_base: bool) -> Matched:
    """Give the inputs in the vocabulary that the policy's `tokenizer` names; without one as they are.

    Nothing is read but headers and tokenizers. Inputs that all have this vocabulary, in as many rows, stay as they are.
    Raises MergeError for inputs whose tokens are unknown, and for rules that name what is not there.
    """
    if not policy.tokenizer:
        idle = [name for name in ("missing_rows", "pad_to_multiple", "token_rows") if getattr(policy, name)]
        if idle:
            raise MergeError(f"{idle[0]}=... is about rows by token: say whose vocabulary with tokenizer='first'")
        return Matched(inputs)
    work = _Work(inputs, labels, policy, has_base)
    return Matched(work.views(), work.vocabulary())


def tables_in(specs: Specs, tokens: Tokens, size: int = 0) -> dict[str, int]:
    """Give the tensors that have a row for every token, each with how many; `size` is the configuration's vocabulary.

    By their names, and those with usual names for other things too where they have as many rows as the embedding.
    """
    sure = {name: spec.shape[0] for name, spec in specs.items() if VOCABULARY.fullmatch(name) and spec.shape}
    weak = {name: spec.shape for name, spec in specs.items() if TABLES.fullmatch(name) or _FURTHER.fullmatch(name)}
    weak = {name: shape for name, shape in weak.items() if not any(part.isdecimal() for part in name.split("."))}
    heights = list(sure.values()) or [shape[0] for shape in weak.values() if len(shape) == 2]
    least = max(tokens.rows.values(), default=0) + 1
    fitting = [rows for rows in heights if rows in (size, least)] or [rows for rows in heights if rows > least]
    height = fitting[0] if fitting else max(heights, default=0)
    found = dict(sure)
    for name, shape in weak.items():
        if shape[:1] == (height,) or (len(shape) == 2 and shape == (1, height)):
            found.setdefault(name, height)
    return found


class _Work:
    """A vocabulary and the rows of every input in it, while they are found out."""

    def __init__(self, inputs: Sequence[StateDict], labels: Sequence[str], policy: Policy, has_base: bool):
        self.labels, self.policy, self.has_base = list(labels), policy, has_base
        _check_rule(policy.missing_rows, labels, has_base)
        self.rules = dict(policy.token_rows)
        self.inputs = [self._open(item, label) for item, label in zip(inputs, labels, strict=True)]
        self.known = [self._tokens(item, label) for item, label in zip(self.inputs, labels, strict=True)]
        self.tables = [
            tables_in(item.entries, its, _size(item)) for item, its in zip(self.inputs, self.known, strict=True)
        ]
        self.holder, self.base = self._target()
        self.tokens = dict(self.base.rows)
        self.new: dict[str, Mapping[str, Any]] = {}
        self._next = max(self.tokens.values(), default=-1) + 1
        self._add_tokens()
        self.heights = {rows for its in self.tables for rows in its.values()}
        if not self.heights:
            raise MergeError(f"tokenizer={policy.tokenizer!r}: no input has a tensor with a row for every token")
        self.rows = self._height()
        self.given = {token: self._given(token, text) for token, text in self.rules.items()}
        more = self.rows - len(self.by_row)
        besides = f", and {more:,} that are no token's: the mean of the others" if more else ""
        self.notes = [f"rows by token: {len(self.tokens):,} tokens{besides}"]

    def _open(self, source: StateDict, label: str) -> Checkpoint:
        if not isinstance(source, Checkpoint):
            raise MergeError(f"tokenizer: {label} is a state dict, beside which no tokenizer lies: give its path")
        return source

    def _tokens(self, source: Checkpoint, label: str) -> Tokens:
        found = tokens_of(source)
        if found is None:
            raise MergeError(
                f"tokenizer: no tokenizer lies beside {label} ({source.path}): put its tokenizer.json there, or leave "
                "tokenizer=... out"
            )
        return found

    # -- the result's vocabulary -------------------------------------------------------------------------------------

    def _target(self) -> tuple[int | None, Tokens]:
        """The tokenizer that the policy names, and of which input it is."""
        word, first = self.policy.tokenizer, int(self.has_base and len(self.labels) > 1)
        if word == "base" and not self.has_base and "base" not in self.labels:
            raise MergeError("tokenizer='base': there is no base: name an input, or 'first'")
        where = {"first": first, "union": 0, "base": 0 if self.has_base else -1}.get(word, -1)
        index = where if where >= 0 else self.labels.index(word) if word in self.labels else None
        if index is not None:
            return index, self.known[index]
        path = Path(word)
        if not path.exists():
            raise MergeError(
                f"tokenizer={word!r}: is neither first, base or union, nor an input ({', '.join(self.labels)}), nor a "
                "file or folder"
            )
        found = tokens_at(path)
        if found is None:
            raise MergeError(f"{path}: no tokenizer lies there")
        return None, found

    def _add_tokens(self) -> None:
        """Give rows to tokens of other inputs, plain ones first, and to those that the policy names."""
        for plain in (True, False) if self.policy.tokenizer == "union" else ():
            for known in self.known:
                for token in sorted(known.rows, key=known.rows.__getitem__):
                    if token not in self.tokens and (token not in known.added) == plain:
                        self._add(token)
        for token in self.rules:
            if token not in self.tokens:
                self._add(token)
        self.by_row = {row: token for token, row in self.tokens.items()}

    def _add(self, token: str) -> None:
        self.tokens[token] = self._next
        self._next += 1
        self.new[token] = next((its.added[token] for its in self.known if token in its.added), PLAIN)

    def _height(self) -> int:
        """The rows of every table of the result: as they are where all agree, else the tokens', padded."""
        least, pad = max(self.tokens.values(), default=-1) + 1, max(self.policy.pad_to_multiple, 1)
        padded = -(-least // pad) * pad
        alike = not self.rules and all(its.rows == self.tokens for its in self.known)
        self.same = alike and len(self.heights) == 1 and (self.policy.pad_to_multiple == 0 or self.heights == {padded})
        return next(iter(self.heights)) if self.same else padded

    # -- the rows of every input -------------------------------------------------------------------------------------

    def views(self) -> list[Checkpoint]:
        """The inputs with their tables in the result's rows."""
        if self.same:
            return list(self.inputs)
        found: list[Checkpoint] = []
        for index, source in enumerate(self.inputs):
            told: dict[str, list[str]] = {}
            entries = dict(source.entries)
            done: dict[Any, TensorEntry] = {}
            for name, height in self.tables[index].items():
                entry = entries[name]
                if not entry.element.is_floating_point or not entry.element.arithmetic:
                    raise MergeError(f"{name} of {self.labels[index]} is {entry.element}: its rows cannot be matched")
                key = name if entry.tie is None else entry.tie
                if key not in done:
                    done[key] = self._view(index, name, height, told)
                entries[name] = done[key]
            self._note(index, told)
            content = source.content
            if source.tokens is not None:
                content = replace(content, dictionary=dict(self.tokens))
            found.append(replace(source, entries=entries, content=content))
        return found

    def _view(self, index: int, name: str, height: int, told: dict[str, list[str]]) -> TensorEntry:
        import numpy as np

        own, entry = self.known[index].rows, self.inputs[index].entries[name]
        take: np.ndarray = np.full(self.rows, MEAN, np.int64)
        made: dict[int, list[tuple[Table, int]]] = {}
        alike = {place: mine for place in range(len(self.inputs)) if (mine := self._alike(place, name))}
        others = {place: Table(self.inputs[place].entries[mine]) for place, mine in alike.items()}
        for token, row in self.tokens.items():
            where = own.get(token, height)
            if where < height and not (token in self.given and self.given[token][0]):
                take[row] = where
                continue
            take[row] = MADE
            sources, how = self._stand_in(index, token, name)
            made[row] = [(others[place], mine) for place, mine in sources]
            told.setdefault(how, []).append(token)
        if (take == np.arange(self.rows)).all() and height == self.rows:
            return entry
        return gathered(entry, Table(entry), take, made)

    def _alike(self, place: int, name: str) -> str:
        """What an input calls a table: the same, or the embedding that is its head; "" where it has none."""
        tables = self.tables[place]
        if name in tables:
            return name
        words = [other for other in tables if not TIED.fullmatch(other) and other.endswith(".weight")]
        return words[0] if TIED.fullmatch(name) and words else ""

    def _stand_in(self, index: int, token: str, name: str) -> tuple[Rows, str]:
        """The rows that stand in for one that an input lacks, and where they come from, in words."""
        if token in self.given:
            return self.given[token][1], "as token_rows says"
        rule = self.policy.missing_rows or ("zero-delta" if self.has_base else "mean")
        rows = {place: self._row(place, token, name) for place in range(len(self.inputs))}
        found = {place: row for place, row in rows.items() if row is not None}
        kind, _, what = rule.partition(":")
        if kind == "copy":
            row = self._row(index, what, name)
            if row is None:
                raise MergeError(f"missing_rows={rule!r}: {self.labels[index]} has no token {what!r}, to be {token!r}")
            return ((index, row),), f"copies of {what!r}"
        if rule == "error":
            raise MergeError(
                f"{self.labels[index]} lacks the token {shortened(token)}: choose what its row is, as "
                "missing_rows='mean', or a vocabulary without it"
            )
        if kind in ("from", "zero-delta"):
            place = self.labels.index(what) if kind == "from" else 0
            found = {place: found[place]} if place in found else found
        if not found or rule == "zero":
            return (), "zero" if rule == "zero" else "zero, as no input has them"
        names = ", ".join(self.labels[place] for place in found)
        return tuple(found.items()), f"from {names}" if len(found) == 1 else f"the mean of {names}"

    def _row(self, place: int, token: str, name: str) -> int | None:
        """The row of a token in an input's table; None where it has none."""
        row, mine = self.known[place].rows.get(token), self._alike(place, name)
        return row if mine and row is not None and row < self.tables[place][mine] else None

    def _given(self, token: str, text: str) -> tuple[bool, Rows]:
        """What a rule of `token_rows` says: whether for all inputs, and the row of which input."""
        always, source = text.startswith("always "), text.removeprefix("always ")
        if source == "zero" and "zero" not in self.labels:
            return always, ()
        named = [label for label in self.labels if re.match(re.escape(label) + r"($|[:#])", source)]
        whose = max(named, key=len, default="")
        rule, rest = f"token_rows: {token!r} as {source!r}", source.removeprefix(whose)
        if not whose:
            raise MergeError(f"{rule}: must be 'zero', or an input ({', '.join(self.labels)}), ':' and a token of it")
        place = self.labels.index(whose)
        rows = max(self.tables[place].values(), default=0)
        if rest.startswith("#"):
            row = int(rest[1:]) if rest[1:].isdecimal() else rows
            told = f"row {rest[1:]}"
        else:
            wanted = rest[1:] if rest else token
            row, told = self.known[place].rows.get(wanted, rows), f"token {wanted!r}"
        if row >= rows:
            raise MergeError(f"{rule}: {whose} has no {told}")
        return always, ((place, row),)

    # -- what is said of it ------------------------------------------------------------------------------------------

    def _note(self, index: int, told: Mapping[str, Sequence[str]]) -> None:
        """Say of an input which rows were made up, and which were dropped."""
        known, height = self.known[index].rows, max(self.tables[index].values(), default=0)
        parts: list[str] = []
        for how, tokens in told.items():
            unique = list(dict.fromkeys(tokens))
            parts.append(f"{_counted(unique)} made up ({how})")
        gone = [token for token, row in known.items() if token not in self.tokens and row < height]
        if gone:
            parts.append(f"{_counted(gone)} dropped")
        beyond = height - len({row for row in known.values() if row < height})
        if beyond:
            parts.append(f"{beyond:,} row{'s' * (beyond > 1)} of no token dropped")
        if parts:
            self.notes.append(f"rows of {self.labels[index]}: {'; '.join(parts)}")

    def vocabulary(self) -> Vocabulary:
        """What was found."""
        names = frozenset(name for its in self.tables for name in its)
        notes = () if self.same else tuple(self.notes)
        return Vocabulary(self.tokens, self.holder, self.base, self.new, self.rows, names, notes)


def _counted(tokens: Sequence[str]) -> str:
    shown = ", ".join(repr(token) for token in tokens[:_SHOWN]) + ", ..." * (len(tokens) > _SHOWN)
    return f"{len(tokens):,} token{'s' * (len(tokens) > 1)} ({shown})"


def _check_rule(rule: str, labels: Sequence[str], has_base: bool) -> None:
    """Raise MergeError for what `missing_rows` cannot be, or not here."""
    kind, colon, what = rule.partition(":")
    if rule not in MISSING_ROWS and not (colon and what and kind in ("from", "copy")):
        words = ", ".join(repr(word) for word in MISSING_ROWS[1:])
        raise MergeError(f"missing_rows={rule!r}: must be {words}, 'from:INPUT' or 'copy:TOKEN'")
    if kind == "from" and what not in labels:
        raise MergeError(f"missing_rows={rule!r}: names no input; they are {', '.join(labels)}")
    if rule == "zero-delta" and not has_base:
        raise MergeError(
            "missing_rows='zero-delta' takes the base's row, and there is no base: name an input, as "
            f"missing_rows='from:{labels[0]}', or take missing_rows='mean'"
        )


def _size(source: Checkpoint) -> int:
    size = read_json(source.path / "config.json").get("vocab_size") if source.path.is_dir() else None
    return size if type(size) is int else 0
