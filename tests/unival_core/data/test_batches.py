"""Batches, samplers and streams: where everything lies, who sees what, and that it goes on exactly."""

import json
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unival_core.made_rows import DISTINCT, POCKET, TOKENIZER, dataset
from unival_core.config import BOS, EOS, PAD
from unival_core.data.batch import collate, collate_by_task
from unival_core.data.dataset import TaskDataset
from unival_core.data.loading import TrainingStream, evaluation_batches
from unival_core.data.sampling import BalancedSampler
from unival_core.data.table import TsvTable
from unival_core.errors import UnivalError
from unival_core.model import UnivalModel
from unival_core.tasks import TASKS
from unival_core.training.loss import token_loss

# batches


def test_a_batch_puts_prefix_and_targets_in_their_places(tmp_path):
    data = dataset(tmp_path / "data.tsv", "vqa", training=True, answers=["four", "dark red"])
    a, b = data[0], data[1]
    batch = collate([a, b])
    length = 1 + len(b.prefix) + len(b.target)
    assert batch.target_inputs.shape == batch.targets.shape == (2, max(length, 1 + len(a.prefix) + len(a.target)))
    assert batch.target_inputs[1, :length].tolist() == [BOS, *b.prefix, *b.target]
    assert batch.targets[1, :length].tolist() == [*[PAD] * len(b.prefix), *b.target, EOS]
    assert batch.inputs.tokens[0, : len(a.source) + 2].tolist() == [BOS, *a.source, EOS]
    assert batch.tokens == len(a.target) + len(b.target) + 2
    assert batch.prefix == [a.prefix, b.prefix]
    assert batch.confidence.tolist() == [1.0, 1.0]
    assert batch.code_rows is None


def test_allowed_ids_are_those_that_go_on_with_an_answer(tmp_path):
    texts = ["four", "dark red", "dark"]
    data = dataset(tmp_path / "data.tsv", "vqa", training=True, answers=texts)
    other = dataset(tmp_path / "caption.tsv", "caption", training=True)
    batch = collate([data[0], data[1], other[0]])
    assert batch.allowed is not None
    assert batch.allowed[2].all()
    four, dark, red = (TOKENIZER.encode(f" {word}")[0] for word in ("four", "dark", "red"))
    for row, steps in ((0, [{four, dark}, {EOS}]), (1, [{four, dark}, {red, EOS}, {EOS}])):
        start = len(batch.prefix[row])
        assert batch.allowed[row, :start].all()
        for step, ids in enumerate(steps):
            assert set(batch.allowed[row, start + step].nonzero().flatten().tolist()) == ids
        assert batch.allowed[row, start + len(steps) :].all()
    logits = torch.zeros(*batch.targets.shape, POCKET.vocabulary)
    value = token_loss(logits[:1], batch.targets[:1], allowed=batch.allowed[:1])
    assert float(value.loss) == pytest.approx(np.log(2))  # one choice of two, then none


@torch.no_grad()
def test_a_batch_of_all_tasks_is_as_good_as_single_ones(tmp_path, pocket: UnivalModel):
    examples = [
        dataset(tmp_path / f"{task}.tsv", task, 2)[row]
        for task in DISTINCT
        if TASKS[task].medium != "video" or pytest.importorskip("av")
        for row in (0, 1)
    ]
    together = collate(examples)
    logits = pocket(together.inputs, together.target_inputs, together.code_rows)
    for row, example in enumerate(examples):
        alone = collate([example])
        wanted = pocket(alone.inputs, alone.target_inputs, alone.code_rows)[0]
        assert torch.allclose(logits[row, : len(wanted)], wanted, atol=2e-4)
        assert torch.equal(together.targets[row, : len(wanted)], alone.targets[0])
    by_task = collate_by_task(examples)
    assert [batch.examples[0].task for batch in by_task] == DISTINCT
    assert {len(batch) for batch in by_task} == {2}


def test_media_of_two_sizes_do_not_go_together(tmp_path):
    examples = [dataset(tmp_path / "a.tsv", "caption")[0], dataset(tmp_path / "b.tsv", "caption", side=64)[0]]
    with pytest.raises(UnivalError, match=r"b\.tsv:1: image of shape \(3, 64, 64\) in a batch of \(3, 48, 48\)"):
        collate(examples)
    with pytest.raises(UnivalError, match="at least one"):
        collate([])


# samplers

SIZES = {"vqa": 103, "caption": 1000, "grounding": 7}


def test_every_task_has_its_share_of_every_batch():
    sampler = BalancedSampler(SIZES, 32, seed=3)
    counts = [Counter(draw.task for draw in sampler.draw()) for _ in range(300)]
    assert all({10, 11} >= set(count.values()) and count.total() == 32 for count in counts)
    totals = sum(counts, Counter())
    assert all(abs(total / (300 * 32) - 1 / 3) < 0.005 for total in totals.values())
    weighted = BalancedSampler(SIZES, 8, weights={"vqa": 3, "caption": 1})
    assert [Counter(draw.task for draw in weighted.draw()) for _ in range(5)] == [{"vqa": 6, "caption": 2}] * 5
    proportional = BalancedSampler(SIZES, 16, weights=SIZES)
    totals = sum((Counter(draw.task for draw in proportional.draw()) for _ in range(500)), Counter())
    for task, size in SIZES.items():
        assert totals[task] / 8000 == pytest.approx(size / sum(SIZES.values()), abs=0.01)


def test_an_epoch_of_a_task_has_every_row_once():
    sampler = BalancedSampler({"a": 50}, 20, seed=1)
    rows = [draw.row for draw in chain.from_iterable(islice(sampler, 5))]
    assert sorted(rows[:50]) == sorted(rows[50:]) == list(range(50))
    assert rows[:50] != rows[50:]
    assert rows != [draw.row for draw in chain.from_iterable(islice(BalancedSampler({"a": 50}, 20, seed=2), 5))]
    numbers = [draw.number for draw in chain.from_iterable(islice(BalancedSampler(SIZES, 4), 5))]
    assert numbers == list(range(20))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_see_what_one_sees_with_so_large_a_batch(world):
    whole = BalancedSampler(SIZES, 6 * world, seed=5)
    parts = [BalancedSampler(SIZES, 6, seed=5, rank=rank, world=world) for rank in range(world)]
    for _ in range(20):
        drawn = [part.draw() for part in parts]
        assert list(chain.from_iterable(zip(*drawn, strict=True))) == whole.draw()
        assert {part.state_dict()["step"] for part in parts} == {whole.state_dict()["step"]}
    assert parts[0].state_dict() == whole.state_dict()


def test_a_sampler_goes_on_where_another_stood():
    first = BalancedSampler(SIZES, 16, seed=7)
    for _ in range(9):
        first.draw()
    state = json.loads(json.dumps(first.state_dict()))
    wanted = [first.draw() for _ in range(30)]
    second = BalancedSampler(SIZES, 8, seed=7, rank=0, world=2)
    second.load_state_dict(state)
    assert [second.draw() for _ in range(30)] == [draws[::2] for draws in wanted]
    with pytest.raises(UnivalError, match="cannot go on"):
        BalancedSampler(SIZES, 16, seed=8).load_state_dict(state)


def test_impossible_samplers_say_so():
    for arguments, message in [
        (({}, 4), "nothing to sample"),
        (({"a": 0}, 4), "nothing to sample"),
        (({"a": 3}, 0), "nothing to sample"),
    ]:
        with pytest.raises(UnivalError, match=message):
            BalancedSampler(*arguments)
    for weights in ({"b": 1}, {"a": -1}, {"a": 0}):
        with pytest.raises(UnivalError, match="weights"):
            BalancedSampler({"a": 3}, 2, weights=weights)
    with pytest.raises(UnivalError, match="process 2 of 2"):
        BalancedSampler({"a": 3}, 2, rank=2, world=2)


# streams


def stream(folder: Path, workers: int = 0) -> TrainingStream:
    data = {task: dataset(folder / f"{task}.tsv", task, 6, training=True) for task in ("vqa", "caption")}
    return TrainingStream(data, BalancedSampler(dict.fromkeys(data, 6), 4, seed=2), workers=workers)


def seen(batches) -> list:
    return [[(e.place, e.target, e.prefix) for e in examples] for examples in batches]


def test_workers_change_nothing_and_streams_go_on_exactly(tmp_path):
    plain = stream(tmp_path)
    wanted = seen(islice(plain, 8))
    threaded = stream(tmp_path, workers=3)
    assert seen(islice(threaded, 5)) == wanted[:5]
    assert threaded.state_dict()["step"] == 5  # not what is prepared ahead
    assert seen(islice(threaded, 3)) == wanted[5:]
    resumed = stream(tmp_path, workers=2)
    resumed.load_state_dict(json.loads(json.dumps(stream_state(tmp_path, 3))))
    assert seen(islice(resumed, 5)) == wanted[3:]


def stream_state(folder: Path, steps: int) -> dict:
    started = stream(folder, workers=1)
    list(islice(started, steps))
    return started.state_dict()


def test_streams_are_made_of_training_data_that_the_sampler_knows(tmp_path):
    data = dataset(tmp_path / "a.tsv", "caption")
    with pytest.raises(UnivalError, match="training=True"):
        TrainingStream({"caption": data}, BalancedSampler({"caption": 4}, 2))
    with pytest.raises(UnivalError, match=r"made for rows \{'caption': 5\}, the datasets have \{'caption': 4\}"):
        TrainingStream({"caption": data}, BalancedSampler({"caption": 5}, 2))


def test_an_error_in_a_thread_comes_out(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("broken\nbroken\n")
    task = TASKS["caption"]
    data = TaskDataset(task, TsvTable(path, task.columns, task.selected_cols), TOKENIZER, POCKET, training=True)
    data.max_broken = 0
    with pytest.raises(UnivalError, match=r"1 broken rows, at most 0 .*a\.tsv"):
        next(iter(TrainingStream({"caption": data}, BalancedSampler({"caption": 2}, 2), workers=2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_audio_row_once_and_pads_little(tmp_path, workers):
    data = dataset(tmp_path / "data.tsv", "vqa", 10)
    batches = list(evaluation_batches(data, 3, workers=workers))
    assert sorted(chain.from_iterable(rows for rows, _ in batches)) == list(range(10))
    lengths = [len(example.source) for _, batch in batches for example in batch.examples]
    assert lengths == sorted(lengths)
    assert [rows for rows, _ in batches] == [rows for rows, _ in evaluation_batches(data, 3)]
    assert sorted(chain.from_iterable(rows for rows, _ in evaluation_batches(data, 4, limit=6))) == list(range(6))
    assert all(
        example.place.endswith(f":{row + 1}")
        for rows, batch in batches
        for row, example in zip(rows, batch.examples, strict=True)
    )
