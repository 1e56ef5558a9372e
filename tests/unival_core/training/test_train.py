"""Training: it learns, keeps the best weights, and follows its options."""

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import ROOT
from tests.unival_core.training.made_run import (
    COLOURS,
    MICRO,
    PLAIN,
    SAME,
    assert_same,
    curve,
    datasets,
    fresh,
    losses,
    run,
    tokenizer,
    weights,
)
from unival_core.checkpoint import load_model, save_model
from unival_core.data.answers import stored_answers
from unival_core.data.batch import collate
from unival_core.errors import NotFinite, UnivalError
from unival_core.generation import generate
from unival_core.training.loss import LossOptions
from unival_core.training.optim import Average, learning_rate
from unival_core.training.options import TrainOptions
from unival_core.training.parallel import Team
from unival_core.vocabulary import TOKENIZER_KEY


def test_a_few_images_are_learnt_by_heart(tables, tmp_path):
    model, path = run(tables, tmp_path / "run", replace(PLAIN, updates=120, lr=1e-2, batch=16))
    assert path == tmp_path / "run" / "last.safetensors"
    found = losses(tmp_path / "run")
    assert len(found) == 120
    assert found[-1] < 0.1 < 2 < found[0]
    model = load_model(path)
    data = datasets(tables, "vqa")["vqa"]
    batch = collate([data.read(row) for row in range(16)])
    answers = generate(model, batch.inputs, constraint=data.answers.trie, prefix=batch.prefix)
    words = [tokenizer().decode(answer[0].answer).strip() for answer in answers]
    assert words == [list(COLOURS)[row % 4] for row in range(16)]


def test_the_loss_is_the_mean_over_tasks_of_means_over_tokens(tables, tmp_path):
    run(tables, tmp_path / "run", replace(PLAIN, updates=1))
    with (tmp_path / "run" / "metrics.csv").open() as file:
        row = next(csv.DictReader(file))
    own = [float(row["loss caption"]), float(row["loss vqa"])]
    assert float(row["loss"]) == pytest.approx(sum(own) / 2, rel=1e-5)
    assert own[0] == pytest.approx(math.log(MICRO.vocabulary), abs=1.0)
    assert own[1] == pytest.approx(math.log(4) / 2, abs=0.5)  # one of four answers, then an end that is certain


def test_weights_say_which_answers_were_allowed(tables, tmp_path):
    _, path = run(tables, tmp_path / "run", replace(PLAIN, updates=1))
    assert stored_answers(path, "vqa") == list(COLOURS)
    assert stored_answers(path, "caption") is None
    free = datasets(tables, "vqa")["vqa"]
    free.answers = None
    assert free.notes == {"expert.answers.vqa": "[]"}


def test_shares_of_tasks_decide_what_is_drawn(tables, tmp_path):
    run(tables, tmp_path / "run", replace(PLAIN, updates=2), weights={"caption": 1, "vqa": 0})
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["loss vqa"] for row in csv.DictReader(file)] == ["nan", "nan"]


def test_the_best_by_validation_is_kept_and_returned(tables, tmp_path):
    scores, seen = iter([0.1, 0.9, 0.3]), []

    def validate(model):
        assert not model.training
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(scores)

    _, path = run(tables, tmp_path / "run", replace(PLAIN, updates=12, validate_every=4), validate=validate)
    assert path == tmp_path / "run" / "best.safetensors"
    assert_same(weights(path), seen[1])
    assert_same(weights(tmp_path / "run" / "last.safetensors"), seen[2])


def test_the_example_of_the_page_runs(tables, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    code = page.split("## From Python")[1].split("```python\n")[1].split("```")[0]
    doors = [module for module in re.findall(r"from ([\w.]+) import", code) if module.startswith("unival_core")]
    assert doors == ["unival_core", "unival_core.data", "unival_core.training"]
    assert " scale" not in page.replace("--scale", "")  # the word is a multiplier; pocket and base are setups
    (tmp_path / "world").symlink_to(tables)
    save_model(fresh(), tmp_path / "pretrained.safetensors", metadata={TOKENIZER_KEY: tokenizer().to_json()})
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace("updates=300, batch=64, validate_every=100", "updates=4, batch=4, validate_every=2"), names)
    assert names["path"] == Path("runs/vqa/best.safetensors")
    assert len(losses(tmp_path / "runs" / "vqa")) == 4


def test_frozen_parts_keep_every_bit(tables, tmp_path):
    for group, frozen in (
        ("all but embeddings", lambda name: "embed_tokens" in name or "output_projection" in name),
        ("projections", lambda name: "_proj." not in name or "attn" in name),
    ):
        before = fresh().state_dict()
        options = replace(PLAIN, group=group, batchnorm="freeze", updates=3)
        model, _ = run(tables, tmp_path / group.replace(" ", "-"), options)
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed
        assert not [name for name in changed if frozen(name) and "encoder.image_proj" not in name]


def test_batch_norms_learn_statistics_unless_frozen(tables, tmp_path):
    norm = "encoder.embed_images.bn1.running_mean"
    trained, _ = run(tables, tmp_path / "trained", replace(PLAIN, updates=2))
    frozen, _ = run(tables, tmp_path / "frozen", replace(PLAIN, updates=2, batchnorm="freeze"))
    assert not torch.equal(trained.state_dict()[norm], fresh().state_dict()[norm])
    assert torch.equal(frozen.state_dict()[norm], fresh().state_dict()[norm])


def test_learning_rate_rises_and_falls_in_straight_lines():
    options = TrainOptions(lr=1.0, updates=10, warmup=0.2)
    rates = [learning_rate(update, 10, options) for update in range(1, 11)]
    assert rates == pytest.approx([0.5, 1.0, *(k / 8 for k in range(8, 0, -1))])


def test_epochs_count_rows_of_the_largest_set():
    assert TrainOptions(lr=1, epochs=2.5, batch=64).length(1000) == 40


def test_losses_may_smooth_encourage_and_drop(tables, tmp_path):
    """One update of each, against the loss function itself on the same batch."""
    plain = curve(tables, tmp_path / "plain", replace(SAME, updates=1))[0]
    for number, options in enumerate(
        (LossOptions(smoothing=0.1), LossOptions(encourage_until=0.75), LossOptions(drop_worst=0.3))
    ):
        changed = curve(tables, tmp_path / str(number), replace(SAME, updates=1, loss=options))[0]
        assert changed != plain
        if options.drop_worst:
            assert changed < plain


def test_a_loss_that_is_no_number_ends_the_run(tables, tmp_path):
    model = fresh()
    with torch.no_grad():
        model.encoder.layernorm_embedding.weight.fill_(math.nan)
    with pytest.raises(NotFinite, match=r"loss of update 1 is nan: encoder.layernorm_embedding.weight holds NaN"):
        run(tables, tmp_path / "run", PLAIN, model=model)


def test_a_rate_that_is_too_high_is_told_before_the_weights_are_lost(tables, tmp_path):
    model = fresh()
    with pytest.raises(NotFinite, match=r"of update 2 is nan: lower lr \(1e\+30\) or clip"):
        run(tables, tmp_path / "run", replace(PLAIN, lr=1e30, clip=1e30), model=model)
    assert all(tensor.isfinite().all() for tensor in model.parameters())


# -- averages


def test_average_follows_the_weights_with_its_decay(tables, tmp_path):
    model = fresh()
    average, name = Average(model, 0.9), "encoder.layer_norm.weight"
    with torch.no_grad():
        model.encoder.layer_norm.weight += 1
    average.update(model)
    assert torch.allclose(average.tensors[name], torch.full((16,), 1.1))
    with average.worn_by(model):
        assert torch.allclose(model.encoder.layer_norm.weight, torch.full((16,), 1.1))
    assert torch.equal(model.encoder.layer_norm.weight, torch.full((16,), 2.0))


def test_kept_files_hold_the_average(tables, tmp_path):
    model, path = run(tables, tmp_path / "run", replace(PLAIN, ema=0.999))
    kept, name = weights(path), "encoder.layer_norm.weight"
    begin, end = fresh().state_dict()[name], model.state_dict()[name]
    moved = float((kept[name] - begin).norm() / (end - begin).norm())
    assert 0.001 < moved < 0.013  # at most 12 updates of a thousandth each


# -- options


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"updates": 0}, "updates or epochs"),
        ({"epochs": 2}, "updates or epochs"),
        ({"batch": 6, "accumulate": 4}, "does not divide"),
        ({"precision": "int8"}, "choose one of fp32"),
        ({"group": "head"}, "choose one of all"),
        ({"batchnorm": "sync"}, "choose one of train"),
        ({"warmup": 5}, "share of the updates"),
    ],
)
def test_impossible_options_are_told(wrong, told):
    with pytest.raises(UnivalError, match=told):
        replace(PLAIN, **wrong)


def test_batch_has_to_divide_among_processes(tables, tmp_path):
    with pytest.raises(UnivalError, match="among 3 processes"):
        run(tables, tmp_path / "run", PLAIN, team=Team(0, 3))
