"""Inspect, diff and doctor: every broken pair gets its one diagnosis, a healthy one none."""

import argparse
import doctest
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import merge
from merge.diagnose import diff_checkpoints, doctor, findings, inspect_checkpoint, report, tables
from merge.diagnose.measure import _blocks, measure, measure_all, row_mismatch
from merge.kernel import BLOCK
from merge.state_dict import Policy, plan

StateDict = dict[str, Tensor]
SHAPES = {
    "encoder.embed.weight": (96, 32),
    "encoder.fc1.weight": (64, 32),
    "encoder.fc1.bias": (64,),
    "encoder.fc2.weight": (32, 64),
    "encoder.norm.weight": (32,),
    "classifier.weight": (40, 32),
    "classifier.bias": (40,),
}


def weights(seed: int) -> StateDict:
    """A small model as one training would leave it."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in SHAPES.items()}
    made["encoder.norm.weight"] += 1
    return made


def tuned(base: StateDict, seed: int, size: float = 0.1) -> StateDict:
    """The base moved by `size` of each tensor's norm in a direction of its own."""
    generator = torch.Generator().manual_seed(seed)
    result: StateDict = {}
    for name, value in base.items():
        step = torch.randn(value.shape, generator=generator)
        result[name] = value + step * (size * value.norm() / step.norm())
    return result


@dataclass
class World:
    """A base and two experts, healthy until a case breaks them."""

    base: StateDict = field(default_factory=lambda: weights(0))
    vqa: StateDict = field(init=False)
    caption: StateDict = field(init=False)

    def __post_init__(self) -> None:
        self.vqa, self.caption = tuned(self.base, 1), tuned(self.base, 2)

    def add(self, name: str, vqa: Tensor, caption: Tensor) -> None:
        self.base[name], self.vqa[name], self.caption[name] = vqa.clone(), vqa, caption

    def examine(self, folder: Path, based: bool = True, **options: object) -> report.Report:
        paths = [
            merge.save_checkpoint(getattr(self, name), folder / f"{name}.safetensors") for name in ("vqa", "caption")
        ]
        base = merge.save_checkpoint(self.base, folder / "pretrained.safetensors") if based else None
        return doctor(paths, base, **options)  # type: ignore[arg-type]


def missing(w: World) -> None:
    del w.caption["encoder.norm.weight"]


def prefixed(w: World) -> None:
    w.caption = {f"module.{name}": value for name, value in w.caption.items()}


def other_head(w: World) -> None:
    w.caption["classifier.weight"], w.caption["classifier.bias"] = torch.randn(7, 32), torch.randn(7)


def other_width(w: World) -> None:
    w.caption["encoder.fc2.weight"] = torch.randn(32, 48)


def half(w: World) -> None:
    w.caption = {name: value.half() for name, value in w.caption.items()}


def other_buffer(w: World) -> None:
    w.add("encoder.position_ids", torch.arange(8), torch.arange(8) + 1)


def other_integers(w: World) -> None:
    w.add("encoder.position_ids", torch.arange(8), torch.arange(8, dtype=torch.int32))


def no_integers(w: World) -> None:
    w.add("encoder.position_ids", torch.arange(8), torch.arange(8) * 1.0)


def quantised(w: World) -> None:
    codes = torch.randint(-128, 127, (64, 64), dtype=torch.int8)
    w.add("encoder.packed", codes, codes.flip(0))


def eight_bit_floats(w: World) -> None:
    codes = torch.randn(64, 64).to(torch.float8_e4m3fn)
    w.add("encoder.packed", codes, tuned({"x": codes.float()}, 3)["x"].to(torch.float8_e4m3fn))


def quantised_one(w: World) -> None:
    w.add("encoder.packed", torch.randn(64, 64), torch.randint(-128, 127, (64, 64), dtype=torch.int8))


def infinite(w: World) -> None:
    w.caption["encoder.fc1.weight"][3, 4:6] = torch.tensor([math.inf, math.nan])


def unrelated(w: World) -> None:
    w.caption = weights(7)


def permuted(w: World) -> None:
    w.vqa, w.caption = tuned(w.base, 1, 0.01), tuned(w.base, 2, 0.01)
    order = {size: torch.randperm(size, generator=torch.Generator().manual_seed(size)) for size in (32, 64)}
    model, (width, hidden) = w.caption, (order[32], order[64])
    model["encoder.embed.weight"] = model["encoder.embed.weight"][:, width]
    model["encoder.fc1.weight"] = model["encoder.fc1.weight"][hidden][:, width]
    model["encoder.fc1.bias"] = model["encoder.fc1.bias"][hidden]
    model["encoder.fc2.weight"] = model["encoder.fc2.weight"][width][:, hidden]
    model["encoder.norm.weight"] = model["encoder.norm.weight"][width]
    model["classifier.weight"] = model["classifier.weight"][:, width]


def new_head(w: World) -> None:
    w.caption["classifier.weight"] = weights(9)["classifier.weight"]
    w.vqa["classifier.weight"] = tuned(w.base, 8)["classifier.weight"]


def rescaled(w: World) -> None:
    w.caption["encoder.fc1.weight"] *= 5
    w.caption["encoder.fc2.weight"] /= 5


def rescaled_all(w: World) -> None:
    w.caption = {name: 3 * value for name, value in w.caption.items()}


def far(w: World) -> None:
    w.caption = tuned(w.base, 2, 1.2)


def far_without_base(w: World) -> None:
    w.vqa, w.caption = tuned(w.base, 1, 1.2), tuned(w.base, 2, 1.2)


def untrained(w: World) -> None:
    w.caption = {name: value.clone() for name, value in w.base.items()}


def duplicate(w: World) -> None:
    w.caption = {name: value.clone() for name, value in w.vqa.items()}


def opposed(w: World) -> None:
    w.caption = {name: value - 0.7 * (w.vqa[name] - value) for name, value in w.base.items()}


def same_task(w: World) -> None:
    w.caption = {name: value + 0.7 * (w.vqa[name] - value) for name, value in w.base.items()}


def zeroed(w: World) -> None:
    w.caption["encoder.fc2.weight"].zero_()


def filled(w: World) -> None:
    w.caption["encoder.fc2.weight"].fill_(0.1)


def flat_bias(w: World) -> None:
    w.caption["encoder.fc1.bias"].fill_(0.1)


def batchnorm(w: World, mean: float = 0.02, spread: float = 1.1) -> None:
    steps = torch.linspace(0.5, 2, 16)
    w.add("encoder.bn.running_mean", steps, steps + mean * steps.sqrt())
    w.add("encoder.bn.running_var", steps, steps * spread)
    w.add("encoder.bn.num_batches_tracked", torch.tensor(10), torch.tensor(30))


def batchnorm_shifted(w: World) -> None:
    batchnorm(w, mean=1.0)


def batchnorm_spread(w: World) -> None:
    batchnorm(w, spread=3.0)


def frozen(w: World) -> None:
    w.vqa["encoder.embed.weight"] = w.caption["encoder.embed.weight"] = w.base["encoder.embed.weight"]


BROKEN = [
    (missing, "error", "names differ", "caption lacks 1 tensor: encoder.norm.weight", "--keep 'encoder.norm.*'"),
    (
        prefixed,
        "error",
        "names have a prefix",
        "every name of caption begins with 'module.'",
        "removeprefix('module.')",
    ),
    (other_head, "error", "heads differ", "[40, 32] in base, vqa and [7, 32] in caption", "--keep 'classifier.*'"),
    (other_width, "error", "shapes differ", "[32, 64] in base, vqa and [32, 48] in caption", "'encoder.fc2.*'"),
    (half, "error", "dtypes differ", "7 tensors are float32 in base, vqa and float16 in caption", "--dtype float32"),
    (other_buffer, "error", "integers differ", "1 integer tensor of other values", "--keep 'encoder.position_ids'"),
    (other_integers, "error", "dtypes differ", "int64 in base, vqa and int32 in caption", "integers are never merged"),
    (no_integers, "error", "dtypes differ", "int64 in base, vqa and float32 in caption", "integers are never merged"),
    (quantised, "error", "quantised weights", "1 int8 in caption: encoder.packed", "before quantisation"),
    (eight_bit_floats, "warning", "quantised weights", "1 float8_e4m3fn in vqa", "before quantisation"),
    (quantised_one, "error", "quantised weights", "1 int8 in caption: encoder.packed", "before quantisation"),
    (
        infinite,
        "error",
        "non-finite values",
        "caption has infinite or NaN values in 1 tensor: encoder.fc1.weight (2)",
        "",
    ),
    (
        unrelated,
        "warning",
        "unrelated weights",
        "; vqa and caption: median cosine 0.01 over 4",
        "finetuned from one ancestor",
    ),
    (permuted, "warning", "permuted units", "; vqa and caption: 4 of 4 matrices", "2209.04836"),
    (new_head, "warning", "parts unrelated", "vqa and caption: 1 of 4 matrices with cosine", "'classifier.weight'"),
    (rescaled, "warning", "scales differ", "encoder.fc1.weight x 5, encoder.fc2.weight x 0.2", "a scale folded"),
    (rescaled_all, "warning", "scales differ", "vqa and caption: 4 of 4 matrices with another norm", "a scale folded"),
    (far, "warning", "far apart", "caption is 1.20 times the base's norm away from it (bound 1)", "fewer steps"),
    (untrained, "warning", "equal to the base", "caption equals the base in all tensors", "never finetuned"),
    (duplicate, "warning", "equal inputs", "vqa and caption are equal in all 7 tensors", "one of them is enough"),
    (opposed, "warning", "task vectors opposed", "vqa and caption: cosine -1.00", "a share near an end"),
    (same_task, "note", "task vectors agree", "vqa and caption: cosine 1.00", "counts it twice"),
    (zeroed, "warning", "constant tensors", "encoder.fc2.weight in caption", "put the input that trained them first"),
    (filled, "warning", "constant tensors", "encoder.fc2.weight in caption", "put the input that trained them first"),
    (flat_bias, "note", "constant tensors", "encoder.fc1.bias in caption", "put the input"),
    (batchnorm, "note", "BatchNorm", "1 layer with running statistics", "recalibrate"),
    (
        batchnorm_shifted,
        "warning",
        "BatchNorm statistics differ",
        "means are 0.98 standard deviations apart",
        "from:NAME",
    ),
    (batchnorm_spread, "warning", "BatchNorm statistics differ", "variances differ by a factor of 3.00", "recalibrate"),
    (frozen, "note", "frozen tensors", "1 of 7 tensors are equal in all: encoder.embed.weight", "bit by bit"),
]
Break = Callable[[World], None]


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_a_healthy_pair_has_no_finding(tmp_path: Path) -> None:
    seen = World().examine(tmp_path)
    assert (seen.findings, seen.verdict, seen.exit_code) == ((), "can be merged", 0)
    assert [(pair.first, pair.second, pair.equal, pair.tensors, pair.matrices) for pair in seen.pairs] == [
        ("base", "vqa", 0, 7, 4),
        ("base", "caption", 0, 7, 4),
        ("vqa", "caption", 0, 7, 4),
    ]
    assert [pair.distance for pair in seen.pairs[:2]] == [pytest.approx(0.1)] * 2
    assert seen.pairs[2].cosine == pytest.approx(1 / 1.01, abs=2e-3)  # two orthogonal steps of 0.1
    assert seen.pairs[2].task_cosine == pytest.approx(0, abs=0.05)
    assert seen.pairs[2].sign_conflict == pytest.approx(0.5, abs=0.03)
    assert seen.text().endswith("base, vqa, caption: can be merged")


def test_a_healthy_pair_has_no_finding_without_a_base(tmp_path: Path) -> None:
    seen = World().examine(tmp_path, based=False)
    assert seen.text().splitlines() == [
        "",
        "pair          equal tensors  matrices  cosine  distance  scale",
        f"vqa, caption         0 of 7         4  {seen.pairs[0].cosine:.4f}    {seen.pairs[0].distance:.4f}  1.000",
        "",
        "vqa, caption: can be merged",
    ]


@pytest.mark.parametrize(
    ("break_it", "severity", "title", "seen", "advice"), BROKEN, ids=[row[0].__name__ for row in BROKEN]
)
def test_a_broken_pair_gets_its_one_diagnosis(
    tmp_path: Path, break_it: Break, severity: str, title: str, seen: str, advice: str
) -> None:
    world = World()
    break_it(world)
    found = world.examine(tmp_path)
    assert [(finding.severity, finding.title) for finding in found.findings] == [(severity, title)]
    assert seen in found.findings[0].seen
    assert advice in found.findings[0].advice
    assert found.exit_code == (severity == "error")
    start = {"error": "cannot be merged: ", "warning": "can be merged, but: ", "note": "can be merged"}[severity]
    assert found.verdict == start + (title if severity != "note" else "")
    text = found.text().splitlines()
    assert text[:2] == [f"{severity}: {title}: {found.findings[0].seen}", f"    -> {found.findings[0].advice}"]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["verdict"] == found.verdict


@pytest.mark.parametrize("break_it", [row[0] for row in BROKEN if row[0] is not infinite], ids=lambda f: f.__name__)
def test_the_verdict_agrees_with_the_engine(tmp_path: Path, break_it: Break) -> None:
    world = World()
    break_it(world)
    try:
        plan([world.base, world.vqa, world.caption], ["base", "vqa", "caption"], Policy())
        refused = 0
    except merge.MergeError:
        refused = 1
    assert world.examine(tmp_path).exit_code == refused


@pytest.mark.parametrize(
    ("break_it", "policy"),
    [
        (missing, Policy(keep=("encoder.norm.*",))),
        (other_head, Policy(keep=("classifier.*",))),
        (other_head, Policy(drop=("classifier.*",))),
        (other_width, Policy(drop=("encoder.fc2.*",))),
        (half, Policy(dtype=torch.float32)),
        (other_buffer, Policy(keep=("encoder.position_ids",))),
        (batchnorm_shifted, Policy(batchnorm="from:vqa")),
    ],
)
def test_following_the_advice_heals(tmp_path: Path, break_it: Break, policy: Policy) -> None:
    world = World()
    break_it(world)
    assert world.examine(tmp_path, policy=policy).findings == ()


def test_what_is_missing_may_be_kept_from_the_first(tmp_path: Path) -> None:
    world = World()
    missing(world)
    found = world.examine(tmp_path, policy=Policy(missing="keep-first"))
    assert [(finding.severity, finding.title) for finding in found.findings] == [("note", "names differ")]
    assert found.exit_code == 0


def test_a_base_may_have_untrained_constants() -> None:
    world = World()
    world.base["encoder.fc1.bias"] = torch.zeros(64)
    assert doctor([world.vqa, world.caption], world.base).findings == ()
    world.caption["encoder.fc1.bias"] = torch.zeros(64)
    found = doctor([world.vqa, world.caption], world.base, names=["vqa", "caption"])
    assert [finding.seen for finding in found.findings] == ["all elements equal: encoder.fc1.bias in caption"]


def test_all_equal_is_told_once() -> None:
    found = doctor([weights(0), weights(0)], weights(0), names=["vqa", "caption"])
    assert [(finding.title, finding.seen) for finding in found.findings] == [
        ("equal to the base", "vqa and caption equal the base in all tensors")
    ]


def test_a_policy_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(merge.MergeError, match="matches no tensor"):
        World().examine(tmp_path, policy=Policy(keep=("decoder.*",)))


def test_far_experts_are_told_without_a_base(tmp_path: Path) -> None:
    world = World()
    far_without_base(world)
    found = world.examine(tmp_path, based=False)
    assert [finding.title for finding in found.findings] == ["far apart"]
    assert "median cosine 0.4" in found.findings[0].seen


def test_neighbours_of_permuted_units_are_not_called_new(tmp_path: Path) -> None:
    world = World()
    permuted(world)
    world.caption["encoder.fc2.weight"] = tuned(world.caption, 3)["encoder.fc2.weight"]
    found = world.examine(tmp_path)
    assert [finding.title for finding in found.findings] == ["permuted units"]
    assert "; vqa and caption: 3 of 4 matrices" in found.findings[0].seen


def test_two_experts_that_do_not_come_from_the_base(tmp_path: Path) -> None:
    world = World()
    world.base = weights(5)
    found = world.examine(tmp_path)
    assert [finding.title for finding in found.findings] == ["unrelated weights"]
    assert "base and vqa" in found.findings[0].seen
    assert "base and caption" in found.findings[0].seen
    assert "vqa and caption" not in found.findings[0].seen


def test_models_without_a_common_name(tmp_path: Path) -> None:
    world = World()
    world.caption = {"a.weight": torch.ones(3), "b.weight": torch.ones(2)}
    found = world.examine(tmp_path, based=False)
    assert [finding.title for finding in found.findings] == ["names differ"]
    assert "they share no name" in found.findings[0].advice
    assert found.pairs == ()


def test_a_tied_tensor_that_one_input_leaves_out_is_dropped(tmp_path: Path) -> None:
    world = World()
    world.vqa["output.weight"] = world.vqa["encoder.embed.weight"]
    vqa = merge.save_checkpoint(world.vqa, tmp_path / "vqa.pt")
    caption = merge.save_checkpoint(world.caption, tmp_path / "caption.pt")
    (finding,) = doctor([vqa, caption]).findings
    assert (
        finding.advice
        == "leave out with --drop 'output.*': output.weight is tied to encoder.embed.weight, which is merged"
    )
    assert doctor([vqa, caption], policy=Policy(drop=("output.*",))).findings == ()


def test_a_prefix_of_several_components() -> None:
    plain = weights(0)
    wrapped = {f"module.model.{name}": value for name, value in tuned(plain, 1).items()}
    (finding,) = doctor([plain, wrapped]).findings
    assert "every name of input 2 begins with 'module.model.'" in finding.seen


def test_one_finding_of_a_kind_for_many_pairs() -> None:
    found = doctor([weights(1), weights(2), weights(3)], names=["a", "b", "c"])
    assert [finding.title for finding in found.findings] == ["unrelated weights"]
    assert found.findings[0].seen.count("median cosine") == 3
    assert len(found.pairs) == 3


def test_findings_come_by_severity() -> None:
    world = World()
    frozen(world)
    rescaled(world)
    missing(world)
    found = doctor([world.vqa, world.caption])
    assert [finding.severity for finding in found.findings] == ["error", "warning", "note"]
    assert found.verdict == "cannot be merged: names differ"


def test_files_of_one_stem_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    paths: list[Path] = []
    for seed, name in enumerate(("vqa", "caption")):
        (tmp_path / name).mkdir()
        paths.append(merge.save_checkpoint(tuned(weights(0), seed), tmp_path / name / "model.safetensors"))
    assert doctor(paths).labels == tuple(map(str, paths))
    assert doctor(paths, names=["vqa", "caption"]).labels == ("vqa", "caption")
    with pytest.raises(merge.MergeError, match="1 names were given for 2 checkpoints"):
        doctor(paths, names=["vqa"])
    with pytest.raises(merge.MergeError, match="two checkpoints are called 'vqa'"):
        doctor(paths, names=["vqa", "vqa"])


def test_one_checkpoint_is_not_enough() -> None:
    with pytest.raises(merge.MergeError, match="two are needed, or one and its base"):
        doctor([weights(0)])
    assert doctor([tuned(weights(0), 1)], weights(0)).verdict == "can be merged"


def test_the_report_does_not_depend_on_threads_or_format(tmp_path: Path) -> None:
    base = {"w.weight": torch.randn(300, 301, generator=torch.Generator().manual_seed(0)), **weights(0)}
    inputs = {"a": tuned(base, 1), "b": tuned(base, 2)}
    one = doctor(list(inputs.values()), base, names=list(inputs)).to_json()
    files = [merge.save_checkpoint(value, tmp_path / f"{name}.pt") for name, value in inputs.items()]
    torch.set_num_threads(2)
    try:
        assert doctor(files, base).to_json() == one
    finally:
        torch.set_num_threads(1)


def test_inputs_are_left_as_they_are() -> None:
    world = World()
    before = merge.digest(world.vqa)
    doctor([world.vqa, world.caption], world.base)
    assert merge.digest(world.vqa) == before


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
    diff = diff_checkpoints(p, q)
    assert (diff.only_first, diff.only_second) == (("old",), ("new",))
    assert [(item.name, item.first, item.second) for item in diff.shapes] == [("head.weight", "[2, 3]", "[4, 3]")]
    assert [(item.name, item.first, item.second) for item in diff.dtypes] == [("kind", "float32", "float16")]
    by_name = {item.name: item for item in diff.modules}
    assert [item.name for item in diff.modules] == ["a.c", "a.b", "kind"]  # the farthest first; a.d is equal
    assert by_name["a.c"].distance == pytest.approx(math.sqrt(5))
    assert by_name["a.c"].cosine == 0
    assert by_name["a.b"].distance == pytest.approx(1)  # 13 / ||3, 4, 0, 12||
    assert (by_name["a.b"].tensors, by_name["a.b"].equal) == (2, 1)
    assert (diff.total.tensors, diff.total.equal) == (5, 2)
    assert diff.text().splitlines() == [
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
        f"total         5      2    {diff.total.distance:.4f}  {diff.total.cosine:.5f}",
    ]


def test_equal_checkpoints_have_no_module_to_show() -> None:
    diff = diff_checkpoints(weights(0), weights(0))
    assert diff.text() == "input 1 and input 2: 7 tensors compared, 7 equal"
    assert (diff.total.distance, diff.total.cosine) == (0, pytest.approx(1))


def test_diff_leaves_out_and_counts_what_is_not_finite() -> None:
    first, second = weights(0), tuned(weights(0), 1)
    second["encoder.fc1.bias"][:3] = math.nan
    diff = diff_checkpoints(first, second)
    encoder = next(item for item in diff.modules if item.name == "encoder.fc1")
    assert (encoder.nonfinite, encoder.distance) == (3, pytest.approx(0.1))
    json.dumps(diff.to_json(), allow_nan=False)


def test_diff_from_zero_has_no_relative_distance_and_comes_first() -> None:
    diff = diff_checkpoints(
        {"a.w": torch.ones(2), "b.w": torch.zeros(2)}, {"a.w": torch.ones(2) * 9, "b.w": torch.ones(2)}
    )
    assert [(item.name, item.distance, item.cosine) for item in diff.modules[:1]] == [("b", None, None)]
    assert diff.text().splitlines()[3].split() == ["b", "1", "0", "-", "-"]


def test_diff_counts_integers_by_equality() -> None:
    first = {"a.ids": torch.arange(3), "a.flag": torch.tensor([True])}
    diff = diff_checkpoints(first, {"a.ids": torch.arange(3) + 1, "a.flag": torch.tensor([True])})
    assert [(item.name, item.tensors, item.equal) for item in diff.modules] == [("a", 2, 1)]


def test_diff_of_two_sections_of_one_file(tmp_path: Path) -> None:
    path = training_file(tmp_path)
    diff = diff_checkpoints(path, path, "model", second_section="extra_state.ema")
    assert [item.name for item in diff.modules] == ["layer"]
    assert diff.total.distance == pytest.approx(math.sqrt(8 / 16))


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
    seen = inspect_checkpoint(training_file(tmp_path))
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
    seen = inspect_checkpoint(training_file(tmp_path), "model")
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
    seen = inspect_checkpoint(merge.save_checkpoint(world.vqa, tmp_path / "vqa.safetensors"))
    assert seen.text().splitlines()[-2:] == ["integers", "  1 BatchNorm counter"]


def test_inspect_metadata_shards_and_folder(tmp_path: Path) -> None:
    metadata = {"config": "x" * 100, "format": "pt"}
    folder = merge.save_checkpoint(weights(0), tmp_path / "model", metadata, shard_size=9_000)
    seen = inspect_checkpoint(folder)
    assert seen.layout == f"{len(seen.files)} safetensors shards under an index"
    assert sum(file.tensors for file in seen.files) == len(SHAPES)
    assert seen.metadata == {"config": "x" * 60 + "... (100 characters)", "format": "pt"}
    assert f"  config: {'x' * 60}... (100 characters)" in seen.text().splitlines()


def test_inspect_a_flat_torch_file_lists_what_is_no_tensor(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2), "epoch": 3, "note": "hello"}, tmp_path / "flat.pt")
    seen = inspect_checkpoint(tmp_path / "flat.pt")
    assert [(item.name, item.kind) for item in seen.others] == [("epoch", "3"), ("note", "'hello'")]


def test_inspect_reads_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = training_file(tmp_path)

    def refuse(self: object) -> Tensor:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("merge.formats.entry.TensorEntry.tensor", refuse)
    assert inspect_checkpoint(path, "model").section == "model"


def test_inspect_shows_the_recipe_and_whether_it_fits(tmp_path: Path) -> None:
    inputs: list[merge.Input] = []
    for seed, name in enumerate(("vqa", "caption")):
        path = merge.save_checkpoint(tuned(weights(0), seed), tmp_path / f"{name}.safetensors")
        inputs.append(merge.Input(name, path))
    out = merge.run(merge.Recipe("interpolate", tuple(inputs), {"ratio": 0.8}), tmp_path / "merged.safetensors")
    seen = inspect_checkpoint(out)
    assert seen.made is not None
    assert (seen.made.description, seen.made.fits) == ("interpolate: 0.20 vqa + 0.80 caption", None)
    assert "made by interpolate: 0.20 vqa + 0.80 caption" in seen.text().splitlines()
    fits = inspect_checkpoint(out, check_digest=True)
    assert fits.made is not None
    assert fits.made.fits is True
    merge.save_checkpoint(weights(4), out, overwrite=True)
    changed = inspect_checkpoint(out, check_digest=True)
    assert changed.made is not None
    assert changed.made.fits is False
    assert "does not fit: the file was changed since" in changed.text()


def test_inspect_says_that_a_recipe_is_unreadable(tmp_path: Path) -> None:
    path = merge.save_checkpoint(weights(0), tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors.recipe.json").write_text("{}", encoding="utf-8")
    seen = inspect_checkpoint(path)
    assert seen.made is not None
    assert seen.made.description.startswith("unreadable: ")


def test_inspect_errors_are_those_of_opening(tmp_path: Path) -> None:
    with pytest.raises(merge.MergeError, match="no such file"):
        inspect_checkpoint(tmp_path / "none.pt")
    with pytest.raises(merge.MergeError, match="has no section 'ema'"):
        inspect_checkpoint(training_file(tmp_path), "ema")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(merge.MergeError, match="not a whole torch zip file"):
        inspect_checkpoint(tmp_path / "broken.pt")


# -- examples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [tables, findings, report], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0
