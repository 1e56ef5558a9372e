"""The row of every token of a checkpoint: from its tokenizer's files, or the dictionary that its own file holds."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge.checkpoint.open import Checkpoint
from merge.errors import MergeError, shortened

TOKENIZER = re.compile(
    r"tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt|bpe)|merges\.txt"
    r"|.*\.(tiktoken|model)|chat_template\..*|tokenization_.*\.py"
)
JSON, CONFIG, ADDED, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "chat_template.jinja"
_LARGEST = 256 << 20  # bytes of a file that is read as a whole
# What a token that a list only names is taken to be, in the words of tokenizer.json.
PLAIN: Mapping[str, Any] = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


@dataclass(frozen=True)
class Tokens:
    """What is known of the tokens of one checkpoint.

    Attributes:
        rows: the row of every token.
        added: the settings of tokens that are cut out of a text before its model cuts the rest, by token.
        kind: the model: "BPE", "WordPiece", "Unigram", "WordLevel", "SentencePiece", or "dictionary" of one that has no
            tokenizer's files.
        files: the tokenizer's files by name.
    """

    rows: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    kind: str = "dictionary"
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])

    @functools.cached_property
    def by_row(self) -> dict[int, str]:
        """The token of every row that has one."""
        return {row: token for token, row in reversed(list(self.rows.items()))}

    @property
    def template(self) -> str:
        """The chat template; empty where there is none."""
        return template_in(self.files)


def tokens_of(source: object) -> Tokens | None:
    """Give the tokens of an open checkpoint: by its own dictionary, as OFASys has, else by what lies beside it.

    None where nothing says them. Raises MergeError for files that cannot be read.
    """
    if not isinstance(source, Checkpoint):
        return None
    if source.tokens is not None:
        return Tokens(source.tokens)
    return tokens_at(source.path if source.path.is_dir() else source.path.parent)


def has_tokenizer(source: object) -> bool:
    """Tell whether a tokenizer's files lie beside an open checkpoint, whether or not they can be read."""
    folder = source.path if isinstance(source, Checkpoint) else None
    return folder is not None and folder.is_dir() and any(TOKENIZER.fullmatch(item.name) for item in folder.iterdir())


def tokens_at(path: Path) -> Tokens | None:
    """Give the tokens that the tokenizer's files of a folder, or tokenizer.json, say; None where there are none."""
    if path.is_file() and path.name != JSON:
        raise MergeError(f"{path}: a tokenizer is {JSON}, or the folder with a tokenizer's files")
    folder = path if path.is_dir() else path.parent
    with contextlib.suppress(OSError):
        named = ((item.name, item) for item in sorted(folder.iterdir()))
        files = {name: item for name, item in named if TOKENIZER.fullmatch(name) and item.is_file()}
        return _read(tuple((name, item, item.stat().st_mtime_ns) for name, item in files.items()))
    return None


@functools.lru_cache(maxsize=16)
def _read(described: tuple[tuple[str, Path, int], ...]) -> Tokens | None:
    """The same of files that were last changed at these times: several ask for it."""
    files = {name: path for name, path, _ in described}
    added: dict[str, Mapping[str, Any]] = {}
    for name, read in (
        (JSON, _tokenizer),
        ("vocab.json", _vocabulary),
        ("vocab.txt", _lines),
        ("tokenizer.model", _pieces),
    ):
        if name in files:
            if files[name].stat().st_size > _LARGEST:
                raise MergeError(f"{files[name]}: larger than a tokenizer's file is")
            kind, rows = read(files[name], added)
            break
    else:
        unread = [name for name in files if name.endswith((".tiktoken", ".model", ".bpe", ".py"))]
        if unread:
            raise MergeError(
                f"{files[unread[0]]}: the tokens of such a file are not read here: save {JSON} beside it, as "
                "save_pretrained of a fast tokenizer of transformers does"
            )
        return None
    _lists(files, rows, added)
    rows = dict(sorted(rows.items(), key=lambda item: (item[1], item[0])))  # the library has them in no order
    return Tokens(rows, added, kind, files)


def _tokenizer(path: Path, added: dict[str, Mapping[str, Any]]) -> tuple[str, dict[str, int]]:
    """What tokenizer.json says."""
    read = loaded(path.read_text(encoding="utf-8", errors="replace"), path)
    for item in read.get_added_tokens_decoder().values():
        added[item.content] = {key: getattr(item, key) for key in PLAIN}
    return type(read.model).__name__, read.get_vocab(with_added_tokens=True)


def loaded(text: str, path: Path) -> Any:
    """Give the tokenizer that the text of a tokenizer.json means.

    Raises MergeError where the library that loads such files cannot read it.
    """
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library has no class of its own
        raise MergeError(f"{path}: cannot be read as a tokenizer: {shortened(str(error))}") from error


def _vocabulary(path: Path, added: dict[str, Mapping[str, Any]]) -> tuple[str, dict[str, int]]:
    data = read_json(path)
    rows = {str(token): row for token, row in data.items() if type(row) is int}
    if not rows or len(rows) < len(data):
        raise MergeError(f"{path}: is no mapping from tokens to rows")
    return "BPE", rows


def _lines(path: Path, added: dict[str, Mapping[str, Any]]) -> tuple[str, dict[str, int]]:
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    rows: dict[str, int] = {}
    for row, token in enumerate(lines):  # other signs of a line's end are tokens
        rows.setdefault(token.removesuffix("\r"), row)
    return "WordPiece", rows


def _pieces(path: Path, added: dict[str, Mapping[str, Any]]) -> tuple[str, dict[str, int]]:
    """The pieces of a SentencePiece model: messages in field 1 of a protobuf, whose field 1 is the text."""
    data, rows = path.read_bytes(), dict[str, int]()
    try:
        for number, content in _fields(data):
            if number == 1 and isinstance(content, bytes):
                text = next(item for field, item in _fields(content) if field == 1)
                assert isinstance(text, bytes)
                rows.setdefault(text.decode("utf-8"), len(rows))
    except (IndexError, ValueError, StopIteration, AssertionError):
        rows = {}
    if not rows:
        raise MergeError(
            f"{path}: is no model of SentencePiece, and its tokens cannot be read here: save {JSON} beside it"
        )
    return "SentencePiece", rows


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a protobuf message. Raises ValueError or IndexError for what is none."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind, size = key & 7, {1: 8, 5: 4}.get(key & 7, 0)
        if kind == 0:
            value, at = _varint(data, at)
            found.append((key >> 3, value))
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif not size:
            raise ValueError
        if at + size > len(data):
            raise ValueError
        found.append((key >> 3, data[at : at + size]))
        at += size
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _lists(files: Mapping[str, Path], rows: dict[str, int], added: dict[str, Mapping[str, Any]]) -> None:
    """Add the tokens that are listed beside a vocabulary."""
    listed = read_json(files.get(CONFIG)).get("added_tokens_decoder")
    for row, item in listed.items() if isinstance(listed, dict) else ():
        if isinstance(item, dict) and isinstance(item.get("content"), str) and str(row).isdecimal():
            token = item["content"]
            rows.setdefault(token, int(row))
            added.setdefault(token, {key: item.get(key) is True for key in PLAIN})
    for token, row in read_json(files.get(ADDED)).items():
        if type(row) is int:
            rows.setdefault(token, row)
            added.setdefault(token, PLAIN)


def template_in(files: Mapping[str, Path]) -> str:
    """Give the chat template that a tokenizer's files say; empty where there is none."""
    with contextlib.suppress(OSError, ValueError):
        if TEMPLATE in files:
            return files[TEMPLATE].read_text(encoding="utf-8")
    text = read_json(files.get(CONFIG)).get("chat_template")
    return text if isinstance(text, str) else ""


def read_json(path: Path | None) -> dict[str, Any]:
    """Give a JSON file's mapping; empty where there is none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        data = json.loads(path.read_text(encoding="utf-8")) if path else None
        return data if isinstance(data, dict) else {}
    return {}
