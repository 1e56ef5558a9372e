"""The command line: every command and option does what its help says, and what the library does."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import merge
from merge.commands import COMMANDS
from merge.commands.options import Choices, Running
from merge.methods import METHODS
from tests import ROOT
from tests.merge.made import assert_same, ordered_as, weights
from tests.merge.shell import command, done, snapshot

NAMES = ("vqa", "caption", "grounding", "base")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with four checkpoints."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(NAMES):
        merge.save_checkpoint(weights(seed), tmp_path / f"{name}.safetensors")
    return tmp_path


def file(name: str) -> str:
    return f"{name}.safetensors"


def record(out: str) -> dict[str, Any]:
    return json.loads(Path(f"{out}.recipe.json").read_text())


def assert_holds(out: str, wanted: dict[str, Tensor]) -> None:
    assert_same(ordered_as(merge.load_checkpoint(out), wanted), wanted)


# -- help ------------------------------------------------------------------------------------------------------------

FORMULAS = {
    "interpolate": "(1 - ratio) * FIRST + ratio * SECOND",
    "average": "sum_i w_i * X_i",
    "task-arithmetic": "BASE + scale * sum_i w_i * (X_i - BASE)",
    "slerp": "sin((1-t)w)/sin(w) * FIRST + sin(tw)/sin(w) * SECOND",
    "sweep": "(1 - r) * FIRST + r * SECOND",
}
OTHERS = {"run", "inspect", "diff", "doctor"}
SHARED = {"-o", "--output"} | {
    f"--{field.name.rstrip('_').replace('_', '-')}" for field in (*fields(Choices), *fields(Running))
}


def test_every_command_is_there() -> None:
    assert set(FORMULAS) | OTHERS <= set(COMMANDS)
    listed = command("--help").out
    for name in COMMANDS:
        assert f"  {name} " in listed


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_help_shows_the_formula_and_the_shared_options(name: str) -> None:
    text = " ".join(command(name, "--help").out.split())
    assert FORMULAS[name] in text
    words = set(text.replace(",", " ").split())
    assert words >= SHARED
    assert len(SHARED) > 15


# -- merging ---------------------------------------------------------------------------------------------------------


def test_interpolate(folder: Path) -> None:
    outcome = done("interpolate", file("vqa"), file("caption"), "--ratio", 0.4, "-o", "m.safetensors")
    assert outcome.said == "m.safetensors: interpolate: 0.60 vqa + 0.40 caption\n"
    assert_holds("m.safetensors", merge.interpolate(weights(0), weights(1), 0.4))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(file(name) for name in NAMES), "m.safetensors", "m.safetensors.recipe.json"]
    )


def test_average(folder: Path) -> None:
    three = [file(name) for name in NAMES[:3]]
    outcome = done("average", *three, "-w", 0.5, "-w", 0.3, "-w", 0.2, "-o", "m.safetensors")
    assert outcome.said == "m.safetensors: average: 0.50 vqa + 0.30 caption + 0.20 grounding\n"
    assert_holds("m.safetensors", merge.average([weights(i) for i in range(3)], weights=[0.5, 0.3, 0.2]))
    outcome = done("average", *three, "-o", "equal.safetensors")
    assert outcome.said == "equal.safetensors: average: 0.3333 vqa + 0.3333 caption + 0.3333 grounding\n"
    assert_holds("equal.safetensors", merge.average([weights(i) for i in range(3)]))


def test_task_arithmetic(folder: Path) -> None:
    inputs = (file("base"), file("vqa"), file("caption"))
    outcome = done("task-arithmetic", *inputs, "--scale", 0.3, "-o", "m.safetensors")
    assert outcome.said == "m.safetensors: task-arithmetic: base + 0.30 vqa + 0.30 caption\n"
    assert_holds("m.safetensors", merge.task_arithmetic(weights(3), [weights(0), weights(1)], 0.3))
    done("task-arithmetic", *inputs, "--scale", 0.3, "-w", 1, "-w", -1, "-o", "less.safetensors")
    recipe = merge.read_recipe(Path("less.safetensors.recipe.json"))
    assert recipe.parameters == {"scale": 0.3, "weights": [1.0, -1.0]}
    assert recipe.base is not None
    assert recipe.base.name == "base"


def test_slerp(folder: Path) -> None:
    outcome = done("slerp", file("vqa"), file("caption"), "--ratio", 0.4, "-o", "m.safetensors")
    assert outcome.said == "m.safetensors: slerp: 0.60 vqa + 0.40 caption\n"
    assert_holds("m.safetensors", merge.slerp(weights(0), weights(1), 0.4))


@pytest.mark.parametrize(
    ("options", "ratios"),
    [((), [i / 10 for i in range(11)]), (("--points", 3), [0.0, 0.5, 1.0]), (("--ratios", "0,0.25,1"), [0, 0.25, 1])],
)
def test_sweep(folder: Path, options: tuple[object, ...], ratios: list[float]) -> None:
    outcome = done("sweep", file("vqa"), file("caption"), *options, "-o", "points", "--name", "a", "--name", "b")
    assert outcome.said == f"points: {len(ratios)} checkpoints\n"
    rows = json.loads(Path("points/sweep.json").read_text())["points"]
    assert [row["file"] for row in rows] == [f"{1 - ratio:.2f}-a_{ratio:.2f}-b.safetensors" for ratio in ratios]
    for row, ratio in zip(rows, ratios, strict=True):
        assert row["shares"] == {"a": 1 - ratio, "b": ratio}
        assert_holds(f"points/{row['file']}", merge.interpolate(weights(0), weights(1), ratio))


def test_run_remakes_the_bytes_from_the_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("slerp", file("vqa"), file("caption"), "--ratio", 0.3, "--name", "x", "--name", "y", "-o", "m.safetensors")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    outcome = done("run", "../m.safetensors.recipe.json", "-o", "again.safetensors", "--threads", 1)
    assert outcome.said == "again.safetensors: slerp: 0.70 x + 0.30 y\n"
    assert Path("again.safetensors").read_bytes() == (folder / "m.safetensors").read_bytes()
    assert record("again.safetensors")["output"]["digest"] == record("../m.safetensors")["output"]["digest"]


def test_run_names_the_inputs_that_changed(folder: Path) -> None:
    done("interpolate", file("vqa"), file("caption"), "--ratio", 0.3, "-o", "m.safetensors")
    merge.save_checkpoint(weights(8), file("caption"), overwrite=True)
    before = snapshot(folder)
    outcome = command("run", "m.safetensors.recipe.json", "-o", "again.safetensors")
    assert (outcome.code, outcome.out) == (2, "")
    assert "caption.safetensors" in outcome.err
    assert "changed since the recipe was written" in outcome.err
    assert "vqa.safetensors" not in outcome.err
    assert snapshot(folder) == before


def test_run_refuses_the_recipe_as_output(folder: Path) -> None:
    done("interpolate", file("vqa"), file("caption"), "--ratio", 0.3, "-o", "m.safetensors")
    before = snapshot(folder)
    for out in ("m.safetensors.recipe.json", "."):
        outcome = command("run", "m.safetensors.recipe.json", "-o", out, "--overwrite")
        assert outcome.code == 2
        assert snapshot(folder) == before


# -- the shared options ----------------------------------------------------------------------------------------------


def merged(*options: object, out: str = "m.safetensors") -> dict[str, Tensor]:
    done("interpolate", file("vqa"), file("caption"), "--ratio", 0.25, "-o", out, *options)
    return merge.load_checkpoint(out)


def test_names_are_the_words_for_shares(folder: Path) -> None:
    outcome = done(
        "interpolate", file("vqa"), file("caption"), "--ratio", 0.25, "-o", "m.pt", "--name", "first", "--name", "next"
    )
    assert outcome.said == "m.pt: interpolate: 0.75 first + 0.25 next\n"
    assert [item["name"] for item in record("m.pt")["inputs"]] == ["first", "next"]


def test_stems_are_the_default_names(folder: Path) -> None:
    merge.save_checkpoint(weights(0), "vqa.v2.pt")
    merge.save_checkpoint(weights(1), "shards", shard_size=300)
    outcome = done("interpolate", "vqa.v2.pt", "shards", "--ratio", 0.5, "-o", "m.pt")
    assert outcome.said == "m.pt: interpolate: 0.50 vqa.v2 + 0.50 shards\n"
    base = done("task-arithmetic", file("vqa"), "vqa.v2.pt", "--name", "vqa", "-o", "t.safetensors").said
    assert base == "t.safetensors: task-arithmetic: base + 1.00 vqa\n"


def test_keep_and_drop(folder: Path) -> None:
    got = merged("--keep", "encoder.image.*", "--keep", "decoder.s*", "--drop", "*.fc.*")
    assert "encoder.layers.0.fc.weight" not in got
    for name in ("encoder.image.bn.weight", "decoder.scale"):
        assert torch.equal(got[name], weights(0)[name])
    wanted = torch.lerp(weights(0)["encoder.embed.weight"], weights(1)["encoder.embed.weight"], 0.25)
    assert torch.equal(got["encoder.embed.weight"], wanted)


def test_missing(folder: Path) -> None:
    models = [{"w": torch.full((3,), 8.0), "audio.w": torch.full((2,), 8.0)} for _ in range(4)]
    del models[2]["audio.w"]
    for index, model in enumerate(models):
        merge.save_checkpoint(model, f"{index}.safetensors")
    four = [f"{index}.safetensors" for index in range(4)]
    outcome = command("average", *four, "-o", "m.safetensors")
    assert outcome.err == (
        "error: 2 lacks 1 tensor: audio.w; leave them as they are with --keep GLOB, leave them out with --drop GLOB, "
        "or pass --missing keep-first\n"
    )
    done("average", *four, "--missing", "keep-first", "-o", "m.safetensors")
    assert_holds("m.safetensors", models[0])


def test_dtypes(folder: Path) -> None:
    got = merged("--dtype", "bfloat16")
    wanted = merge.interpolate(weights(0), weights(1), 0.25, policy=merge.Policy(dtype=torch.bfloat16))
    assert_same(ordered_as(got, wanted), wanted)
    got = merged("--compute-dtype", "float64", out="wide.safetensors")
    wanted = merge.interpolate(weights(0), weights(1), 0.25, policy=merge.Policy(compute_dtype=torch.float64))
    assert_same(ordered_as(got, wanted), wanted)


def test_batchnorm(folder: Path) -> None:
    got = merged("--batchnorm", "from:caption")
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(got[f"encoder.image.bn.{name}"], weights(1)[f"encoder.image.bn.{name}"])


def test_values_that_are_not_finite(folder: Path) -> None:
    state = weights(1)
    state["encoder.layers.0.fc.bias"][:3] = float("nan")
    merge.save_checkpoint(state, file("caption"), overwrite=True)
    before = snapshot(folder)
    outcome = command("interpolate", file("vqa"), file("caption"), "--ratio", 0.5, "-o", "m.safetensors")
    assert (outcome.code, outcome.err) == (
        2,
        "error: interpolate: 0.50 vqa + 0.50 caption: infinite or NaN values in 1 tensor "
        "(3 in encoder.layers.0.fc.bias); pass --allow-nonfinite to write them\n",
    )
    assert snapshot(folder) == before
    assert merged("--allow-nonfinite")["encoder.layers.0.fc.bias"].isnan().sum() == 3
    assert record("m.safetensors")["output"]["nonfinite"] == {"encoder.layers.0.fc.bias": 3}


def test_extrapolate(folder: Path) -> None:
    done("interpolate", file("vqa"), file("caption"), "--ratio", 1.5, "--extrapolate", "-o", "m.safetensors")
    assert_holds("m.safetensors", merge.interpolate(weights(0), weights(1), 1.5, policy=merge.Policy(extrapolate=True)))
    done("average", file("vqa"), file("caption"), "-w", 1, "-w", 1, "--extrapolate", "-o", "sum.safetensors")


def test_overwrite(folder: Path) -> None:
    merged()
    before = snapshot(folder)
    outcome = command("interpolate", file("vqa"), file("caption"), "--ratio", 0.5, "-o", "m.safetensors")
    assert outcome.err == "error: m.safetensors: exists; choose another name or pass --overwrite\n"
    assert (outcome.code, snapshot(folder)) == (2, before)
    done("interpolate", file("vqa"), file("caption"), "--ratio", 0.5, "-o", "m.safetensors", "--overwrite")
    assert_holds("m.safetensors", merge.interpolate(weights(0), weights(1), 0.5))
    assert record("m.safetensors")["parameters"] == {"ratio": 0.5}


def test_what_does_not_change_the_bytes(folder: Path) -> None:
    merged()
    wanted = Path("m.safetensors").read_bytes()
    for index, options in enumerate((["--threads", 1], ["--threads", 3], ["--no-sync"], ["--device", "cpu"])):
        merged(*options, out=f"{index}.safetensors")
        assert Path(f"{index}.safetensors").read_bytes() == wanted, options


def test_shard_size(folder: Path) -> None:
    got = merged("--shard-size", "0.3KB", out="shards")
    assert len(list(Path("shards").glob("model-*-of-*.safetensors"))) > 1
    wanted = merge.interpolate(weights(0), weights(1), 0.25)
    assert_same(ordered_as(got, wanted), wanted)


def test_digest(folder: Path) -> None:
    merged("--digest", "sha256")
    inputs = record("m.safetensors")["inputs"]
    assert [item["digest"] for item in inputs] == [merge.digest(weights(seed), "sha256") for seed in (0, 1)]
    done("run", "m.safetensors.recipe.json", "-o", "again.safetensors")
    assert Path("again.safetensors").read_bytes() == Path("m.safetensors").read_bytes()


@pytest.mark.parametrize("options", [(), ("--digest", "sha256"), ("--dtype", "float16"), ("--shard-size", "300B")])
def test_a_dry_run_shows_the_plan_and_writes_nothing(folder: Path, options: tuple[str, ...]) -> None:
    arguments = ["interpolate", file("vqa"), file("caption"), "--ratio", 0.25, *options, "-o"]
    out = "shards" if "--shard-size" in options else "m.safetensors"
    before = snapshot(folder)
    shown = done(*arguments, out, "--dry-run").out
    plan = json.loads(done(*arguments, out, "--dry-run", "--json").out)
    assert snapshot(folder) == before
    done(*arguments, out)
    made = Path(out)
    size = sum(path.stat().st_size for path in made.glob("model*")) if made.is_dir() else made.stat().st_size
    assert plan["outputs"] == [{"output": out, "recipe": "interpolate: 0.75 vqa + 0.25 caption", "bytes": size}]
    assert plan["bytes_read"] == 2 * sum(value.nbytes for value in weights(0).values())
    assert plan["tensors"] == {"merge": 9, "copy": 1, "maximum": 1}
    assert f"{size:,} bytes" in shown


def test_a_dry_run_checks_what_the_run_would(folder: Path) -> None:
    merged()
    for arguments in (
        ["interpolate", file("vqa"), file("caption"), "--ratio", 0.25, "-o", "m.safetensors"],
        ["interpolate", file("vqa"), file("caption"), "--ratio", 0.25, "-o", "none/m.safetensors"],
        ["interpolate", file("vqa"), "none.pt", "--ratio", 0.25, "-o", "x.safetensors"],
        ["average", file("vqa"), file("caption"), "-w", 0.5, "-o", "x.safetensors"],
        ["sweep", file("vqa"), file("caption"), "-o", "m.safetensors"],
        ["sweep", file("vqa"), file("caption"), "--points", 1, "-o", "points"],
        ["run", "m.safetensors.recipe.json", "-o", "m.safetensors"],
    ):
        dry, wet = command(*arguments, "--dry-run"), command(*arguments)
        assert dry == wet
        assert wet.code == 2


@pytest.mark.parametrize("options", [(), ("--ratios", "0.5"), ("--points", 3)])
def test_a_dry_run_of_a_sweep(folder: Path, options: tuple[object, ...]) -> None:
    arguments = ["sweep", file("vqa"), file("caption"), *options, "-o", "points"]
    before = snapshot(folder)
    plan = json.loads(done(*arguments, "--dry-run", "--json").out)
    assert snapshot(folder) == before
    done(*arguments)
    assert {row["output"]: row["bytes"] for row in plan["outputs"]} == {
        str(path): path.stat().st_size for path in Path("points").glob("*.safetensors")
    }
    again = command(*arguments, "--dry-run")
    assert (again.code, again.err) == (2, "error: points: exists; choose another name or pass --overwrite\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["interpolate", "vqa.safetensors", "caption.safetensors", "--ratio", "0.5", "-o", "m.safetensors"],
        ["average", "vqa.safetensors", "caption.safetensors", "-o", "m.safetensors"],
        ["task-arithmetic", "base.safetensors", "vqa.safetensors", "--scale", "0.5", "-o", "m.safetensors"],
        ["slerp", "vqa.safetensors", "caption.safetensors", "--ratio", "0.5", "-o", "m.safetensors"],
        ["sweep", "vqa.safetensors", "caption.safetensors", "--points", "2", "-o", "points"],
        ["inspect", "vqa.safetensors"],
        ["diff", "vqa.safetensors", "caption.safetensors"],
        ["doctor", "vqa.safetensors", "caption.safetensors"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_json_parses(folder: Path, arguments: list[str]) -> None:
    outcome = command(*arguments, "--json")
    assert outcome.err == ""
    data = json.loads(outcome.out)
    assert outcome.out.count("\n") == 1
    if arguments[-2] == "-o":
        assert arguments[-1] in json.dumps(data["output"])


def test_json_of_a_merge_is_its_recipe(folder: Path) -> None:
    data = json.loads(done("average", file("vqa"), file("caption"), "-o", "m.safetensors", "--json").out)
    assert {**data, "output": None} == {**record("m.safetensors"), "output": None}
    assert (
        json.loads(done("run", "m.safetensors.recipe.json", "-o", "n.safetensors", "--json").out)["method"] == "average"
    )


def test_the_command_is_noted(folder: Path) -> None:
    done("interpolate", file("vqa"), file("caption"), "--ratio", 0.25, "-o", "a name.safetensors")
    noted = record("a name.safetensors")["provenance"]["command"]
    assert noted == "unival-merge interpolate vqa.safetensors caption.safetensors --ratio 0.25 -o 'a name.safetensors'"


# -- the terminal ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_progress_bar_in_bytes_on_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 400_000
    for name in ("a", "b"):
        merge.save_checkpoint({"w": torch.zeros(size // 4)}, f"{name}.pt")
    terminal = Terminal()
    monkeypatch.setattr("tests.merge.shell.io.StringIO", lambda: terminal)
    outcome = command("interpolate", "a.pt", "b.pt", "--ratio", 0.5, "-o", "m.pt")
    assert outcome.code == 0
    assert "interpolate: 100%" in outcome.err
    assert "800k/800k" in outcome.err
    assert "B/s" in outcome.err


def test_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = [signal.SIGINT]  # once: another might come when this test is over

    def interrupting(tensors: list[Tensor], **_: object) -> Tensor:
        if signals:
            os.kill(os.getpid(), signals.pop())
        return tensors[0]

    monkeypatch.setitem(METHODS, "slerp", replace(METHODS["slerp"], code=interrupting))
    before = snapshot(folder)
    outcome = command("slerp", file("vqa"), file("caption"), "--ratio", 0.5, "-o", "m.safetensors")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.startswith("interrupted")
    assert snapshot(folder) == before


# -- training files --------------------------------------------------------------------------------------------------


def training_file(seed: int) -> dict[str, Any]:
    """What a published file of this family looks like."""
    half = weights(seed)
    half.update({name: value.half() for name, value in half.items() if value.is_floating_point()})
    half["decoder.output.weight"] = half["encoder.embed.weight"]
    generator = torch.Generator().manual_seed(seed)
    return {
        "args": None,
        "cfg": {"model": argparse.Namespace(arch="unival_base", layers=6, lr=[1e-5]), "task": {"data": "a,b"}},
        "model": half,
        "criterion": None,
        "optimizer_history": [{"optimizer_name": "Adam", "num_updates": 7 + seed, "lr_scheduler_state": {"best": 1.5}}],
        "task_state": {},
        "extra_state": {
            "metrics": {"valid": {"loss": 0.25}},
            "train_iterator": {"epoch": 3},
            "val_loss": 0.5,
            "best": 0.75,
            "ema": {name: value.float() for name, value in weights(seed + 10).items() if value.is_floating_point()},
            "ema_fp32_params": {"decoder.scale": torch.randn((), generator=generator)},
        },
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.randn(5, generator=generator), "step": 7}}},
    }


def assert_equal(got: Any, wanted: Any, at: str = "") -> None:
    """Deep equality with types and the order of keys."""
    assert type(got) is type(wanted), at
    if isinstance(wanted, Tensor):
        assert got.dtype == wanted.dtype, at
        assert torch.equal(got, wanted), at
    elif isinstance(wanted, dict):
        assert list(got) == list(wanted), at
        for key, value in wanted.items():
            assert_equal(got[key], value, f"{at}.{key}")
    elif isinstance(wanted, list):
        assert len(got) == len(wanted), at
        for index, value in enumerate(wanted):
            assert_equal(got[index], value, f"{at}[{index}]")
    else:
        assert got == wanted, at


def section_of(content: dict[str, Any], section: str) -> dict[str, Tensor]:
    return content["model"] if section == "model" else content["extra_state"]["ema"]


@pytest.mark.parametrize(
    ("section", "note"),
    [("model", "left out extra_state.ema: weights"), ("extra_state.ema", "left out model: weights")],
)
def test_a_training_file_keeps_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, note: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("vqa", "caption")):
        torch.save(training_file(seed), f"{name}.pt")
    ambiguous = command("interpolate", "vqa.pt", "caption.pt", "--ratio", 0.4, "-o", "m.pt")
    assert ambiguous.code == 2
    assert "model (11 tensors), extra_state.ema (9 tensors)" in ambiguous.err
    assert "choose one, as --section extra_state.ema" in ambiguous.err
    outcome = command("interpolate", "vqa.pt", "caption.pt", "--ratio", 0.4, "--section", section, "-o", "m.pt")
    assert outcome.code == 0
    assert f"note: {note}" in outcome.err
    got, wanted = torch.load("m.pt", weights_only=False), training_file(0)
    merged = merge.interpolate(section_of(training_file(0), section), section_of(training_file(1), section), 0.4)
    assert_same(ordered_as(section_of(got, section), merged), merged)
    section_of(wanted, section).update(merged)
    del wanted["last_optimizer_state"]
    if section == "model":
        del wanted["extra_state"]["ema"], wanted["extra_state"]["ema_fp32_params"]
        got["extra_state"].pop("ema_fp32_params", None)
    else:
        del wanted["model"]
        wanted["extra_state"]["ema_fp32_params"] = got["extra_state"].get("ema_fp32_params")
        got["extra_state"].setdefault("ema_fp32_params", None)
    assert_equal(got, wanted)
    assert got["cfg"]["model"].arch == "unival_base"
    assert record("m.pt")["inputs"][0]["section"] == section


# -- looking at checkpoints ------------------------------------------------------------------------------------------


def test_inspect(folder: Path) -> None:
    text = done("inspect", file("vqa")).out
    assert "float32" in text
    assert "11" in text
    merged()
    data = json.loads(done("inspect", "m.safetensors", "--json").out)
    assert "interpolate" in json.dumps(data)
    torch.save(training_file(0), "training.pt")
    sections = done("inspect", "training.pt", "--section", "model").out
    assert "extra_state.ema" in sections
    assert "decoder.output.weight" in sections  # its tie


def test_diff(folder: Path) -> None:
    state = weights(1)
    del state["decoder.scale"]
    state["encoder.layers.0.fc.bias"] = torch.ones(3)
    state["extra"] = torch.ones(1)
    merge.save_checkpoint(state, file("caption"), overwrite=True)
    text = done("diff", file("vqa"), file("caption")).out
    for name in ("decoder.scale", "extra", "encoder.layers.0.fc.bias"):
        assert name in text
    assert "encoder" in text
    assert "cosine" in text
    same = json.loads(done("diff", file("vqa"), file("vqa"), "--json").out)
    assert same["total"]["distance"] == 0
    assert same["total"]["cosine"] == pytest.approx(1)


@pytest.fixture
def family(folder: Path) -> Path:
    """An ancestor and two that were finetuned from it a little."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.weight": torch.randn(20, 30, generator=generator) for i in range(4)}
    merge.save_checkpoint(base, "ancestor.pt")
    for name in ("a", "b"):
        tuned = {key: value + 0.01 * torch.randn(20, 30, generator=generator) for key, value in base.items()}
        merge.save_checkpoint(tuned, f"{name}.pt")
    return folder


def test_doctor(family: Path) -> None:
    before = snapshot(family)
    for options in ((), ("--base", "ancestor.pt"), ("--name", "x", "--name", "y")):
        outcome = done("doctor", "a.pt", "b.pt", *options)
        assert "can be merged" in outcome.out
    assert "x, y" in outcome.out
    lacking = merge.load_checkpoint("b.pt")
    del lacking["layers.3.weight"]
    merge.save_checkpoint(lacking, "lacking.pt")
    outcome = command("doctor", "a.pt", "lacking.pt")
    assert (outcome.code, outcome.err) == (1, "")
    assert "cannot be merged" in outcome.out
    assert "layers.3.weight" in outcome.out
    assert "--missing keep-first" in outcome.out or "--keep" in outcome.out
    data = json.loads(command("doctor", "a.pt", "lacking.pt", "--json").out)
    assert data["exit_code"] == 1
    assert before.items() <= snapshot(family).items()


# -- a whole process -------------------------------------------------------------------------------------------------


def test_a_whole_process(folder: Path) -> None:
    here = command("average", file("vqa"), file("caption"), "-o", "here.safetensors")
    words = ("average", file("vqa"), file("caption"), "-o", "there.safetensors")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "merge", *words]
    there = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (there.returncode, there.stderr) == (0, "")
    assert there.stdout == here.out.replace("here", "there")
    assert Path("there.safetensors").read_bytes() == Path("here.safetensors").read_bytes()
