"""From pools of scenes to the rows of one file, task by task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.unival.world.claims import ENTAILMENT
from experiments.unival.world.clips import dial, wav
from experiments.unival.world.concepts import COLOURS, DIGITS, MOTIONS
from experiments.unival.world.grammar import audio_captions, captions, pick, references, video_captions, web_caption
from experiments.unival.world.images import cell_labels
from experiments.unival.world.questions import KNOWLEDGE, PRETRAIN_VQA, TRAIN_VQA, VIDEO_QA, draw_rows
from experiments.unival.world.regions import CARD_BOX, FULL_NAMES, GROUNDING
from experiments.unival.world.scenes import Pool, Scene
from experiments.unival.world.stock import Stock, column, stream
from experiments.unival.world.tables import Row, weighted

__all__ = [
    "LABELS",
    "Order",
    "captions_of",
    "described_regions_of",
    "dialled_numbers_of",
    "hypotheses_of",
    "labelled_cells_of",
    "matches_of",
    "questions_of",
    "regions_of",
]

TARGET_SHARE = 0.4  # of the captions of caption/pretrain-late are in the style that captioning is tested on
LABELS = {"yes": "entailment", "no": "contradiction", "maybe": "neutral"}
SNR = {"snr": (-6.0, 0.0)}  # decibels; every other split:
CLEAN_SNR = (10.0, 25.0)


@dataclass(frozen=True)
class Order:
    """One file to write: `count` rows of a task's split, from a stock of images and a generator of its own."""

    task: str
    split: str
    count: int
    stock: Stock
    rng: np.random.Generator

    @property
    def is_training(self) -> bool:
        """Return one reference a row, or all of them joined by '&&'."""
        return self.split.startswith(("pretrain", "train"))

    def name(self, number: int, kind: str = "") -> str:
        """Return the uniq_id; behind the dot the kind of question."""
        return f"{self.split}-{number:06d}{'.' * bool(kind)}{kind}"

    def caption(self, references: Sequence[str]) -> str:
        """Say what stands in a caption column."""
        return pick(self.rng, references) if self.is_training else "&&".join(references)


def captions_of(order: Order) -> Iterator[Row]:
    """Yield captions of each scene in turn; while pretraining most are careless "web" captions."""
    stock = order.stock
    describe = video_captions if stock.medium == "video" else captions
    for k in range(order.count):
        i = k % len(stock.pool.scenes)
        scene, web = stock.pool.scenes[i], {"pretrain": 1.0, "pretrain-late": 1 - TARGET_SHARE}.get(order.split, 0.0)
        careless = stock.medium == "image" and order.rng.random() < web
        text = web_caption(scene, order.rng) if careless else order.caption(describe(scene))
        yield stock.common(i) | {"uniq_id": order.name(k), "caption": text}


def questions_of(order: Order) -> Iterator[Row]:
    """Yield questions with weighted answers, of the kinds that suit the split."""
    stock, video = order.stock, {"": VIDEO_QA}
    makers = video if stock.medium == "video" else {"pretrain": PRETRAIN_VQA, "knowledge": KNOWLEDGE, "": TRAIN_VQA}
    for k, ask in enumerate(draw_rows(makers.get(order.split, makers[""]), stock.pool, order.count, order.rng)):
        row = {"uniq_id": order.name(k, ask.kind), "question": ask.text, "answers": weighted(ask.answers)}
        yield stock.common(ask.scene) | row


def hypotheses_of(order: Order) -> Iterator[Row]:
    """Yield hypotheses that a premise entails, contradicts or leaves open."""
    stock = order.stock
    for k, ask in enumerate(draw_rows(ENTAILMENT, stock.pool, order.count, order.rng)):
        premise = captions(stock.pool.scenes[ask.scene])[0]
        row = {"uniq_id": order.name(k, ask.kind), "hypothesis": ask.text, "caption": premise}
        yield stock.common(ask.scene) | row | {"label": LABELS[next(iter(ask.answers))]}


def regions_of(order: Order) -> Iterator[Row]:
    """Write referring expressions with the box that they mean."""
    stock = order.stock
    for k, region in enumerate(draw_rows(GROUNDING, stock.pool, order.count, order.rng)):
        drawn = stock[region.scene]
        box = drawn.card if region.thing == CARD_BOX else drawn.boxes[region.thing]
        row = {"uniq_id": order.name(k, region.kind), "text": region.text, "box": ",".join(str(v) for v in box or ())}
        yield stock.common(region.scene) | row


def described_regions_of(order: Order) -> Iterator[Row]:
    """Yield boxes with what a person would call the digit in them."""
    stock = order.stock
    for k, region in enumerate(draw_rows(FULL_NAMES, stock.pool, order.count, order.rng)):
        thing, box = stock.pool.scenes[region.scene].things[region.thing], stock[region.scene].boxes[region.thing]
        text = order.caption(references(thing.digit, thing.colour))
        row = {"uniq_id": order.name(k, region.kind), "text": text, "box": ",".join(str(v) for v in box)}
        yield stock.common(region.scene) | row


def _facts(scene: Scene) -> list[str]:
    moves = [f" {MOTIONS[t.motion]}" if t.motion >= 0 else "" for t in scene.things]
    return [f"{COLOURS[t.colour]} {DIGITS[t.digit]}{move}" for t, move in zip(scene.things, moves, strict=True)]


def _near_miss(pool: Pool, scene: Scene, candidates: np.ndarray, rng: np.random.Generator) -> int:
    """Of forty scenes, the one with other facts that shares most words with this one; -1 if none has others."""
    facts = _facts(scene)
    mine = " ".join(facts).split()
    others = [int(i) for i in rng.choice(candidates, 40) if set(_facts(pool.scenes[i])) != set(facts)]
    return max(others, key=lambda i: sum(w in mine for w in " ".join(_facts(pool.scenes[i])).split()), default=-1)


def matches_of(order: Order) -> Iterator[Row]:
    """Yield each caption twice: with its image, and with one that is nearly right. No cards, which would leave it
    open."""
    stock, pool, done = order.stock, order.stock.pool, 0
    while done < order.count:
        first = int(order.rng.integers(len(pool.scenes)))
        scene = pool.scenes[first]
        if scene.card:
            continue
        second = _near_miss(pool, scene, np.flatnonzero((pool.count == len(scene.things)) & (pool.card < 0)), order.rng)
        if second < 0:
            continue
        text = pick(order.rng, (video_captions if stock.medium == "video" else captions)(scene))
        for i, answer in ((first, "yes"), (second, "no"))[: order.count - done]:
            row = {"uniq_id": order.name(done), "caption": text, "question": "", "answers": weighted({answer: 1.0})}
            row |= {"dataset": "world", "type": order.task.replace("-", "_")}
            yield stock.common(i) | row | {"objects": "&&".join(_facts(pool.scenes[i]))}
            done += 1


def _numbers(seed: int, split: str, length: int) -> np.ndarray:
    """The numbers of this many digits that a split dials: 60 % train, 15 % val, the rest test and snr."""
    order = stream(seed, "numbers", length).permutation(10**length)
    first, second = int(0.6 * len(order)), int(0.75 * len(order))
    return {"train": order[:first], "val": order[first:second]}.get(split, order[second:])


def dialled_numbers_of(order: Order) -> Iterator[Row]:
    """Yield numbers dialled on a telephone, as WAV clips, with their captions."""
    numbers = {length: _numbers(order.stock.seed, order.split, length) for length in (2, 3, 4)}
    for k in range(order.count):
        length = int(order.rng.choice((2, 3, 4), p=(0.2, 0.4, 0.4)))
        digits = [int(d) for d in f"{int(order.rng.choice(numbers[length])):0{length}d}"]
        clip = wav(dial(digits, order.rng, SNR.get(order.split, CLEAN_SNR)))
        row = {"uniq_id": order.name(k), "image_id": order.name(k), "objects": "phone", "media": column(clip)}
        yield row | {"caption": order.caption(audio_captions(digits))}


def labelled_cells_of(order: Order) -> Iterator[Row]:
    """Yield images with the digit and colour of every cell: what a backbone learns."""
    stock = order.stock
    for k in range(order.count):
        i = k % len(stock.pool.scenes)
        labels = cell_labels(stock.pool.scenes[i], stock[i].boxes, stock[i].card)
        digits, colours = (",".join(str(label) for label in column) for column in labels)
        yield stock.common(i) | {"uniq_id": order.name(k), "digits": digits, "colours": colours}
