"""Rows of embeddings and heads by token: whose vocabulary, what stands in for rows, and what follows beside them."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from torch import Tensor

import merge
from merge import MergeError, MergeWarning, Policy, load_checkpoint, open_checkpoint, run
from merge.plan.tokens import tokens_at
from merge.recipe.json import read_recipe
from tests.merge.handmade import random_tensor
from tests.merge.made import assert_same
from tests.merge.shell import command, done
from tests.merge.tokenized import EMBED, HEAD, PLAIN, language_model, tokenizer_json
from tests.merge.ways import QUICK, merged_every_way, recipe_of

CHAT, THINK = ("<tool>", "<end>"), ("<end>", "<think>")
UNION = (*PLAIN, "<tool>", "<end>", "<think>")


@pytest.fixture
def three(tmp_path: Path) -> dict[str, Path]:
    """A base, and two models that each added tokens to it, with rows of no token."""
    return {
        "base": language_model(tmp_path / "base", 0, padding=3, config={"eos_token_id": 0}),
        "chat": language_model(tmp_path / "chat", 10, added=CHAT, config={"eos_token_id": 6}),
        "think": language_model(tmp_path / "think", 20, added=THINK, padding=1),
    }


def row(tensors: dict[str, Tensor], name: str, tokens: tuple[str, ...], token: str) -> Tensor:
    return tensors[name][tokens.index(token)]


def notes_of(out: Path) -> list[str]:
    return json.loads(out.with_name(out.name + ".recipe.json").read_text())["output"]["notes"]


def test_a_union_of_equal_vocabularies_is_the_identity(tmp_path: Path) -> None:
    pair = {name: language_model(tmp_path / name, seed, padding=2) for seed, name in enumerate("ab")}
    plain = run(recipe_of("interpolate", pair, {"ratio": 0.25}, Policy()), tmp_path / "plain", QUICK)
    for word in ("union", "first", "b", str(pair["b"])):
        chosen = recipe_of("interpolate", pair, {"ratio": 0.25}, Policy(tokenizer=word))
        same = run(chosen, tmp_path / f"as-{Path(word).name}-{len(word)}", QUICK)
        assert merge.digest(same) == merge.digest(plain), word
        noted = read_recipe(same.with_name(same.name + ".recipe.json")).policy.tokenizer
        assert noted == (word if len(word) < 6 else str(pair["b"].resolve())), "a path that works from anywhere"
        for file in ("config.json", "tokenizer.json"):
            assert (same / file).read_bytes() == (plain / file).read_bytes(), word


@pytest.mark.parametrize("method", [("interpolate", {"ratio": 0.3}), ("slerp", {"ratio": 0.3}), ("average", {})])
def test_permuted_vocabularies_give_the_same_rows_by_token(method: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    pair = {name: language_model(tmp_path / name, seed, added=CHAT) for seed, name in ((0, "a"), (30, "b"))}
    wanted = load_checkpoint(run(recipe_of(*[method[0], pair, method[1], Policy()]), tmp_path / "wanted", QUICK))
    turned, order = (*PLAIN[::-1], *CHAT[::-1]), [4, 3, 2, 1, 0, 6, 5]
    other = language_model(tmp_path / "other", 30, turned[:5], turned[5:])
    held = load_checkpoint(pair["b"])
    merge.save_checkpoint(
        {**held, **{name: held[name][order].clone() for name in (EMBED, HEAD)}},
        other / "model.safetensors",
        overwrite=True,
    )
    (other / "model.safetensors.recipe.json").unlink(missing_ok=True)
    swapped = {"a": pair["a"], "b": other}
    made = merged_every_way(recipe_of(method[0], swapped, method[1], Policy(tokenizer="first")), tmp_path / "made")
    assert_same(made, wanted)
    theirs = load_checkpoint(
        run(recipe_of(method[0], swapped, method[1], Policy(tokenizer="b")), tmp_path / "theirs", QUICK)
    )
    assert torch.equal(theirs[EMBED], wanted[EMBED][order]), "the other's order of rows"
    assert (tmp_path / "theirs" / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_a_union_has_the_rows_of_all_tokens_and_says_what_it_made_up(three: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = merged_every_way(recipe_of("task-arithmetic", three, {"scale": 0.5}, Policy(tokenizer="union")), out)
    base, chat, think = (load_checkpoint(path) for path in three.values())
    own = {"chat": (*PLAIN, *CHAT), "think": (*PLAIN, *THINK)}
    for name in (EMBED, HEAD):
        assert made[name].shape == (8, 3)
        ends = [row(chat, name, own["chat"], "<end>"), row(think, name, own["think"], "<end>")]
        # Of a token that the base lacks the base has the mean of those that have it: the two changes cancel.
        torch.testing.assert_close(row(made, name, UNION, "<end>"), (ends[0] + ends[1]) / 2)
        torch.testing.assert_close(row(made, name, UNION, "<tool>"), row(chat, name, own["chat"], "<tool>"))
        cat = [row(item, name, PLAIN, "cat") for item in (base, chat, think)]
        torch.testing.assert_close(row(made, name, UNION, "cat"), cat[0] + 0.5 * (cat[1] + cat[2] - 2 * cat[0]))
    said = json.loads((out / "config.json").read_text())
    assert said["vocab_size"] == 8
    notes = notes_of(out)
    assert "rows by token: 8 tokens" in notes
    assert "rows of chat: 1 token ('<think>') made up (from think)" in notes
    assert any("1 token ('<end>') made up (the mean of chat, think); " in note for note in notes)
    assert any("rows of base" in note and note.endswith("3 rows of no token dropped") for note in notes)
    read = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    assert [read.token_to_id(token) for token in UNION] == list(range(8))
    assert read.encode("the cat<end>dog<think>").tokens == ["the", "cat", "<end>", "dog", "<think>"]
    inputs = {item.name: item.digest for item in read_recipe(out.with_name("out.recipe.json")).inputs}
    assert inputs["chat"] == merge.digest(three["chat"]), "of the file, not of its rows in another order"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", lambda c, t: (c[1] + t[0]) / 2),
        ("from:think", lambda c, t: t[0]),
        ("zero", lambda c, t: torch.zeros(3)),
        ("copy:cat", None),
    ],
)
def test_what_stands_in_for_a_row_is_the_policys(
    rule: str, expected: Any, three: dict[str, Path], tmp_path: Path
) -> None:
    tensors = [load_checkpoint(path) for path in three.values()]
    made = merge.average(
        {name: open_checkpoint(path) for name, path in three.items()},
        weights=[1.0, 0.0, 0.0],
        policy=Policy(tokenizer="union", missing_rows=rule),
    )
    chat, think = (tensors[index][EMBED][5:] for index in (1, 2))
    wanted = tensors[0][EMBED][2] if expected is None else expected(chat, think)
    torch.testing.assert_close(made[EMBED][UNION.index("<end>")], wanted)


def test_rows_of_single_tokens_come_from_where_the_policy_says(three: dict[str, Path], tmp_path: Path) -> None:
    rules = {"<end>": "always think", "<think>": "zero", "<tool>": "base:cat", "<new>": "chat#2", "dog": "always zero"}
    opened = {name: open_checkpoint(path) for name, path in three.items()}
    policy = Policy(tokenizer="union", missing_rows="from:base", token_rows=rules)
    made = merge.average(opened, policy=policy)[EMBED]
    base, chat, think = (load_checkpoint(path)[EMBED] for path in three.values())
    assert made.shape == (9, 3)
    torch.testing.assert_close(made[6], think[5])
    torch.testing.assert_close(made[7], think[6] / 3, msg="it stands in for the two that lack it")
    torch.testing.assert_close(made[5], (2 * base[2] + chat[5]) / 3)
    torch.testing.assert_close(made[8], chat[2])
    assert not made[3].any()
    recipe = recipe_of("average", {**three, "base": three["base"]}, {}, policy)
    out = run(
        merge.Recipe("average", (*([recipe.base] if recipe.base else []), *recipe.inputs), {}, None, policy),
        tmp_path / "o",
        QUICK,
    )
    assert read_recipe(out.with_name("o.recipe.json")).policy == policy
    for wrong, told in (
        ({"<end>": "base:nosuch"}, "'<end>' as 'base:nosuch': base has no token 'nosuch'"),
        ({"<end>": "thinks"}, "must be 'zero', or an input"),
        ({"<end>": "chat#99"}, "chat has no row 99"),
    ):
        with pytest.raises(MergeError, match=told):
            merge.average(opened, policy=Policy(tokenizer="union", token_rows=wrong))


def test_rows_are_padded_to_a_multiple_with_the_mean(three: dict[str, Path], tmp_path: Path) -> None:
    argv = ["average", three["chat"], three["think"], "--tokenizer", "union", "--pad-to-multiple", "16"]
    done(*argv, "-o", tmp_path / "out")
    made = load_checkpoint(tmp_path / "out")[HEAD]
    assert made.shape == (16, 3)
    torch.testing.assert_close(made[8:], made[:8].mean(0).expand(8, 3))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 16
    # Equal vocabularies: 1 drops the rows of no token, a multiple that they are keeps them.
    for n, rows in (("1", 7), ("8", 8)):
        argv = ["average", three["think"], three["think"], "--name", "a", "--name", "b", "--tokenizer", "first"]
        done(*argv, "--pad-to-multiple", n, "-o", tmp_path / n)
        assert len(load_checkpoint(tmp_path / n)[EMBED]) == rows
    assert torch.equal(load_checkpoint(tmp_path / "8")[EMBED], load_checkpoint(three["think"])[EMBED])


def test_the_row_numbers_in_configurations_follow(three: dict[str, Path], tmp_path: Path) -> None:
    (three["chat"] / "generation_config.json").write_text('{"eos_token_id": [0, 6], "pad_token_id": 5, "top_k": 6}')
    (three["base"] / "generation_config.json").write_text('{"pad_token_id": 1}')
    out = tmp_path / "out"
    done("average", three["chat"], three["base"], "--tokenizer", "base", "-o", out)
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 0, "<end> is gone: the base's own"
    assert json.loads((out / "generation_config.json").read_text()) == {
        "eos_token_id": [0],
        "pad_token_id": 1,
        "top_k": 6,
    }
    assert (out / "tokenizer.json").read_bytes() == (three["base"] / "tokenizer.json").read_bytes()
    assert "generation_config.json follows the vocabulary: eos_token_id [0], pad_token_id 1" in notes_of(out)
    done("average", three["think"], three["chat"], "--tokenizer", "chat", "-o", tmp_path / "second")
    (three["chat"] / "config.json").write_text('{"vocab_size": 7, "image_token_index": 7}')
    outcome = command("average", three["chat"], three["base"], "--tokenizer", "base", "-o", tmp_path / "refused")
    assert outcome.code == 2
    assert "image_token_index is 7, which is no token of the first input" in outcome.err


def test_a_tied_head_follows_and_a_head_takes_rows_of_a_tied_embedding(tmp_path: Path) -> None:
    first = language_model(tmp_path / "a", 0, tied=True)
    second = language_model(tmp_path / "b", 5, added=("<end>",), tied=True)
    out = run(recipe_of("average", {"a": first, "b": second}, {}, Policy(tokenizer="union")), tmp_path / "out", QUICK)
    assert list(load_checkpoint(out)) == [EMBED, "model.w"]
    untied = language_model(tmp_path / "c", 9)
    policy = Policy(tokenizer="union", missing="union", accept=("tied-and-untied",))
    mixed = load_checkpoint(
        run(recipe_of("average", {"c": untied, "b": second}, {}, policy), tmp_path / "mixed", QUICK)
    )
    assert torch.equal(mixed[HEAD][5], load_checkpoint(second)[EMBED][5]), "the tied one's embedding is its head"


def test_torch_ties_biases_and_half_precision_follow(tmp_path: Path) -> None:
    paths: dict[str, Path] = {}
    for seed, (name, added) in enumerate({"a": (), "b": ("<x>", "<y>")}.items()):
        folder = language_model(tmp_path / name, seed, added=added)
        (folder / "model.safetensors").unlink()
        rows = 5 + len(added)
        table = random_tensor((rows, 2), torch.bfloat16, seed)
        state = {
            "shared.weight": table,
            "lm_head.weight": table,
            "final_logits_bias": torch.full((1, rows), float(seed)),
        }
        torch.save(state, folder / "pytorch_model.bin")
        paths[name] = folder
    made = load_checkpoint(
        run(recipe_of("average", paths, {}, Policy(tokenizer="union", pad_to_multiple=4)), tmp_path / "out.pt", QUICK)
    )
    assert made["shared.weight"].dtype == torch.bfloat16
    assert made["shared.weight"].shape == (8, 2)
    assert made["shared.weight"].data_ptr() == made["lm_head.weight"].data_ptr()
    assert made["final_logits_bias"].shape == (1, 8)
    assert made["final_logits_bias"][0, :7].tolist() == [0.5] * 5 + [1.0] * 2


def test_the_dictionaries_of_ofasys_are_vocabularies_too(tmp_path: Path) -> None:
    def write(name: str, seed: int, *tokens: str) -> Path:
        table = random_tensor((len(tokens), 3), torch.float32, seed)
        content = {
            "model": {"encoder.embed_tokens.weight": table},
            "global_dict_indices": {t: i for i, t in enumerate(tokens)},
        }
        torch.save(content, tmp_path / name)
        return tmp_path / name

    pair = {"a": write("a.pt", 0, "<s>", "cat"), "b": write("b.pt", 1, "cat", "<s>", "dog")}
    first, second = (load_checkpoint(path, "model")["encoder.embed_tokens.weight"] for path in pair.values())
    recipe = recipe_of("average", pair, {}, Policy(tokenizer="b"), "model")
    out = run(recipe, tmp_path / "out.pt", QUICK)
    assert open_checkpoint(out).tokens == {"cat": 0, "<s>": 1, "dog": 2}
    made = load_checkpoint(out, "model")["encoder.embed_tokens.weight"]
    torch.testing.assert_close(
        made, (first[[1, 0, 0]] * torch.tensor([[1.0], [1], [0]]) + second * torch.tensor([[1.0], [1], [2]])) / 2
    )


# -- files of tokenizers ---------------------------------------------------------------------------------------------


def protobuf(pieces: list[str]) -> bytes:
    """A model of SentencePiece, of pieces with a score and a kind, and what follows them."""
    found = b""
    for piece in pieces:
        inner = b"\x0a" + bytes([len(piece.encode())]) + piece.encode() + b"\x15\x00\x00\x80\xbf\x18\x01"
        found += b"\x0a" + bytes([len(inner)]) + inner
    return found + b"\x12\x03\x0a\x01x"


def test_tokens_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    def tokens(**files: Any) -> dict[str, int]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (folder / name.replace("_dot_", ".")).write_bytes(data)
        found = tokens_at(folder)
        assert found is not None
        return dict(found.rows)

    assert tokens(tokenizer_dot_json=tokenizer_json(["<unk>", "a"], {"<x>": 2})) == {"<unk>": 0, "a": 1, "<x>": 2}
    assert tokens(vocab_dot_json={"a": 0, "b": 1}, merges_dot_txt=b"", added_tokens_dot_json={"<x>": 2})["<x>"] == 2
    assert tokens(vocab_dot_txt=b"[PAD]\nthe\n##s\n") == {"[PAD]": 0, "the": 1, "##s": 2}
    decoder = {"added_tokens_decoder": {"3": {"content": "<y>", "special": True}}}
    read = tokens(tokenizer_dot_model=protobuf(["<unk>", "▁the"]), tokenizer_config_dot_json=decoder)
    assert read == {"<unk>": 0, "▁the": 1, "<y>": 3}
    for name, content in (("tokenizer_dot_model", base64.b64encode(b"a") + b" 0\n"), ("spiece_dot_model", b"x")):
        with pytest.raises(MergeError, match=r"cannot be read here|are not read here"):
            tokens(**{name: content})
    with pytest.raises(MergeError, match="cannot be read as a tokenizer"):
        tokens(tokenizer_dot_json={"model": {}})


def test_legacy_files_get_the_new_tokens(three: dict[str, Path], tmp_path: Path) -> None:
    folder = three["base"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(PLAIN)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"0": {"content": "<unk>"}}}')
    done("average", folder, three["chat"], "--tokenizer", "union", "-o", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "added_tokens.json").read_text()) == {"<tool>": 5, "<end>": 6}
    listed = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert (listed["6"]["content"], listed["6"]["special"]) == ("<end>", True)
    found = tokens_at(tmp_path / "out")
    assert found is not None
    assert list(found.rows) == list(UNION[:7]), "in the order of rows"
    assert found.rows == {token: index for index, token in enumerate(UNION[:7])}


# -- what is refused, and asked --------------------------------------------------------------------------------------


def test_unlike_vocabularies_are_refused_and_unlike_templates_told(three: dict[str, Path], tmp_path: Path) -> None:
    other = language_model(tmp_path / "other", 7, ("<unk>", "the", "mouse"))
    argv = ["average", three["base"], other, "--tokenizer", "union", "-o", tmp_path / "out"]
    outcome = command(*argv)
    assert outcome.code == 2
    assert "1 tokens of other are plain ones of another WordLevel vocabulary" in outcome.err
    assert "--tokenizer base or --tokenizer other" in outcome.err
    done(*argv[:2], other, "--tokenizer", "other", "-o", tmp_path / "one")
    assert load_checkpoint(tmp_path / "one")[EMBED].shape == (3, 3)
    done(*argv, "--accept", "unlike-vocabularies")
    assert load_checkpoint(tmp_path / "out")[EMBED].shape == (6, 3)
    for name in ("chat", "think"):
        (three[name] / "chat_template.jinja").write_text(f"{name}: {{{{ messages }}}}")
    with pytest.warns(MergeWarning, match="the chat templates of chat and think differ"):
        out = run(recipe_of("task-arithmetic", three, {"scale": 1.0}, Policy(tokenizer="think")), tmp_path / "t", QUICK)
    assert (out / "chat_template.jinja").read_text().startswith("think")


def test_what_cannot_be_is_said_before_the_work(three: dict[str, Path], tmp_path: Path) -> None:
    opened = [open_checkpoint(three["base"]), open_checkpoint(three["chat"])]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tokenizer": "chta"}, "neither first, base or union, nor an input"),
        ({"tokenizer": "base"}, "there is no base"),
        ({"tokenizer": "union", "missing_rows": "some"}, "must be 'zero-delta', 'mean'"),
        ({"tokenizer": "union", "missing_rows": "zero-delta"}, "there is no base"),
        ({"tokenizer": "union", "missing_rows": "from:x"}, "names no input"),
        ({"tokenizer": "union", "missing_rows": "copy:x"}, "0 has no token 'x'"),
        ({"tokenizer": "union", "missing_rows": "error"}, "0 lacks the token '<tool>'"),
        ({"missing_rows": "mean"}, "say whose vocabulary with tokenizer="),
    ]
    for policy, told in wrong:
        with pytest.raises(MergeError, match=told):
            merge.average(opened, policy=Policy(**policy))
    assert merge.doctor(opened, names=["one", "two"], policy=Policy(tokenizer="union")).exit_code == 0
    way = merge.TaskVector.between(*opened, policy=Policy(tokenizer="union"))
    assert way.tensors[EMBED].shape == (7, 3)
    with pytest.raises(MergeError, match="beside which no tokenizer lies"):
        merge.average([load_checkpoint(path) for path in opened], policy=Policy(tokenizer="first"))
    shutil.copy(three["base"] / "model.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(MergeError, match="no tokenizer lies beside 1"):
        merge.average([opened[0], tmp_path / "alone.safetensors"], policy=Policy(tokenizer="first"))
    outcome = command("average", three["base"], three["chat"], "-o", tmp_path / "out")
    assert outcome.code == 2
    assert "or by token with --tokenizer union" in outcome.err
