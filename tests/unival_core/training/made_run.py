"""Small tables of coloured squares, a tiny model, and runs on them."""

import base64
import csv
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from merge import open_checkpoint
from unival_core.config import ResNetConfig, UnivalConfig
from unival_core.data.dataset import TaskDataset
from unival_core.data.table import TsvTable
from unival_core.model import UnivalModel
from unival_core.tasks import TASKS
from unival_core.training.options import TrainOptions
from unival_core.training.train import train
from unival_core.vocabulary import Tokenizer

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


def curve(tables, folder, options, **more):
    model, _ = run(tables, folder, options, **more)
    return losses(folder), model.state_dict()


def assert_close(one, other):
    assert one[0] == pytest.approx(other[0], rel=2e-5)
    for name, tensor in one[1].items():
        torch.testing.assert_close(tensor, other[1][name], rtol=1e-3, atol=2e-5, msg=name)


SAME = replace(PLAIN, batchnorm="freeze", eps=1e-4)  # a larger eps: Adam else turns rounding of tiny gradients around
