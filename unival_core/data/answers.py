"""Lists of allowed answers: given, read from a file, or found in training data."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merge import Checkpoint, open_checkpoint
from unival_core.config import UnivalConfig
from unival_core.data.table import TsvTable
from unival_core.data.task import Task
from unival_core.errors import UnivalError
from unival_core.metrics.captions import PlainUnpickler
from unival_core.text import Trie
from unival_core.vocabulary import Tokenizer

STORED = "expert.answers."  # and the task: in a file's metadata; merging keeps from all inputs what begins with expert


class Answers:
    """The only answers a task allows: `texts` as they are scored, their `ids` (without eos), and the `trie` of ids."""

    def __init__(self, texts: Sequence[str], ids: Sequence[Sequence[int]], vocabulary: int) -> None:
        self.texts, self.ids, self.vocabulary = tuple(texts), [list(row) for row in ids], vocabulary
        self.trie = Trie(self.ids)
        self._known = frozenset(texts)
        self._by_ids = {tuple(row): text for text, row in reversed(list(zip(self.texts, self.ids, strict=True)))}

    def __len__(self) -> int:
        return len(self.texts)

    def __contains__(self, text: object) -> bool:
        return text in self._known

    def text(self, ids: Sequence[int]) -> str:
        """Return the answer that ids spell, the first in the list of several; "" for ids that are none."""
        return self._by_ids.get(tuple(ids), "")


def allowed_answers(texts: Sequence[str], tokenizer: Tokenizer, config: UnivalConfig) -> Answers | None:
    """Prepare the only answers a model may give; None if there is no list.

    Raises UnivalError where the tokenizer lacks a word of one: answers could not be told apart.
    """
    if not texts:
        return None
    texts = list(dict.fromkeys(texts))
    for text in texts:
        if lacking := tokenizer.unknown(f" {text}"):
            raise UnivalError(
                f"answer {text!r}: the tokenizer has no word {lacking[0]!r}: leave the answer out, or start from a "
                "model whose vocabulary was trained with it (Tokenizer.train)"
            )
    return Answers(texts, [tokenizer.encode(f" {text}") for text in texts], config.vocabulary)


def found_answers(task: Task, table: TsvTable) -> list[str]:
    """Return the targets of all valid rows of a table (the training data), most frequent first."""
    counts: Counter[str] = Counter()
    for row in range(len(table)):
        try:
            counts[str(task.target(table[row], None))] += 1
        except UnivalError:
            continue
    return sorted(counts, key=lambda text: (-counts[text], text))


def load_answers(path: str | Path, task: Task) -> list[str]:
    """Return the answers in a file: .txt, one a line; .json or .pkl, a list, a dict from answers to numbers (as
    published), or a dict with lists by task under "answers"; .tsv, those of a training file of the task.

    Of a pickle only plain containers are read; whatever else it names is refused with UnivalError, and nothing runs.
    """
    path = Path(path)
    if path.suffix == ".tsv":
        return found_answers(task, TsvTable(path, task.columns, task.selected_cols))
    try:
        if path.suffix == ".txt":
            return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
        if path.suffix == ".json":
            return _listed(json.loads(path.read_text(encoding="utf-8")), task, path)
        if path.suffix in (".pkl", ".p"):
            with path.open("rb") as file:
                return _listed(PlainUnpickler(file).load(), task, path)
    except OSError as error:
        raise UnivalError(f"{path}: {error.strerror}") from None
    except (ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UnivalError(f"{path}: not a list of answers ({error})") from None
    raise UnivalError(f"{path}: a list of answers is a .txt, .json, .pkl or .tsv file")


def stored_answers(checkpoint: str | Path | Checkpoint, task: str, section: str = "auto") -> list[str] | None:
    """Return the answers that a model was trained to choose among on a task, as its file says: none where they were
    free, None where the file says nothing.

    Raises UnivalError for a file that says nonsense.
    """
    file = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint, section)
    text = file.metadata.get(f"{STORED}{task}")
    try:
        found = None if text is None else json.loads(text)
    except ValueError:
        found = text
    if found is None or (isinstance(found, list) and all(isinstance(answer, str) for answer in found)):
        return found
    raise UnivalError(f"{file.path}: its metadata {STORED}{task} is no list of answers: give one")


def _listed(value: Any, task: Task, path: Path) -> list[str]:
    if isinstance(value, dict) and isinstance(value.get("answers"), dict):
        value = value["answers"].get(task.name, [])
    if isinstance(value, (dict, list, tuple)) and value and all(isinstance(text, str) for text in value):
        return list(value)
    raise UnivalError(f"{path}: no answers of {task.name} in it")
