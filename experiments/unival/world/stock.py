"""Pools of scenes by split, and their images, drawn when a row needs one and once for all tasks."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

import numpy as np

from experiments.unival.world.clips import animated_png, png
from experiments.unival.world.concepts import CARD
from experiments.unival.world.images import Box, draw_image, draw_video
from experiments.unival.world.scenes import Pool, load_scans, sample_scene, sample_video

__all__ = ["Drawn", "Stock", "Stocks", "column", "stream"]

OWN_DOMAIN = ("lowquality", "printed")  # splits whose name is also the domain of their images


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return a generator of its own for each name, whatever else is drawn and in whichever order."""
    return np.random.default_rng([seed, *(name if isinstance(name, int) else crc32(name.encode()) for name in names)])


def column(data: bytes) -> str:
    """Return the text of a media column."""
    return base64.urlsafe_b64encode(data).decode("ascii")


class Drawn(NamedTuple):
    """The text of a media column, and the boxes of what is in the image."""

    media: str
    boxes: tuple[Box, ...] = ()
    card: Box | None = None


@dataclass
class Stock:
    """The scenes of one pool, and their images or videos in one domain."""

    name: str
    domain: str
    seed: int
    medium: str
    pool: Pool

    def __post_init__(self) -> None:
        self._drawn: dict[int, Drawn] = {}

    def __getitem__(self, index: int) -> Drawn:
        if index not in self._drawn:
            rng = stream(self.seed, self.medium, self.name, self.domain, index)
            scene = self.pool.scenes[index]
            if self.medium == "video":
                self._drawn[index] = Drawn(column(animated_png(draw_video(scene, rng, self.domain))))
            else:
                drawing = draw_image(scene, rng, self.domain)
                self._drawn[index] = Drawn(column(png(drawing.image)), drawing.boxes, drawing.card)
        return self._drawn[index]

    def common(self, index: int) -> dict[str, str]:
        """Return the columns that say which image it is."""
        scene = self.pool.scenes[index]
        kinds = ["digit"] * len(scene.things) + [CARD] * (scene.card is not None)
        return {"image_id": f"{self.name}-{index:06d}", "objects": "&&".join(kinds), "media": self[index].media}


class Stocks:
    """Every stock of a world, made at the first request."""

    def __init__(self, seed: int, scenes: Mapping[str, Mapping[str, int]]) -> None:
        """`scenes` are their numbers by medium and pool."""
        self.seed, self._scenes = seed, scenes
        self._pools: dict[tuple[str, str], Pool] = {}
        self._stocks: dict[tuple[str, str, str], Stock] = {}

    def get(self, medium: str, split: str, domain: str = "clean") -> Stock:
        """Say where the rows of a split take their images from; `domain` is that of train, val and test."""
        name = split.removesuffix("-late")
        if split not in ("train", "val", "test"):
            domain = name if name in OWN_DOMAIN else "clean"
        if (medium, name, domain) not in self._stocks:
            stock = Stock(name, domain, self.seed, medium, self._pool(medium, name))
            self._stocks[medium, name, domain] = stock
        return self._stocks[medium, name, domain]

    def _pool(self, medium: str, name: str) -> Pool:
        if (medium, name) not in self._pools:
            rng, by_digit = stream(self.seed, "scenes", medium, name), load_scans().by_digit
            scans = by_digit["train" if name == "pretrain" else name if name in by_digit else "test"]
            sample, count = sample_video if medium == "video" else sample_scene, self._scenes[medium].get(name, 0)
            scenes = [sample(rng, scans, name == "novel") for _ in range(count)]
            self._pools[medium, name] = Pool(scenes, name == "novel")
        return self._pools[medium, name]
