"""Files that say what the tensors are follow the result, or it is refused: config.json, tokenizers, notes of ties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge import MergeError, Policy, load_checkpoint, run
from merge.checkpoint.noted import plain
from tests.merge.handmade import random_tensor
from tests.merge.shell import done
from tests.merge.ways import QUICK, recipe_of

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def model(
    folder: Path,
    rows: int,
    *,
    config: dict[str, Any] | None = None,
    tokens: list[str] | None = None,
    head: bool = False,
) -> Path:
    """A folder with an embedding of so many rows, a configuration that says so and a tokenizer of `tokens`."""
    folder.mkdir()
    held = {
        EMBEDDING: random_tensor((rows, 2), torch.float32, rows),
        "model.w": random_tensor((2, 2), torch.float32, 1),
    }
    if head:
        held[HEAD] = random_tensor((rows, 2), torch.float32, 5)
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps({"vocab_size": rows, "dtype": "float32"} if config is None else config)
    )
    if tokens is not None:
        vocab = {token: row for row, token in enumerate(tokens)}
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
        (folder / "tokenizer_config.json").write_text("{}")
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


ROWS = Policy(vocab_rows="keep-first")


@pytest.mark.parametrize("nested", [False, True])
def test_the_vocabulary_and_the_tokenizer_follow_the_rows(nested: bool, tmp_path: Path) -> None:
    said, other = ({"text_config": {"vocab_size": rows, "hidden": 2}, "a": 1} if nested else None for rows in (3, 5))
    pair = {
        "a": model(tmp_path / "a", 3, config=said, tokens=["x", "y", "z"]),
        "b": model(tmp_path / "b", 5, config=other, tokens=["x", "y", "z", "new", "more"]),
    }
    (pair["a"] / "chat_template.jinja").write_text("of a")
    out = run(recipe_of("average", pair, {}, ROWS), tmp_path / "out", QUICK)
    config = config_of(out)
    assert (config["text_config"] if nested else config)["vocab_size"] == 5 == len(load_checkpoint(out)[EMBEDDING])
    assert (out / "tokenizer.json").read_bytes() == (pair["b"] / "tokenizer.json").read_bytes()
    assert not (out / "chat_template.jinja").exists(), "a template of another tokenizer"
    notes = json.loads((tmp_path / "out.recipe.json").read_text())["output"]["notes"]
    assert "the tokenizer is that of b, which has the rows of the result" in notes
    assert "config.json follows the weights: vocab_size 5" in notes
    turned = run(recipe_of("average", dict(reversed(pair.items())), {}, ROWS), tmp_path / "turned", QUICK)
    assert (turned / "config.json").read_bytes() == (pair["b"] / "config.json").read_bytes()
    assert (turned / "tokenizer.json").read_bytes() == (pair["b"] / "tokenizer.json").read_bytes()


def test_rows_of_unlike_tokens_are_refused(tmp_path: Path) -> None:
    pair = {
        "a": model(tmp_path / "a", 3, tokens=["x", "y", "z"]),
        "b": model(tmp_path / "b", 4, tokens=["x", "z", "y", "new"]),
    }
    with pytest.raises(MergeError, match="row 1: 'y' in a and 'z' in b"):
        run(recipe_of("average", pair, {}, ROWS), tmp_path / "out", QUICK)
    kept = run(recipe_of("average", pair, {}, Policy(keep=("*embed_tokens*",))), tmp_path / "kept", QUICK)
    assert config_of(kept)["vocab_size"] == 3
    assert (kept / "tokenizer.json").read_bytes() == (pair["a"] / "tokenizer.json").read_bytes()
    picked = run(recipe_of("average", pair, {}, Policy(pick=("*embed_tokens*=b",))), tmp_path / "picked", QUICK)
    assert config_of(picked)["vocab_size"] == 4
    assert (picked / "tokenizer.json").read_bytes() == (pair["b"] / "tokenizer.json").read_bytes()


def test_rows_whose_tokens_nobody_knows_are_refused(tmp_path: Path) -> None:
    pair = {"a": model(tmp_path / "a", 3, tokens=["x", "y", "z"]), "b": model(tmp_path / "b", 5)}
    with pytest.raises(MergeError, match="has the rows of b, beside which no tokenizer lies"):
        run(recipe_of("average", pair, {}, ROWS), tmp_path / "out", QUICK)
    said = {"c": model(tmp_path / "c", 3, config={"vocab_size": 7}), "b": pair["b"]}
    with pytest.raises(MergeError, match="says another vocab_size than the 3 of the first input's weights"):
        run(recipe_of("average", said, {}, ROWS), tmp_path / "out", QUICK)


def test_the_dtype_follows(tmp_path: Path) -> None:
    old = {"torch_dtype": "float32", "vision_config": {"torch_dtype": "float32"}}
    pair = {"a": model(tmp_path / "a", 3, config=old), "b": model(tmp_path / "b", 3)}
    out = run(recipe_of("average", pair, {}, Policy(dtype="bfloat16")), tmp_path / "out", QUICK)
    assert config_of(out) == {"torch_dtype": "bfloat16", "vision_config": {"torch_dtype": "bfloat16"}}
    same = run(recipe_of("average", pair, {}, Policy()), tmp_path / "same", QUICK)
    assert (same / "config.json").read_bytes() == (pair["a"] / "config.json").read_bytes()


def test_an_output_projection_of_its_own_is_not_said_to_be_tied(tmp_path: Path) -> None:
    tied = {"tie_word_embeddings": True, "vocab_size": 3}
    pair = {"a": model(tmp_path / "a", 3, config=tied), "b": model(tmp_path / "b", 3, head=True)}
    accepted = Policy(pick=("lm_head.weight=b",))
    out = run(recipe_of("average", pair, {}, accepted), tmp_path / "out", QUICK)
    assert config_of(out)["tie_word_embeddings"] is False
    assert set(load_file(out / "model.safetensors")) == {EMBEDDING, HEAD, "model.w"}


def test_notes_of_ties_go_with_the_ties(tmp_path: Path) -> None:
    """A file's metadata says `out.w` is `embed.w`: not of a result in which they differ."""
    embed = {"embed.w": torch.ones(2, 2), "w": torch.ones(2)}
    save_file(embed, tmp_path / "a.safetensors", {"format": "pt", "out.w": "embed.w"})
    save_file({**embed, "out.w": torch.zeros(2, 2)}, tmp_path / "b.safetensors", {"format": "pt"})
    pair = {name: tmp_path / f"{name}.safetensors" for name in "ab"}
    out = run(recipe_of("average", pair, {}, Policy()), tmp_path / "out.safetensors", QUICK)
    made = load_file(out)
    assert torch.equal(made["out.w"], torch.full((2, 2), 0.5))
    assert "out.w" not in (run_metadata := metadata(out)), run_metadata


def metadata(path: Path) -> dict[str, str]:
    length = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]


def test_what_was_not_merged_is_said(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(2), "x": torch.ones(1)}, "epoch": 3}, tmp_path / "a.pt")
    torch.save({"model": {"w": torch.ones(2), "y": torch.ones(1)}, "epoch": 4, "lr": 1.0}, tmp_path / "b.pt")
    shown = done("average", tmp_path / "a.pt", tmp_path / "b.pt", "--missing", "keep-first", "-o", tmp_path / "o.pt")
    assert shown.err.splitlines() == ["note: left out of b, beside the weights: epoch, lr"]
    alone = "1 tensor came unmerged from {} (others lack them): {}"
    assert shown.out.splitlines()[1] == (f"  1 tensor was merged; {alone.format('a', 'x')}; {alone.format('b', 'y')}")
    argv = ["average", tmp_path / "a.pt", tmp_path / "b.pt", "--drop", "[xy]", "-o", tmp_path / "o.safetensors"]
    shown = done(*argv)
    assert shown.err.splitlines() == [
        "note: left out of a, beside the weights: epoch",
        "note: left out of b, beside the weights: epoch, lr",
    ]
    assert shown.out.splitlines()[1] == "  1 tensor was merged; 2 tensors were left out: x, y"


def test_braces_in_a_name_are_no_format(tmp_path: Path) -> None:
    paths = [tmp_path / "a{x}.pt", tmp_path / "b{.pt"]
    for seed, path in enumerate(paths):
        torch.save({"w": torch.ones(1), f"n{seed}": torch.ones(1)}, path)
    shown = done("average", *paths, "--missing", "keep-first", "-o", tmp_path / "o.pt")
    assert "came unmerged from a{x} (others lack them): n0" in shown.out


def test_a_note_that_shares_itself_takes_no_time() -> None:
    shared: Any = ["x"]
    for _ in range(30):
        shared = [shared] * 64
    assert isinstance(plain({"heads": 4, "deep": shared})["heads"], int)
