"""What lies beside weights and says what they mean: configurations, tokenizers, and what training files note."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checkpoint.noted import plain
from merge.checkpoint.open import Checkpoint

# Files that say what the tensors are. Generation settings and templates do not.
CONFIGS = (
    *("config.json", "scheduler_config.json", "preprocessor_config.json", "adapter_config.json"),
    *("params.json", "open_clip_config.json"),  # of Llama's own files, of OpenCLIP
)
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
PIPELINES = ("model_index.json", "modules.json")  # folders of parts, some of which have no weights
# A file of weights is of its folder where tools give it this name; others may lie beside anything.
CONVENTIONAL = re.compile(
    r"((pytorch_)?model|diffusion_pytorch_model|adapter_model|consolidated)([.-][\w.-]+)?\.(safetensors|bin|pth?)"
    r"(\.index\.json)?|[\w.-]+-\d{5}-of-\d{5}\.\w+|[\w.-]+\.index\.json"
)
# Entries of training files that name the classes of a head.
LABELS = ("idx_to_class", "id2label", "class_to_idx", "label2id", "classes", "class_names", "names", "labels")
LARGEST = 64 << 20  # bytes of a text file that is looked at


@dataclass(frozen=True)
class Sidecars:
    """What lies beside one checkpoint's weights.

    Attributes:
        files: those of `CONFIGS` and `TOKENIZERS`, by their names relative to the checkpoint's folder.
        noted: what a training file notes of its model, by the entry's name.
        labels: what it notes of its classes, by the entry's name.
        metadata: the text metadata of the weights' file.
    """

    files: Mapping[str, Path]
    noted: Mapping[str, Mapping[str, Any]]
    labels: Mapping[str, Any]
    metadata: Mapping[str, str]

    @functools.cached_property
    def configs(self) -> dict[str, Mapping[str, Any]]:
        """The configuration files that can be read, by name."""
        found = {name: _read(path) for name, path in self.files.items() if path.name in CONFIGS}
        return {name: value for name, value in found.items() if isinstance(value, dict)}

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's own configuration, empty where there is none."""
        return self.configs.get("config.json", {})

    @property
    def peft_type(self) -> str:
        """The kind of adapter that the folder says it is, empty where it is none."""
        return str(self.configs.get("adapter_config.json", {}).get("peft_type") or "")

    @property
    def tokenizers(self) -> dict[str, Path]:
        """Tokenizer files by name."""
        return {name: path for name, path in self.files.items() if path.name in TOKENIZERS}


NOTHING = Sidecars({}, {}, {}, {})


def sidecars_of(source: object) -> Sidecars:
    """Give what lies beside a checkpoint; nothing beside a state dict."""
    if not isinstance(source, Checkpoint):
        return NOTHING
    tree = getattr(source.content.kept, "tree", None)
    entries = {key: value for key, value in tree.items() if isinstance(key, str)} if isinstance(tree, dict) else {}
    labels = {key: plain(value) for key, value in entries.items() if key in LABELS}
    return Sidecars(_files(source), source.noted, labels, source.metadata)


def _files(source: Checkpoint) -> dict[str, Path]:
    root = source.path if source.path.is_dir() else source.path.parent
    if source.path != root and not CONVENTIONAL.fullmatch(source.path.name):
        return {}
    folders = [root, *dict.fromkeys(file.parent for file in source.files if root in file.parent.parents)]
    if source.path == root and any((root / name).is_file() for name in PIPELINES):
        folders += [item for item in sorted(root.iterdir()) if item.is_dir() and item not in folders][:64]
    looked = [folder / name for folder in folders for name in (*CONFIGS, *TOKENIZERS)]
    return {path.relative_to(root).as_posix(): path for path in looked if path.is_file()}


def _read(path: Path) -> Any:
    """JSON, None where it cannot be read: what is wrong with it is told by those who need it."""
    try:
        return json.loads(path.read_bytes()) if path.stat().st_size <= LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None


def rows_of(path: Path) -> dict[int, str]:
    """Give the token of every row, from a tokenizer file; empty where the file does not say."""
    return _rows_at(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _rows_at(path: Path, changed: int) -> dict[int, str]:
    """The same of a file last changed at that time: several checks ask for it."""
    if path.name == "vocab.txt":
        text = path.read_text(encoding="utf-8", errors="replace") if path.stat().st_size <= LARGEST else ""
        return dict(
            enumerate(text.removesuffix("\n").split("\n")) if text else ()
        )  # other signs of a line's end are tokens
    data = _read(path) if path.suffix == ".json" else None
    if not isinstance(data, dict):
        return {}
    model = data.get("model")
    vocab: Any = model.get("vocab") if isinstance(model, dict) else data
    rows: dict[int, str] = {}
    if isinstance(vocab, dict):
        rows = {row: token for token, row in vocab.items() if type(row) is int}
    elif isinstance(vocab, list):  # Unigram: pairs of token and score
        rows = {row: str(item[0]) for row, item in enumerate(vocab) if isinstance(item, list) and item}
    added = data.get("added_tokens")
    for item in added if isinstance(added, list) else ():
        if isinstance(item, dict) and type(item.get("id")) is int:
            rows[item["id"]] = str(item.get("content"))
    return rows
