"""The pocket's own image tokenizer: images of the world as the 6 x 6 codes that the pocket model writes.

Made when a training first wants to draw; what was made before, the shipped pretrained model above all, stays as it is.

codec.safetensors            the tokenizer (unival_core.image_codes)
recogniser.safetensors       what tells digits, colours and places of an image (experiments.unival.pocket.recogniser)
data/image-generation/       captions of the world's images with their codes, in the published layout
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from experiments.atomic import write_whole
from experiments.unival.pocket.backbone import scaled, shuffled
from experiments.unival.pocket.pipeline import Pocket, in_processes, shared_out, timed
from experiments.unival.pocket.recogniser import RECOGNISER, Recogniser, contents, recognised, train_recogniser
from experiments.unival.world.concepts import CANVAS, CELLS
from experiments.unival.world.grammar import captions, pick
from experiments.unival.world.images import cell_labels
from experiments.unival.world.stock import Stock, Stocks, stream
from experiments.unival.world.tables import read_world
from experiments.unival.world.tasks import SIZES
from merge import load_checkpoint, save_checkpoint
from unival_core import CONFIGS, ImageCodes, ImageCodesConfig, load_image_codes, save_image_codes, to_pixels
from unival_core.data import MediaReader
from unival_core.training import TrainOptions, learning_rate, make_optimizer, set_rate

TASK = "image-generation"
CODEC = ImageCodesConfig(CONFIGS["pocket"].codes, 16, 16, 8, (1, 2, 4, 8), 1, (3,))
TRAINING = TrainOptions(lr=2e-3, updates=2000, batch=32, warmup=0.05, weight_decay=1e-4, group="all")
TOLD_BY_CODES = 0.1  # weight of what a code tells, in nats
VIVID = 4.0  # how much more a pixel of full colour counts than a grey one: digits are coloured, backgrounds nearly grey
# Rows by split, each of another image while there are so many: what the experts learn, and what they are asked.
ROWS = {"pretrain": 12000, "train": 4000, "val": 600, "test": 1000, "novel": 600}
TOLD = 3  # which of an image's captions names the places: the one that images are asked for
DRAWN_SHIFTS = ("novel",)
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


def stock_of(pocket: Pocket, split: str) -> Stock:
    """Return the scenes and images of a split of the pocket's world, drawn as the world drew them."""
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
            images = read_images(stock_of(pocket, "pretrain"), 6000)
            codec = train_codec(CODEC, images, shared_out(TRAINING, pocket), progress=progress)
            save_image_codes(codec, codec_file(pocket))


def train_codec(
    config: ImageCodesConfig, images: Tensor, options: TrainOptions, *, progress: bool = True
) -> ImageCodes:
    """Train a tokenizer on images N x 3 x side x side (uint8) until they come back from their codes.

    The likeliest code is passed on, and its gradient is that of all of them (straight through); a second term makes
    each place sure of its code and all codes equally frequent (mutual information of place and code). The published
    training draws codes instead, by Gumbel's trick, and has a discriminator: both need many more updates. What comes
    back is a little blurred. Pixels count more the more colour they have.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        codec = ImageCodes(config).train()
        optimizer = make_optimizer([*codec.parameters()], options)
        rows = shuffled(len(images), options.batch, options.seed)
        bar = tqdm(range(1, options.updates + 1), desc="image tokenizer", disable=None if progress else True)
        for update in bar:
            set_rate(optimizer, learning_rate(update, options.updates, options))
            wanted = scaled(images[next(rows)])
            logits = codec.logits(wanted)
            share = logits.softmax(1)
            likeliest = F.one_hot(share.argmax(1), config.codes).movedim(-1, 1)
            chosen = likeliest + share - share.detach()
            drawn = codec.draw(torch.einsum("bkhw,kd->bdhw", chosen, codec.quantize.embed.weight))
            told = entropy(share.mean((0, 2, 3), keepdim=True)) - entropy(share)
            loss = apart(drawn, wanted) - TOLD_BY_CODES * told
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(codec.parameters(), options.clip)
            optimizer.step()
    return codec.eval()


def entropy(shares: Tensor) -> Tensor:
    """Return the mean entropy, in nats, of distributions over dimension 1."""
    return -(shares * shares.clamp_min(1e-9).log()).sum(1).mean()


def apart(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean distance of pixels, those with colour counting more."""
    colour = wanted.amax(1, keepdim=True) - wanted.amin(1, keepdim=True)
    off = (drawn - wanted).abs()
    return ((off + off.square()) * (1 + VIVID * colour)).mean()


# -- the recogniser


def make_recogniser(pocket: Pocket, progress: bool = True) -> None:
    """Train the recogniser, and note beside it what it makes of real images and of the tokenizer's, on split val."""
    file = recogniser_file(pocket)
    if file.exists():
        return
    with timed(pocket, "recogniser"):
        stock, count = stock_of(pocket, "pretrain"), 6000
        options = shared_out(RECOGNISER, pocket)
        model = train_recogniser(read_images(stock, count), labels_of(stock, count), options, progress=progress)
        write_whole(file.with_suffix(".json"), json.dumps(ceilings(pocket, model, 600)))
        save_checkpoint(model.state_dict(), file)


@torch.no_grad()
def ceilings(pocket: Pocket, model: Recogniser, count: int) -> dict[str, float]:
    """Return the mean content recognised in images of split val: in the images themselves (the recogniser's own
    accuracy), as they come back from their codes (what no drawing model can surpass), and by others' captions (what one
    that does not listen gets)."""
    stock = stock_of(pocket, "val")
    images = scaled(read_images(stock, count))
    told = [captions(scene)[TOLD] for scene in stock.pool.scenes[: len(images)]]
    codec = load_image_codes(codec_file(pocket))
    drawn = torch.cat([codec.decode(codec.encode(part)).clamp(-1, 1) for part in images.split(PORTION)])
    real, back = recognised(model, images), recognised(model, drawn)
    scores = {"images": contents(real, told), "codes": contents(back, told)}
    scores["shuffled"] = contents(back, told[1:] + told[:1])
    return {name: round(100 * sum(own) / len(own), 2) for name, own in scores.items()}


@torch.no_grad()
def contents_of(pocket: Pocket, codes: Sequence[Sequence[int]], told: Sequence[str]) -> list[float]:
    """Return which share of each caption's facts the recogniser finds in the image of its codes."""
    codec, model = load_image_codes(codec_file(pocket)), load_recogniser(recogniser_file(pocket))
    grids = torch.tensor(codes).view(-1, CELLS, CELLS).split(PORTION)
    seen = [recognised(model, codec.decode(part).clamp(-1, 1)) for part in grids]
    return contents([one for part in seen for one in part], told)


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
    """Yield id, codes and caption of the first scenes: any caption to learn from, to be asked the one that names the
    places."""
    rng, scenes = stream(stock.seed, TASK, split), stock.pool.scenes[:count]
    images = read_images(stock, len(scenes))
    codes = torch.cat([codec.encode(scaled(part)) for part in images.split(PORTION)]).flatten(1).tolist()
    for number, (scene, own) in enumerate(zip(scenes, codes, strict=True)):
        told = captions(scene)
        text = pick(rng, told) if split in ("pretrain", "train") else told[TOLD]
        yield f"{split}-{number:06d}", " ".join(map(str, own)), text
