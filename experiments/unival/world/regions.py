"""Referring expressions: texts that fit one thing in an image. Like RefCOCO+'s they name no places, so that the text
alone tells nothing about the box.
"""

from dataclasses import dataclass

import numpy as np

from experiments.unival.world.concepts import CARD, COLOURS, DIGITS
from experiments.unival.world.grammar import pick, references
from experiments.unival.world.questions import Makers, one_of
from experiments.unival.world.scenes import Pool

__all__ = ["CARD_BOX", "FULL_NAMES", "GROUNDING", "Region"]

CARD_BOX = -1


@dataclass(frozen=True)
class Region:
    """A text that describes digit number `thing` of scene number `scene` (CARD_BOX: its card)."""

    kind: str
    text: str
    scene: int
    thing: int


def _region(kind: str, text: str, pool: Pool, scenes: list[int], colours: np.ndarray) -> list[Region]:
    """The digit that has this colour in its scene (`colours` by scene)."""
    return [
        Region(kind, text, i, next(k for k, t in enumerate(pool.scenes[i].things) if t.colour == colours[i]))
        for i in scenes
    ]


def point_pair(rng: np.random.Generator, pool: Pool) -> list[Region]:
    """Refer to 'the red three'."""
    digit, colour = pool.pair(rng)
    mask = pool.colour_of[:, digit] == colour
    scenes = one_of(rng, mask & (pool.count > 1) if rng.random() < 0.8 else mask)
    return _region("pair", pick(rng, references(digit, colour)), pool, scenes, pool.colour_of[:, digit])


def point_digit(rng: np.random.Generator, pool: Pool) -> list[Region]:
    """Refer to 'the number three'."""
    digit, _ = pool.pair(rng)
    text = pick(rng, ("the {}", "the number {}", "the digit {}")).format(DIGITS[digit])
    return _region(
        "digit", text, pool, one_of(rng, (pool.colour_of[:, digit] >= 0) & (pool.count > 1)), pool.colour_of[:, digit]
    )


def point_colour(rng: np.random.Generator, pool: Pool) -> list[Region]:
    """Refer to 'the red digit'."""
    _, colour = pool.pair(rng)
    text = pick(rng, ("the {} digit", "the digit in {}", "the {} number")).format(COLOURS[colour])
    scenes = one_of(rng, (pool.digit_of[:, colour] >= 0) & (pool.count > 1))
    return _region("colour", text, pool, scenes, np.full(len(pool.count), colour))


def point_parity(rng: np.random.Generator, pool: Pool) -> list[Region]:
    """Refer to 'the even digit' where only one is."""
    odd = int(rng.integers(2))
    fits = (pool.digit_of >= 0) & (pool.digit_of % 2 == odd)
    text = f"the {('even', 'odd')[odd]} {pick(rng, ('digit', 'number'))}"
    return _region("parity", text, pool, one_of(rng, (fits.sum(1) == 1) & (pool.count > 1)), fits.argmax(1))


def point_order(rng: np.random.Generator, pool: Pool) -> list[Region]:
    """Refer to 'the greatest number' among two or more."""
    word, values = [("greatest", pool.highest), ("smallest", pool.lowest)][rng.integers(2)]
    colours = (pool.digit_of == values[:, None]).argmax(1)
    return _region("order", f"the {word} number", pool, one_of(rng, pool.count > 1), colours)


def point_card(rng: np.random.Generator, pool: Pool) -> list[Region]:
    """Refer to 'the card'."""
    return [Region("card", f"the {CARD}", i, CARD_BOX) for i in one_of(rng, pool.card >= 0)]


GROUNDING: Makers = {
    point_pair: 4,
    point_digit: 3,
    point_colour: 3,
    point_card: 0.5,
    point_parity: 1,
    point_order: 1,
}
FULL_NAMES: Makers = {point_pair: 1}
