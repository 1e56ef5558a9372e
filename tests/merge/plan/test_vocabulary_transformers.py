"""Merged vocabularies in transformers: models load, texts come back, and logits are those computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import Policy, load_checkpoint, run
from tests.merge.tokenized import PLAIN, tokenizer_json
from tests.merge.ways import QUICK, recipe_of

ADDED = {"chat": ("<tool>", "<end>"), "think": ("<end>", "<think>")}
UNION = (*PLAIN, "<tool>", "<end>", "<think>")
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 0}


def made(folder: Path, seed: int, kind: str, tied: bool, added: tuple[str, ...]) -> Path:
    """A tiny model and its tokenizer, as transformers writes them, with a row of no token."""
    transformers: Any = pytest.importorskip("transformers")

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {**SIZES, "vocab_size": len(PLAIN) + len(added) + 1, "tie_word_embeddings": tied}
    if kind == "llama":
        config: Any = transformers.LlamaConfig(**sizes, intermediate_size=8, max_position_embeddings=16)
    else:
        config = transformers.GPT2Config(**sizes, n_positions=16)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    numbered = {token: len(PLAIN) + index for index, token in enumerate(added)}
    (folder / "plain.json").write_text(json.dumps(tokenizer_json(PLAIN, numbered)))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "plain.json"), unk_token="<unk>")
    (folder / "plain.json").unlink()
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("llama", True), ("gpt2", True)])
def test_a_union_loads_and_reads_and_answers(kind: str, tied: bool, tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    pair = {name: made(tmp_path / name, seed, kind, tied, added) for seed, (name, added) in enumerate(ADDED.items(), 1)}
    out = run(recipe_of("interpolate", pair, {"ratio": 0.25}, Policy(tokenizer="union")), tmp_path / "out", QUICK)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = tokenizer.encode("the cat<tool>ran<end>the dog<think>", add_special_tokens=False)
    assert ids == [UNION.index(token) for token in ("the", "cat", "<tool>", "ran", "<end>", "the", "dog", "<think>")]
    assert tokenizer.decode(ids).split() == ["the", "cat", "<tool>", "ran", "<end>", "the", "dog", "<think>"]
    assert len(tokenizer) == 8
    # By hand: rows by token, what one lacks is the other's, and all else as ever.
    states = [load_checkpoint(path) for path in pair.values()]
    tokens = [(*PLAIN, *added) for added in ADDED.values()]
    wanted: dict[str, torch.Tensor] = {}
    for name in states[0]:
        first, second = (state[name] for state in states)
        if name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight")):
            both = zip(states, tokens, strict=True)
            rows = [[state[name][its.index(t)] if t in its else None for t in UNION] for state, its in both]
            first = torch.stack([a if a is not None else b for a, b in zip(*rows, strict=True)])
            second = torch.stack([b if b is not None else a for a, b in zip(*rows, strict=True)])
        wanted[name] = torch.lerp(first, second, 0.25)
    config = transformers.AutoConfig.from_pretrained(pair["chat"])
    config.vocab_size = 8
    by_hand = transformers.AutoModelForCausalLM.from_config(config)
    by_hand.load_state_dict(wanted, strict=not tied)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.config.vocab_size == 8
    with torch.no_grad():
        texts = torch.tensor([ids])
        torch.testing.assert_close(model.eval()(texts).logits, by_hand.eval()(texts).logits)
