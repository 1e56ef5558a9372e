"""Folders of tiny language models with tokenizers, as transformers loads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.merge.handmade import random_tensor

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PLAIN = ("<unk>", "the", "cat", "dog", "ran")


def tokenizer_json(plain: Sequence[str], added: Mapping[str, int] | None = None) -> dict[str, Any]:
    """A tokenizer of whole words; `added` tokens, by row, are cut out first."""
    settings = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    listed = [{"id": row, "content": token, **settings, "special": True} for token, row in (added or {}).items()]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": listed,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {t: row for row, t in enumerate(plain)}, "unk_token": "<unk>"},
    }


def language_model(
    folder: Path,
    seed: int,
    plain: Sequence[str] = PLAIN,
    added: Sequence[str] = (),
    *,
    padding: int = 0,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    template: str = "",
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A folder with an embedding, a head unless it is tied, one other tensor, and rows of no token at the end."""
    folder.mkdir(parents=True)
    rows = len(plain) + len(added) + padding
    held = {EMBED: random_tensor((rows, 3), dtype, seed), "model.w": random_tensor((3, 3), dtype, seed + 1)}
    if not tied:
        held[HEAD] = random_tensor((rows, 3), dtype, seed + 2)
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    said = {"model_type": "llama", "vocab_size": rows, "tie_word_embeddings": tied, **(config or {})}
    (folder / "config.json").write_text(json.dumps(said))
    numbered = {token: len(plain) + index for index, token in enumerate(added)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(plain, numbered)))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def by_token(tensor: Tensor, tokens: Sequence[str]) -> dict[str, list[float]]:
    """A table's rows by the tokens of its first rows."""
    return dict(zip(tokens, tensor.tolist(), strict=False))
