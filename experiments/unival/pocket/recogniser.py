"""What an image of the world shows, by a small network that has nothing to do with the models that draw.

It names digit and colour of every cell of an image, learnt from the world's own images. Cells of one colour are a
thing, as no image of the world has two of one colour: at the place where most of it lies, and of the digit that most of
it is. Captions say what there should be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from experiments.unival.pocket.backbone import scaled, shuffled
from experiments.unival.world.concepts import CELLS, COLOURS, DIGITS, PLACES
from unival_core.training import TrainOptions, learning_rate, make_optimizer, set_rate

RECOGNISER = TrainOptions(lr=3e-3, updates=600, batch=64, warmup=0.05, group="all")
ENOUGH = 1  # cells of a colour that make a thing; the smallest digits cover two
NOISE = 0.1  # of pixels in -1..1, added in training, so that images need not be sharp


class Thing(NamedTuple):
    """What there is in one colour: a digit and its place, as indices into DIGITS and PLACES; None where a caption does
    not say it."""

    digit: int
    place: int | None = None


class Recogniser(nn.Module):
    """Images N x 3 x 48 x 48 in -1..1 to logits of every cell, N x kinds x CELLS x CELLS each: of its digit (with card
    and nothing), and of its colour (with none)."""

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, 24, 24, 48, 64, 96, 96), (2, 1, 2, 1, 2, 1)
        layers = [
            nn.Sequential(nn.Conv2d(*pair, 3, stride, padding=1, bias=False), nn.BatchNorm2d(pair[1]), nn.ReLU())
            for pair, stride in zip(pairwise(widths), strides, strict=True)
        ]
        self.body = nn.Sequential(*layers)
        self.digit = nn.Conv2d(widths[-1], len(DIGITS) + 2, 1)
        self.colour = nn.Conv2d(widths[-1], len(COLOURS) + 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(images)
        return self.digit(x), self.colour(x)


def train_recogniser(images: Tensor, labels: Tensor, options: TrainOptions, *, progress: bool = True) -> Recogniser:
    """Train on images N x 3 x 48 x 48 (uint8) and the digits and colours of their cells, N x 2 x CELLS x CELLS."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = Recogniser().train()
        optimizer = make_optimizer([*model.parameters()], options)
        rows = shuffled(len(images), options.batch, options.seed)
        for update in tqdm(range(1, options.updates + 1), desc="recogniser", disable=None if progress else True):
            set_rate(optimizer, learning_rate(update, options.updates, options))
            batch = next(rows)
            pixels = scaled(images[batch])
            said = model(pixels + NOISE * torch.randn_like(pixels))
            wanted = labels[batch].unbind(1)
            loss = torch.stack([F.cross_entropy(one, label) for one, label in zip(said, wanted, strict=True)]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def recognised(model: Recogniser, images: Tensor) -> list[dict[int, Thing]]:
    """Return the things in each image (N x 3 x 48 x 48, in -1..1) by their colour, an index into COLOURS."""
    digits, colours = (scores.softmax(1) for scores in model(images))
    mass = F.one_hot(colours.argmax(1), len(COLOURS) + 1).movedim(-1, 1)[:, : len(COLOURS)].to(digits)
    cells = mass.sum((2, 3))
    named = torch.einsum("ncyx,ndyx->ncd", mass, digits[:, : len(DIGITS)]).argmax(-1)
    middle = torch.arange(CELLS, dtype=mass.dtype) + 0.5
    places = [
        (torch.einsum(f"ncyx,{axis}->nc", mass, middle) / cells.clamp_min(1e-6) * 3 / CELLS).long().clamp(0, 2)
        for axis in "yx"
    ]
    lying = (3 * places[0] + places[1]).tolist()
    return [
        {colour: Thing(int(named[i, colour]), lying[i][colour]) for colour, size in enumerate(own) if size >= ENOUGH}
        for i, own in enumerate(cells.tolist())
    ]


def described(caption: str) -> dict[int, Thing]:
    """Return what a caption says there is, by colour.

    >>> described("there is a red seven at the top left and a blue two and a card")
    {0: Thing(digit=7, place=0), 2: Thing(digit=2, place=None)}
    """
    return dict(_told(caption.split()))


def _told(words: list[str]) -> Iterator[tuple[int, Thing]]:
    for number, (colour, digit) in enumerate(pairwise(words)):
        if colour in COLOURS and digit in DIGITS:
            behind = words[number + 2 : number + 6]
            place = None
            if behind[:1] and behind[0] in ("at", "on", "in") and behind[1:2] == ["the"]:
                tried = (" ".join(behind[2:4]), " ".join(behind[2:3]))
                place = next((PLACES.index(name) for name in tried if name in PLACES), None)
            yield COLOURS.index(colour), Thing(DIGITS.index(digit), place)


def content(seen: Mapping[int, Thing], wanted: Mapping[int, Thing]) -> float:
    """Return the share of facts that an image shows: every described colour, its digit and, where it is told, its
    place. A colour that is not described counts as one fact more, which the image misses."""
    facts = sum(2 + (thing.place is not None) for thing in wanted.values())
    hits = 0
    for colour, thing in wanted.items():
        if (found := seen.get(colour)) is not None:
            hits += 1 + (found.digit == thing.digit) + (thing.place is not None and found.place == thing.place)
    return hits / max(1, facts + len(seen.keys() - wanted.keys()))


def contents(seen: Iterable[Mapping[int, Thing]], captions: Iterable[str]) -> list[float]:
    """Return the content of images by what was recognised in them and their captions."""
    return [content(one, described(caption)) for one, caption in zip(seen, captions, strict=True)]
