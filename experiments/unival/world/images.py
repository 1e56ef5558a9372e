"""Drawing: a scene as an image with its boxes, or as the frames of a video, in one of three domains.

`clean`: handwritten scans on dark textures. `lowquality`: the same, tilted, badly lit, blurred and noisy. `printed`:
the digits come from a font. All chance comes from the generator that is passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from experiments.unival.world.concepts import CANVAS, CELLS, COLOURS, DIGITS, RGB
from experiments.unival.world.scenes import CARD_SIDE, Scene, Thing, load_scans, motion_path

__all__ = ["DOMAINS", "Drawing", "cell_labels", "draw_image", "draw_video"]

DOMAINS = ("clean", "lowquality", "printed")
INK = 80  # a mask value from here on belongs to the digit's box
KEPT_BITS, FILL = 0xF0, 8  # 16 values a channel: less than half the file, the same image to the eye

Box = tuple[int, int, int, int]
Spot = tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """An RGB image and, in pixels (x0, y0, x1, y1; x1 and y1 outside), the box of every digit and of the card."""

    image: Image.Image
    boxes: tuple[Box, ...]
    card: Box | None


def draw_image(scene: Scene, rng: np.random.Generator, domain: str = "clean") -> Drawing:
    """Return the scene on a CANVAS x CANVAS texture."""
    stage = _Stage(scene, rng, domain)
    spots = [(thing.x, thing.y) for thing in scene.things]
    boxes = tuple(stage.box(glyph, spot) for glyph, spot in zip(stage.glyphs, spots, strict=True))
    card = stage.box(Image.new("L", (CARD_SIDE, CARD_SIDE), 255), scene.card[1:]) if scene.card else None
    return Drawing(stage.frame(spots), boxes, card)


def draw_video(scene: Scene, rng: np.random.Generator, domain: str = "clean") -> list[Image.Image]:
    """Draw FRAMES frames: the background rests, the digits follow their paths."""
    stage = _Stage(scene, rng, domain)
    paths = zip(*(motion_path(thing) for thing in scene.things), strict=True)
    return [stage.frame(spots) for spots in paths]


def cell_labels(scene: Scene, boxes: tuple[Box, ...], card: Box | None) -> tuple[list[int], list[int]]:
    """Return digit and colour of each of the CELLS x CELLS cells, row by row: who covers most of it, and at least 30 %.

    Digit labels: 0-9, 10 the card, 11 nothing. Colour labels: an index into COLOURS, or len(COLOURS) for none.
    """
    nothing, side = len(DIGITS) + 1, CANVAS // CELLS
    owners = [(box, thing.digit, thing.colour) for box, thing in zip(boxes, scene.things, strict=True)]
    if card:
        owners.append((card, len(DIGITS), len(COLOURS)))
    labels = []
    for row in range(CELLS):
        for column in range(CELLS):
            x, y = column * side, row * side
            cover = [
                (max(0, min(x1, x + side) - max(x0, x)) * max(0, min(y1, y + side) - max(y0, y)), digit, colour)
                for (x0, y0, x1, y1), digit, colour in owners
            ]
            most = max(cover, default=(0, nothing, len(COLOURS)))
            labels.append(most[1:] if most[0] >= 0.3 * side * side else (nothing, len(COLOURS)))
    return [digit for digit, _ in labels], [colour for _, colour in labels]


class _Stage:
    """Background, glyphs and light of one scene; `frame` puts them together for one set of positions."""

    def __init__(self, scene: Scene, rng: np.random.Generator, domain: str) -> None:
        self.poor = domain == "lowquality"
        self.tilt = float(rng.uniform(5, 10) * rng.choice((-1, 1))) if self.poor else 0.0
        self.background = _texture(rng)
        if scene.card:
            self.background.paste(_card(), _corner((CARD_SIDE, CARD_SIDE), scene.card[1:]))
        self.glyphs = [(_printed if domain == "printed" else _scanned)(thing, rng) for thing in scene.things]
        shades = rng.uniform(0.85, 1.0, len(scene.things)).tolist()
        self.inks = [tuple(int(v * s) for v in RGB[t.colour]) for t, s in zip(scene.things, shades, strict=True)]
        if self.poor:
            self.light, self.blur = _light(rng), ImageFilter.GaussianBlur(float(rng.uniform(0.5, 0.8)))
            self.noise = rng.normal(0.0, rng.uniform(6, 14), (CANVAS, CANVAS, 3)).astype(np.float32)

    def box(self, glyph: Image.Image, spot: Spot) -> Box:
        """Say where the ink of a glyph at this spot lies."""
        mask = Image.new("L", (CANVAS, CANVAS))
        mask.paste(glyph, _corner(glyph.size, spot))
        ink = np.asarray(mask.rotate(self.tilt, Image.Resampling.BICUBIC)) >= INK
        columns, rows = np.flatnonzero(ink.any(0)), np.flatnonzero(ink.any(1))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    def frame(self, spots: Sequence[Spot]) -> Image.Image:
        """Return the finished image with each glyph at its spot."""
        image = self.background.copy()
        for ink, glyph, spot in zip(self.inks, self.glyphs, spots, strict=True):
            image.paste(ink, _corner(glyph.size, spot), glyph)
        if self.poor:
            tilted = _tilted(image, self.tilt).filter(self.blur)
            pixels = np.asarray(tilted, dtype=np.float32) * self.light + self.noise
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        return Image.fromarray(np.asarray(image) & KEPT_BITS | FILL)


def _corner(size: tuple[int, int], spot: Spot) -> tuple[int, int]:
    """Top left corner of something of this size whose centre is at the spot."""
    return round(spot[0] - size[0] / 2), round(spot[1] - size[1] / 2)


def _texture(rng: np.random.Generator) -> Image.Image:
    """Dark and nearly grey, so that every colour shows: clouds, stripes across or down, or tiles."""
    size = int(rng.integers(3, 11))
    shape, smooth = [((size, size), True), ((1, size), True), ((size, 1), True), ((size, size), False)][rng.integers(4)]
    values = rng.integers(22, 72) + rng.integers(-16, 17, (*shape, 1)) + rng.integers(-7, 8, (*shape, 3))
    resample = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).resize((CANVAS, CANVAS), resample)


def _tilted(image: Image.Image, degrees: float) -> Image.Image:
    """Turned around the middle; the corners repeat the rim instead of going black."""
    wide = Image.fromarray(np.pad(np.asarray(image), ((12, 12), (12, 12), (0, 0)), mode="edge"))
    return wide.rotate(degrees, Image.Resampling.BICUBIC).crop((12, 12, 12 + CANVAS, 12 + CANVAS))


def _light(rng: np.random.Generator) -> np.ndarray:
    """Too dark, darker still towards one side (CANVAS x CANVAS x 1 factors)."""
    turn = rng.uniform(0, 2 * np.pi)
    across = np.linspace(-0.5, 0.5, CANVAS, dtype=np.float32)
    slope = np.cos(turn) * across[None, :] + np.sin(turn) * across[:, None]
    return (rng.uniform(0.6, 0.8) + rng.uniform(0.2, 0.45) * slope)[:, :, None].astype(np.float32)


def _scanned(thing: Thing, rng: np.random.Generator) -> Image.Image:
    scan = Image.fromarray(load_scans().images[thing.scan])
    grown = scan.resize((thing.side, thing.side), Image.Resampling.BICUBIC)
    return grown.rotate(thing.angle, Image.Resampling.BICUBIC, expand=True)


def _printed(thing: Thing, rng: np.random.Generator) -> Image.Image:
    """The digit in Pillow's built-in typeface: thin or bold, narrow or wide, upright or slanted."""
    letter = _letter(thing.digit, int(rng.integers(2)))
    slant = float(rng.choice((0.0, 0.0, 0.25)))
    size = (letter.width + int(slant * letter.height), letter.height)
    slanted = letter.transform(
        size, Image.Transform.AFFINE, (1, slant, -slant * letter.height, 0, 1, 0), Image.Resampling.BICUBIC
    )
    height = round(thing.side * 0.95)
    width = max(4, round(slanted.width * height / slanted.height * float(rng.uniform(0.8, 1.25))))
    grown = slanted.resize((min(width, thing.side), height), Image.Resampling.BICUBIC)
    return grown.rotate(thing.angle / 2, Image.Resampling.BICUBIC, expand=True)


@cache
def _letter(digit: int, bold: int) -> Image.Image:
    drawing = Image.new("L", (64, 64))
    ImageDraw.Draw(drawing).text((12, 6), str(digit), fill=255, font=ImageFont.load_default(40), stroke_width=bold)
    return drawing.crop(drawing.getbbox())


@lru_cache(maxsize=1)
def _card() -> Image.Image:
    card = Image.new("RGB", (CARD_SIDE, CARD_SIDE), (156, 142, 118))
    pen = ImageDraw.Draw(card)
    pen.rectangle((0, 0, CARD_SIDE - 1, CARD_SIDE - 1), outline=(214, 204, 184))
    pen.text((CARD_SIDE / 2, CARD_SIDE / 2), "?", fill=(40, 34, 26), font=ImageFont.load_default(11), anchor="mm")
    return card
