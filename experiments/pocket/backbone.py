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
from unival_core.config import UnivalConfig
from unival_core.data.media import MediaReader
from unival_core.model import UnivalModel
from unival_core.training.optim import learning_rate, make_optimizer, set_rate
from unival_core.training.options import TrainOptions

# Per cell: a digit, the card or nothing; a colour or none; its row; its column. UnIVAL's picture tokens carry no
# positions of their own (those only bias attention), so the network has to tell where a token lies.
KINDS = (len(DIGITS) + 2, len(COLOURS) + 1, CELLS, CELLS)


def fresh_model(config: UnivalConfig, seed: int) -> UnivalModel:
    """A model to train from nothing.

    The published start, normal(0, 0.02) everywhere, fits a width of 768. In a narrow model it leaves attention flat,
    and a usual learning rate turns embeddings around within a few updates, so that words stay unbound from pictures
    for long. Matrices start by Glorot's rule instead, embeddings with variance 1 / width.
    """
    torch.manual_seed(seed)
    model = UnivalModel(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "decoder.output_projection":  # that is the token matrix
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding) and module.embedding_dim == config.width:
            nn.init.normal_(module.weight, std=config.width**-0.5)
    return model


def train_backbone(model: UnivalModel, world: Path, options: TrainOptions, *, progress: bool = True) -> None:
    """Trains the image network to name digit, colour and place of every cell, through a head that is thrown away."""
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
    """Sum of the mean cross-entropies of the KINDS, from N x sum(KINDS) x CELLS x CELLS and len(KINDS) x N x CELLS x
    CELLS."""
    losses = [F.cross_entropy(own, label) for own, label in zip(scores.split(KINDS, dim=1), labels, strict=True)]
    return torch.stack(losses).sum()


def scaled(pixels: Tensor) -> Tensor:
    """Bytes to -1..1."""
    return pixels.float() / 127.5 - 1


def read_labelled(world: Path, split: str, side: int) -> tuple[Tensor, Tensor]:
    """Pictures N x 3 x side x side (uint8), and the labels of their cells, len(KINDS) x N x CELLS x CELLS."""
    reader, images, labels = MediaReader("image", side), [], []
    for row in read_rows(world, "backbone", split):
        images.append(reader(row["media"], world)[0].values)
        labels.append([[int(label) for label in row[name].split(",")] for name in ("digits", "colours")])
    named = torch.tensor(labels).transpose(0, 1).unflatten(2, (CELLS, CELLS))
    places = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
    return torch.stack(images), torch.cat((named, torch.stack(places).unsqueeze(1).expand_as(named)))


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
