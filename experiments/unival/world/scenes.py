"""What is to be seen in each image and video, before anything is drawn, and arrays to look scenes up by content."""

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from experiments.errors import StudyError
from experiments.unival.world.concepts import CANVAS, COLOURS, DIGITS, FRAMES, MOTIONS, is_held_out

__all__ = ["Pool", "Scans", "Scene", "Thing", "load_scans", "motion_path", "sample_scene", "sample_video"]
__all__ += ["scikit_learn"]

SLOTS = (10, 24, 38)  # centres of the three columns and rows of places, in pixels
CARD_SIDE = 13
CARD_SHARE = 0.4  # of the images with up to three digits
TRAVEL, RADIUS = 18.0, 6.5  # pixels a moving digit covers, radius of a circling one
# The scans come form by form: every form asks for the same row of digits, which begins anew at these numbers.
FORMS = (0, 130, 256, 386, 516, 646, 776, 915, 1029, 1157, 1287, 1415, 1541, 1667)
SPLIT_FORMS = {"train": (0, 9), "val": (9, 11), "test": (11, 14)}


@dataclass(frozen=True)
class Thing:
    """A digit: indices into DIGITS, COLOURS, PLACES and MOTIONS, centre and side in pixels, angles in degrees."""

    digit: int
    colour: int
    place: int
    x: float
    y: float
    side: int
    scan: int
    angle: float
    motion: int = -1
    phase: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Digits in reading order, all of different value and colour, and perhaps a face-down card (place, x, y)."""

    things: tuple[Thing, ...]
    card: tuple[int, float, float] | None = None


@dataclass(frozen=True)
class Scans:
    """Handwritten digits (n x 8 x 8, uint8) and, by split, which scans show which digit."""

    images: np.ndarray
    by_digit: dict[str, tuple[np.ndarray, ...]]


def scikit_learn(name: str) -> Any:
    """Return a module of scikit-learn; StudyError if that is not installed."""
    try:
        return import_module(f"sklearn.{name}")
    except ImportError:
        raise StudyError("the embedded world needs scikit-learn: install unival-merge[world]") from None


@lru_cache(maxsize=1)
def load_scans() -> Scans:
    """Split scikit-learn's 1,797 scans. No form, hence no writer, is in two splits; some 90 unreadable scans are in
    none."""
    data = scikit_learn("datasets").load_digits()
    form = np.searchsorted(FORMS, np.arange(len(data.target)), side="right") - 1
    readable = _readable(data.data.astype(np.int64), data.target, form)
    by_digit = {
        split: tuple(
            np.flatnonzero(readable & (data.target == digit) & (first <= form) & (form < end))
            for digit in range(len(DIGITS))
        )
        for split, (first, end) in SPLIT_FORMS.items()
    }
    return Scans(np.minimum(data.images * 18.0, 255.0).astype(np.uint8), by_digit)


def _readable(pixels: np.ndarray, digit: np.ndarray, form: np.ndarray) -> np.ndarray:
    """Whether most of a scan's five nearest neighbours on other forms show the same digit (n bool)."""
    square = (pixels**2).sum(1)
    distance = square[:, None] + square[None] - 2 * pixels @ pixels.T
    distance[form[:, None] == form[None]] = np.iinfo(np.int64).max
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :5]
    stretched = (digit == 1) & (form == 13)  # the ones of the last form fill their frames as solid blots
    return ((digit[nearest] == digit[:, None]).sum(1) >= 3) & ~stretched


def _pairs(rng: np.random.Generator, count: int, novel: bool) -> list[tuple[int, int]]:
    """`count` (digit, colour) pairs without repetition; novel: at least one that is held out, else none."""
    while True:
        digits = rng.permutation(len(DIGITS))[:count]
        colours = rng.permutation(len(COLOURS))[:count]
        if novel:
            digits[0] = colours[0] + len(COLOURS) * int(rng.integers(2)) if colours[0] < 4 else colours[0]
        pairs = [(int(d), int(c)) for d, c in zip(digits, colours, strict=True)]
        if len(set(digits.tolist())) == count and any(is_held_out(*pair) for pair in pairs) == novel:
            return pairs


def _apart(spots: list[tuple[float, float, int]]) -> bool:
    """Whether no two squares (centre, side) overlap."""
    return all(
        max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= (a[2] + b[2]) / 2 for i, a in enumerate(spots) for b in spots[:i]
    )


def _layout(rng: np.random.Generator, sides: list[int]) -> tuple[list[int], list[tuple[float, float, int]]]:
    """Different places for squares of these sides, and their centres: near the place's own, inside the canvas."""
    while True:
        places = rng.permutation(9)[: len(sides)].tolist()
        jitter = rng.integers(-2, 3, (len(sides), 2))
        spots = []
        for place, side, (dx, dy) in zip(places, sides, jitter.tolist(), strict=True):
            low, high = side / 2 + 1, CANVAS - 1 - side / 2
            x, y = SLOTS[place % 3] + dx, SLOTS[place // 3] + dy
            spots.append((min(max(x, low), high), min(max(y, low), high), side))
        if _apart(spots):
            return places, spots


def sample_scene(rng: np.random.Generator, by_digit: tuple[np.ndarray, ...], novel: bool = False) -> Scene:
    """Return one to three digits without held-out pairs, or (`novel`) four digits or at least one held-out pair."""
    four = novel and rng.random() < 0.5
    count = 4 if four else int(rng.integers(1, 4))
    sides = rng.integers(13, 17 if count > 2 else 20, count).tolist()
    with_card = not four and rng.random() < CARD_SHARE
    places, spots = _layout(rng, sides + [CARD_SIDE] * with_card)
    things = [
        Thing(d, c, place, x, y, side, int(rng.choice(by_digit[d])), float(rng.uniform(-12, 12)))
        for (d, c), place, (x, y, side) in zip(_pairs(rng, count, novel and not four), places, spots, strict=False)
    ]
    card = (places[-1], *spots[-1][:2]) if with_card else None
    return Scene(tuple(sorted(things, key=lambda thing: thing.place)), card)


def motion_path(thing: Thing) -> list[tuple[float, float]]:
    """Return the centre of a moving digit in every frame."""
    steps = np.arange(FRAMES) / (FRAMES - 1) - 0.5
    name = MOTIONS[thing.motion]
    if name == "circle":
        turn = np.deg2rad(thing.phase) + np.arange(FRAMES) * (2 * np.pi / FRAMES)
        return [(thing.x + RADIUS * np.cos(a), thing.y + RADIUS * np.sin(a)) for a in turn.tolist()]
    dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}[name]
    return [(thing.x + dx * TRAVEL * s, thing.y + dy * TRAVEL * s) for s in steps.tolist()]


def _mover(rng: np.random.Generator, pair: tuple[int, int], by_digit: tuple[np.ndarray, ...], motion: int) -> Thing:
    side = int(rng.integers(13, 17))
    reach_x = {"left": TRAVEL / 2, "right": TRAVEL / 2, "circle": RADIUS}.get(MOTIONS[motion], 0.0)
    reach_y = {"up": TRAVEL / 2, "down": TRAVEL / 2, "circle": RADIUS}.get(MOTIONS[motion], 0.0)
    margin = side / 2 + 1
    x = float(rng.uniform(margin + reach_x, CANVAS - margin - reach_x))
    y = float(rng.uniform(margin + reach_y, CANVAS - margin - reach_y))
    scan, angle = int(rng.choice(by_digit[pair[0]])), float(rng.uniform(-12, 12))
    return Thing(*pair, -1, x, y, side, scan, angle, motion, float(rng.uniform(0, 360)))


def sample_video(rng: np.random.Generator, by_digit: tuple[np.ndarray, ...], novel: bool = False) -> Scene:
    """Return one or two digits that move with different motions and never meet; their order is that of their values."""
    pairs = sorted(_pairs(rng, int(rng.integers(1, 3)), novel))
    motions = rng.permutation(len(MOTIONS))[: len(pairs)].tolist()
    while True:
        things = tuple(_mover(rng, pair, by_digit, motion) for pair, motion in zip(pairs, motions, strict=True))
        frames = zip(*(motion_path(thing) for thing in things), strict=True)
        if all(_apart([(x, y, t.side) for (x, y), t in zip(spots, things, strict=True)]) for spots in frames):
            return Scene(things)


class Pool:
    """Scenes and their contents as arrays, -1 where a digit, a colour or a card is absent.

    `colour_of`, `place_of` and `motion_of` are n x 10 by digit; `digit_of`, `colour_place` and `colour_motion` are
    n x 6 by colour; `count` (digits in sight) and `card` (its place) are n.
    """

    def __init__(self, scenes: list[Scene], novel: bool = False) -> None:
        n, digits, colours = len(scenes), len(DIGITS), len(COLOURS)
        self.scenes, self.novel = scenes, novel
        self.colour_of, self.place_of, self.motion_of = (np.full((n, digits), -1) for _ in range(3))
        self.digit_of, self.colour_place, self.colour_motion = (np.full((n, colours), -1) for _ in range(3))
        self.count = np.array([len(scene.things) for scene in scenes])
        self.card = np.array([scene.card[0] if scene.card else -1 for scene in scenes])
        for i, scene in enumerate(scenes):
            for t in scene.things:
                self.colour_of[i, t.digit], self.place_of[i, t.digit], self.motion_of[i, t.digit] = (
                    t.colour,
                    t.place,
                    t.motion,
                )
                self.digit_of[i, t.colour], self.colour_place[i, t.colour] = t.digit, t.place
                self.colour_motion[i, t.colour] = t.motion
        self.highest = self.digit_of.max(1)
        self.lowest = np.where(self.digit_of < 0, digits, self.digit_of).min(1)
        self.total = np.where(self.digit_of < 0, 0, self.digit_of).sum(1)

    def pair(self, rng: np.random.Generator) -> tuple[int, int]:
        """Return a (digit, colour) pair to ask about: never held out, or half of the time in a novel pool."""
        held_out = self.novel and rng.random() < 0.5
        while True:
            digit, colour = int(rng.integers(len(DIGITS))), int(rng.integers(len(COLOURS)))
            if is_held_out(digit, colour) == held_out:
                return digit, colour
