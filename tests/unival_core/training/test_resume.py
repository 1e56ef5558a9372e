"""A run goes on where it was killed, and the ways of computing one update agree.

Processes that are killed or that train together run `main`.
"""

import json
import multiprocessing
import os
import shutil
import socket
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest
import torch

from merge import alone
from tests.unival_core.training.made_run import (
    PLAIN,
    SAME,
    assert_close,
    assert_same,
    curve,
    datasets,
    fresh,
    losses,
    run,
    weights,
)
from unival_core.config import Regularization
from unival_core.data.batch import collate
from unival_core.errors import UnivalError
from unival_core.training.memory import recompute_layers
from unival_core.training.parallel import team


@pytest.fixture(scope="module")
def processes():
    """Makes processes that start with torch loaded, once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


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


def test_two_runs_in_one_folder_follow_each_other(tables, tmp_path, caplog):
    """The second waits, finds the first one's weights, and does nothing."""
    ends = []
    with alone(tmp_path / "run"):
        threads = [Thread(target=lambda: ends.append(run(tables, tmp_path / "run", PLAIN)[1])) for _ in range(2)]
        for thread in threads:
            thread.start()
        threads[0].join(0.3)
        assert os.listdir(tmp_path / "run") == []
    for thread in threads:
        thread.join(60)
    assert ends == [tmp_path / "run" / "last.safetensors"] * 2
    assert set(caplog.messages) == {f"another run works in {tmp_path / 'run'}: waiting until it is done"}
    assert len(losses(tmp_path / "run")) == PLAIN.updates


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("run.json", "{", r"run.json cannot be read \(.*\): remove .*run to train anew"),
        ("run.json", "[]", r"run.json is not the record of a run: remove .*run to train anew"),
        ("state.pt", "PK", r"state.pt cannot be read \(.*\): remove it to train from the first update"),
        ("metrics.csv", "update\nx\n", r"metrics.csv is not the table of a run \(.*\): move it away"),
    ],
)
def test_broken_records_are_one_line(tables, tmp_path, name, text, told):
    """Each is named, and what is said to do helps."""
    folder = tmp_path / "run"
    _, path = run(tables, folder, PLAIN)
    path.unlink()
    (folder / name).write_text(text)
    with pytest.raises(UnivalError, match=f"^{folder}/{told}$"):
        run(tables, folder, PLAIN)
    shutil.rmtree(folder) if "anew" in told else (folder / name).unlink()
    assert run(tables, folder, PLAIN)[1] == path


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
