"""Twelve mishaps (and two more) with two experts of one training: each gets its one diagnosis.

`test_diagnose.py` has every finding on random tensors; here networks are trained, saved and spoilt as users do it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import merge
from merge.tools.align import apply_permutation, permutation_spec, random_permutation, weight_matching
from merge.tools.align.patterns import chain, norm
from merge.tools.diagnose.report import Report, doctor
from merge.tools.task_vector import TaskVector

StateDict = dict[str, Tensor]
PIXELS, WIDTH, CLASSES = 64, 48, 32
PATTERNS = chain(["fc1", "fc2", "head"]) | norm("norm", "fc1", running=True)


def network(classes: int = CLASSES) -> nn.Sequential:
    model = nn.Sequential()
    for name, layer in (("fc1", nn.Linear(PIXELS, WIDTH)), ("norm", nn.BatchNorm1d(WIDTH)), ("relu1", nn.ReLU())):
        model.add_module(name, layer)
    for name, layer in (("fc2", nn.Linear(WIDTH, WIDTH)), ("relu2", nn.ReLU()), ("head", nn.Linear(WIDTH, classes))):
        model.add_module(name, layer)
    return model


def batches(task: int, steps: int, contrast: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
    """Noisy prototypes, one a class; a task shifts them a little, by a pattern of its own."""
    prototypes = torch.randn(CLASSES, PIXELS, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(task)
    shift = 0.3 * torch.randn(PIXELS, generator=generator)
    for _ in range(steps):
        labels = torch.randint(0, CLASSES, (64,), generator=generator)
        noise = torch.randn(64, PIXELS, generator=generator)
        yield contrast * (prototypes[labels] + noise + shift), labels


def trained(model: nn.Module, task: int, steps: int, rate: float, contrast: float = 1.0) -> StateDict:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    for pixels, labels in batches(task, steps, contrast):
        loss = nn.functional.cross_entropy(model.train()(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def fresh(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return network()


@dataclass
class Story:
    """A pretrained network and two experts; a mishap changes one of the three."""

    base: StateDict
    vqa: StateDict
    caption: StateDict

    def model(self) -> nn.Module:
        model = network()
        model.load_state_dict(self.base)
        return model

    def examine(self, folder: Path) -> Report:
        parts = {"pretrained": self.base, "vqa": self.vqa, "caption": self.caption}
        paths = [merge.save_checkpoint(part, folder / f"{name}.safetensors") for name, part in parts.items()]
        return doctor(paths[1:], paths[0])


@pytest.fixture(scope="module")
def healthy() -> Story:
    base = trained(fresh(0), 1, 150, 0.05)
    story = Story(base, base, base)
    story.vqa, story.caption = (trained(story.model(), task, 40, 0.02) for task in (2, 3))
    return story


@pytest.fixture
def story(healthy: Story) -> Story:
    return copy.deepcopy(healthy)


def problems(report: Report) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code) for finding in report.findings if finding.severity != "note"]


def wrapped_for_several_devices(s: Story) -> None:
    s.caption = dict(nn.DataParallel(s.model()).state_dict())


def other_classes(s: Story) -> None:
    s.caption |= {name: value for name, value in network(10).state_dict().items() if name.startswith("head.")}


def saved_in_half_precision(s: Story) -> None:
    model = network()
    model.load_state_dict(s.caption)
    s.caption = model.half().state_dict()


def diverged(s: Story) -> None:
    s.caption = trained(s.model(), 3, 30, 1e12)


def trained_apart(s: Story) -> None:
    s.caption = trained(fresh(9), 3, 190, 0.05)


def units_in_another_order(s: Story) -> None:
    s.base, s.vqa, s.caption = (dict(part) for part in (s.base, s.vqa, s.caption))
    spec = permutation_spec(PATTERNS, s.caption)
    s.caption = apply_permutation(spec, random_permutation(spec, 1), trained(s.model(), 3, 2, 1e-3))


def head_started_anew(s: Story) -> None:
    model = s.model()
    torch.manual_seed(5)
    model.head = nn.Linear(WIDTH, CLASSES)
    s.caption = trained(model, 3, 5, 0.02)


def rate_too_high(s: Story) -> None:
    s.caption = trained(s.model(), 3, 22, 0.35)


def farther_than_the_base_is_long(s: Story) -> None:
    model = s.model()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            step = torch.randn(weight.shape, generator=generator)
            weight += 1.5 * weight.norm() * step / step.norm()
    s.caption = model.state_dict()


def other_contrast(s: Story) -> None:
    s.caption = trained(s.model(), 3, 40, 0.005, contrast=4.0)


def never_finetuned(s: Story) -> None:
    s.caption = s.base


def task_vector_given(s: Story) -> None:
    s.caption = {**s.caption, **merge.TaskVector.between(s.base, s.caption, policy=merge.Policy()).tensors}


def through_bfloat16(s: Story) -> None:
    s.caption = {k: v.bfloat16().float() if v.is_floating_point() else v for k, v in s.caption.items()}


def weights_negated(s: Story) -> None:
    s.caption = {k: -v if k.endswith((".weight", ".bias")) else v for k, v in s.caption.items()}


STORIES: list[tuple[Callable[[Story], None], str, str, str, str]] = [
    (wrapped_for_several_devices, "refuse", "names-prefixed", "hold 'module.'", "rename='caption:module.='"),
    (other_classes, "refuse", "heads-differ", "[32, 48] in base, vqa and [10, 48] in caption", "keep='head.*'"),
    (
        saved_in_half_precision,
        "refuse",
        "dtypes-differ",
        "float32 in base, vqa and float16 in caption",
        "dtype='float32'",
    ),
    (diverged, "refuse", "not-finite", "caption has infinite or NaN values in ", "an earlier checkpoint"),
    (trained_apart, "warn", "unrelated-weights", "base and caption: median cosine ", "finetuned from one ancestor"),
    (units_in_another_order, "warn", "permuted-units", "base and caption: 3 of 3 matrices", "unival-merge align"),
    (head_started_anew, "warn", "parts-unrelated", "head.weight 0.", "keep='head.weight'"),
    (
        farther_than_the_base_is_long,
        "warn",
        "far-apart",
        "caption is 1.5",
        "finetune with fewer steps or a lower rate",
    ),
    (other_contrast, "warn", "batchnorm-apart", "1 of 1 layer: norm", "recalibrate the merged model"),
    (never_finetuned, "warn", "equal-to-base", "caption equals the base in all tensors", "the right file?"),
    (
        task_vector_given,
        "warn",
        "a-difference",
        "caption has 0.",
        "TaskVector(vector).apply(base)",
    ),
    (through_bfloat16, "warn", "rounded-weights", "caption has bfloat16 numbers", "before the conversion"),
    (weights_negated, "warn", "negated-weights", "vqa and caption: 3 of 3 matrices", "subtract its task vector"),
    (rate_too_high, "warn", "task-vectors-unlike", "that of caption is ", "was its learning rate too high"),
]


def test_a_healthy_pair_has_no_problem(story: Story, tmp_path: Path) -> None:
    report = story.examine(tmp_path)
    assert problems(report) == []
    assert report.verdict == "can be merged"


def test_an_expert_that_exploded_is_no_difference_from_a_base(story: Story, tmp_path: Path) -> None:
    story.caption = trained(story.model(), 3, 20, 1.0)
    titles = [title for _, title in problems(story.examine(tmp_path))]
    assert {"far-apart", "scales-differ"} & set(titles)
    assert "a-difference" not in titles


@pytest.mark.parametrize(
    ("mishap", "severity", "title", "seen", "advice"), STORIES, ids=[row[0].__name__ for row in STORIES]
)
def test_every_mishap_has_one_diagnosis(
    story: Story, tmp_path: Path, mishap: Callable[[Story], None], severity: str, title: str, seen: str, advice: str
) -> None:
    mishap(story)
    report = story.examine(tmp_path)
    assert problems(report) == [(severity, title)]
    assert seen in report.findings[0].text
    assert advice in report.findings[0].advice
    assert report.exit_code == (severity == "refuse")


def test_no_two_mishaps_share_a_diagnosis() -> None:
    assert len({title for _, _, title, _, _ in STORIES}) == len(STORIES) >= 12


def test_aligning_heals(story: Story, tmp_path: Path) -> None:
    units_in_another_order(story)
    spec = permutation_spec(PATTERNS, story.base)
    story.caption = apply_permutation(spec, weight_matching(spec, story.vqa, story.caption), story.caption)
    titles = [title for _, title in problems(story.examine(tmp_path))]
    assert "permuted-units" not in titles


def test_adding_the_task_vector_to_its_base_heals(story: Story, tmp_path: Path) -> None:
    task_vector_given(story)
    vector = {name: value for name, value in story.caption.items() if value.is_floating_point()}
    story.caption = TaskVector(vector).apply(story.base)
    assert problems(story.examine(tmp_path)) == []
