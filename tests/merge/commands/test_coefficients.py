"""How coefficients, names and sections are written on the command line, for any method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import merge
from merge.checkpoint.digest import ALGORITHMS
from merge.commands import app, options
from merge.commands.options import names_of
from merge.commands.table import in_options
from merge.methods import METHODS
from merge.plan.policy import MISSING, VOCAB_ROWS, dtype_named
from tests.merge.made import assert_same, ordered_as, weights
from tests.merge.shell import command, done

THREE = ("vqa.pt", "caption.pt", "grounding.pt")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with three experts and their base."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate((*THREE, "base.pt")):
        merge.save_checkpoint(weights(seed), name)
    return tmp_path


def recipe(output: str = "m.pt") -> dict[str, Any]:
    return json.loads(Path(f"{output}.recipe.json").read_text())


def refused(*arguments: object) -> str:
    outcome = command(*arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1), outcome
    return outcome.err.removeprefix("error: ").removesuffix("\n")


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("0.4", 0.4), ("40%", 0.4), ("2/5", 0.4), ("1/3", 1 / 3), ("12.5%", 0.125)]
)
def test_a_ratio_is_a_number_a_percentage_or_a_fraction(folder: Path, text: str, value: float) -> None:
    done("interpolate", "vqa.pt", "caption.pt", "--ratio", text, "-o", "m.pt")
    assert recipe()["parameters"] == {"ratio": value}


@pytest.mark.parametrize("text", ["0,4", "half", "4:10", "1/0", "%", ""])
def test_an_error_shows_the_value(folder: Path, text: str) -> None:
    told = refused("interpolate", "vqa.pt", "caption.pt", "--ratio", text, "-o", "m.pt")
    assert told == f"--ratio {text!r}: give a number, as 0.4, 40% or 2/5"


def test_long_values_are_shortened(folder: Path) -> None:
    for arguments in (
        ("--ratio", "9" * 500 + "x"),
        ("--ratio", "0.5", "--missing", "x" * 500),
        ("--ratio", "0.5", "--section", "x" * 500 + "=model"),
        ("--ratio", "0.5", "--threads", "x" * 500),
    ):
        assert len(refused("interpolate", "vqa.pt", "caption.pt", "-o", "m.pt", *arguments)) < 300


@pytest.mark.parametrize(
    "words", [("-w", "0.5,0.3,0.2"), ("-w", "0.5", "-w", "0.3", "-w", "20%"), ("-w", "1/2,3/10", "--weight", "1/5")]
)
def test_weights_are_a_list_or_repeated(folder: Path, words: tuple[str, ...]) -> None:
    done("average", *THREE, *words, "-o", "m.pt")
    assert recipe()["parameters"] == {"weights": [0.5, 0.3, 0.2]}
    done("task-arithmetic", "base.pt", *THREE, *words, "-o", "t.pt")
    assert recipe("t.pt")["parameters"] == {"scale": 1.0, "weights": [0.5, 0.3, 0.2]}


def test_thirds_are_exactly_equal_shares(folder: Path) -> None:
    done("average", *THREE, "-w", "1/3,1/3,1/3", "-o", "m.pt")
    done("average", *THREE, "-o", "equal.pt")
    assert_same(merge.load_checkpoint("m.pt"), merge.load_checkpoint("equal.pt"))


def test_weights_of_another_sum_are_normalized_if_asked_for(folder: Path) -> None:
    words = ("average", *THREE, "-w", "5,3,2", "-o", "m.pt")
    assert refused(*words) == (
        "weights 5, 3, 2 sum to 10, not to 1: pass --normalize to divide them by their sum, "
        "or --extrapolate to mean them"
    )
    done(*words, "--normalize")
    assert recipe()["parameters"] == {"weights": [0.5, 0.3, 0.2]}
    done("merge", "average", *THREE, "-p", "weights=5,3,2", "--normalize", "-o", "n.pt")
    assert Path("n.pt").read_bytes() == Path("m.pt").read_bytes()


def test_points_and_ratios_are_not_mixed(folder: Path) -> None:
    words = ("sweep", "vqa.pt", "caption.pt", "-o", "points")
    assert refused(*words, "--points", 3, "--ratios", "0,1") == "--points 3 and --ratios 0,1: give one of them"
    done(*words, "--ratios", "0,1/4,50%,1")
    rows = json.loads(Path("points/sweep.json").read_text())["points"]
    assert [row["parameters"]["ratio"] for row in rows] == [0, 0.25, 0.5, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("w.json", '{"grounding": 0.2, "vqa": 0.5, "caption": 0.3}'),
        ("w.csv", "name,weight\ncaption,30%\nvqa,1/2\n\ngrounding,0.2\n"),
    ],
)
def test_weights_come_from_a_file_by_name(folder: Path, name: str, text: str) -> None:
    Path(name).write_text(text)
    done("average", *THREE, "--weights-from", name, "-o", "m.pt")
    assert recipe()["parameters"] == {"weights": [0.5, 0.3, 0.2]}
    done("merge", "linear", *THREE, "--weights-from", name, "-o", "l.pt")
    assert recipe("l.pt")["parameters"] == {"weights": [0.5, 0.3, 0.2]}
    assert refused("average", "vqa.pt", "caption.pt", "--weights-from", name, "-o", "n.pt").endswith(
        "; the inputs are vqa, caption"
    )
    assert "give one of them" in refused("average", *THREE, "--weights-from", name, "-w", "1,0,0", "-o", "n.pt")
    for bad in ("[1, 2]", "{", "vqa"):
        Path(name).write_text(bad)
        assert refused("average", *THREE, "--weights-from", name, "-o", "n.pt").startswith(f"{name}: ")


# -- any method --------------------------------------------------------------------------------------------------------


def test_any_method_with_its_parameters(folder: Path) -> None:
    words = (
        "vqa.pt",
        "caption.pt",
        "--base",
        "base.pt",
        "-p",
        "density=0.2,50%",
        "-p",
        "normalize=no",
        "-p",
        "scale=1/2",
    )
    done("merge", "ties", *words, "-o", "m.pt")
    made = recipe()
    assert made["parameters"] == {"density": [0.2, 0.5], "normalize": False, "scale": 0.5}
    assert (made["method"], made["base"]["name"]) == ("ties", "base")
    done("merge", "dare-linear", "vqa.pt", "--base", "base.pt", "-p", "density=0.5", "-p", "seed=7", "-o", "d.pt")
    assert recipe("d.pt")["parameters"] == {"density": 0.5, "seed": 7}


def test_the_short_forms_are_the_same_merges(folder: Path) -> None:
    done("interpolate", "vqa.pt", "caption.pt", "--ratio", 0.3, "-o", "short.pt")
    done("merge", "interpolate", "vqa.pt", "caption.pt", "-p", "ratio=0.3", "-o", "m.pt")
    assert Path("m.pt").read_bytes() == Path("short.pt").read_bytes()


def test_a_parameter_by_module(folder: Path) -> None:
    words = ("merge", "interpolate", "vqa.pt", "caption.pt", "-p", "ratio=encoder.l*=0.5")
    done(*words, "-p", "ratio=0.25", "-o", "m.pt")
    assert recipe()["parameters"] == {"ratio": {"encoder.l*": 0.5, "*": 0.25}}
    got = merge.load_checkpoint("m.pt")
    for name, value in weights(0).items():
        if value.is_floating_point():
            ratio = 0.5 if name.startswith("encoder.l") else 0.25
            assert torch.equal(got[name], torch.lerp(value, weights(1)[name], ratio)), name
    assert refused(*words, "-o", "n.pt") == (
        "-p ratio: the globs encoder.l* leave a rest: give it a value with -p ratio=VALUE"
    )


ONE = "slerp takes ratio (0 to 1)"
BAD: list[tuple[str, tuple[str, ...], str]] = [
    ("tie", (), "unknown method 'tie'; did you mean 'ties'?"),
    ("ties", (), "ties needs a base: pass --base BASE"),
    ("slerp", ("--base", "base.pt"), "slerp takes no --base"),
    ("slerp", ("-p", "ratoi=1"), f"-p 'ratoi=1': there is no 'ratoi'; did you mean 'ratio'? {ONE}"),
    ("slerp", ("-p", "ratio"), f"-p 'ratio': give NAME=VALUE or NAME=GLOB=VALUE; {ONE}"),
    ("slerp", (), f"slerp needs the parameter 'ratio': share of the second checkpoint; {ONE}"),
    ("slerp", ("-p", "ratio=2"), f"ratio 2.0 is outside [0, 1]; pass --extrapolate to go beyond; {ONE}"),
    (
        "slerp",
        ("-p", "ratio=40"),
        f"ratio 40.0 is outside [0, 1]: for 40 % give 0.4; pass --extrapolate to go beyond; {ONE}",
    ),
    ("slerp", ("-p", "ratio=0.1,0.2"), "-p ratio=0.1,0.2: takes one value for all inputs, 0 to 1"),
    ("slerp", ("-p", "ratio=x"), "-p ratio=x: give 0 to 1 (share of the second checkpoint)"),
    ("slerp", ("--normalize",), f"--normalize: {ONE}"),
    ("karcher", ("-p", "iterations=1.5"), "iterations must be a whole number, not 1.5; karcher takes weights"),
    ("linear", ("-p", "normalize=maybe"), "-p normalize=maybe: give true or false (divide by the sum of the weights)"),
    ("average", ("-p", "weights=0.5,0.6"), "pass --normalize to divide them by their sum"),
    ("average", ("-p", "weights=0.5,0.6,0"), "3 weights were given for 2 inputs (vqa, caption); average takes weights"),
]


@pytest.mark.parametrize(("method", "words", "told"), BAD)
def test_what_a_method_cannot_take_is_told(folder: Path, method: str, words: tuple[str, ...], told: str) -> None:
    assert told in refused("merge", method, "vqa.pt", "caption.pt", *words, "-o", "m.pt")


def test_every_method_is_listed_and_told_in_full(folder: Path) -> None:
    listed = done("methods").out
    for name, method in METHODS.items():
        assert f"  {name} " in listed
        full = done("methods", name).out
        for text in (method.summary, method.formula, method.source, method.edges, *method.parameters):
            assert text in full
    assert "unknown method 'slrp'; did you mean 'slerp'?" in refused("methods", "slrp")


# -- names and sections ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.pt", "b.pt"], ["a", "b"]),
        (["x/a.pt", "b.pt"], ["a", "b"]),
        (["unival_vqa/checkpoint_best.pt", "unival_caption/checkpoint_best.pt"], ["unival_vqa", "unival_caption"]),
        (["vqa/last/m.pt", "caption/last/m.pt"], ["vqa", "caption"]),
        (["x/last/m.pt", "y/last/m.pt", "x/best/m.pt"], ["x-last", "y-last", "x-best"]),
        (["vqa/m.pt", "caption/m.pt", "vqa.pt"], ["vqa-m", "caption-m", "vqa"]),
        (["vqa/m.pt", "vqa/m.pt"], ["m", "m"]),  # one file twice: --name tells them apart
    ],
)
def test_files_of_one_name_are_called_by_their_folders(folder: Path, paths: list[str], names: list[str]) -> None:
    assert names_of([Path(path) for path in paths]) == names


def test_published_experts_are_told_apart_in_recipes(folder: Path) -> None:
    for seed, name in enumerate(("vqa", "caption", "pretrained")):
        Path(name).mkdir()
        merge.save_checkpoint(weights(seed), f"{name}/checkpoint_best.pt")
    pair = [f"{name}/checkpoint_best.pt" for name in ("vqa", "caption")]
    assert (
        done("interpolate", *pair, "--ratio", "0.4", "-o", "m.pt").said
        == "m.pt: interpolate: 0.60 vqa + 0.40 caption\n"
    )
    told = done("task-arithmetic", "pretrained/checkpoint_best.pt", *pair, "--scale", "0.3", "-o", "t.pt").said
    assert told == "t.pt: task-arithmetic: base + 0.30 vqa + 0.30 caption\n"
    assert "vqa, caption" in done("doctor", *pair).out


def test_a_section_for_all_inputs_or_for_one(folder: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        torch.save({"model": weights(seed), "state_dict": weights(seed + 2)}, f"{name}.pt")
    words = ("interpolate", "a.pt", "b.pt", "--ratio", "0.5", "--dtype", "float32", "-o")
    done(*words, "m.safetensors", "--section", "model", "--section", "b=state_dict")
    assert [item["section"] for item in recipe("m.safetensors")["inputs"]] == ["model", "state_dict"]
    wanted = merge.interpolate(weights(0), weights(3), 0.5)
    assert_same(ordered_as(merge.load_checkpoint("m.safetensors"), wanted), wanted)
    assert refused(*words, "n.pt", "--section", "c=ema") == "--section 'c=ema' names no input: they are a, b"
    torch.save(weights(1), "epoch=3.pt")
    done("interpolate", "a.pt", "epoch=3.pt", "--ratio", "0", "--section", "a=model", "-o", "e.safetensors")
    assert json.loads(done("diff", "a.pt", "a.pt", "--section", "model", "--json").out)["total"]["distance"] == 0


# -- the words of options and of the library ---------------------------------------------------------------------------


def test_choices_are_those_of_the_library() -> None:
    assert options.MISSING == MISSING
    assert options.VOCAB_ROWS == VOCAB_ROWS
    assert set(options.DIGESTS) == set(ALGORITHMS)
    assert all(dtype_named(name) for name in options.DTYPES)


def test_the_library_speaks_python_and_the_command_line_options(folder: Path) -> None:
    with pytest.raises(merge.MergeError, match=r"^missing='zero-delta' says"):
        merge.interpolate(weights(0), weights(1), 0.5, policy=merge.Policy(missing="zero-delta"))
    words = ("interpolate", "vqa.pt", "caption.pt", "--ratio", "0.5", "-o", "m.pt", "--missing", "zero-delta")
    assert refused(*words).startswith("--missing zero-delta says")


@pytest.mark.parametrize(
    ("python", "told"),
    [
        ("m.pt: exists; pass overwrite=True", "m.pt: exists; pass --overwrite"),
        ("give vocab_rows='keep-first' or\nbatchnorm=\"from:a\"", "give --vocab-rows keep-first or --batchnorm from:a"),
        ("pass extrapolate=True or other=True", "pass --extrapolate or other=True"),  # no option of this command
        ("the rule a.dtype=True is no rule", "the rule a.dtype=True is no rule"),
    ],
)
def test_arguments_are_told_as_options_of_the_command_at_hand(python: str, told: str) -> None:
    group: Any = typer.main.get_command(app)
    assert in_options(python, group.get_command(typer.Context(group), "interpolate")) == told
