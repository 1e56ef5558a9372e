"""Training the pocket's image tokenizer in minutes: its codes are found first, then learnt.

Cells that look alike and show the same digit share a code (k-means). The encoder learns to name a cell's code, the
decoder to draw the image of the codes; both know what is right from the first update on, where codes that are learnt
together with their images, as published, need many thousands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from experiments.unival.pocket.backbone import scaled, shuffled
from experiments.unival.world.concepts import DIGITS
from unival_core import ImageCodes, ImageCodesConfig
from unival_core.training import TrainOptions, learning_rate, make_optimizer, set_rate

VIVID = 4.0  # how much more a pixel of full colour counts than a grey one: digits are coloured, backgrounds nearly grey
GREY = 0.3  # what a cell's grey counts beside its colours, where cells are compared
SHOWN = 1.0  # how far cells of two digits are apart that look the same: as a pixel of full colour from a grey one
SAMPLE = 2000  # images whose cells the codes are found of
ROUNDS = 8  # of k-means
PORTION = 500  # images at once
KINDS = len(DIGITS) + 2  # what a cell shows: a digit, the card, or nothing


def halved(images: Tensor) -> Tensor:
    """Return images N x 3 x side x side (uint8) at half their size, in -1..1: what the tokenizer codes."""
    return F.avg_pool2d(scaled(images), 2)


def train_codec(
    config: ImageCodesConfig, images: Tensor, labels: Tensor, options: TrainOptions, *, progress: bool = True
) -> ImageCodes:
    """Train a tokenizer on images N x 3 x side x side (uint8), which it codes at half their size, and the digits of
    their cells, N x cells x cells."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        codec = ImageCodes(config).train()
        known = looks(halved(images[:SAMPLE]), labels[:SAMPLE], config.stride)
        middles = k_means(known, config.codes)
        parts = zip(images.split(PORTION), labels.split(PORTION), strict=True)
        codes = [nearest(looks(halved(part), own, config.stride), middles) for part, own in parts]
        codes = torch.cat(codes).view(labels.shape)
        start_codes(codec, middles)
        optimizer = make_optimizer([*codec.parameters()], options)
        rows = shuffled(len(images), options.batch, options.seed)
        bar = tqdm(range(1, options.updates + 1), desc="image tokenizer", disable=None if progress else True)
        for update in bar:
            set_rate(optimizer, learning_rate(update, options.updates, options))
            batch = next(rows)
            wanted, own = halved(images[batch]), codes[batch]
            named = F.cross_entropy(codec.logits(wanted), own)
            drawn = apart(codec.decode(own), wanted)
            optimizer.zero_grad(set_to_none=True)
            (named + drawn).backward()
            nn.utils.clip_grad_norm_([*codec.encoder.parameters()], options.clip)
            nn.utils.clip_grad_norm_([*codec.decoder.parameters()], options.clip)
            optimizer.step()
            bar.set_postfix_str(f"named {named.item():.3f}, drawn {drawn.item():.3f}", refresh=False)
    return codec.eval()


def looks(images: Tensor, labels: Tensor, stride: int) -> Tensor:
    """Describe every cell of images N x 3 x side x side in numbers that are alike where cells are: how far its colours
    are from grey, its grey, and the digit that it shows (one of `labels`, N x cells x cells)."""
    pixels = F.unfold(images, stride, stride=stride).transpose(1, 2).unflatten(2, (3, -1))
    grey = pixels.amin(2, keepdim=True)
    seen = torch.cat((pixels - grey, GREY * grey), 2).flatten(2)
    shown = SHOWN * F.one_hot(labels.flatten(1), KINDS)
    return torch.cat((seen, shown), 2).flatten(0, 1)


def k_means(points: Tensor, count: int) -> Tensor:
    """Return `count` middles of points n x d, each the mean of those that are nearest to it."""
    middles = points[torch.randperm(len(points))[:count]]
    for _ in range(ROUNDS):
        own = nearest(points, middles)
        sizes = torch.bincount(own, minlength=count)[:, None]
        means = torch.zeros_like(middles).index_add_(0, own, points) / sizes.clamp_min(1)
        middles = torch.where(sizes > 0, means, points[torch.randint(len(points), (count,))])
    return middles


def nearest(points: Tensor, middles: Tensor) -> Tensor:
    """Return the number of the middle that is nearest to each point."""
    lengths = middles.square().sum(1)
    return torch.cat([(2 * part @ middles.t() - lengths).argmax(1) for part in points.split(8192)])


@torch.no_grad()
def start_codes(codec: ImageCodes, middles: Tensor) -> None:
    """Start the codebook, and what names codes, with the middles in as many directions as a code has numbers."""
    centred = middles - middles.mean(0)
    width = codec.config.code_width
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:width]
    places = centred @ directions.t()
    places = F.pad(places / places.std(), (0, width - places.shape[1]))
    codec.quantize.embed.weight.copy_(places)
    nearness = -places.square().sum(1) / 2
    codec.quantize.proj.load_state_dict({"weight": places[:, :, None, None], "bias": nearness})


def apart(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean distance of pixels, those with colour counting more."""
    colour = wanted.amax(1, keepdim=True) - wanted.amin(1, keepdim=True)
    off = (drawn - wanted).abs()
    return ((off + off.square()) * (1 + VIVID * colour)).mean()
