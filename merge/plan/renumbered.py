"""Files that name tokens or their rows, for the vocabulary of a result: the tokenizer's own, and configurations."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge.errors import MergeError
from merge.plan.tokens import ADDED, CONFIG, JSON, Tokens, loaded, read_json
from merge.plan.vocabulary import Vocabulary

# Keys whose numbers are rows of tokens; of forced_decoder_ids the second of each pair.
_IDS = re.compile(r"(\w+_)?token_(ids?|index)|(begin_)?suppress_tokens|bad_words_ids|forced_decoder_ids")


def tokenizer_files(vocabulary: Vocabulary, lying: Mapping[str, Path]) -> dict[str, bytes | Path | None]:
    """Give the files of the result's tokenizer; `lying` are those of the first input, of which the others go.

    Raises MergeError where a file cannot have the tokens that it lacks.
    """
    base = vocabulary.base.files
    found: dict[str, bytes | Path | None] = {name: base.get(name) for name in {**lying, **base}}
    found = {name: path for name, path in found.items() if path != lying.get(name)}
    if not vocabulary.new or not base:
        return found
    rows = {token: vocabulary.tokens[token] for token in vocabulary.new}
    if JSON in base:
        data = read_json(base[JSON])
        listed = data.get("added_tokens") or []
        new = [{"id": row, "content": token, **vocabulary.new[token]} for token, row in rows.items()]
        found[JSON] = _text({**data, "added_tokens": [*listed, *new]})
        _check(found[JSON], vocabulary)
    config = read_json(base.get(CONFIG))
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] |= {
            str(row): {"content": token, **vocabulary.new[token]} for token, row in rows.items()
        }
        found[CONFIG] = _text(config)
    if ADDED in base or JSON not in base:
        found[ADDED] = _text({**read_json(base.get(ADDED)), **rows})
    return found


def _check(text: bytes | Path | None, vocabulary: Vocabulary) -> None:
    """Raise MergeError where a tokenizer gives tokens other rows than were meant: it numbers what it adds itself."""
    assert isinstance(text, bytes)
    read = loaded(text.decode(), vocabulary.base.files[JSON]).get_vocab(with_added_tokens=True)
    wrong = next((token for token, row in vocabulary.tokens.items() if read.get(token, row) != row), None)
    if wrong is not None:
        raise MergeError(
            f"{vocabulary.base.files[JSON]}: numbers its tokens otherwise when some are added ({wrong!r} would be "
            f"{read[wrong]}, not {vocabulary.tokens[wrong]}): choose the vocabulary of one input"
        )


def renumber(
    config: dict[str, Any], where: str, first: Tokens, vocabulary: Vocabulary, own: Mapping[str, Any]
) -> list[str]:
    """Change the rows of tokens that a configuration names to the result's; tells what was changed.

    `first` are the tokens that the configuration means, `own` is the configuration beside the result's tokenizer, which
    says what a token is that the result lacks. Raises MergeError for a row that is no token's.
    """
    told: list[str] = []
    for key, value in list(config.items()):
        if isinstance(value, dict):
            inner = own.get(key)
            told += renumber(value, f"{where}: {key}", first, vocabulary, inner if isinstance(inner, dict) else {})
        elif _IDS.fullmatch(key) and value is not None:
            new = _renumbered(value, f"{where}: {key}", first, vocabulary, pairs=key == "forced_decoder_ids")
            if new in (None, []):
                new = own.get(key)
            if new != value:
                config[key] = new
                told.append(f"{key} {json.dumps(new)}")
    return told


def _renumbered(value: Any, where: str, first: Tokens, vocabulary: Vocabulary, *, pairs: bool = False) -> Any:
    if isinstance(value, list):
        if pairs and len(value) == 2 and type(value[0]) is int:
            return [value[0], _renumbered(value[1], where, first, vocabulary)]
        each = [_renumbered(item, where, first, vocabulary, pairs=pairs) for item in value]
        return [item for item in each if item is not None]
    if type(value) is not int or value < 0:
        return value
    if value not in first.by_row:
        raise MergeError(
            f"{where} is {value}, which is no token of the first input, so nobody knows its row in the result: correct "
            "it there first"
        )
    return vocabulary.tokens.get(first.by_row[value])


def _text(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n"
