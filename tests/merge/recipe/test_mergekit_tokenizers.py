"""mergekit's recorded folders with `tokenizer`: rows by token, the tokenizer and the size of the vocabulary."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import merge
from merge import MergeError, MergeWarning, open_checkpoint, read_recipe
from merge.plan.tokens import tokens_at
from tests import DATA
from tests.merge.ways import QUICK

FOLDER = DATA / "mergekit_folders"


@cache
def recordings() -> dict[str, Any]:
    return json.loads((FOLDER / "tokenizers.json").read_text())


@pytest.mark.parametrize("name", recordings())
def test_near_the_recording(tmp_path: Path, name: str) -> None:
    recorded = recordings()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MergeWarning)  # of chat templates that differ
        out = merge.run(read_recipe(FOLDER / f"{name}.yml"), tmp_path / "out", QUICK)
    got, found = open_checkpoint(out), tokens_at(out)
    assert found is not None
    assert found.rows == recorded["tokens"]
    added = {row: item["content"] for row, item in recorded["added"].items() if item["special"]}
    assert {str(found.rows[token]): token for token, its in found.added.items() if its["special"]} == added
    assert (found.template or None) == recorded["template"]
    assert json.loads((out / "config.json").read_text())["vocab_size"] == recorded["vocab_size"]
    for tensor, theirs in load_file(FOLDER / recorded["file"]).items():
        assert got[tensor].shape == theirs.shape
        rows = slice(len(found.rows)) if theirs.dtype == torch.bfloat16 else slice(None)  # rounded once here
        torch.testing.assert_close(got[tensor][rows], theirs[rows], rtol=0, atol=1e-6)


def test_a_source_that_is_not_there_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="'<tool>' as 'base:nosuch': base has no token 'nosuch'"):
        merge.run(read_recipe(FOLDER / "tok_override_missing.yml"), tmp_path / "out")
    assert not list(tmp_path.iterdir())
