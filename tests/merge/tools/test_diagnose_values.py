"""Measuring, diff and inspect: values by hand, texts line by line."""

import argparse
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import merge
from merge.tools.diagnose.difference import diff
from merge.tools.diagnose.inspection import inspect
from merge.tools.diagnose.measure import BLOCK, _blocks, measure, measure_all, row_mismatch
from tests.merge.broken import SHAPES, World, batchnorm, tuned, weights

# -- measuring ---------------------------------------------------------------------------------------------------------


def test_measures_by_hand() -> None:
    base, first, second = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 1.0]), torch.tensor([1.0, 5.0, 1.0])
    seen = measure([base, first, second], base=True).contrasts[1, 2]
    assert (seen.first, seen.second, seen.dot, seen.distance) == (10, 27, 4, 29)
    assert seen.cosine == pytest.approx(4 / math.sqrt(270))
    assert seen.relative_distance == pytest.approx(math.sqrt(2.9))
    assert seen.norm_ratio == pytest.approx(math.sqrt(2.7))
    assert (seen.task_dot, seen.task_first, seen.task_second) == (3 * 1 - 1 * 4, 10, 17)
    assert seen.sign_conflict == 0.5  # of two elements that both moved, one in opposite directions


def test_bitwise_equality_tells_zeros_and_dtypes_apart() -> None:
    zero = torch.zeros(3)
    pairs = {"same": zero.clone(), "negative": -zero, "half": zero.half(), "nan": torch.full((3,), math.nan)}
    equal = {name: measure([zero, other]).contrasts[0, 1].equal for name, other in pairs.items()}
    assert equal == {"same": 1, "negative": 0, "half": 0, "nan": 0}
    assert measure([pairs["nan"], pairs["nan"].clone()]).contrasts[0, 1].equal == 1
    assert measure([zero.half(), zero.bfloat16()]).contrasts[0, 1].equal == 0
    assert measure([zero, -zero]).contrasts[0, 1].relative_distance == 0


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 0), (0, 3), (2, 3, 4), (70_000,), (3, 40_000), (40_000, 3)])
def test_sums_over_blocks_are_the_sums_over_the_whole(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    seen = measure([first, second]).contrasts[0, 1]
    assert seen.dot == pytest.approx((first * second).sum().item(), rel=1e-9, abs=1e-12)
    assert seen.distance == pytest.approx(((first - second) ** 2).sum().item(), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.float8_e5m2])
def test_every_floating_dtype_is_measured(dtype: torch.dtype) -> None:
    first = torch.tensor([[1.0, 2.0], [0.5, 4.0]]).to(dtype)
    seen = measure(
        [first, (first.to(torch.complex64) * 2).to(dtype) if dtype.is_complex else (first.float() * 2).to(dtype)]
    )
    assert seen.contrasts[0, 1].norm_ratio == 2
    assert seen.contrasts[0, 1].cosine == pytest.approx(1)


def test_blocks_are_small_and_cover_every_element_once() -> None:
    for rows, columns in [(1, 70_000), (50_000, 2), (3, BLOCK), (3, BLOCK + 1), (1000, 70)]:
        met = torch.zeros(rows, columns)
        for block in _blocks(rows, columns):
            met[block] += 1
            assert met[block].numel() <= BLOCK
        assert bool((met == 1).all())


def test_row_mismatch_is_zero_for_permuted_rows_and_large_for_new_ones() -> None:
    first, second = weights(0)["encoder.fc1.weight"].double(), weights(1)["encoder.fc1.weight"].double()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    squares = first.square().sum(1)
    assert row_mismatch(squares, squares[order]) == 0
    assert (row_mismatch(squares, second.square().sum(1)) or 0) > 1
    assert row_mismatch(torch.ones(64), torch.ones(64)) is None
    assert row_mismatch(torch.rand(7), torch.rand(7)) is None


def test_tied_tensors_are_read_once(tmp_path: Path) -> None:
    files = []
    for seed in (1, 2):
        model = tuned(weights(0), seed)
        model["output.weight"] = model["encoder.embed.weight"]
        files.append(merge.open_checkpoint(merge.save_checkpoint(model, tmp_path / f"{seed}.pt")))
    read: list[int] = []
    seen = measure_all(files, list(files[0]), progress=read.append)
    assert sum(read) == sum(file.nbytes for file in files)
    assert seen["output.weight"] is seen["encoder.embed.weight"]


# -- diff --------------------------------------------------------------------------------------------------------------


def test_diff_of_hand_made_checkpoints(tmp_path: Path) -> None:
    first = {
        "a.b.x.weight": torch.tensor([3.0, 4.0]),
        "a.b.y.weight": torch.tensor([0.0, 12.0]),
        "a.c.weight": torch.tensor([1.0, 0.0]),
        "a.d.weight": torch.tensor([5.0]),
        "head.weight": torch.zeros(2, 3),
        "kind": torch.tensor([1.0, 2.0]),
        "old": torch.zeros(1),
    }
    second = {
        **{name: value.clone() for name, value in first.items() if name != "old"},
        "a.b.x.weight": torch.tensor([3.0, 4.0 + 13.0]),
        "a.c.weight": torch.tensor([0.0, 2.0]),
        "head.weight": torch.zeros(4, 3),
        "kind": torch.tensor([1.0, 2.0], dtype=torch.float16),
        "new": torch.zeros(1),
    }
    p, q = (merge.save_checkpoint(value, tmp_path / f"{n}.safetensors") for n, value in (("p", first), ("q", second)))
    found = diff(p, q)
    assert (found.only_first, found.only_second) == (("old",), ("new",))
    assert [(item.name, item.first, item.second) for item in found.shapes] == [("head.weight", "[2, 3]", "[4, 3]")]
    assert [(item.name, item.first, item.second) for item in found.dtypes] == [("kind", "float32", "float16")]
    by_name = {item.name: item for item in found.modules}
    assert [item.name for item in found.modules] == ["a.c", "a.b", "kind"]  # the farthest first; a.d is equal
    assert by_name["a.c"].distance == pytest.approx(math.sqrt(5))
    assert by_name["a.c"].cosine == 0
    assert by_name["a.b"].distance == pytest.approx(1)  # 13 / ||3, 4, 0, 12||
    assert (by_name["a.b"].tensors, by_name["a.b"].equal) == (2, 1)
    assert (found.total.tensors, found.total.equal) == (5, 2)
    assert found.text().splitlines() == [
        "p and q: 5 tensors compared, 2 equal",
        "",
        "only in p: 1",
        "  old",
        "",
        "only in q: 1",
        "  new",
        "",
        "shapes differ: 1",
        "  head.weight: [2, 3] and [4, 3]",
        "",
        "dtypes differ: 1",
        "  kind: float32 and float16",
        "",
        "module  tensors  equal  distance   cosine  not finite",
        "a.c           1      0    2.2361  0.00000",
        f"a.b           2      1    1.0000  {by_name['a.b'].cosine:.5f}",
        "kind          1      0    0.0000  1.00000",
        f"total         5      2    {found.total.distance:.4f}  {found.total.cosine:.5f}",
    ]


def test_equal_checkpoints_have_no_module_to_show() -> None:
    found = diff(weights(0), weights(0))
    assert found.text() == "input 1 and input 2: 7 tensors compared, 7 equal"
    assert (found.total.distance, found.total.cosine) == (0, pytest.approx(1))


def test_diff_leaves_out_and_counts_what_is_not_finite() -> None:
    first, second = weights(0), tuned(weights(0), 1)
    second["encoder.fc1.bias"][:3] = math.nan
    found = diff(first, second)
    encoder = next(item for item in found.modules if item.name == "encoder.fc1")
    assert (encoder.nonfinite, encoder.distance) == (3, pytest.approx(0.1))
    json.dumps(found.to_json(), allow_nan=False)


def test_diff_from_zero_has_no_relative_distance_and_comes_first() -> None:
    found = diff({"a.w": torch.ones(2), "b.w": torch.zeros(2)}, {"a.w": torch.ones(2) * 9, "b.w": torch.ones(2)})
    assert [(item.name, item.distance, item.cosine) for item in found.modules[:1]] == [("b", None, None)]
    assert found.text().splitlines()[3].split() == ["b", "1", "0", "-", "-"]


def test_diff_counts_integers_by_equality() -> None:
    first = {"a.ids": torch.arange(3), "a.flag": torch.tensor([True])}
    found = diff(first, {"a.ids": torch.arange(3) + 1, "a.flag": torch.tensor([True])})
    assert [(item.name, item.tensors, item.equal) for item in found.modules] == [("a", 2, 1)]


def test_diff_of_two_sections_of_one_file(tmp_path: Path) -> None:
    path = training_file(tmp_path)
    found = diff(path, path, "model", second_section="extra_state.ema")
    assert [item.name for item in found.modules] == ["layer"]
    assert found.total.distance == pytest.approx(math.sqrt(8 / 16))


# -- inspect -----------------------------------------------------------------------------------------------------------


def training_file(folder: Path) -> Path:
    """A training file as fairseq writes them, small."""
    embed = torch.ones(4, 2, dtype=torch.float16)
    model = {"layer.weight": embed, "output.weight": embed, "ids": torch.arange(3)}
    path = folder / "checkpoint.pt"
    torch.save(
        {
            "args": None,
            "cfg": {"model": argparse.Namespace(arch="base"), "lr": [0.1]},
            "model": model,
            "optimizer_history": [1, 2],
            "criterion": argparse.Namespace(),
            "extra_state": {"ema": {"layer.weight": embed * 2, "output.weight": embed.clone()}, "best": 0.5},
        },
        path,
    )
    return path


def test_inspect_lists_all_sections_when_none_is_chosen(tmp_path: Path) -> None:
    seen = inspect(training_file(tmp_path))
    assert (seen.layout, seen.section, seen.total, seen.modules) == ("torch zip file", None, None, ())
    assert [(item.name, item.tensors, item.parameters, item.nbytes) for item in seen.sections] == [
        ("model", 3, 8, 16 + 24),
        ("extra_state.ema", 2, 16, 32),
    ]
    assert {item.name: item.kind for item in seen.others} == {
        "args": "None",
        "cfg": "dict of 2",
        "optimizer_history": "list of 2",
        "criterion": "argparse.Namespace",
        "extra_state": "dict of 2",
    }
    text = seen.text()
    assert "several sections: choose one with --section" in text
    assert [line.split() for line in text.splitlines()[2:5]] == [
        ["sections", "tensors", "parameters", "size"],
        ["model", "3", "8", "40", "B"],
        ["extra_state.ema", "2", "16", "32", "B"],
    ]


def test_inspect_a_section(tmp_path: Path) -> None:
    seen = inspect(training_file(tmp_path), "model")
    assert seen.total is not None
    assert (seen.section, seen.total.tensors, seen.total.parameters, seen.total.nbytes) == ("model", 3, 8, 40)
    assert seen.ties == (("layer.weight", "output.weight"),)
    assert [(item.name, item.kind) for item in seen.integers] == [("ids", "int64 [3]")]
    assert [(item.name, item.tensors, item.parameters) for item in seen.dtypes] == [("float16", 2, 8), ("int64", 1, 0)]
    assert [item.name for item in seen.modules] == ["layer", "output", "ids"]
    lines = seen.text().splitlines()
    assert "  layer.weight = output.weight" in lines
    assert "  ids  int64 [3]" in lines
    assert json.loads(json.dumps(seen.to_json()))["ties"] == [["layer.weight", "output.weight"]]


def test_inspect_counts_batchnorm_counters_on_one_line(tmp_path: Path) -> None:
    world = World()
    batchnorm(world)
    seen = inspect(merge.save_checkpoint(world.vqa, tmp_path / "vqa.safetensors"))
    assert seen.text().splitlines()[-2:] == ["integers", "  1 BatchNorm counter"]


def test_inspect_metadata_shards_and_folder(tmp_path: Path) -> None:
    metadata = {"config": "x" * 100, "format": "pt"}
    folder = merge.save_checkpoint(weights(0), tmp_path / "model", metadata=metadata, shard_size=9_000)
    seen = inspect(folder)
    assert seen.layout == f"{len(seen.files)} safetensors shards under an index"
    assert sum(file.tensors for file in seen.files) == len(SHAPES)
    assert seen.metadata == {"config": "x" * 60 + "... (100 characters)", "format": "pt"}
    assert f"  config: {'x' * 60}... (100 characters)" in seen.text().splitlines()


def test_inspect_a_flat_torch_file_lists_what_is_no_tensor(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2), "epoch": 3, "note": "hello"}, tmp_path / "flat.pt")
    seen = inspect(tmp_path / "flat.pt")
    assert [(item.name, item.kind) for item in seen.others] == [("epoch", "3"), ("note", "'hello'")]


def test_inspect_reads_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = training_file(tmp_path)

    def refuse(self: object) -> Tensor:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("merge.checkpoint.formats.tensors.TensorEntry.tensor", refuse)
    assert inspect(path, "model").section == "model"


def test_inspect_shows_the_recipe_and_whether_it_fits(tmp_path: Path) -> None:
    inputs: list[merge.Input] = []
    for seed, name in enumerate(("vqa", "caption")):
        path = merge.save_checkpoint(tuned(weights(0), seed), tmp_path / f"{name}.safetensors")
        inputs.append(merge.Input(name, path))
    out = merge.run(merge.Recipe("interpolate", tuple(inputs), {"ratio": 0.8}), tmp_path / "merged.safetensors")
    seen = inspect(out)
    assert seen.made is not None
    assert (seen.made.description, seen.made.fits) == ("interpolate: 0.20 vqa + 0.80 caption", None)
    assert "made by interpolate: 0.20 vqa + 0.80 caption" in seen.text().splitlines()
    fits = inspect(out, check_digest=True)
    assert fits.made is not None
    assert fits.made.fits is True
    merge.save_checkpoint(weights(4), out, overwrite=True)
    changed = inspect(out, check_digest=True)
    assert changed.made is not None
    assert changed.made.fits is False
    assert "does not fit: the file was changed since" in changed.text()


def test_inspect_says_that_a_recipe_is_unreadable(tmp_path: Path) -> None:
    path = merge.save_checkpoint(weights(0), tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors.recipe.json").write_text("{}", encoding="utf-8")
    seen = inspect(path)
    assert seen.made is not None
    assert seen.made.description.startswith("unreadable: ")


def test_inspect_errors_are_those_of_opening(tmp_path: Path) -> None:
    with pytest.raises(merge.MergeError, match="no such file"):
        inspect(tmp_path / "none.pt")
    with pytest.raises(merge.MergeError, match="has no section 'ema'"):
        inspect(training_file(tmp_path), "ema")
    (tmp_path / "broken.pt").write_bytes(training_file(tmp_path).read_bytes()[:-300])
    with pytest.raises(merge.MergeError, match="not a whole torch zip file"):
        inspect(tmp_path / "broken.pt")


def test_inspect_an_open_checkpoint(tmp_path: Path) -> None:
    path = training_file(tmp_path)
    assert inspect(merge.open_checkpoint(path, "model")) == inspect(path, "model")


def test_inspect_what_is_in_memory(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    seen = inspect(model)
    assert seen.text().startswith("Sequential: in memory\n")
    stored = inspect(merge.save_checkpoint(model, tmp_path / "model.safetensors"))
    assert (seen.total, set(seen.dtypes), seen.integers) == (stored.total, set(stored.dtypes), stored.integers)
    tied = torch.ones(2)
    assert inspect({"a": tied, "b": tied}).ties == (("a", "b"),)
    for wrong in (3, None, {"w": 1.0}):
        with pytest.raises(merge.MergeError, match=r"is no checkpoint: give|w is a float, not a tensor"):
            inspect(wrong)  # type: ignore[arg-type]
