"""Doctor: every broken pair gets its one diagnosis, a healthy one none."""

import doctest
import html
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

import merge
from merge.plan.findings import kinds
from merge.plan.policy import Policy
from merge.plan.units import plan
from merge.tools.diagnose import report, tables
from merge.tools.diagnose.report import doctor
from tests.merge import broken
from tests.merge.broken import BROKEN, Break, World, tuned, weights


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
    assert [(finding.severity, finding.code) for finding in found.findings] == [(severity, title)]
    assert seen in found.findings[0].text
    assert advice in found.findings[0].advice
    assert found.exit_code == (severity == "refuse")
    start = {"refuse": "cannot be merged: ", "warn": "can be merged, but: ", "note": "can be merged"}[severity]
    assert found.verdict == start + (title if severity != "note" else "")
    text = found.text().splitlines()
    assert text[:2] == [f"{severity}: {title}: {found.findings[0].text}", f"    -> {found.findings[0].advice}"]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["verdict"] == found.verdict


@pytest.mark.parametrize(
    "break_it", [row[0] for row in BROKEN if row[0] is not broken.infinite], ids=lambda f: f.__name__
)
def test_the_verdict_agrees_with_the_engine(tmp_path: Path, break_it: Break) -> None:
    world = World()
    break_it(world)
    try:
        plan([world.base, world.vqa, world.caption], ["base", "vqa", "caption"], Policy(), told=lambda _: None)
        refused = 0
    except merge.MergeError:
        refused = 1
    assert world.examine(tmp_path).exit_code == refused


@pytest.mark.parametrize(
    ("break_it", "policy"),
    [
        (broken.missing, Policy(keep=("encoder.norm.*",))),
        (broken.other_head, Policy(keep=("classifier.*",))),
        (broken.other_head, Policy(drop=("classifier.*",))),
        (broken.other_width, Policy(drop=("encoder.fc2.*",))),
        (broken.half, Policy(dtype=torch.float32)),
        (broken.other_buffer, Policy(keep=("encoder.position_ids",))),
        (broken.batchnorm_shifted, Policy(batchnorm="from:vqa")),
    ],
)
def test_following_the_advice_heals(tmp_path: Path, break_it: Break, policy: Policy) -> None:
    world = World()
    break_it(world)
    assert world.examine(tmp_path, policy=policy).findings == ()


def test_what_is_missing_may_be_kept_from_the_first(tmp_path: Path) -> None:
    world = World()
    broken.missing(world)
    found = world.examine(tmp_path, policy=Policy(missing="keep-first"))
    assert [(finding.severity, finding.code) for finding in found.findings] == [("note", "names-partly")]
    assert found.exit_code == 0


def test_a_base_may_have_untrained_constants() -> None:
    world = World()
    world.base["encoder.fc1.bias"] = torch.zeros(64)
    assert doctor([world.vqa, world.caption], world.base).findings == ()
    world.caption["encoder.fc1.bias"] = torch.zeros(64)
    found = doctor([world.vqa, world.caption], world.base, names=["vqa", "caption"])
    assert [finding.text for finding in found.findings] == ["all elements equal: encoder.fc1.bias in caption"]


def test_all_equal_is_told_once() -> None:
    found = doctor([weights(0), weights(0)], weights(0), names=["vqa", "caption"])
    assert [(finding.code, finding.text) for finding in found.findings] == [
        ("equal-to-base", "vqa and caption equal the base in all tensors")
    ]


def test_a_policy_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(merge.MergeError, match="matches no tensor"):
        World().examine(tmp_path, policy=Policy(keep=("decoder.*",)))


def test_far_experts_are_told_without_a_base(tmp_path: Path) -> None:
    world = World()
    broken.far_without_base(world)
    found = world.examine(tmp_path, based=False)
    assert [finding.code for finding in found.findings] == ["far-apart"]
    assert "median cosine 0.4" in found.findings[0].text


def test_neighbours_of_permuted_units_are_not_called_new(tmp_path: Path) -> None:
    world = World()
    broken.permuted(world)
    world.caption["encoder.fc2.weight"] = tuned(world.caption, 3)["encoder.fc2.weight"]
    found = world.examine(tmp_path)
    assert [finding.code for finding in found.findings] == ["permuted-units"]
    assert "; vqa and caption: 3 of 4 matrices" in found.findings[0].text


def test_two_experts_that_do_not_come_from_the_base(tmp_path: Path) -> None:
    world = World()
    world.base = weights(5)
    found = world.examine(tmp_path)
    assert [finding.code for finding in found.findings] == ["unrelated-weights"]
    assert "base and vqa" in found.findings[0].text
    assert "base and caption" in found.findings[0].text
    assert "vqa and caption" not in found.findings[0].text


def test_models_without_a_common_name(tmp_path: Path) -> None:
    world = World()
    world.caption = {"a.weight": torch.ones(3), "b.weight": torch.ones(2)}
    found = world.examine(tmp_path, based=False)
    assert [finding.code for finding in found.findings] == ["nothing-shared"]
    assert "shares no name" in found.findings[0].text
    assert found.pairs == ()


def test_a_tied_tensor_that_one_input_leaves_out_is_dropped(tmp_path: Path) -> None:
    world = World()
    world.vqa["output.weight"] = world.vqa["encoder.embed.weight"]
    vqa = merge.save_checkpoint(world.vqa, tmp_path / "vqa.pt")
    caption = merge.save_checkpoint(world.caption, tmp_path / "caption.pt")
    (finding,) = doctor([vqa, caption]).findings
    assert finding.advice == "leave out with drop='output.*': encoder.embed.weight is merged, and stands for both"
    assert doctor([vqa, caption], policy=Policy(drop=("output.*",))).findings == ()


def test_models_of_another_size_of_numbers_are_no_difference() -> None:
    """Trained apart and with smaller matrices, or of another architecture: neither is expert - base."""
    small = {name: value * (0.2 if value.ndim > 1 else 1) for name, value in weights(5).items()}
    found = doctor([weights(0), small])
    assert "a-difference" not in [finding.code for finding in found.findings]
    assert "unrelated-weights" in [finding.code for finding in found.findings]
    other = {name.replace("encoder", "atom_conv"): value for name, value in small.items()}
    found = doctor([weights(0), other])
    assert "a-difference" not in [finding.code for finding in found.findings]
    difference = {name: value * 0.1 for name, value in tuned(weights(9), 1).items()}
    assert "a-difference" in [finding.code for finding in doctor([weights(0), difference]).findings]


def test_a_prefix_of_several_components() -> None:
    plain = weights(0)
    wrapped = {f"module.model.{name}": value for name, value in tuned(plain, 1).items()}
    (finding,) = doctor([plain, wrapped]).findings
    assert "names of input 2 begin with 'module.model.'" in finding.text


def test_one_finding_of_a_kind_for_many_pairs() -> None:
    found = doctor([weights(1), weights(2), weights(3)], names=["a", "b", "c"])
    assert [finding.code for finding in found.findings] == ["unrelated-weights"]
    assert found.findings[0].text.count("median cosine") == 3
    assert len(found.pairs) == 3


def test_findings_come_by_severity() -> None:
    world = World()
    broken.frozen(world)
    broken.rescaled(world)
    broken.missing(world)
    found = doctor([world.vqa, world.caption])
    assert [finding.severity for finding in found.findings] == ["refuse", "warn", "note"]
    assert found.verdict == "cannot be merged: names-differ"


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


@pytest.mark.parametrize("module", [tables, kinds, report], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0


def test_reports_are_one_line_in_a_prompt_and_their_escaped_text_in_a_notebook() -> None:
    a, b = {"<w>": torch.ones(4)}, {"<w>": torch.zeros(4)}
    compared, examined = merge.diff(a, b), merge.doctor([a, b])
    assert repr(compared) == "<Diff of input 1 and input 2: 1 tensor compared, 0 equal>"
    assert repr(examined).startswith("<Report on input 1, input 2: can")
    for shown in (compared, examined):
        assert "\n" not in repr(shown)
        assert shown._repr_html_() == f"<pre>{html.escape(shown.text())}</pre>"
    assert "&lt;w&gt;" in compared._repr_html_()


def test_methods_are_one_line_in_a_prompt() -> None:
    for method in merge.METHODS.values():
        assert "\n" not in repr(method)
        assert method.summary in repr(method)
        assert "function" not in repr(method)


def test_an_inspection_is_one_line_in_a_prompt(tmp_path: Path) -> None:
    seen = merge.inspect(merge.save_checkpoint({"w": torch.ones(4)}, tmp_path / "a.safetensors"))
    assert repr(seen).startswith(f"<Inspection of {tmp_path / 'a.safetensors'}: safetensors file, ")
    assert "\n" not in repr(seen)
    assert seen._repr_html_().startswith("<pre>")
