"""Bad input at the command line: one line, exit code 2, nothing written, nothing touched."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import merge
from tests.merge.made import weights
from tests.merge.shell import Outcome, command, snapshot

A, B = "a.safetensors", "b.safetensors"


class Evil:
    """Unpickled in full, it would make a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def build(folder: Path) -> None:
    """Two good checkpoints and every kind of bad one."""
    for seed, name in enumerate("ab"):
        merge.save_checkpoint(weights(seed), folder / f"{name}.safetensors")
        merge.save_checkpoint(weights(seed), folder / f"{name}.pt")
    good = (folder / B).read_bytes()
    torch_file = (folder / "b.pt").read_bytes()
    (folder / "empty.safetensors").touch()
    (folder / "empty.pt").touch()
    (folder / "cut.safetensors").write_bytes(good[:-1])
    (folder / "cut.pt").write_bytes(torch_file[: len(torch_file) // 2])
    (folder / "long.safetensors").write_bytes(good + b"x")
    (folder / "lie.safetensors").write_bytes(struct.pack("<Q", 10**18) + good[8:])
    (folder / "nojson.safetensors").write_bytes(struct.pack("<Q", 8) + b"[[[[[[[[")
    overlapping = (
        b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
    )
    (folder / "overlap.safetensors").write_bytes(struct.pack("<Q", len(overlapping)) + overlapping + bytes(12))
    wrong_size = b'{"x":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}'
    (folder / "size.safetensors").write_bytes(struct.pack("<Q", len(wrong_size)) + wrong_size + bytes(8))
    (folder / "weights.txt").write_text("weights, one day")
    (folder / "text.pt").write_text("these are no weights\n")
    torch.save({"epoch": 3, "note": "no weights"}, folder / "noweights.pt")
    torch.save([torch.ones(1)], folder / "list.pt")
    torch.save({"model": weights(1), "state_dict": weights(1)}, folder / "two.pt")
    torch.save({"w": torch.ones(2), "evil": Evil()}, folder / "evil.pt")
    (folder / "evil_old.pt").write_bytes(pickle.dumps(Evil()))
    (folder / "nothing").mkdir()
    (folder / "folder.safetensors").mkdir()
    merge.save_checkpoint(weights(1), folder / "shards", shard_size=300)
    stale = json.loads((folder / "shards" / "model.safetensors.index.json").read_text())
    for name, change in (("gone", "none-00001-of-00009.safetensors"), ("stale", "")):
        shutil.copytree(folder / "shards", folder / name)
        weight_map = dict(stale["weight_map"])
        if change:
            weight_map["decoder.scale"] = change
        else:
            weight_map["decoder.other"] = next(iter(weight_map.values()))
        (folder / name / "model.safetensors.index.json").write_text(json.dumps({**stale, "weight_map": weight_map}))
    state = weights(1)
    state["encoder.layers.0.fc.bias"] = torch.ones(12)
    state["encoder.positions"] = state["encoder.positions"] + 1
    state["encoder.image.bn.weight"] = state["encoder.image.bn.weight"].half()
    merge.save_checkpoint(state, folder / "shapes.safetensors")
    names = {f"audio.layers.{i:02}.w": torch.ones(1) for i in range(25)}
    merge.save_checkpoint(
        {**{k: v for k, v in weights(1).items() if k != "decoder.scale"}, **names}, folder / "names.pt"
    )
    merge.run(
        merge.Recipe("interpolate", (merge.Input("a", folder / A), merge.Input("b", folder / B)), {"ratio": 0.5}),
        folder / "made.safetensors",
    )
    recipe = json.loads((folder / "made.safetensors.recipe.json").read_text())
    (folder / "unknown.json").write_text(json.dumps({**recipe, "inpts": []}))
    (folder / "method.json").write_text(json.dumps({**recipe, "method": "interpolat"}))
    (folder / "ratio.json").write_text(json.dumps({**recipe, "parameters": {"ratio": 3}}))
    (folder / "text.json").write_text("no json")
    gone = [{**item, "path": "/nowhere/x.pt"} for item in recipe["inputs"]]
    (folder / "gone.json").write_text(json.dumps({**recipe, "inputs": gone}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    build(folder)
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of bad files as working directory; it must be as before when the test ends."""
    monkeypatch.chdir(made)
    before = snapshot(made)
    yield made
    assert snapshot(made) == before


def assert_refused(outcome: Outcome, *parts: str) -> None:
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    assert len(outcome.err) < 3000
    for part in parts:
        assert part in outcome.err, f"{part!r} is not in {outcome.err!r}"


# -- files -----------------------------------------------------------------------------------------------------------

FILES = {
    "none.pt": "no such file or folder",
    "none/x.safetensors": "no such file or folder",
    "a.pt/x.pt": "no such file or folder",
    "n" * 300 + ".pt": "",
    "nothing": "no weights in this folder",
    "folder.safetensors": "no weights in this folder",
    "empty.safetensors": "is empty (0 bytes)",
    "empty.pt": "",
    "cut.safetensors": "not a whole safetensors file of",
    "cut.pt": "",
    "long.safetensors": "not a whole safetensors file of",
    "lie.safetensors": "not a whole safetensors file of",
    "nojson.safetensors": "not a whole safetensors file of",
    "overlap.safetensors": "not a whole safetensors file of",
    "size.safetensors": "not a whole safetensors file of",
    "weights.txt": "is text, not weights",
    "text.pt": "",
    "noweights.pt": "no weights found; its entries are epoch, note",
    "list.pt": "holds a list",
    "two.pt": "several sections with weights: model (11 tensors), state_dict (11 tensors)",
    "evil.pt": "mkdir",
    "evil_old.pt": "",
    "gone": "none-00001-of-00009.safetensors, which is missing",
    "stale": "stale: says that 'decoder.other' is in model-",
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_are_named(here: Path, name: str) -> None:
    part = name[:20]
    for arguments in (
        ["interpolate", A, name, "--ratio", "0.5", "-o", "out.safetensors"],
        ["interpolate", name, A, "--ratio", "0.5", "-o", "out.safetensors", "--dry-run"],
        ["sweep", A, name, "-o", "points"],
        ["task-arithmetic", name, A, "-o", "out.pt"],
    ):
        assert_refused(command(*arguments), part, FILES[name])
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("look", ["inspect", "diff", "doctor"])
def test_bad_files_are_named_by_the_commands_that_look(here: Path, look: str, name: str) -> None:
    arguments = [look, name] if look == "inspect" else [look, A, name]
    outcome = command(*arguments)
    if (look, name) == ("inspect", "two.pt"):  # to look at its sections is what `inspect` is for
        assert outcome.code == 0
        assert "state_dict" in outcome.out
        return
    assert_refused(outcome, name[:20], FILES[name])
    assert not Path("executed").exists()


def test_a_section_that_is_not_there(here: Path) -> None:
    outcome = command("interpolate", "two.pt", "two.pt", "--section", "modle", "--ratio", 0.5, "-o", "out.pt")
    assert_refused(
        outcome, "two.pt: has no section 'modle' with weights; it has model (11 tensors), state_dict (11 tensors)"
    )


# -- checkpoints that do not fit -------------------------------------------------------------------------------------


def test_both_set_differences_with_counts(here: Path) -> None:
    outcome = command("interpolate", "a.pt", "names.pt", "--ratio", 0.5, "-o", "out.pt")
    shown = ", ".join(f"audio.layers.{i:02}.w" for i in range(20))
    assert_refused(
        outcome,
        f"a lacks 25 tensors: {shown} and ",
        "5 in audio.layers",
        "names lacks 1 tensor: decoder.scale",
        "--keep",
        "--drop",
        "--missing keep-first",
    )
    assert "audio.layers.20.w" not in outcome.err


def test_shapes_dtypes_and_integers_at_once(here: Path) -> None:
    outcome = command("average", A, "shapes.safetensors", "-o", "out.safetensors")
    assert_refused(
        outcome,
        "encoder.layers.0.fc.bias has shape [11] in a and [12] in shapes",
        "encoder.positions is int64 and differs between a and shapes",
        "encoder.image.bn.weight is float32 in a and float16 in shapes: choose the result's, as --dtype float32",
    )


# -- options ---------------------------------------------------------------------------------------------------------

PAIR = ["interpolate", A, B, "-o", "out.safetensors"]
AVERAGE = ["average", A, B, "-o", "out.safetensors"]
SWEEP = ["sweep", A, B, "-o", "points"]
OPTIONS = [
    ([*PAIR, "--ratio", "1.5"], "ratio 1.5 is outside [0, 1]; pass --extrapolate"),
    ([*PAIR, "--ratio", "-0.1"], "ratio -0.1 is outside [0, 1]; pass --extrapolate"),
    ([*PAIR, "--alpha", "0.4"], "No such option: --alpha; did you mean --ratio?; see"),
    ([*PAIR, "--ratios", "0.4"], "No such option: --ratios; did you mean --ratio?; see"),
    ([*PAIR, "--ratio", "nan"], "ratio must be a finite number"),
    ([*PAIR, "--ratio", "inf", "--extrapolate"], "ratio must be a finite number"),
    (
        [*PAIR, "--ratio", "0.5", "--dtype", "float23"],
        "'--dtype': 'float23' is not one of float64, float32, float16, bfloat16",
    ),
    ([*PAIR, "--ratio", "0.5", "--dtype", "int8"], "'int8' is not one of float64"),
    ([*PAIR, "--ratio", "0.5", "--compute-dtype", "bfloat16"], "float32"),
    ([*PAIR, "--ratio", "0.5", "--compute-dtype", "float8_e5m2"], "float64"),
    (
        [*PAIR, "--ratio", "0.5", "--missing", "keep"],
        "'keep' is not one of error, keep-first, zero-delta, union (did you mean keep-first?)",
    ),
    ([*PAIR, "--ratio", "0.5", "--keep", "encodr.*"], "--keep 'encodr.*' matches no tensor; names look like"),
    ([*PAIR, "--ratio", "0.5", "--drop", "encodr.*"], "--drop 'encodr.*' matches no tensor; names look like"),
    ([*PAIR, "--ratio", "0.5", "--batchnorm", "from:x"], "must be 'average' or 'from:' and one of a, b"),
    ([*PAIR, "--ratio", "0.5", "--device", "nowhere"], "nowhere"),
    ([*PAIR, "--ratio", "0.5", "--device", "meta"], "meta"),
    ([*PAIR, "--ratio", "0.5", "--threads", "-1"], "-1"),
    ([*PAIR, "--ratio", "0.5", "--digest", "md5"], "'md5' is not one of xxh3_128, sha256"),
    ([*PAIR, "--ratio", "0.5", "--shard-size", "lots"], "--shard-size 'lots': give a size as 2GB or 500MB"),
    ([*PAIR, "--ratio", "0.5", "--shard-size", "-1GB"], "--shard-size '-1GB'"),
    ([*PAIR, "--ratio", "0.5", "--shard-size", "inf"], "--shard-size 'inf'"),
    ([*PAIR, "--ratio", "0.5", "--name", "x"], "1 --name"),
    ([*PAIR, "--ratio", "0.5", "--name", "x", "--name", "x"], "two inputs are called 'x'; tell them apart with --name"),
    ([*PAIR, "--ratio", "0.5", "--name", "x/y", "--name", "z"], "x/y"),
    ([*PAIR, "--ratio", "0.5", "--name", "*", "--name", "z"], "'*'"),
    ([*PAIR, "--ratio", "0.5", "--name", "", "--name", "z"], "''"),
    ([*AVERAGE, "-w", "0.5"], "1 weights were given for 2 inputs (a, b)"),
    (
        [*AVERAGE, "-w", "0.5", "-w", "0.6"],
        "weights 0.5, 0.6 sum to 1.1, not to 1: pass --normalize to divide them by their sum, or --extrapolate",
    ),
    ([*AVERAGE, "-w", "0", "-w", "0"], "erases every tensor"),
    ([*AVERAGE, "-w", "1", "-w", "-1", "--extrapolate"], "erases every tensor"),
    ([*AVERAGE, "-w", "1.5", "-w", "-0.5"], "outside [0, 1]"),
    ([*AVERAGE, "-w", "nan", "-w", "0.5"], "weights must be a finite number"),
    (["average", A, "-o", "out.pt"], "average takes at least 2 checkpoints, 1"),
    (["average", A, A, "-o", "out.pt"], "two inputs are called 'a'; tell them apart with --name"),
    (["task-arithmetic", A, B, "--scale", "nan", "-o", "out.pt"], "scale must be a finite number"),
    (["task-arithmetic", A, B, "--scale", "1e39", "-o", "out.pt"], "scale must be a finite number, below 3.4e+38"),
    ([*SWEEP, "--points", "1"], "at least 2 points and at most 1,000,000, not 1"),
    ([*SWEEP, "--ratios", "0,x"], "--ratios '0,x': give numbers with commas between them"),
    ([*SWEEP, "--ratios", "0,2"], "ratio 2.0 is outside [0, 1]"),
    ([*SWEEP, "--ratios", "0.5,0.5"], "two points have the same shares"),
    ([*SWEEP, "--ratios", "nan,0"], "ratio must be a finite number"),
]


@pytest.mark.parametrize(
    ("arguments", "part"), OPTIONS, ids=lambda value: " ".join(value[4:]) if type(value) is list else ""
)
def test_bad_options_are_named(here: Path, arguments: list[str], part: str) -> None:
    assert_refused(command(*arguments), part)
    assert_refused(command(*arguments, "--dry-run"), part)


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        ("unknown.json", "unknown.json: a recipe has no key 'inpts'; did you mean 'inputs'?"),
        ("method.json", "unknown method 'interpolat'; did you mean 'interpolate'?"),
        ("ratio.json", "ratio 3 is outside [0, 1]"),
        ("text.json", "text.json: not a recipe"),
        ("none.json", "none.json: not a recipe file"),
        ("nothing", "nothing: not a recipe file"),
        (A, "not a recipe file"),
        ("gone.json", "/nowhere/x.pt: no such file or folder"),
    ],
)
def test_bad_recipes_are_named(here: Path, recipe: str, part: str) -> None:
    assert_refused(command("run", recipe, "-o", "out.safetensors"), part)
    assert_refused(command("run", recipe, "-o", "out.safetensors", "--dry-run"), part)


# -- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "part"),
    [
        (A, "input"),
        ("./nothing/../a.safetensors", "input"),
        ("made.safetensors", "made.safetensors: "),
        ("none/out.pt", "its folder none does not exist; make it first"),
        ("out.zip", "unknown suffix '.zip'"),
        ("a.pt/out.pt", "a.pt"),
        ("folder.safetensors", "folder.safetensors"),
        ("nothing", "nothing: exists"),
        ("", ""),
        ("..", ""),
        ("n" * 300 + ".pt", "nnn"),
    ],
)
def test_bad_outputs_are_named(here: Path, out: str, part: str) -> None:
    for options in ([], ["--dry-run"]):
        assert_refused(command("interpolate", A, B, "--ratio", 0.5, "-o", out, *options), part)
        if out not in ("out.zip", A):
            assert_refused(
                command("sweep", A, B, "-o", out, *options), "" if out == "./nothing/../a.safetensors" else part
            )


@pytest.mark.parametrize("out", [A, "folder.safetensors", ".", ""])
def test_overwriting_does_not_reach_inputs_or_folders(here: Path, out: str) -> None:
    assert_refused(command("interpolate", A, B, "--ratio", 0.5, "-o", out, "--overwrite"))
    if out != "folder.safetensors":
        assert_refused(command("sweep", A, B, "-o", out, "--overwrite"))


def test_a_merge_may_not_replace_a_folder_that_holds_an_input(here: Path) -> None:
    outcome = command("interpolate", "shards", A, "--ratio", 0.5, "-o", "shards", "--overwrite")
    assert_refused(outcome, "input")
    assert_refused(command("sweep", "shards", A, "-o", "shards", "--overwrite"), "input")


# -- permissions and full disks --------------------------------------------------------------------------------------


@pytest.fixture
def unprivileged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, which everybody may read and nobody may write, and for root the rights of nobody.

    `monkeypatch` is asked for here so that it leaves the folder after the rights are back: the checkout may lie where
    nobody may go.
    """
    folder = Path(tempfile.mkdtemp())
    build(folder)
    (folder / B).chmod(0o000)
    folder.chmod(0o555)
    monkeypatch.chdir(folder)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.usefixtures("unprivileged")
def test_no_permission() -> None:
    unreadable = command("interpolate", A, B, "--ratio", 0.5, "-o", "/tmp/never.safetensors")
    assert_refused(unreadable, B, "ermission denied")
    unwritable = command("interpolate", "a.pt", "b.pt", "--ratio", 0.5, "-o", "out.pt")
    assert_refused(unwritable, "out.pt", "ermission")
    assert_refused(command("sweep", "a.pt", "b.pt", "-o", "points"), "points", "ermission")
    assert not Path("/tmp/never.safetensors").exists()
    assert not Path("out.pt").exists()


def test_a_disk_that_takes_no_more(here: Path) -> None:
    """A limit on the size of files stands for the full disk: both come as an error of the write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        outcome = command("average", "a.pt", "b.pt", "--dtype", "float64", "-o", "out.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_refused(outcome, "out.pt", "nothing was written")
