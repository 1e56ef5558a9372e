"""Findings: every kind with its pair, the page, who asks them, what accepts them, and that their advice works."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import merge
from merge.commands import COMMANDS
from merge.commands.table import _page, in_options
from merge.plan.findings import FINDINGS
from merge.plan.policy import Policy
from merge.tools.diagnose.report import doctor
from tests import ROOT
from tests.merge.broken import World
from tests.merge.made import Carrier
from tests.merge.plan.finding_pairs import LABELS, LORA, MEASURED, PAIRS, folder, model, scaled, tied
from tests.merge.shell import command, done

# These need more than one broken expert of a base.
ELSEWHERE = {"a-difference", "negated-weights", "rounded-weights", "task-vectors-unlike"}


@pytest.mark.parametrize("code", FINDINGS)
def test_every_kind_is_yielded_by_its_pair_and_not_by_the_other(tmp_path: Path, code: str) -> None:
    if code in ELSEWHERE:
        return  # in tests/merge/tools/test_doctor_cases.py, with trained networks
    if code in MEASURED:
        world = World()
        MEASURED[code](world)
        assert code in [item.code for item in doctor([world.vqa, world.caption], world.base).findings]
        healthy = World()
        assert doctor([healthy.vqa, healthy.caption], healthy.base).findings == ()
        return
    pair = PAIRS[code]
    found = pair.codes(tmp_path / "yields", pair.yields)
    assert [(item.code, item.severity) for item in found if item.code == code] == [(code, FINDINGS[code].severity)]
    assert code not in [item.code for item in pair.codes(tmp_path / "does_not", pair.does_not)]


def test_every_kind_is_whole_and_on_its_page() -> None:
    for code, kind in FINDINGS.items():
        assert all((kind.looks, kind.means, kind.advice, *kind.example)), code
    page = runpy.run_path(str(ROOT / "docs" / "write_findings.py"))["page"]()
    written = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert written == page, "docs/findings.md is not regenerated: run python docs/write_findings.py"


# -- who asks ----------------------------------------------------------------------------------------------------------

FIRST, SECOND = scaled(1, 0.5), scaled(2, 0.25)
ASKING: dict[str, Callable[[], object]] = {
    "interpolate": lambda: merge.interpolate(FIRST, SECOND, 0.5),
    "average": lambda: merge.average([FIRST, SECOND]),
    "slerp": lambda: merge.slerp(FIRST, SECOND, 0.5),
    "merge_with": lambda: merge.merge_with("ties", [SECOND], FIRST, density=0.5),
    "task_arithmetic": lambda: merge.task_arithmetic(FIRST, [SECOND], 1.0),
    "sweep": lambda: list(merge.sweep(FIRST, SECOND, [0.5])),
    "LinearPath": lambda: merge.LinearPath(Carrier(FIRST), FIRST, SECOND),
    "Simplex": lambda: merge.Simplex(Carrier(FIRST), [FIRST, SECOND]),
    "LivePath": lambda: merge.LivePath(Carrier(FIRST), "ties", [SECOND], FIRST),
    "TaskVector": lambda: merge.TaskVector.between(FIRST, SECOND),
}


@pytest.mark.parametrize("who", ASKING)
def test_every_function_refuses(who: str) -> None:
    with pytest.raises(
        merge.MergeError, match=r"l.weight means something only with l.weight_scale_inv.*dequantize=True"
    ):
        ASKING[who]()


@pytest.mark.parametrize(
    "words",
    [
        ["interpolate", "a", "b", "--ratio", "0.5"],
        ["slerp", "a", "b", "--ratio", "0.5"],
        ["average", "a", "b"],
        ["task-arithmetic", "a", "b"],
        ["merge", "ties", "b", "--base", "a", "-p", "density=0.5"],
        ["sweep", "a", "b", "--points", "3"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_refuses(tmp_path: Path, words: list[str]) -> None:
    files = {
        name: str(merge.save_checkpoint(state, tmp_path / f"{name}.safetensors"))
        for name, state in zip(LABELS, (FIRST, SECOND), strict=True)
    }
    told = command(*(files.get(word, word) for word in words), "-o", tmp_path / "out")
    assert told.code == 2
    assert "--dequantize" in told.err
    assert "--accept scaled-weights" in told.err
    assert not (tmp_path / "out").exists()


def test_what_one_input_alone_decides_is_no_merge(tmp_path: Path) -> None:
    path = merge.save_checkpoint(FIRST, tmp_path / "a.safetensors")
    other = merge.save_checkpoint(SECOND, tmp_path / "b.safetensors")
    done("extract", path, "--only", "*", "-o", tmp_path / "x.safetensors")
    done("graft", path, other, "--pick", "l.*", "-o", tmp_path / "g.safetensors")
    assert torch.equal(
        merge.load_checkpoint(tmp_path / "g.safetensors")["l.weight"].float(), SECOND["l.weight"].float()
    )


# -- accepting and warning ---------------------------------------------------------------------------------------------


def test_what_is_accepted_is_merged_and_noted(tmp_path: Path) -> None:
    pair = PAIRS["config-meaning"].yields(tmp_path)
    told = command("average", *pair, "-o", tmp_path / "out")
    assert told.code == 2
    assert "num_attention_heads is 2 in a and 1 in b" in told.err
    done("average", *pair, "-o", tmp_path / "out", "--accept", "config-meaning")
    recipe = json.loads((tmp_path / "out.recipe.json").read_text())
    assert recipe["policy"]["accept"] == ["config-meaning"]
    assert merge.read_recipe(tmp_path / "out.recipe.json").policy.accept == ("config-meaning",)
    done("run", tmp_path / "out.recipe.json", "-o", tmp_path / "again")
    found = doctor(pair, policy=Policy(accept=("config-meaning",)))
    assert ("config-meaning", "note") in [(item.code, item.severity) for item in found.findings]
    assert found.exit_code == 0


def test_a_warning_is_told_once_and_recorded(tmp_path: Path) -> None:
    pair = PAIRS["config-differs"].yields(tmp_path)
    told = command("average", *pair, "-o", tmp_path / "out")
    assert told.code == 0
    assert told.err.count("warning: ") == 1
    assert "rms_norm_eps is 1e-05 in a and 1e-06 in b" in told.err
    recorded = json.loads((tmp_path / "out.recipe.json").read_text())["output"]["findings"]
    assert [item["code"] for item in recorded] == ["config-differs"]
    with pytest.warns(merge.MergeWarning, match="rms_norm_eps"):
        merge.average(pair)
    merge.average(pair, policy=Policy(accept=("config-differs",)))
    assert "warning" not in command("average", *pair, "-o", tmp_path / "quiet", "--accept", "config-differs").err


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("scaled-weight", "there is no such finding; did you mean scaled-weights"),
        ("x", "there is no such finding; known are adapter-factors, scaled-weights"),
        ("no-arithmetic", "cannot be accepted, only resolved"),
    ],
)
def test_codes_that_cannot_be_accepted(code: str, told: str) -> None:
    for ask in (
        lambda p: merge.average([model(0), model(1)], policy=p),
        lambda p: doctor([model(0), model(1)], policy=p),
    ):
        with pytest.raises(merge.MergeError, match=told):
            ask(Policy(accept=(code,)))


# -- advice that works -------------------------------------------------------------------------------------------------


def remedied(code: str, place: Path) -> tuple[dict[str, Tensor], list[Any]]:
    """The average after the advice of the code's finding was followed, as options of the command line."""
    pair = PAIRS[code].yields(place)
    paths = [
        item if isinstance(item, Path) else merge.save_checkpoint(item, place / f"{name}.safetensors")
        for item, name in zip(pair, LABELS, strict=True)
    ]
    (advice,) = [item.advice for item in doctor(pair, names=LABELS).findings if item.code == code]
    option = re.search(r"(--[\w-]+)(?: ('[^']*'|[^\s,;]+))?", in_options(advice, _page("average", COMMANDS["average"])))
    assert option is not None, advice
    given = [option[1]] if option[1] == "--dequantize" else [option[1], option[2].strip("':")]
    outcome = command("average", *paths, "--name", "a", "--name", "b", *given, "-o", place / "out.safetensors")
    assert outcome.code == 0, outcome
    return merge.load_checkpoint(place / "out.safetensors"), pair


def test_following_the_advice_for_scales(tmp_path: Path) -> None:
    made, _ = remedied("scaled-weights", tmp_path)
    wanted = torch.tensor([[1.0, 2.0], [4.0, -3.0]])  # 1 x 1 and 2 x 0.5
    assert torch.equal(made["l.weight"], wanted.bfloat16())
    assert set(made) == {"l.weight", "norm.weight"}


def test_following_the_advice_for_ties(tmp_path: Path) -> None:
    made, pair = remedied("tied-and-untied", tmp_path)
    first, second = (merge.load_checkpoint(path) for path in pair)
    assert set(made) == set(second)
    assert all(torch.equal(made[name], torch.lerp(first[name], second[name], 0.5)) for name in made)


def test_following_the_advice_for_rows(tmp_path: Path) -> None:
    for code, name in (("tokens-differ", "embed_tokens.weight"), ("labels-differ", "classifier.weight")):
        (tmp_path / code).mkdir()
        made, pair = remedied(code, tmp_path / code)
        first, second = (merge.load_checkpoint(path) for path in pair)
        assert torch.equal(made[name], first[name])
        assert torch.equal(made["fc.weight"], torch.lerp(first["fc.weight"], second["fc.weight"], 0.5))


def test_following_the_advice_for_prefixes(tmp_path: Path) -> None:
    made, pair = remedied("names-prefixed", tmp_path)
    first, second = pair
    assert list(made) == list(first)
    for name, other in zip(first, second, strict=True):
        assert torch.equal(made[name], torch.lerp(first[name], second[other], 0.5))


def test_following_the_advice_for_indices(tmp_path: Path) -> None:
    made, pair = remedied("indices-differ", tmp_path)
    assert torch.equal(made["e.position_ids"], pair[0]["e.position_ids"])


def test_a_head_of_its_own_for_the_one_that_ties(tmp_path: Path) -> None:
    first, second = {**model(0), "lm_head.weight": model(5)["fc.weight"]}, model(1)
    pair = [
        folder(tmp_path / "a", first, config={"tie_word_embeddings": False}),
        folder(tmp_path / "b", second, config={"tie_word_embeddings": True}),
    ]
    with pytest.raises(
        merge.MergeError, match=r"b ties lm_head.weight to embed_tokens.weight, and a has values"
    ) as told:
        merge.average(dict(zip(LABELS, pair, strict=True)), policy=Policy(missing="keep-first"))
    assert "pass untie=True" in str(told.value)
    made = merge.average(dict(zip(LABELS, pair, strict=True)), policy=Policy(untie=True))
    head = "lm_head.weight"
    assert torch.equal(made[head], torch.lerp(first[head], second["embed_tokens.weight"], 0.5))


def test_a_first_that_ties_what_the_second_has_untied(tmp_path: Path) -> None:
    states = [{**model(seed), "lm_head.weight": model(seed + 5)["fc.weight"]} for seed in (0, 1)]
    tie, free = (
        folder(tmp_path / name, state, config={"tie_word_embeddings": name == "tied"})
        for name, state in zip(("tied", "free"), states, strict=True)
    )
    with pytest.raises(merge.MergeError, match="name free first"):
        merge.average({"tied": tie, "free": free})
    assert "lm_head.weight" in merge.average({"free": free, "tied": tie})


def test_adapters_are_told_the_command(tmp_path: Path) -> None:
    pair = [folder(tmp_path / name, LORA, adapter_config={"peft_type": "LORA"}) for name in LABELS]
    for words in (["average", *pair], ["interpolate", *pair, "--ratio", "0.5"]):
        told = command(*words, "-o", tmp_path / "out")
        assert told.code == 2
        assert "`unival-merge adapters`" in told.err


def test_a_tie_that_a_live_model_would_lose(tmp_path: Path) -> None:
    live: nn.Module = Carrier(model(0))
    with pytest.raises(merge.MergeError, match=r"tied to embed_tokens.weight"):
        merge.LinearPath(live, *tied(tmp_path))


def test_following_the_advice_for_codebooks_and_eight_bit_floats(tmp_path: Path) -> None:
    for code in ("codebooks", "eight-bit-floats"):
        (tmp_path / code).mkdir()
        made, (first, second) = remedied(code, tmp_path / code)
        for name, value in made.items():
            middle = torch.lerp(first[name].float(), second[name].float(), 0.5)
            assert torch.equal(value, first[name] if code == "codebooks" and "quantize" in name else middle.to(value))
        assert code == "codebooks" or made["w"].dtype == torch.bfloat16
