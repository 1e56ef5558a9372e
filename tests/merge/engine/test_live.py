"""Live paths: the bits of the merged file in the model's own memory, however it came there."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import merge
from merge import LinearPath, MergeError, Policy, Simplex
from merge.engine.live import LivePath
from tests.merge.made import Carrier, assert_same, copied, ordered_as, weights

RATIOS = [0.0, 0.1, 0.5, 0.9, 1.0]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "vqa.pt", tmp_path / "caption.pt"
    for seed, path in enumerate(paths):
        merge.save_checkpoint(weights(seed), path)
    return paths


def assert_at(model: Carrier, wanted: dict[str, Tensor]) -> None:
    assert_same(ordered_as(model.now(), wanted), wanted)


@pytest.mark.parametrize("resident", [True, False])
def test_set_in_any_order_gives_the_same_bits(files: tuple[Path, Path], resident: bool) -> None:
    model = Carrier(weights(5))
    path = LinearPath(model, *files, resident=resident)
    wanted = {ratio: merge.interpolate(weights(0), weights(1), ratio) for ratio in RATIOS}
    for before, after in itertools.product(RATIOS, RATIOS):
        path.set(before)
        path.set(after)
        assert_at(model, wanted[after])


def test_a_simplex_in_any_order_gives_the_same_bits() -> None:
    model = Carrier(weights(5))
    states = {name: weights(seed) for seed, name in enumerate(("vqa", "caption", "grounding"))}
    path = Simplex(model, states)
    points = [(1.0, 0.0, 0.0), (0.5, 0.3, 0.2), (0.0, 0.5, 0.5), (0.2, 0.0, 0.8)]
    for before, after in itertools.product(points, points):
        path.set(before)
        path.set(after)
        assert_at(model, merge.average(states, weights=after))
    path.set({"grounding": 0.2, "vqa": 0.5, "caption": 0.3})
    assert_at(model, merge.average(states, weights=points[1]))


def test_leaving_restores_the_model() -> None:
    model = Carrier(weights(5))
    before = model.now()
    with LinearPath(model, weights(0), weights(1)) as path:
        path.set(0.3)
        assert not torch.equal(model.now()["encoder.embed.weight"], before["encoder.embed.weight"])
    assert_same(model.now(), before)
    with LinearPath(model, weights(0), weights(1)) as path:
        path.set(0.3)
        at_entry = model.now()
        with path:
            path.set(0.9)
        assert_same(model.now(), at_entry)
    assert_same(model.now(), before)


def test_leaving_by_an_error_restores_too() -> None:
    model = Carrier(weights(5))
    before = model.now()
    path = LinearPath(model, weights(0), weights(1))

    def stumble() -> None:
        path.set(0.3)
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"), path:
        stumble()
    assert_same(model.now(), before)


def test_statistics_gathered_at_a_point_do_not_stay() -> None:
    """A model in training mode moves its BatchNorm buffers: the next point does not see it."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

    first, second, model = Small(), Small(), Small()
    for network, count in ((first, 3), (second, 4)):
        for _ in range(count):
            network.bn(torch.randn(8, 3))
    path = LinearPath(model, first.state_dict(), second.state_dict())
    wanted = merge.interpolate(first.state_dict(), second.state_dict(), 0.5)
    for _ in range(2):
        path.set(0.5)
        assert_same(dict(model.state_dict()), wanted)
        assert model.bn.num_batches_tracked.item() == 4
        model.train()
        model.bn(torch.randn(8, 3))


def test_parameters_stay_the_same_objects() -> None:
    model = Carrier(weights(5))
    before = {name: (id(value), value.data_ptr()) for name, value in model.named_parameters(remove_duplicate=False)}
    LinearPath(model, weights(0), weights(1)).set(0.3)
    assert before == {
        name: (id(value), value.data_ptr()) for name, value in model.named_parameters(remove_duplicate=False)
    }
    assert all(value.requires_grad for value in model.parameters())
    assert all(value.grad_fn is None for value in model.parameters())


def test_tied_weights_stay_tied() -> None:
    model = Carrier(weights(5))
    LinearPath(model, weights(0), weights(1)).set(0.3)
    state = model.state_dict()
    assert state["encoder.embed.weight"].data_ptr() == state["decoder.output.weight"].data_ptr()


def test_a_model_without_the_checkpoints_tie_gets_both_copies() -> None:
    untied = {name: value.clone() for name, value in weights(5).items()}
    model = Carrier(untied)
    LinearPath(model, weights(0), weights(1)).set(0.3)
    assert_at(model, merge.interpolate(weights(0), weights(1), 0.3))


def test_a_tied_model_takes_untied_checkpoints_of_equal_values() -> None:
    untied = [{name: value.clone() for name, value in weights(seed).items()} for seed in (0, 1)]
    model = Carrier(weights(5))
    LinearPath(model, *untied).set(0.3)
    assert_at(model, merge.interpolate(weights(0), weights(1), 0.3))


def test_a_tied_model_refuses_checkpoints_of_different_values() -> None:
    untied = [{name: value.clone() for name, value in weights(seed).items()} for seed in (0, 1)]
    untied[1]["decoder.output.weight"] += 1
    model = Carrier(weights(5))
    with pytest.raises(MergeError, match=r"encoder\.embed\.weight.*decoder\.output\.weight|decoder.*encoder\.embed"):
        LinearPath(model, *untied).set(0.3)


def test_a_tied_model_takes_checkpoints_with_one_of_the_names() -> None:
    states = [weights(0), weights(1)]
    for state in states:
        del state["decoder.output.weight"]
    model = Carrier(weights(5))
    LinearPath(model, *states).set(0.3)
    assert_at(model, merge.interpolate(weights(0), weights(1), 0.3))


def test_endpoints_that_are_the_model_s_own_weights() -> None:
    model = Carrier(weights(0))
    path = LinearPath(model, model.state_dict(), weights(1))
    for ratio in (0.9, 0.3, 1.0, 0.0):
        path.set(ratio)
        assert_at(model, merge.interpolate(weights(0), weights(1), ratio))
    lazy = LinearPath(model, model.state_dict(), weights(1), resident=False)
    for ratio in (0.9, 0.3):
        lazy.set(ratio)
        assert_at(model, merge.interpolate(weights(0), weights(1), ratio))


def test_endpoints_that_share_part_of_the_model_s_storage() -> None:
    storage = torch.randn(6)
    model = Carrier({"w": torch.zeros(3)})
    model.w.data = storage[:3]
    first = {"w": storage[3:].clone()}
    overlapping = {"w": storage[1:4]}
    wanted = merge.interpolate(first, copied(overlapping), 0.5)
    path = LinearPath(model, first, overlapping)
    path.set(0.3)
    path.set(0.5)
    assert_same(model.now(), wanted)


def test_endpoints_are_not_changed_by_the_path() -> None:
    first, second = weights(0), weights(1)
    path = LinearPath(Carrier(weights(5)), first, second)
    for ratio in (0.0, 0.3, 1.0):
        path.set(ratio)
    assert_same(first, weights(0))
    assert_same(second, weights(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_checkpoints_in_a_float_model_are_the_merged_file_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    states = [weights(seed, dtype) for seed in (0, 1)]
    for seed, state in enumerate(states):
        merge.save_checkpoint(state, tmp_path / f"{seed}.safetensors")
    inputs = tuple(merge.Input(str(seed), tmp_path / f"{seed}.safetensors") for seed in (0, 1))
    out = merge.run(merge.Recipe("interpolate", inputs, {"ratio": 0.3}), tmp_path / "m.safetensors")
    loaded, live = Carrier(weights(5)), Carrier(weights(5))
    loaded.load_state_dict(merge.load_checkpoint(out))
    LinearPath(live, *states).set(0.3)
    assert live.now()["decoder.scale"].dtype == torch.float32
    assert_same(live.now(), loaded.now())


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
def test_a_bf16_model(source: torch.dtype) -> None:
    states = [weights(seed, source) for seed in (0, 1)]
    loaded, live = (Carrier(weights(5), torch.bfloat16) for _ in range(2))
    loaded.load_state_dict(merge.interpolate(*states, 0.3))
    LinearPath(live, *states).set(0.3)
    assert live.now()["decoder.scale"].dtype == torch.bfloat16
    assert_same(live.now(), loaded.now())


@pytest.mark.parametrize("method", ["interpolate", "average", "task-arithmetic"])
def test_a_model_in_another_memory_layout(method: str) -> None:
    """`channels_last` weights are written through other strides and come out with the same bits."""
    states = [{"conv.weight": torch.randn(8, 5, 3, 3), "fc.weight": torch.randn(7, 9)} for _ in range(3)]
    model = Carrier(states[0])
    model.conv.weight.data = model.conv.weight.data.contiguous(memory_format=torch.channels_last)
    model.fc.weight.data = model.fc.weight.data.t().contiguous().t()
    if method == "interpolate":
        wanted = merge.interpolate(*states[:2], 0.3)
        LinearPath(model, *states[:2]).set(0.3)
    elif method == "average":
        wanted = merge.average(states, weights=[0.2, 0.3, 0.5])
        Simplex(model, dict(zip("abc", states, strict=True))).set([0.2, 0.3, 0.5])
    else:
        wanted = merge.task_arithmetic(states[0], states[1:], 0.3)
        path = LivePath(model, method, {"a": states[1], "b": states[2]}, states[0])
        path.set_parameters(scale=0.3, weights=1.0)
    assert_same(model.now(), wanted)
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)


# -- policies --------------------------------------------------------------------------------------------------------


def test_missing_and_kept_names_and_batchnorm() -> None:
    first, second = weights(0), weights(1)
    del second["decoder.scale"]
    model = Carrier(weights(5))
    with pytest.raises(MergeError, match=r"caption lacks 1 tensor: decoder\.scale"):
        LinearPath(model, first, second, names=("vqa", "caption"))
    policy = Policy(missing="keep-first", keep=("encoder.layers.*",), batchnorm="from:second")
    path = LinearPath(model, first, second, policy=policy)
    for ratio in (0.3, 1.0):
        path.set(ratio)
        assert_at(model, merge.interpolate(first, second, ratio, policy=policy))


def test_names_that_the_model_has_not() -> None:
    model = Carrier({"w": torch.zeros(2), "own": torch.zeros(1)})
    state = {"w": torch.zeros(2), "extra": torch.zeros(1)}
    with pytest.raises(MergeError, match=r"not in the model \['extra'\], not in the checkpoints \['own'\]"):
        LinearPath(model, state, copied(state))
    with pytest.raises(MergeError, match=r"not in the checkpoints \['own'\]"):
        LinearPath(model, {"w": torch.zeros(2)}, {"w": torch.zeros(2)})
    with pytest.raises(MergeError, match=r"not in the model \['extra'\]"):
        LinearPath(Carrier({"w": torch.zeros(2)}), state, copied(state))


def test_a_dropped_name_lets_a_smaller_model_in() -> None:
    model = Carrier({"w": torch.zeros(2)})
    states = [{"w": torch.full((2,), k), "head": torch.zeros(1)} for k in (1.0, 3.0)]
    LinearPath(model, *states, policy=Policy(drop=("head",))).set(0.5)
    assert model.now()["w"].tolist() == [2.0, 2.0]


def test_shapes_that_the_model_has_not() -> None:
    with pytest.raises(MergeError, match=r"w has shape \[2\] in the checkpoints and \[3\] in the model"):
        LinearPath(Carrier({"w": torch.zeros(3)}), {"w": torch.zeros(2)}, {"w": torch.zeros(2)})


def test_values_that_are_not_finite() -> None:
    model = Carrier({"w": torch.zeros(2)})
    fine, broken = {"w": torch.ones(2)}, {"w": torch.tensor([float("nan"), 1.0])}
    with pytest.raises(MergeError, match=r"w.*infinite or NaN"):
        LinearPath(model, fine, broken, names=("vqa", "caption")).set(0.5)
    path = LinearPath(model, fine, broken, policy=Policy(allow_nonfinite=True))
    path.set(0.0)
    assert_same(model.now(), fine)
    path.set(0.5)
    assert model.now()["w"].isnan().tolist() == [True, False]


def test_a_point_that_overflows_is_refused() -> None:
    model = Carrier({"w": torch.zeros(1)})
    states = [{"w": torch.tensor([value]).half()} for value in (0.0, 60000.0)]
    path = LinearPath(model, *states, policy=Policy(extrapolate=True))
    path.set(1.0)
    with pytest.raises(MergeError, match=r"w.*infinite"):
        path.set(2.0)
    large = [{"w": torch.tensor([value])} for value in (0.0, 3e38)]
    path = LinearPath(model, *large, policy=Policy(extrapolate=True))
    with pytest.raises(MergeError, match=r"w.*infinite"):
        path.set(2.0)


@pytest.mark.parametrize("change", [nn.Module.double, lambda model: model.register_buffer("w", torch.ones(2))])
def test_a_model_whose_tensors_were_replaced_is_noticed(change: Callable[[Carrier], object]) -> None:
    """The path would go on in memory that the model no longer uses."""
    model = Carrier({"w": torch.zeros(2, dtype=torch.int32), "v": torch.zeros(2)})
    states = [{"w": torch.ones(2, dtype=torch.int32), "v": torch.full((2,), value)} for value in (0.0, 1.0)]
    path = LinearPath(model, *states)
    model.load_state_dict(states[0])  # in place: nothing to notice
    path.set(0.5)
    assert model.now()["v"].tolist() == [0.5, 0.5]
    change(model)
    with pytest.raises(MergeError, match="of the model was replaced or moved since this path was made; make a new one"):
        path.set(0.5)


@pytest.mark.parametrize("ratio", [1.5, -0.1, float("nan"), "0.5", None])
def test_a_bad_ratio_changes_nothing(ratio: object) -> None:
    model = Carrier(weights(5))
    path = LinearPath(model, weights(0), weights(1))
    path.set(0.3)
    before = model.now()
    with pytest.raises(MergeError, match="ratio"):
        path.set(ratio)  # type: ignore[arg-type]
    assert_same(model.now(), before)


@pytest.mark.parametrize("shares", [[0.5, 0.6], [1.0], {"vqa": 1.0}, {"vqa": 0.5, "captoin": 0.5}, [0.0, 0.0]])
def test_weights_that_do_not_fit_change_nothing(shares: object) -> None:
    model = Carrier(weights(5))
    path = Simplex(model, {"vqa": weights(0), "caption": weights(1)})
    before = model.now()
    with pytest.raises(MergeError, match="weights"):
        path.set(shares)  # type: ignore[arg-type]
    assert_same(model.now(), before)


# -- rules by module -------------------------------------------------------------------------------------------------


def test_rules_by_module() -> None:
    model = Carrier(weights(5))
    path = LinearPath(model, weights(0), weights(1))
    rules = {"encoder.image.*": 0.0, "encoder.layers*": 0.2, "*": 0.9}
    path.set(rules)
    assert_at(model, merge.interpolate(weights(0), weights(1), rules))
    assert torch.equal(model.now()["encoder.image.bn.weight"], weights(0)["encoder.image.bn.weight"])


def test_rules_by_module_in_a_simplex() -> None:
    model = Carrier(weights(5))
    path = Simplex(model, {"vqa": weights(0), "caption": weights(1)})
    path.set({"encoder.image.*": {"vqa": 1.0, "caption": 0.0}, "*": {"caption": 0.75, "vqa": 0.25}})
    now = model.now()
    assert torch.equal(now["encoder.image.bn.weight"], weights(0)["encoder.image.bn.weight"])
    wanted = torch.lerp(weights(0)["decoder.scale"], weights(1)["decoder.scale"], 0.75)
    assert torch.equal(now["decoder.scale"], wanted)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"encoder.*": 0.3}, r"need a rule '\*'"),
        ({"encodr.*": 0.3, "*": 0.5}, r"'encodr\.\*' decides no tensor: names look like"),
        ({"encoder.*": 0.3, "encoder.image.*": 0.2, "*": 0.5}, r"'encoder\.image\.\*' decides no tensor: an earlier"),
    ],
)
def test_rules_that_decide_nothing_are_errors(rules: dict[str, float], message: str) -> None:
    model = Carrier(weights(5))
    before = model.now()
    with pytest.raises(MergeError, match=message):
        LinearPath(model, weights(0), weights(1)).set(rules)
    assert_same(model.now(), before)


def test_the_resolution_names_every_tensor_its_rule_and_its_ratio() -> None:
    path = LinearPath(Carrier(weights(5)), weights(0), weights(1), policy=Policy(keep=("decoder.scale",)))
    with pytest.raises(MergeError, match="no point has been set"):
        path.resolution()
    path.set({"encoder.image.*": 0.25, "*": 0.5})
    lines = [line.split() for line in path.resolution().splitlines()]
    table = {line[0]: line[1:] for line in lines}
    assert table["encoder.image.bn.weight"] == ["encoder.image.*", "ratio=0.25"]
    assert table["encoder.layers.0.fc.bias"] == ["*", "ratio=0.5"]
    assert table["decoder.scale"] == ["-", "copy"]
    assert table["encoder.image.bn.num_batches_tracked"] == ["-", "maximum"]
    assert table["encoder.positions"] == ["-", "copy"]
    path.set(0.75)
    assert "encoder.embed.weight  *  ratio=0.75" in path.resolution().splitlines()


def test_unknown_methods_and_single_inputs() -> None:
    model = Carrier(weights(5))
    with pytest.raises(MergeError, match="unknown method 'interpolat'; did you mean 'interpolate'"):
        LivePath(model, "interpolat", {"a": weights(0), "b": weights(1)})
    with pytest.raises(MergeError, match="average takes at least 2 checkpoints, 1"):
        Simplex(model, {"a": weights(0)}).set([1.0])
