"""The pocket's own image tokenizer: images of the world as the 6 x 6 codes that the pocket model writes.

Made when a training first wants to draw; what was made before, the shipped pretrained model above all, stays as it is.

codec.safetensors            the tokenizer (unival_core.image_codes)
recogniser.safetensors       what tells digits, colours and places of an image (experiments.unival.pocket.recogniser)
data/image-generation/       captions of the world's images with their codes, in the published layout
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from experiments.atomic import write_whole
from experiments.unival.pocket.backbone import scaled
from experiments.unival.pocket.codebook import halved, train_codec
from experiments.unival.pocket.codes import widened, with_codes
from experiments.unival.pocket.data import Files
from experiments.unival.pocket.pipeline import Pocket, in_processes, shared_out, timed
from experiments.unival.pocket.recogniser import RECOGNISER, Recogniser, Thing, contents, recognised, train_recogniser
from experiments.unival.world.concepts import CANVAS, CELLS
from experiments.unival.world.grammar import captions, pick
from experiments.unival.world.images import cell_labels
from experiments.unival.world.stock import Stock, Stocks, stream
from experiments.unival.world.tables import read_world
from experiments.unival.world.tasks import SIZES
from merge import load_checkpoint, save_checkpoint
from unival_core import ImageCodes, ImageCodesConfig, UnivalModel, load_image_codes, save_image_codes, to_pixels
from unival_core.data import MediaReader
from unival_core.metrics import bootstrap_interval
from unival_core.training import TrainOptions

TASK = "image-generation"
CODEC = ImageCodesConfig(512, 24, 24, 12, (1, 3, 6), 1, ())  # of images at half their size: a code is 8 x 8 pixels
TRAINING = TrainOptions(lr=4e-3, updates=450, batch=32, warmup=0.05, weight_decay=1e-4, group="all")
LEARNT, SEEN = 12000, 6000  # images that the tokenizer learns from, and the recogniser
# Rows by split, each of another image while there are so many: what the experts learn, and what they are asked.
ROWS = {"pretrain": 12000, "train": 4000, "val": 600, "test": 1000, "novel": 600}
TOLD = 3  # which of an image's captions names the places: the one that images are asked for
DRAWN_SHIFTS = ("novel",)
ASKED = ("val", "test", *DRAWN_SHIFTS)  # splits whose rows are drawn
SHUFFLED = "shuffled"
PORTION = 256


def make_codes(pocket: Pocket, *, progress: bool = True) -> None:
    """Make what is missing of the tokenizer, the recogniser and the rows. Nobody else may be at work there."""
    root = pocket.start or pocket
    for make in (make_codec, make_recogniser, write_codes):
        in_processes(make, [(root, progress)], 1, "", progress=False)


def codec_file(pocket: Pocket) -> Path:
    """Say where the tokenizer lies."""
    return (pocket.start or pocket).folder / "codec.safetensors"


def recogniser_file(pocket: Pocket) -> Path:
    """Say where the recogniser lies."""
    return codec_file(pocket).with_name("recogniser.safetensors")


def load_recogniser(file: Path) -> Recogniser:
    """Load a recogniser."""
    model = Recogniser()
    model.load_state_dict(load_checkpoint(file))
    return model.eval()


# -- images


@lru_cache(maxsize=1)
def stock_of(pocket: Pocket, split: str) -> Stock:
    """Return the scenes and images of a split of the pocket's world, drawn as the world drew them; the last one is
    kept, as drawing takes longer than all that is made of it."""
    world = read_world(pocket.world)
    return Stocks(world.seed, SIZES[world.size].scenes).get("image", split)


def read_images(stock: Stock, count: int) -> Tensor:
    """Return the first images, n x 3 x CANVAS x CANVAS (uint8)."""
    reader = MediaReader("image", CANVAS)
    numbers = range(min(count, len(stock.pool.scenes)))
    return torch.stack([reader(stock[number].media, Path())[0].values for number in numbers])


def labels_of(stock: Stock, count: int) -> Tensor:
    """Return digits and colours of the cells of the first images, n x 2 x CELLS x CELLS."""
    drawn = [(scene, stock[number]) for number, scene in enumerate(stock.pool.scenes[:count])]
    labels = [cell_labels(scene, one.boxes, one.card) for scene, one in drawn]
    return torch.tensor(labels).unflatten(2, (CELLS, CELLS))


# -- the tokenizer


def make_codec(pocket: Pocket, progress: bool = True) -> None:
    """Train the tokenizer on the images that pretraining sees."""
    if not codec_file(pocket).exists():
        with timed(pocket, "image tokenizer"):
            stock = stock_of(pocket, "pretrain")
            images, digits = read_images(stock, LEARNT), labels_of(stock, LEARNT)[:, 0]
            codec = train_codec(CODEC, images, digits, shared_out(TRAINING, pocket), progress=progress)
            save_image_codes(codec, codec_file(pocket))


def open_codes(pocket: Pocket, model: UnivalModel, files: Files) -> tuple[UnivalModel, Files]:
    """Return a model that has words for the tokenizer's codes, and the world's files as it reads them."""
    codebook = load_image_codes(codec_file(pocket)).quantize.embed.weight.detach()
    if model.config.codes == len(codebook):
        return model, files
    wide = widened(model, codebook, pocket.seed)
    return wide, Files(pocket.world, with_codes(files.tokenizer, len(codebook)), wide.config)


# -- the recogniser


def make_recogniser(pocket: Pocket, progress: bool = True) -> None:
    """Train the recogniser, and note beside it what it makes of real images and of the tokenizer's, on split val."""
    file = recogniser_file(pocket)
    if file.exists():
        return
    with timed(pocket, "recogniser"):
        stock, options = stock_of(pocket, "pretrain"), shared_out(RECOGNISER, pocket)
        images, labels = read_images(stock, SEEN), labels_of(stock, SEEN)
        model = train_recogniser(images, labels, options, progress=progress)
        write_whole(file.with_suffix(".json"), json.dumps({split: levels(pocket, model, split) for split in ASKED}))
        save_checkpoint(model.state_dict(), file)


@torch.no_grad()
def levels(pocket: Pocket, model: Recogniser, split: str) -> dict[str, tuple[float, float, float]]:
    """Return the mean content recognised in the images of a split, with its 95 % interval: in the images themselves
    (the recogniser's own accuracy), as they come back from their codes (what no drawing model can surpass), and by
    others' captions (what one that does not listen gets)."""
    stock = stock_of(pocket, split)
    images = read_images(stock, ROWS[split])
    told = [captions(scene)[TOLD] for scene in stock.pool.scenes[: len(images)]]
    codec = load_image_codes(codec_file(pocket))
    codes = torch.cat([codec.encode(halved(part)) for part in images.split(PORTION)])
    real, back = recognised(model, scaled(images)), seen_in(codec, model, codes)
    scores = {"images": contents(real, told), "codes": contents(back, told)}
    scores[SHUFFLED] = contents(back, told[1:] + told[:1])
    spans = {name: bootstrap_interval(own) for name, own in scores.items()}
    return {name: (sum(own) / len(own), spans[name].lo, spans[name].hi) for name, own in scores.items()}


def floors_of(pocket: Pocket) -> dict[str, float]:
    """Return by split what a model gets that draws without listening, where that is known."""
    file = recogniser_file(pocket).with_suffix(".json")
    known = json.loads(file.read_bytes()) if file.exists() else {}
    return {split: own[SHUFFLED][0] for split, own in known.items()}


@torch.no_grad()
def contents_of(pocket: Pocket, codes: Sequence[Sequence[int]], told: Sequence[str]) -> list[float]:
    """Return which share of each caption's facts the recogniser finds in the image of its codes."""
    codec, model = load_image_codes(codec_file(pocket)), load_recogniser(recogniser_file(pocket))
    return contents(seen_in(codec, model, torch.tensor(codes).view(-1, CELLS, CELLS)), told)


def seen_in(codec: ImageCodes, model: Recogniser, codes: Tensor) -> list[dict[int, Thing]]:
    """Return what is recognised in the images of codes N x CELLS x CELLS, once these are as large as the world's."""
    images = (codec.decode(part).clamp(-1, 1) for part in codes.split(PORTION))
    enlarged = (F.interpolate(part, (CANVAS, CANVAS), mode="bilinear") for part in images)
    return [one for part in enlarged for one in recognised(model, part)]


@torch.no_grad()
def images_of(pocket: Pocket, codes: Sequence[Sequence[int]]) -> list[Image.Image]:
    """Return the images of codes."""
    codec, grids = load_image_codes(codec_file(pocket)), torch.tensor(codes).view(-1, CELLS, CELLS)
    return [Image.fromarray(pixels.numpy()) for pixels in to_pixels(codec.decode(grids))]


# -- the rows


def write_codes(pocket: Pocket, progress: bool = True) -> None:
    """Write the files of image generation: of every split images as codes, with a caption each."""
    folder = pocket.folder / "data" / TASK
    if all((folder / f"{split}.tsv").exists() for split in ROWS):
        return
    with timed(pocket, "codes"):
        folder.mkdir(parents=True, exist_ok=True)
        codec = load_image_codes(codec_file(pocket))
        for split, count in ROWS.items():
            rows = code_rows(codec, stock_of(pocket, split), split, count)
            write_whole(folder / f"{split}.tsv", "".join("\t".join(row) + "\n" for row in rows))


@torch.no_grad()
def code_rows(codec: ImageCodes, stock: Stock, split: str, count: int) -> Iterator[tuple[str, str, str]]:
    """Yield id, codes and caption of the first scenes: the caption that names the places to be asked, and to learn from
    in half of the rows; in the others any."""
    rng, scenes = stream(stock.seed, TASK, split), stock.pool.scenes[:count]
    images = halved(read_images(stock, len(scenes)))
    codes = torch.cat([codec.encode(part) for part in images.split(PORTION)]).flatten(1).tolist()
    for number, (scene, own) in enumerate(zip(scenes, codes, strict=True)):
        told = captions(scene)
        text = pick(rng, told) if split in ("pretrain", "train") and rng.random() < 0.5 else told[TOLD]
        yield f"{split}-{number:06d}", " ".join(map(str, own)), text
