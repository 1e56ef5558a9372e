"""Checks of rows that have a meaning each: tokens, classes, tied heads."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from merge.plan.findings.facts import Facts
from merge.plan.findings.kinds import Seen, chosen, listed
from merge.plan.findings.sidecars import LABELS, Sidecars, rows_of
from merge.plan.rows import VOCABULARY
from merge.plan.tokens import tokens_of

# Tables of tokens under other names than those whose rows are matched (`rows.VOCABULARY`).
TABLES = re.compile(
    r"(.*\.)?(shared|embed_in|embed_out|(token|word)_embed\w*|embeddings?|tok_emb\w*|output|proj_out|decoder)\.(weight|bias)"
)
# Components of names whose rows are classes or words: the first axis follows the task, not the architecture.
HEAD = re.compile(
    r"((\w+_)?heads?|classifier|cls|fc|fc_out|logits|score|output_projection|predictions?|.*embed.*|wte|wpe)"
)
# Heads that libraries tie to the table of tokens by configuration.
TIED = re.compile(r"(.*\.)?(lm_head|embed_out|proj_out|output_projection|cls\.predictions\.decoder)\.weight")

_ROWS = re.compile(rb'"added_tokens"\s*:\s*\[.*?\]\s*,\s*"', re.DOTALL)


# -- tokens ------------------------------------------------------------------------------------------------------------


def tokens_differ(facts: Facts) -> Iterator[Seen]:
    """Rows of one place that are other tokens, where rows are merged by their numbers."""
    for index, (path, other, name) in _tokenizers(facts):
        mine, theirs = rows_of(path), rows_of(other)
        clashes = [row for row, token in mine.items() if theirs.get(row, token) != token]
        tables = _tables(facts, {len(mine), len(theirs)}) if clashes else []
        merged = [min(spec[name].shape[:1] for spec in facts.specs if name in spec) for name in tables]
        clashes = [row for row in clashes if (row,) < max(merged, default=())]  # tokens may have no row
        if clashes:
            row = clashes[0]
            text = (
                f"{name}: {len(clashes):,} rows are other tokens, as row {row}: {mine[row]!r} in {facts.labels[0]} and "
                f"{theirs[row]!r} in {facts.labels[index]}"
            )
            advice = (
                f"leave the rows and the tokenizer of the first with {chosen('keep', tables, facts.wanted)}, or merge "
                "rows by token with tokenizer='first'"
            )
            yield Seen(text, advice, tuple(tables))
            return


def tokenizers_differ(facts: Facts) -> Iterator[Seen]:
    """Tokenizer files that differ and whose rows cannot be read."""
    for index, (path, other, name) in _tokenizers(facts):
        if not rows_of(path) or not rows_of(other):
            text = (
                f"{name} differs between {facts.labels[0]} and {facts.labels[index]}, and its rows cannot be read here"
            )
            yield Seen(text, "see that the tokens that both have are of one row: rows are merged by their position")
            return


def _tokenizers(facts: Facts) -> Iterator[tuple[int, tuple[Path, Path, str]]]:
    """Tokenizer files of the first and of another that are not the same bytes."""
    first = facts.sidecars[0].tokenizers if facts.sidecars and not facts.policy.tokenizer else {}
    for index, item in enumerate(facts.sidecars[1:], 1):
        for name in first:
            if name in item.tokenizers and not _same_bytes(first[name], item.tokenizers[name]):
                yield index, (first[name], item.tokenizers[name], name)


def unlike_vocabularies(facts: Facts) -> Iterator[Seen]:
    """Tokens that one model cuts texts into and another does not, which a union would cut out of all texts first."""
    known = [tokens_of(item) for item in facts.inputs] if facts.policy.tokenizer == "union" else []
    first = known[0] if known else None
    if first is None or not first.files:
        return
    for label, its in list(zip(facts.labels, known, strict=True))[1:]:
        plain = [token for token in its.rows if token not in its.added] if its else []
        foreign = [token for token in plain if token not in first.rows]
        if its and foreign:
            text = (
                f"{len(foreign):,} tokens of {label} are plain ones of another {its.kind} vocabulary than that of "
                f"{facts.labels[0]}, as {foreign[0]!r}: added to it they are cut out of every text before it cuts the "
                "rest, so texts are no longer cut as either model has learned"
            )
            yield Seen(text, f"choose one vocabulary, as tokenizer={facts.labels[0]!r} or tokenizer={label!r}")
            return


def templates_differ(facts: Facts) -> Iterator[Seen]:
    """Chat templates that differ, where a vocabulary is chosen and with it a template."""
    if not facts.policy.tokenizer:
        return
    known = [tokens_of(item) for item in facts.inputs]
    texts = {label: its.template for label, its in zip(facts.labels, known, strict=True) if its and its.template}
    if len(set(texts.values())) > 1:
        yield Seen(
            f"the chat templates of {' and '.join(texts)} differ, and the result has that of its tokenizer, if any",
            "see that it is the one that the result shall be asked with",
        )


def _same_bytes(first: Path, second: Path) -> bool:
    """Whether two files are the same, or tokenizer.json that differ in what is no row: padding, templates."""
    one, two = first.read_bytes(), second.read_bytes()
    parts = [_ROWS.findall(data) if first.name == "tokenizer.json" else [] for data in (one, two)]
    at, other = (data.rfind(b'"model"') for data in (one, two))
    return one == two or (bool(parts[0]) and parts[0] == parts[1] and at > 0 and one[at:] == two[other:])


def _tables(facts: Facts, sizes: set[int]) -> list[str]:
    """Merged tensors whose rows are tokens: by their names, or by as many rows as a vocabulary has."""
    sizes |= {size for item in facts.sidecars if type(size := item.config.get("vocab_size")) is int}
    found: list[str] = []
    for name in facts.merged:
        shape = facts.first_of(name).shape
        if VOCABULARY.fullmatch(name) or (
            TABLES.fullmatch(name) and shape and (shape[0] in sizes or shape[0] >= max(sizes))
        ):
            found.append(name)
    return found


# -- classes -----------------------------------------------------------------------------------------------------------


def labels_differ(facts: Facts) -> Iterator[Seen]:
    """Heads with as many classes, of which the same row is another class, or another task's."""
    each = [labels_of(item) for item in facts.sidecars]
    for index, mine in enumerate(each):
        for place in range(index):
            differing = [row for row, label in mine.items() if each[place].get(row, label) != label]
            if len(mine) != len(each[place]) or not differing:
                continue
            heads = _heads(facts, len(mine))
            if heads:
                row = differing[0]
                text = (
                    f"the classes differ: row {row} is {each[place][row]!r} in {facts.labels[place]} and {mine[row]!r} "
                    f"in {facts.labels[index]}"
                )
                advice = (
                    "rows of other classes do not correspond: leave those of the first with "
                    f"{chosen('keep', heads, facts.wanted)}, or leave them out with drop and train new ones"
                )
                yield Seen(text, advice, tuple(heads))
                return


def labels_of(sidecars: Sidecars) -> dict[int, str]:
    """The class of every row, from the configuration or a training file's entry; empty where only numbers are given."""
    given: list[Any] = [sidecars.config.get("id2label"), *(sidecars.labels.get(name) for name in LABELS)]
    for value in given:
        found = _rows(value)
        if len(found) > 1 and not all(re.fullmatch(r"(LABEL_)?\d+", label) for label in found.values()):
            return found
    return {}


def _rows(value: Any) -> dict[int, str]:
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {}
    if all(type(row) is int for row in value.values()):
        return {row: str(label) for label, row in value.items()}
    return {int(row): str(label) for row, label in value.items() if str(row).isdigit() and isinstance(label, str)}


def _heads(facts: Facts, classes: int) -> list[str]:
    found: list[str] = []
    for name in facts.merged:
        shape = facts.first_of(name).shape
        if (
            shape[:1] == (classes,)
            and len(shape) <= 2
            and (len(shape) == 2 or any(map(HEAD.fullmatch, name.split("."))))
        ):
            found.append(name)
    named = [name for name in found if any(map(HEAD.fullmatch, name.split(".")))]
    return named or found


# -- ties --------------------------------------------------------------------------------------------------------------


def tied_and_untied(facts: Facts) -> Iterator[Seen]:
    """Give a name that some tie to another, which all have, and that others lack or give values of its own."""
    lacking = [] if facts.same_names else [n for n in facts.wanted if any(n not in spec for spec in facts.specs)]
    found = {name: partner for name in lacking if (partner := _partner(name, facts))}
    if found:
        name, partner = next(iter(found.items()))
        without = [label for label, spec in zip(facts.labels, facts.specs, strict=True) if name not in spec]
        tied = [
            index for index, spec in enumerate(facts.specs) if name in spec and _is_tied(index, name, partner, facts)
        ]
        if len(tied) == sum(name in spec for spec in facts.specs):
            text = f"{', '.join(without)} lacks {listed(list(found))}, tied to {partner} in {facts.labels[tied[0]]}"
            advice = (
                f"leave out with {chosen('drop', list(found), facts.wanted)}: {partner} is merged, and stands for both"
            )
        else:
            holder = next(label for label, spec in zip(facts.labels, facts.specs, strict=True) if name in spec)
            text = f"{', '.join(without)} ties {name} to {partner}, and {holder} has values of its own there"
            advice = f"pass untie=True: {partner} of {without[0]} is then merged as its {name} too"
        yield Seen(text, advice, tuple(found))
        return
    yield from _tied_by_the_first(facts)


def _tied_by_the_first(facts: Facts) -> Iterator[Seen]:
    """The first's configuration ties what another has untied: whoever loads the result gets the tie."""
    if facts.policy.untie:
        return
    says = [item.config.get("tie_word_embeddings") for item in facts.sidecars]
    untied = [index for index in facts.experts if index < len(says) and says[index] is False]
    heads = [name for name in facts.common if TIED.fullmatch(name)] if untied else []
    first = facts.experts[0] if facts.experts else 0
    if heads and untied and says[0] is True and says[first] is True:
        label = facts.labels[untied[0]]
        text = f"the configuration of {facts.labels[0]} ties {heads[0]} to the embeddings, that of {label} does not"
        yield Seen(
            text, f"name {label} first: the result then has its configuration, and a head of its own", tuple(heads)
        )


def _partner(name: str, facts: Facts) -> str:
    """The common name that this one is tied to, by storage or by a configuration; "" where it is tied to none."""
    for spec in facts.specs:
        if name in spec and spec[name].tie is not None:
            found = next((other for other in facts.common if spec[other].tie == spec[name].tie), "")
            if found:
                return found
    says = [item.config.get("tie_word_embeddings") for item in facts.sidecars]
    if TIED.fullmatch(name) and True in says:
        shape = facts.first_of(name).shape
        tables = [
            other for other in facts.common if other.endswith(("embed_tokens.weight", "wte.weight", "shared.weight"))
        ]
        tables += [other for other in facts.common if VOCABULARY.fullmatch(other) and not TIED.fullmatch(other)]
        return next((other for other in tables if facts.first_of(other).shape[1:] == shape[1:]), "")
    return ""


def _is_tied(index: int, name: str, partner: str, facts: Facts) -> bool:
    spec = facts.specs[index]
    stored = spec[name].tie is not None and spec[name].tie == spec[partner].tie
    said = facts.sidecars[index].config.get("tie_word_embeddings") if facts.sidecars else None
    return stored or said is True
