"""Training: it learns, it goes on where it was killed, and the ways of computing one update agree.

Processes that are killed or that train together run `main`.
"""

import base64
import csv
import io
import json
import math
import multiprocessing
import os
import re
import socket
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from merge import open_checkpoint
from tests import ROOT
from unival_core.checkpoint import load_model, save_model
from unival_core.commands import app
from unival_core.config import Regularization, ResNetConfig, UnivalConfig
from unival_core.data.batch import collate
from unival_core.data.dataset import TaskDataset
from unival_core.data.table import TsvTable
from unival_core.errors import NotFinite, UnivalError
from unival_core.generation import generate
from unival_core.model import UnivalModel
from unival_core.tasks import TASKS
from unival_core.training.loss import LossOptions
from unival_core.training.memory import recompute_layers
from unival_core.training.optim import Average, learning_rate
from unival_core.training.options import RewardOptions, TrainOptions
from unival_core.training.parallel import Team, team
from unival_core.training.prepare import tensors_digest
from unival_core.training.recipes import STAGES, Stage, options_for
from unival_core.training.rewards import RewardLoss
from unival_core.training.train import train
from unival_core.vocabulary import TOKENIZER_KEY, Tokenizer

MICRO = UnivalConfig(
    16,
    2,
    32,
    1,
    1,
    image=ResNetConfig((1,), (8,), expansion=2, stem=8, kernel=3),
    text_ids=64,
    codes=4,
    bins=8,
    max_positions=40,
    token_bucket=8,
    image_bucket=6,
    code_image_size=16,
)
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "grey": (120, 120, 120)}
PLAIN = TrainOptions(lr=4e-3, updates=12, batch=8, warmup=0.2, seed=3)


def image(colour, corner):
    """A square of a colour in one quarter of a black 16 x 16 image, as the text of a media column."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    top, left = 8 * (corner // 2), 8 * (corner % 2)
    pixels[top : top + 8, left : left + 8] = COLOURS[colour]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.urlsafe_b64encode(file.getvalue()).decode()


def write_tables(folder):
    """Sixteen images for captioning, questions and boxes, in the published layouts."""
    rows = {"caption": [], "vqa": [], "grounding": []}
    for number in range(16):
        colour, corner = list(COLOURS)[number % 4], number // 4
        media, box = image(colour, corner), (8 * (corner % 2), 8 * (corner // 2))
        rows["caption"].append(f"{number}\t{number}\ta {colour} square on black\t\t{media}")
        rows["vqa"].append(f"{number}\t{number}\twhat colour?\t1.0|!+{colour}\t\t{media}")
        x, y = box
        rows["grounding"].append(f"{number}\t{number}\tthe square\t{x},{y},{x + 8},{y + 8}\t{media}")
    for task, lines in rows.items():
        (folder / task).mkdir()
        for split in ("train", "val", "pretrain"):
            (folder / task / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def tokenizer():
    """Knows every word of the tables."""
    texts = ['a square on black what colour is the does image describe? which region text " "', *COLOURS]
    return Tokenizer.train(texts, MICRO)


def datasets(folder, *tasks):
    words, answers = tokenizer(), {"vqa": list(COLOURS)}
    return {
        name: TaskDataset(
            TASKS[name],
            TsvTable(folder / name / "train.tsv", TASKS[name].columns, TASKS[name].selected_cols),
            words,
            MICRO,
            training=True,
            answers=answers.get(name, ()),
        )
        for name in tasks
    }


def fresh(seed=0):
    torch.manual_seed(seed)
    return UnivalModel(MICRO)


@pytest.fixture(scope="module")
def processes():
    """Makes processes that start with torch loaded, once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder)
    return folder


def run(tables, folder, options, tasks=("caption", "vqa"), model=None, **more):
    model = model or fresh()
    path = train(model, tokenizer(), datasets(tables, *tasks), options, folder, progress=False, **more)
    return model, path


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def weights(path):
    file = open_checkpoint(path)
    return {name: file[name].clone() for name in file}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# -- the loop


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


# -- killed and resumed


def test_a_run_killed_at_any_step_ends_with_the_same_bits(tables, tmp_path, processes):
    reference = main("reference", tables, tmp_path / "whole")
    metrics = tmp_path / "killed" / "metrics.csv"
    for rows in (3, 6):  # behind the save of update 2, and of update 4 at the earliest
        process = processes.Process(target=main, args=("slow", tables, tmp_path / "killed"))
        process.start()
        wait_until(lambda rows=rows: metrics.exists() and metrics.read_text().count("\n") > rows, process)
        process.kill()
        process.join()
        assert not (tmp_path / "killed" / "last.safetensors").exists()
    resumed = main("reference", tables, tmp_path / "killed")
    assert_same(weights(resumed), weights(reference))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert sorted(file.name for file in (tmp_path / "killed").iterdir()) == [
        "last.safetensors",
        "metrics.csv",
        "run.json",
    ]


def wait_until(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.is_alive(), "the process ended by itself"
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.02)


def test_a_finished_run_is_left_alone(tables, tmp_path):
    _, path = run(tables, tmp_path / "run", PLAIN)
    written = path.stat().st_mtime_ns
    run(tables, tmp_path / "run", PLAIN)
    assert path.stat().st_mtime_ns == written


def test_another_run_does_not_go_on_in_the_folder(tables, tmp_path):
    run(tables, tmp_path / "run", PLAIN)
    with pytest.raises(UnivalError, match="holds another run"):
        run(tables, tmp_path / "run", replace(PLAIN, lr=1e-3))
    run(tables, tmp_path / "run", replace(PLAIN, lr=1e-3), overwrite=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["options"]["lr"] == 1e-3


def test_a_folder_with_other_files_is_refused(tables, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UnivalError, match="not empty"):
        run(tables, tmp_path, PLAIN)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["thesis.tex"]


# -- one update, computed in other ways


def curve(tables, folder, options, **more):
    model, _ = run(tables, folder, options, **more)
    return losses(folder), model.state_dict()


def assert_close(one, other):
    assert one[0] == pytest.approx(other[0], rel=2e-5)
    for name, tensor in one[1].items():
        torch.testing.assert_close(tensor, other[1][name], rtol=1e-3, atol=2e-5, msg=name)


SAME = replace(PLAIN, batchnorm="freeze", eps=1e-4)  # a larger eps: Adam else turns rounding of tiny gradients around


def test_parts_of_a_batch_add_up_to_the_batch(tables, tmp_path):
    whole = curve(tables, tmp_path / "whole", SAME)
    assert_close(curve(tables, tmp_path / "parts", replace(SAME, accumulate=4)), whole)


def test_two_processes_follow_one_with_twice_the_batch(tables, tmp_path, processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    members = [processes.Process(target=join, args=(rank, port, tables, tmp_path)) for rank in (0, 1)]
    for member in members:
        member.start()
    for member in members:
        member.join(300)
    assert [member.exitcode for member in members] == [0, 0]
    whole = curve(tables, tmp_path / "whole", SAME)
    for parts in (1, 2):
        out = tmp_path / f"together{parts}"
        assert_close((losses(out), weights(out / "last.safetensors")), whole)


def test_computing_layers_twice_changes_nothing(tables, tmp_path):
    options = replace(PLAIN, updates=4, regularization=Regularization(dropout=0.2, drop_path=0.2))
    once = curve(tables, tmp_path / "once", options)
    twice = curve(tables, tmp_path / "twice", replace(options, recompute=True))
    assert twice[0] == once[0]
    assert_same(twice[1], once[1])


def test_recomputed_layers_hold_fewer_activations(tables):
    batch = collate([datasets(tables, "caption")["caption"].read(row) for row in range(16)])
    held = {}
    for name in ("once", "twice"):
        model, sizes = fresh().train(), []
        if name == "twice":
            recompute_layers(model)

        def note(tensor, sizes=sizes):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(batch.inputs, batch.target_inputs)
        held[name] = sum(sizes)
    assert held["twice"] < 0.7 * held["once"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_follows_the_same_curve_and_keeps_float32(tables, tmp_path, precision):
    plain = curve(tables, tmp_path / "fp32", replace(SAME, updates=6))
    half = curve(tables, tmp_path / "half", replace(SAME, updates=6, precision=precision))
    assert half[0] != plain[0]
    assert half[0] == pytest.approx(plain[0], rel=0.05)
    assert {tensor.dtype for tensor in half[1].values()} == {torch.float32, torch.int64}


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="TensorBoard is installed")
def test_missing_tensorboard_is_told(tables, tmp_path):
    with pytest.raises(UnivalError, match="TensorBoard is not installed"):
        run(tables, tmp_path / "run", PLAIN, tensorboard=True)


def test_threads_that_read_ahead_change_nothing(tables, tmp_path):
    alone = curve(tables, tmp_path / "alone", PLAIN)
    helped = curve(tables, tmp_path / "helped", PLAIN, workers=3)
    assert helped[0] == alone[0]
    assert_same(helped[1], alone[1])


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


# -- self-critical training


def test_advantages_compare_a_box_with_the_other_draws(tables):
    data = datasets(tables, "grounding")["grounding"]
    batch = collate([data.read(0), data.read(4)])
    loss = RewardLoss(fresh(), tokenizer(), RewardOptions(samples=3, areas=(0, 100)))
    right, wrong = batch.targets[0, :4].tolist(), batch.targets[1, :4].tolist()
    drawn = torch.tensor([[right, wrong, wrong], [wrong, wrong, right]])
    assert loss.advantages(batch, drawn).squeeze(-1).tolist() == [[1.0, -0.5, -0.5], [0.5, 0.5, -1.0]]
    assert loss.count([batch], 1) == {"grounding": 24}
    large = RewardLoss(fresh(), tokenizer(), RewardOptions(samples=3, areas=(100, math.inf)))
    assert not large.advantages(batch, drawn).any()
    assert large.count([batch], 1) == {"grounding": 0}


def test_rewards_raise_the_share_of_right_boxes(tables, tmp_path):
    model, _ = run(tables, tmp_path / "ce", replace(PLAIN, updates=40, lr=1e-2, batch=16), ("grounding",))
    data = datasets(tables, "grounding")["grounding"]
    batch = collate([data.read(row) for row in range(16)])
    loss = RewardLoss(model.eval(), tokenizer(), RewardOptions(samples=16))

    def share():
        torch.manual_seed(0)
        drawn = loss.draw(batch)
        right = batch.targets[:, None, :4]
        return float((drawn == right).all(-1).float().mean())

    before = share()
    options = replace(PLAIN, updates=30, lr=3e-3, batch=16, reward=RewardOptions(samples=8), batchnorm="freeze")
    run(tables, tmp_path / "reward", options, ("grounding",), model=model)
    assert before < 0.9
    assert share() > before + 0.08


def test_rewards_need_boxes(tables, tmp_path):
    with pytest.raises(UnivalError, match="has no box to reward"):
        run(tables, tmp_path / "run", replace(PLAIN, reward=RewardOptions()), ("vqa",))


# -- the command line


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    path = tmp_path_factory.mktemp("initial") / "initial.safetensors"
    return save_model(fresh(), path, metadata={TOKENIZER_KEY: tokenizer().to_json()})


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_train_command_follows_the_recipe_and_what_is_given(tables, initial, tmp_path):
    (tables / "colours.txt").write_text("\n".join(COLOURS))
    common = ["--data", tables, "--init", initial, "--workers", 0, "--batch", 8, "--updates", 3]
    done = command(
        "train", "--task", "vqa", "-o", tmp_path / "vqa", *common, "--answers", tables / "colours.txt", "--lr", 2e-3
    )
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "vqa" / "best.safetensors"))
    options = json.loads((tmp_path / "vqa" / "run.json").read_text())["options"]
    wanted = options_for(TASKS["vqa"], "pocket")
    assert (options["lr"], options["updates"], options["group"]) == (2e-3, 3, wanted.group)
    with (tmp_path / "vqa" / "metrics.csv").open() as file:
        assert 0 <= float([*csv.DictReader(file)][-1]["validation"]) <= 1
    done = command(
        "train", "--task", "grounding", "-o", tmp_path / "large", *common, "--reward", "large", "--val-split", ""
    )
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "large" / "last.safetensors"))


def test_pretrain_command_goes_through_the_stages(tables, initial, tmp_path, monkeypatch):
    tasks = {"caption": 1.0, "vqa": 1.0}
    stages = (Stage("one", PLAIN, tasks), Stage("two", PLAIN, tasks, splits={"vqa": "train"}))
    monkeypatch.setitem(STAGES, "pocket", stages)
    common = ["--data", tables, "--init", initial, "--workers", 0, "--batch", 8, "--updates", 2]
    done = command("pretrain", "-o", tmp_path / "out", *common)
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "out" / "two" / "last.safetensors"))
    first = tensors_digest(tmp_path / "out" / "one" / "last.safetensors")
    assert json.loads((tmp_path / "out" / "two" / "run.json").read_text())["init"] == first


def test_mistakes_are_one_line(tables, initial, tmp_path):
    common = ["--data", tables, "--init", initial, "-o", tmp_path / "out"]
    for words, told in (
        (["train", "--task", "chess"], "no task 'chess': choose one of caption, vqa"),
        (["train", "--task", "vqa", "--split", "dev"], "dev.tsv"),
        (["train", "--task", "grounding", "--reward", "huge"], "no reward 'huge'"),
        (["pretrain", "--stage", "nine"], "no stage 'nine'"),
    ):
        done = command(*words, *common)
        assert done.exit_code == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert told in done.stderr


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


def main(mode, tables, folder):
    """What subprocesses do: train with saves, with saves and slowly, or as one of several processes."""
    torch.set_num_threads(1)
    tables, folder = Path(tables), Path(folder)
    if mode == "together":
        with team("cpu") as members:
            for parts in (1, 2):
                run(tables, folder / f"together{parts}", replace(SAME, accumulate=parts), team=members)
        return None
    noisy = Regularization(dropout=0.2, drop_path=0.3, patches=10)
    options = replace(PLAIN, updates=10, ema=0.9, save_every=2, validate_every=3, regularization=noisy, seed=5)
    if mode == "slow":
        step = torch.optim.AdamW.step

        def slowly(*args, **kwargs):
            time.sleep(0.1)
            return step(*args, **kwargs)

        torch.optim.AdamW.step = slowly
    return run(tables, folder, options)[1]


def join(rank, port, tables, folder):
    """What torchrun tells a process of two, and then its part of the training."""
    told = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()}
    main("together", tables, folder)
