"""What ImageNet and Kinetics weights are to the published model: picture networks that know digits and colours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from experiments.world.concepts import CELLS, COLOURS, DIGITS
from experiments.world.tables import read_rows
from unival_core.data.media import MediaReader
from unival_core.model import UnivalModel
from unival_core.training.optim import learning_rate, make_optimizer, set_rate
from unival_core.training.options import TrainOptions

KINDS = (len(DIGITS) + 2, len(COLOURS) + 1)  # a digit, the card or nothing; a colour or none


def train_backbone(model: UnivalModel, world: Path, options: TrainOptions, *, progress: bool = True) -> None:
    """Trains the image network to name digit and colour of every cell, through a head that is then thrown away."""
    torch.manual_seed(options.seed)
    images, labels = read_labelled(world, "pretrain", model.config.code_image_size)
    network = model.encoder.get_submodule("embed_images").train()
    head = nn.Conv2d(model.config.image.width, sum(KINDS), 1)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = make_optimizer(parameters, options)
    rows = shuffled(len(images), options.batch, options.seed)
    for update in tqdm(range(1, options.updates + 1), desc="backbone", unit="update", disable=not progress):
        set_rate(optimizer, learning_rate(update, options.updates, options))
        batch = next(rows)
        loss = cell_loss(head(network(scaled(images[batch]))), labels[:, batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, options.clip)
        optimizer.step()


def cell_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of digits plus that of colours, from N x (digits + colours) x CELLS x CELLS."""
    digits, colours = scores.split(KINDS, dim=1)
    return F.cross_entropy(digits, labels[0]) + F.cross_entropy(colours, labels[1])


def scaled(pixels: Tensor) -> Tensor:
    """Bytes to -1..1."""
    return pixels.float() / 127.5 - 1


def read_labelled(world: Path, split: str, side: int) -> tuple[Tensor, Tensor]:
    """Pictures N x 3 x side x side (uint8), and labels of digits and of colours, 2 x N x CELLS x CELLS."""
    reader, images, labels = MediaReader("image", side), [], []
    for row in read_rows(world, "backbone", split):
        images.append(reader(row["media"], world)[0].values)
        labels.append([[int(label) for label in row[name].split(",")] for name in ("digits", "colours")])
    cells = torch.tensor(labels).transpose(0, 1).unflatten(2, (CELLS, CELLS))
    return torch.stack(images), cells


def shuffled(rows: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Row numbers of endless batches, each epoch in a new order."""
    generator = np.random.default_rng(seed)
    while True:
        order = torch.from_numpy(generator.permutation(rows))
        yield from order[: max(1, rows // batch) * batch].split(batch)


@torch.no_grad()
def inflate(model: UnivalModel) -> None:
    """Starts the video network as the image network on every frame (arXiv 1705.07750), its projection and positions
    likewise: a kernel is repeated along time and divided by its length."""
    encoder = model.encoder
    state = encoder.get_submodule("embed_images").state_dict()
    own = encoder.get_submodule("embed_videos").state_dict()
    for name, tensor in own.items():
        flat = state[name]
        tensor.copy_(flat if flat.dim() != 4 else (flat / tensor.shape[2]).unsqueeze(2).expand_as(tensor))
    for name in ("{}_proj", "embed_{}_positions"):
        source = encoder.get_submodule(name.format("image")).state_dict()
        encoder.get_submodule(name.format("video")).load_state_dict(source)
