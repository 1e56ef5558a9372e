"""Image networks that know digits and colours, which the pocket model starts from as others do from ImageNet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from experiments.unival.world.concepts import CARD, CELLS, COLOURS, DIGITS
from experiments.unival.world.tasks import read_rows
from unival_core import Attention, Encoder, Tokenizer, UnivalConfig, UnivalModel
from unival_core.data import MediaReader
from unival_core.training import TrainOptions, learning_rate, make_optimizer, set_rate

# What a cell shows, each answered by one of these words or by none of them (its label is then one past the last).
WORDS = ((*DIGITS, CARD), COLOURS, ("top", "bottom"), ("left", "right"))
SHARPNESS = 0.15  # of a cell's likeness to words: both are layer-normed, so their product reaches the model's width
BIAS_OF_PLACES = 0.3  # what untrained biases of places keep of their size, so that content decides who attends to whom


def fresh_model(config: UnivalConfig, seed: int) -> UnivalModel:
    """Return a model to train from nothing.

    The published start, normal(0, 0.02) everywhere, fits a width of 768. In a narrow model it leaves attention flat,
    and a usual learning rate turns embeddings around within a few updates, so that words stay unbound from images
    for long. Matrices start by Glorot's rule instead, embeddings with variance 1 / width. Queries start as keys do, so
    that like attends to like from the first update on.
    """
    torch.manual_seed(seed)
    model = UnivalModel(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "decoder.output_projection":  # that is the token matrix
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding) and module.embedding_dim == config.width:
            nn.init.normal_(module.weight, std=config.width**-0.5)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Attention):
                module.k_proj.weight.copy_(module.q_proj.weight)
            elif isinstance(module, nn.Linear) and name.endswith(("pos_q_linear", "pos_k_linear")):
                module.weight.mul_(BIAS_OF_PLACES)
    return model


def train_backbone(
    model: UnivalModel, tokenizer: Tokenizer, world: Path, options: TrainOptions, *, progress: bool = True
) -> None:
    """Train the image network and its projection until a cell's token is like the words for what the cell shows.

    The words' embeddings stay as they are; a head that is thrown away names the cell's row and column (the model never
    adds places to image tokens). Without this stage, questions stay unbound from images for thousands of updates.
    """
    torch.manual_seed(options.seed)
    images, labels = read_labelled(world, "pretrain", model.config.code_image_size)
    encoder, width = model.encoder.train(), model.config.width
    heads = nn.ModuleList([nn.Linear(width, len(WORDS)), nn.Linear(width, CELLS), nn.Linear(width, CELLS)])
    parts = ("embed_images", "image_proj", "patch_layernorm_embedding")
    parameters = [p for part in (*map(encoder.get_submodule, parts), heads) for p in part.parameters()]
    words = [word_states(encoder, tokenizer, names) for names in WORDS]
    optimizer = make_optimizer(parameters, options)
    rows = shuffled(len(images), options.batch, options.seed)
    for update in tqdm(
        range(1, options.updates + 1), desc="backbone", unit="update", disable=None if progress else True
    ):
        set_rate(optimizer, learning_rate(update, options.updates, options))
        batch = next(rows)
        cells = encoder.embed_medium("image", scaled(images[batch])).states
        loss = cell_loss(cell_scores(cells, words, heads), labels[:, batch].flatten(2))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, options.clip)
        optimizer.step()


@torch.no_grad()
def word_states(encoder: Encoder, tokenizer: Tokenizer, names: tuple[str, ...]) -> Tensor:
    """Say what words look like to the encoder, len(names) x width. Each must be one token."""
    return encoder.embed_text(torch.tensor([[tokenizer.encode(f" {name}")[0]] for name in names])).squeeze(1)


def cell_scores(cells: Tensor, words: list[Tensor], heads: nn.ModuleList) -> list[Tensor]:
    """Return logits of the WORDS (with none of them, last), of the row and of the column, each N x cells x kinds;
    `cells` is N x cells x width."""
    none, *places = (head(cells) for head in heads)
    likeness = [SHARPNESS * cells @ states.t() for states in words]
    return [torch.cat((own, none[..., [i]]), dim=-1) for i, own in enumerate(likeness)] + places


def cell_loss(scores: list[Tensor], labels: Tensor) -> Tensor:
    """Return the sum of the mean cross-entropies, from len(labels) x N x cells."""
    losses = [F.cross_entropy(own.flatten(0, 1), label.flatten()) for own, label in zip(scores, labels, strict=True)]
    return torch.stack(losses).sum()


def scaled(pixels: Tensor) -> Tensor:
    """Scale bytes to -1..1."""
    return pixels.float() / 127.5 - 1


def read_labelled(world: Path, split: str, side: int) -> tuple[Tensor, Tensor]:
    """Return images N x 3 x side x side (uint8), and the labels of their cells, 6 x N x CELLS x CELLS: WORDS, row
    and column."""
    reader, images, labels = MediaReader("image", side), [], []
    for row in read_rows(world, "backbone", split):
        images.append(reader(row["media"], world)[0].values)
        labels.append([[int(label) for label in row[name].split(",")] for name in ("digits", "colours")])
    named = torch.tensor(labels).transpose(0, 1).unflatten(2, (CELLS, CELLS))
    line = torch.arange(CELLS)
    end = torch.tensor([0, 2, 1])[line * 3 // CELLS]  # first word, none of them, second word
    places = [torch.meshgrid(one, one, indexing="ij") for one in (end, line)]
    known = [place.unsqueeze(0).expand(len(images), -1, -1) for pair in places for place in pair]
    return torch.stack(images), torch.cat((named, torch.stack(known)))


def shuffled(rows: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Yield row numbers of endless batches, each epoch in a new order."""
    generator = np.random.default_rng(seed)
    while True:
        order = torch.from_numpy(generator.permutation(rows))
        yield from order[: max(1, rows // batch) * batch].split(batch)


@torch.no_grad()
def inflate(model: UnivalModel) -> None:
    """Start the video network as the image network on every frame (arXiv 1705.07750), its projection and positions
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
