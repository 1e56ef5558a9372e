"""What happens to each tensor, and the one line that tells everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import merge
from merge import MergeError, Policy
from merge.plan.units import Unit, plan
from merge.recipe.parameters import resolve
from tests.merge.made import assert_same, weights

LABELS = ["vqa", "caption"]


def named(*names: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: torch.ones(2, dtype=dtype) for name in names}


def planned(first: dict[str, Tensor], second: dict[str, Tensor], **policy: object) -> dict[str, Unit]:
    units = plan([first, second], LABELS, Policy(**policy))  # type: ignore[arg-type]
    return {name: unit for unit in units for name in unit.names}


def refused(first: dict[str, Tensor], second: dict[str, Tensor], **policy: object) -> str:
    with pytest.raises(MergeError) as caught:
        planned(first, second, **policy)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- names -----------------------------------------------------------------------------------------------------------


def test_both_set_differences_and_the_options_are_listed() -> None:
    assert refused(named("a", "b", "c", "d"), named("b", "e", "d")) == (
        "vqa lacks 1 tensor: e; caption lacks 2 tensors: a, c; "
        "leave them as they are with keep='GLOB', leave them out with drop='GLOB', or pass missing='keep-first'"
    )


def test_twenty_names_are_shown_then_counts_by_module() -> None:
    many = [f"audio.layer{i:02}.w" for i in range(23)] + [f"video.block{i}" for i in range(4)]
    message = refused(named("w", *many), named("w"))
    assert message.startswith("caption lacks 27 tensors: " + ", ".join(many[:20]) + " and ")
    assert "audio.layer19.w" in message
    assert "audio.layer20.w" not in message
    assert all(f"1 in audio.layer{i}" in message for i in (20, 21, 22))
    exactly = refused(named("w", *many[:20]), named("w"))
    assert "caption lacks 20 tensors: " + ", ".join(many[:20]) + "; leave" in exactly


def test_three_inputs_are_told_apart() -> None:
    with pytest.raises(MergeError, match="b lacks 1 tensor: x; c lacks 1 tensor: y; leave"):
        plan([named("x", "y"), named("y"), named("x")], ["a", "b", "c"], Policy())


def test_everything_wrong_is_told_at_once() -> None:
    first = named("only.first", "shape", "kind", "table")
    second = named("only.second", "kind", dtype=torch.float16) | {"shape": torch.ones(3)}
    first["table"], second["table"] = torch.tensor([1]), torch.tensor([2])
    message = refused(first, second)
    for part in (
        "vqa lacks 1 tensor: only.second",
        "caption lacks 1 tensor: only.first",
        "shape has shape [2] in vqa and [3] in caption",
        "kind is float32 in vqa and float16 in caption",
        "table is int64 and differs between vqa and caption",
    ):
        assert part in message


def test_the_same_of_several_tensors_is_said_once() -> None:
    message = refused(named("a", "b", "c"), named("a", "b", "c", dtype=torch.float16))
    told = "a is float32 in vqa and float16 in caption: choose the result's, as dtype='float32'"
    assert message == f"{told}; the same of 2 tensors: b, c"


def test_keep_takes_the_first_input_s_own() -> None:
    first, second = weights(0), weights(1)
    del second["decoder.scale"]
    units = planned(first, second, keep=("decoder.*", "encoder.image.*"))
    assert units["decoder.scale"].kind == "copy"
    assert units["encoder.image.bn.weight"].sources == (0,)
    assert units["encoder.layers.0.fc.weight"].kind == "merge"


def test_keep_of_what_only_the_second_has() -> None:
    unit = planned(named("w"), named("w", "audio.w"), keep=("audio.*",))["audio.w"]
    assert (unit.kind, unit.sources) == ("copy", (1,))


def test_keep_resolves_shapes_dtypes_and_integers() -> None:
    first = {"w": torch.ones(2), "head": torch.ones(3), "ids": torch.tensor([1]), "half": torch.ones(1).half()}
    second = {"w": torch.ones(2), "head": torch.ones(4), "ids": torch.tensor([2]), "half": torch.ones(1)}
    merged = merge.interpolate(first, second, 0.5, policy=Policy(keep=("head", "ids", "half")))
    assert_same(merged, first)


def test_drop_leaves_names_out_of_everything() -> None:
    first, second = named("w", "head"), {"w": torch.ones(2), "head": torch.ones(5), "extra": torch.ones(1)}
    assert list(planned(first, second, drop=("head", "extra"))) == ["w"]


def test_drop_goes_before_keep() -> None:
    assert list(planned(named("w", "head"), named("w", "head"), keep=("head",), drop=("h*",))) == ["w"]


@pytest.mark.parametrize("option", ["keep", "drop"])
def test_a_pattern_that_matches_nothing_is_an_error(option: str) -> None:
    message = refused(named("encoder.w"), named("encoder.w"), **{option: ("encodr.*",)})
    assert message == f"{option}='encodr.*' matches no tensor; names look like encoder.w"


def test_patterns_mind_case_and_cross_dots() -> None:
    first = named("Head.w", "head.deep.w", "body.w")
    units = planned(first, named("Head.w", "head.deep.w", "body.w"), keep=("head*",))
    assert [name for name, unit in units.items() if unit.kind == "copy"] == ["head.deep.w"]


def test_missing_is_one_of_four_words() -> None:
    assert "must be 'error', 'keep-first', 'zero-delta' or 'union'" in refused(
        named("w"), named("w"), missing="keep_first"
    )


# -- shapes and dtypes -----------------------------------------------------------------------------------------------


def test_shapes_are_told_with_both_values() -> None:
    message = refused({"head.w": torch.ones(2, 3)}, {"head.w": torch.ones(3, 2)})
    assert message == "head.w has shape [2, 3] in vqa and [3, 2] in caption: pass keep='head.w' or drop='head.w'"


def test_one_element_is_not_broadcast() -> None:
    assert "has shape [] in vqa and [1] in caption" in refused({"w": torch.tensor(1.0)}, {"w": torch.ones(1)})
    assert "has shape [2, 2] in vqa and [2] in caption" in refused({"w": torch.ones(2, 2)}, {"w": torch.ones(2)})


def test_dtypes_that_differ_need_a_choice() -> None:
    first, second = named("w"), named("w", dtype=torch.float16)
    assert "w is float32 in vqa and float16 in caption: choose the result's, as dtype='float32'" in refused(
        first, second
    )
    assert planned(first, second, dtype=torch.float16)["w"].dtype == torch.float16


def test_dtypes_that_differ_are_merged_in_float32() -> None:
    first, second = {"w": torch.tensor([1.0, 1 / 3])}, {"w": torch.tensor([2.0, 0.1]).bfloat16()}
    merged = merge.interpolate(first, second, 0.25, policy=Policy(dtype=torch.float32))["w"]
    assert torch.equal(merged, torch.lerp(first["w"], second["w"].float(), 0.25))
    endpoint = merge.interpolate(first, second, 1.0, policy=Policy(dtype=torch.float32))["w"]
    assert torch.equal(endpoint, second["w"].float())


@pytest.mark.parametrize("other", [torch.int64, torch.complex64, torch.bool])
def test_floats_are_not_merged_with_other_kinds(other: torch.dtype) -> None:
    message = refused(named("w"), named("w", dtype=other), dtype=torch.float32)
    assert f"w is float32 in vqa and {str(other)[6:]} in caption: pass keep='w' or drop='w'" in message


def test_integers_of_other_widths_are_an_error() -> None:
    assert "int64 in vqa and int32 in caption" in refused(named("n", dtype=torch.int64), named("n", dtype=torch.int32))


def test_what_was_counted_is_the_largest() -> None:
    for name in ("bn.num_batches_tracked", "model_ema.num_updates", "n_averaged"):
        found = merge.average([{name: torch.tensor(count)} for count in (3, 5, 4)])
        assert found == {name: torch.tensor(5)}


def test_the_output_dtype_is_for_merged_floats_only() -> None:
    units = planned(weights(0), weights(1), dtype=torch.float16, keep=("decoder.scale",))
    assert units["encoder.layers.0.fc.weight"].dtype == torch.float16
    assert units["decoder.scale"].dtype == torch.float32
    assert units["encoder.positions"].dtype == torch.int64
    assert units["encoder.image.bn.num_batches_tracked"].dtype == torch.int64


def test_hundreds_of_problems_stay_one_short_line() -> None:
    names = [f"encoder.layers.{i}.fc.weight" for i in range(300)]
    message = refused(named(*names), named(*names, dtype=torch.float16))
    assert len(message) < 4000
    assert "the same of 299 tensors" in message


# -- ties ------------------------------------------------------------------------------------------------------------


def test_tied_names_share_a_unit() -> None:
    units = plan([weights(0), weights(1)], LABELS, Policy())
    assert ("encoder.embed.weight", "decoder.output.weight") in [unit.names for unit in units]
    assert sum(len(unit.names) for unit in units) == len(weights(0))


def test_three_names_of_one_tensor() -> None:
    first, second = (dict.fromkeys("xyz", torch.randn(3)) for _ in range(2))
    units = plan([first, second], LABELS, Policy())
    assert [unit.names for unit in units] == [("x", "y", "z")]


def test_a_dropped_name_leaves_its_partner() -> None:
    merged = merge.interpolate(weights(0), weights(1), 0.5, policy=Policy(drop=("encoder.embed.weight",)))
    wanted = torch.lerp(weights(0)["decoder.output.weight"], weights(1)["decoder.output.weight"], 0.5)
    assert torch.equal(merged["decoder.output.weight"], wanted)
    assert "encoder.embed.weight" not in merged


@pytest.mark.parametrize("name", ["encoder.embed.weight", "decoder.output.weight"])
def test_keeping_one_of_two_tied_names_keeps_it(name: str) -> None:
    merged = merge.interpolate(weights(0), weights(1), 0.5, policy=Policy(keep=(name,)))
    assert torch.equal(merged[name], weights(0)[name])


def test_a_tied_name_that_all_have_is_merged() -> None:
    first, second = weights(0), weights(1)
    del second["encoder.embed.weight"]
    with pytest.raises(MergeError, match=r"second lacks encoder.embed.weight, tied to decoder.output.weight in first"):
        merge.interpolate(first, second, 0.5, policy=Policy(missing="keep-first"))
    merged = merge.interpolate(first, second, 0.5, policy=Policy(drop="encoder.embed.weight"))
    name = "decoder.output.weight"
    assert torch.equal(merged[name], torch.lerp(first[name], second[name], 0.5))


def test_empty_tensors_are_never_tied() -> None:
    empty = torch.empty(0)
    units = plan([{"x": empty, "y": empty}] * 2, LABELS, Policy())
    assert [unit.names for unit in units] == [("x",), ("y",)]


# -- BatchNorm -------------------------------------------------------------------------------------------------------


def statistics(mean: list[float]) -> dict[str, Tensor]:
    return {"bn.running_mean": torch.tensor(mean), "w": torch.ones(1)}


def test_batchnorm_from_an_input_that_lacks_the_tensor() -> None:
    first, second = statistics([1.0]), {"w": torch.ones(1)}
    assert "caption lacks 1 tensor: bn.running_mean" in refused(first, second, batchnorm="from:caption")
    merged = merge.interpolate(first, second, 0.5, policy=Policy(batchnorm="from:second", missing="keep-first"))
    assert merged["bn.running_mean"].tolist() == [1.0]


def test_batchnorm_from_an_input_of_another_shape() -> None:
    message = refused(statistics([1.0]), statistics([1.0, 2.0]), batchnorm="from:caption")
    assert "bn.running_mean has shape [1] in vqa and [2] in caption" in message


@pytest.mark.parametrize("policy", ["from:nobody", "recalibrate", "averag"])
def test_batchnorm_is_checked_where_there_is_none_too(policy: str) -> None:
    message = refused(named("w"), named("w"), batchnorm=policy)
    assert f"batchnorm={policy!r}: must be 'average' or 'from:' and one of vqa, caption" in message


# -- no value is touched ---------------------------------------------------------------------------------------------


def test_planning_reads_headers_and_integers_only(tmp_path: Path) -> None:
    """Floats are overwritten behind the reader's back: the plan does not notice, the merge does."""
    state = weights(0)
    for name in ("a", "b"):
        merge.save_checkpoint(state, tmp_path / f"{name}.safetensors")
    opened = [merge.open_checkpoint(tmp_path / f"{name}.safetensors") for name in ("a", "b")]
    entry = opened[1].entries["encoder.layers.0.fc.weight"]
    with (tmp_path / "b.safetensors").open("r+b") as file:
        file.seek(entry.offset)
        file.write(b"\xff" * entry.nbytes)
    assert len(plan(opened, LABELS, Policy())) == len(state)
    with pytest.raises(MergeError, match=r"encoder\.layers\.0\.fc\.weight: 55 infinite or NaN"):
        merge.interpolate(*opened, 0.5)


# -- rules by module -------------------------------------------------------------------------------------------------

NAMES = ["encoder.image.w", "encoder.text.w", "decoder.w"]


def test_the_first_rule_that_fits_wins() -> None:
    assert resolve({"encoder.image*": 0.2, "encoder.*": 0.4, "*": 0.5}, NAMES) == {
        "encoder.image.w": ("encoder.image*", 0.2),
        "encoder.text.w": ("encoder.*", 0.4),
        "decoder.w": ("*", 0.5),
    }


def test_the_rest_may_be_empty() -> None:
    assert resolve({"encoder*": 0.2, "decoder*": 0.4, "*": 0.5}, NAMES)["decoder.w"] == ("decoder*", 0.4)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"encoder.*": 0.2}, r"need a rule '\*' for the rest; given are encoder\.\*"),
        ({"encodr.*": 0.2, "*": 0.5}, r"'encodr\.\*' decides no tensor: names look like encoder\.image\.w"),
        ({"encoder.*": 0.2, "encoder.image*": 0.3, "*": 0.5}, r"'encoder\.image\*' decides no .*an earlier rule"),
        ({"*": 0.5, "encoder.*": 0.2}, r"'encoder\.\*' decides no tensor: an earlier rule"),
    ],
)
def test_rules_that_decide_nothing_are_errors(rules: dict[str, float], message: str) -> None:
    with pytest.raises(MergeError, match=message):
        resolve(rules, NAMES)
    state = {name: torch.ones(1) for name in NAMES}
    with pytest.raises(MergeError, match=message):
        merge.interpolate(state, state, rules)


def test_rules_may_not_part_names_that_are_one_tensor() -> None:
    message = (
        r"encoder\.embed\.weight and decoder\.output\.weight are one tensor, but the rules for ratio give 0\.2 and 0\.9"
    )
    with pytest.raises(MergeError, match=message):
        merge.interpolate(weights(0), weights(1), {"encoder.*": 0.2, "*": 0.9})
    rules = {"*.embed.*": 0.5, "*.output.*": 0.5, "encoder.*": 0.2, "*": 0.9}
    merged = merge.interpolate(weights(0), weights(1), rules)
    wanted = torch.lerp(weights(0)["decoder.output.weight"], weights(1)["decoder.output.weight"], 0.5)
    assert torch.equal(merged["decoder.output.weight"], wanted)


def test_rules_are_ratios_too() -> None:
    state = {name: torch.ones(1) for name in NAMES}
    with pytest.raises(MergeError, match=r"ratio 1\.2 is outside \[0, 1\]"):
        merge.interpolate(state, state, {"encoder.*": 1.2, "*": 0.5})
