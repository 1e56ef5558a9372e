"""The public door of merge: its names, and what every function takes for a checkpoint."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import merge
from merge import Input, LinearPath, LivePath, MergeError, Options, Policy, Recipe, Simplex, TaskVector
from tests import ROOT
from tests.merge.made import Carrier, assert_same, weights

VERBS = """
open_checkpoint load_checkpoint save_checkpoint interpolate average task_arithmetic slerp merge_with sweep ratios
LinearPath Simplex LivePath TaskVector METHODS Policy Options Recipe Input read_recipe run sweep_to_files digest
convert doctor diff inspect Checkpoint recalibrate_batchnorm repair activation_statistics MergeError share_label
__version__ Adapter apply_adapters merge_adapters open_adapter PermutationSpec activation_matching apply_permutation
permutation_spec random_permutation weight_matching
"""


def test_the_door_has_these_names() -> None:
    assert set(VERBS.split()) <= set(merge.__all__)
    assert dir(merge) == sorted(merge.__all__)
    assert not {"add_task_vectors", "task_vector"} & set(dir(merge))
    assert all(getattr(merge, name) is not None for name in merge.__all__)
    with pytest.raises(AttributeError, match="no attribute 'add_task_vectors'"):
        merge.add_task_vectors  # noqa: B018  # pyright: ignore


def test_type_checkers_see_what_the_table_says() -> None:
    tree = ast.parse((ROOT / "merge" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        item.name: (node.module or "").removeprefix("merge.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for item in node.names
    }
    assert seen == merge._HOME


def test_importing_merge_is_quick_and_free_of_torch() -> None:
    code = "import time, sys\nstart = time.process_time()\nimport merge\nseconds = time.process_time() - start\n"
    code += "assert 'torch' not in sys.modules\nprint(seconds)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 0.1


# -- what a checkpoint is ---------------------------------------------------------------------------------------------


@pytest.fixture
def forms(tmp_path: Path) -> list[tuple[Any, Any]]:
    """Two checkpoints, in every form that a function takes."""
    states = weights(0), weights(1)
    paths = [merge.save_checkpoint(state, tmp_path / f"{i}.pt") for i, state in enumerate(states)]
    opened = [merge.open_checkpoint(path) for path in paths]
    modules = [Carrier(state) for state in states]
    return [tuple(form) for form in (paths, map(str, paths), opened, states, modules)]  # type: ignore[misc]


TAKES: dict[str, Callable[[Any, Any], dict[str, Tensor]]] = {
    "interpolate": lambda a, b: merge.interpolate(a, b, 0.25),
    "slerp": lambda a, b: merge.slerp(a, b, 0.25),
    "average": lambda a, b: merge.average([a, b], weights=[0.25, 0.75]),
    "task_arithmetic": lambda a, b: merge.task_arithmetic(a, [b], 0.5),
    "merge_with": lambda a, b: merge.merge_with("ties", {"b": b}, a, density=0.5),
    "sweep": lambda a, b: next(merge.sweep(a, b, [0.5]))[1],
    "TaskVector": lambda a, b: TaskVector.between(a, b).apply(a),
    "LinearPath": lambda a, b: live(lambda model: LinearPath(model, a, b).set(0.25)),
    "Simplex": lambda a, b: live(lambda model: Simplex(model, [a, b]).set([0.25, 0.75])),
    "LivePath": lambda a, b: live(lambda model: LivePath(model, "slerp", {"a": a, "b": b}).set_parameters(ratio=0.3)),
}


def live(move: Callable[[Carrier], None]) -> dict[str, Tensor]:
    model = Carrier(weights(5))
    move(model)
    return model.now()


@pytest.mark.parametrize("name", TAKES)
def test_every_function_takes_every_form(forms: list[tuple[Any, Any]], name: str) -> None:
    first, *others = [TAKES[name](*form) for form in forms]
    for other in others:
        assert_same({key: other[key] for key in first}, first)


def test_digests_reports_and_files_take_every_form(forms: list[tuple[Any, Any]], tmp_path: Path) -> None:
    for index, form in enumerate(forms):
        assert merge.digest(form[0]) == merge.digest(weights(0))
        assert merge.diff(*form).total.tensors == merge.diff(weights(0), weights(1)).total.tensors
        assert merge.doctor(list(form)).exit_code == 0
        saved = merge.save_checkpoint(form[0], tmp_path / f"again-{index}.pt")
        assert merge.digest(saved) == merge.digest(weights(0))


def test_a_recipe_may_be_the_path_of_its_file(tmp_path: Path) -> None:
    paths = [merge.save_checkpoint(weights(i), tmp_path / f"{i}.pt") for i in range(2)]
    recipe = Recipe("interpolate", [Input("a", str(paths[0])), Input("b", str(paths[1]))], {"ratio": 0.5})  # type: ignore[arg-type]
    out = merge.run(recipe, tmp_path / "m.pt", Options(sync=False))
    note = tmp_path / "m.pt.recipe.json"
    assert merge.read_recipe(str(note)).inputs[0].path == paths[0]
    again = merge.run(str(note), tmp_path / "n.pt", Options(sync=False))
    assert again.read_bytes() == out.read_bytes()


STATE = {"w": torch.zeros(2)}
VECTOR = TaskVector.between(STATE, {"w": torch.ones(2)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: merge.interpolate(1, STATE, 0.5), "first: int is no checkpoint: give a path, an open Checkpoint"),
        (lambda: merge.interpolate({"model": STATE}, STATE, 0.5), "first: model is a dict, not a tensor"),
        (lambda: merge.average([STATE, nn.Linear(2, 2, device="meta")]), "1: weight is on the device meta, without"),
        (lambda: merge.average([{"w": torch.eye(2).to_sparse()}]), "0: w is not dense, as tensors have to be here"),
        (lambda: merge.average(nn.Linear(1, 1)), "several checkpoints are needed"),
        (lambda: merge.doctor("a.pt", "b.pt"), "several checkpoints are needed, by name or in a list, not one str"),
        (lambda: merge.average("a.pt"), "several checkpoints are needed, by name or in a list, not one str"),
        (lambda: merge.task_arithmetic(STATE, [VECTOR], 1.0), "a task vector is applied to its base first"),
        (lambda: merge.interpolate(STATE, VECTOR, 0.5), "second: TaskVector is no checkpoint"),
        (lambda: merge.merge_with("ties", [VECTOR], STATE, density=0.5), "TaskVector is no checkpoint"),
        (lambda: merge.interpolate(STATE, STATE, 0.5, policy={}), "policy={}: must be a merge.Policy, as Policy("),
        (lambda: merge.doctor([STATE, STATE], policy={}), "policy={}: must be a merge.Policy"),
        (lambda: LinearPath(STATE, STATE, STATE), "model: a dict is no nn.Module"),
        (lambda: LinearPath(nn.Linear(1, 1), STATE, STATE, policy="keep"), "policy='keep': must be a merge.Policy"),
        (lambda: Policy(keep=3), "keep=3: must be a glob or a list of globs"),
        (lambda: Policy(dtype="float23"), "unknown dtype 'float23'; did you mean 'float"),
        (lambda: Policy(dtype=16), "dtype=16: must be a dtype of torch, or its name"),
        (lambda: Input("a", STATE), "the input 'a' of a recipe must be a path, not a dict: merge_with takes"),
        (lambda: Recipe("average", ["a.pt"]), "inputs='a.pt': must be a merge.Input"),
        (lambda: Recipe("average", "a.pt"), "inputs must be a list of merge.Input, not a str"),
        (lambda: Recipe("average", [Input("a", "a.pt")], [0.5]), "parameters=[0.5]: must be a mapping"),
        (lambda: merge.run(3, "m.pt"), "a int is no recipe: give a merge.Recipe or the path of one's file"),
        (lambda: merge.run(Recipe("average", [Input("a", "a.pt")]), 3), "the output must be a path, not a int"),
        (lambda: merge.run(Recipe("average", []), "m.pt", {"overwrite": True}), "must be merge.Options"),
        (lambda: VECTOR + STATE, "a dict is no task vector: make one with TaskVector.between(base, expert)"),
    ],
)
def test_wrong_types_are_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(MergeError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_glob_and_a_name_of_a_dtype_will_do() -> None:
    policy = Policy(keep="head.*", drop=["a", "b"], dtype="float16")  # type: ignore[arg-type]
    assert policy == Policy(keep=("head.*",), drop=("a", "b"), dtype=torch.float16)


def test_shown_in_one_readable_line(tmp_path: Path) -> None:
    assert repr(Policy()) == "Policy()"
    assert repr(Policy(keep=("head.*",), missing="union")) == "Policy(keep=('head.*',), missing='union')"
    recipe = Recipe("ties", (Input("vqa", Path("vqa.pt")),), {"density": 0.5}, Input("base", Path("base.pt")))
    assert repr(recipe) == "Recipe(ties: vqa, base=base, density=0.5)"
    assert repr(VECTOR) == "TaskVector(1 tensors)"
    checkpoint = merge.open_checkpoint(merge.save_checkpoint(weights(0), tmp_path / "a.pt"))
    assert len(repr(checkpoint)) < 200
    assert "\n" not in repr(checkpoint)
