"""Images as codes and back: a VQ-GAN (arXiv 2012.09841) with a Gumbel quantiser, whose codes image generation writes.

Tensors are named as in the published `vqgan_gumbel_f8`, and names and shapes tell the whole architecture.

>>> codec = load_image_codes("last.ckpt", config="model.yaml")             # doctest: +SKIP
>>> pixels = to_pixels(codec.decode(codes))  # B x 32 x 32 to B x 256 x 256 x 3  # doctest: +SKIP
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merge import open_checkpoint, save_checkpoint
from unival_core.checkpoint import bare, placed, refuse_differences
from unival_core.errors import UnivalError
from unival_core.inputs import IDS, check_media, told

READER = ("encoder.", "quant_conv.", "quantize.proj.")  # what only images to codes needs
IGNORED = ("loss.",)  # of training: discriminator and perceptual network
NORM_GROUPS = 32


@dataclass(frozen=True)
class ImageCodesConfig:
    """The numbers that decide the tensors of a tokenizer; the defaults are the published ones.

    Level l works on images halved l times, with `width * multipliers[l]` channels and `blocks` blocks on the way down,
    one more on the way up; the levels `attention` attend too. A code is a row of `code_width` numbers, which the
    decoder reads as `latent` channels. Without `reads` there is only the way from codes to images.
    """

    codes: int = 8192
    code_width: int = 256
    latent: int = 256
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (3,)
    reads: bool = True

    @property
    def stride(self) -> int:
        """Return the pixels along one side that one code stands for."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the channels of every level."""
        return tuple(self.width * factor for factor in self.multipliers)


class Norm(nn.GroupNorm):
    """Group normalisation: 32 groups, or as many as divide narrower layers."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(NORM_GROUPS, channels), channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two normalised 3 x 3 convolutions, and what came in."""

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.norm1 = Norm(entering)
        self.conv1 = nn.Conv2d(entering, leaving, 3, padding=1)
        self.norm2 = Norm(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(entering, leaving, 1) if entering != leaving else None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        return inner + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """One head over all positions, and what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        query, key, value = (part(normed).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


class Middle(nn.Module):
    """Two blocks around an attention, on the smallest images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = ResBlock(width, width), AttentionBlock(width), ResBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Halve(nn.Module):
    """Half the size, with zeros at the right and at the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Twice the size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one size; `attn` are as many as `block`, or none."""

    def __init__(self, entering: int, leaving: int, blocks: int, attends: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(leaving if i else entering, leaving) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(leaving) for _ in range(blocks if attends else 0))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return x


class Down(Level):
    """A level on the way to codes, which halves unless it is the last."""

    def __init__(self, entering: int, leaving: int, blocks: int, attends: bool, halves: bool) -> None:
        super().__init__(entering, leaving, blocks, attends)
        self.downsample = Halve(leaving) if halves else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.downsample is None else self.downsample(x)


class Up(Level):
    """A level on the way to images, which doubles unless it is the last to run."""

    def __init__(self, entering: int, leaving: int, blocks: int, attends: bool, doubles: bool) -> None:
        super().__init__(entering, leaving, blocks, attends)
        self.upsample = Double(leaving) if doubles else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.upsample is None else self.upsample(x)


class Encoder(nn.Module):
    """Images B x 3 x H x W to latents B x latent x H / stride x W / stride."""

    def __init__(self, config: ImageCodesConfig) -> None:
        super().__init__()
        entering, last = (config.width, *config.widths), len(config.widths) - 1
        self.conv_in = nn.Conv2d(3, config.width, 3, padding=1)
        self.down = nn.ModuleList(
            Down(entering[level], width, config.blocks, level in config.attention, level < last)
            for level, width in enumerate(config.widths)
        )
        self.mid = Middle(config.widths[-1])
        self.norm_out = Norm(config.widths[-1])
        self.conv_out = nn.Conv2d(config.widths[-1], config.latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents to images. `up` is numbered by level, so that `up.0` runs last."""

    def __init__(self, config: ImageCodesConfig) -> None:
        super().__init__()
        entering = (*config.widths[1:], config.widths[-1])
        self.conv_in = nn.Conv2d(config.latent, config.widths[-1], 3, padding=1)
        self.mid = Middle(config.widths[-1])
        self.up = nn.ModuleList(
            Up(entering[level], width, config.blocks + 1, level in config.attention, level > 0)
            for level, width in enumerate(config.widths)
        )
        self.norm_out = Norm(config.widths[0])
        self.conv_out = nn.Conv2d(config.widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantizer(nn.Module):
    """A codebook, and how likely each code is at each position."""

    def __init__(self, config: ImageCodesConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.codes, config.code_width)
        if config.reads:
            self.proj = nn.Conv2d(config.latent, config.codes, 1)


class ImageCodes(nn.Module):
    """The tokenizer: `decode` makes images of codes, `encode` codes of images, both of any size."""

    def __init__(self, config: ImageCodesConfig) -> None:
        super().__init__()
        self.config = config
        if config.reads:
            self.encoder = Encoder(config)
            self.quant_conv = nn.Conv2d(config.latent, config.code_width, 1)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config)
        self.post_quant_conv = nn.Conv2d(config.code_width, config.latent, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return images B x 3 x stride * h x stride * w, about -1..1 (`to_pixels`), of codes B x h x w."""
        if not isinstance(codes, Tensor) or codes.dim() != 3 or codes.dtype not in IDS:
            raise UnivalError(f"codes are integers B x h x w, got {told(codes)}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.codes:
            raise UnivalError(f"codes lie in 0..{self.config.codes - 1}, got {int(codes.min())}..{int(codes.max())}")
        return self.draw(self.quantize.embed(codes).permute(0, 3, 1, 2))

    def draw(self, rows: Tensor) -> Tensor:
        """Return images of rows of the codebook, or mixtures of them, B x code width x h x w."""
        return self.decoder(self.post_quant_conv(rows.contiguous()))

    def encode(self, images: Tensor, seed: int | None = None) -> Tensor:
        """Return the codes of images in -1..1, the likeliest ones: B x 3 x H x W to B x H / stride x W / stride.

        With a `seed` they are drawn with their probabilities, as all published codes were. Raises UnivalError for sizes
        that the stride does not divide, since their codes are those of a smaller image.
        """
        check_media("image", images)
        sides, stride = images.shape[-2:], self.config.stride
        if any(side % stride for side in sides):
            raise UnivalError(f"images are B x 3 x H x W, sides multiples of {stride}, got {tuple(images.shape)}")
        logits = self.logits(images.to(self.quant_conv.weight.dtype) if self.config.reads else images)
        if seed is not None:
            generator = torch.Generator(logits.device).manual_seed(seed)
            logits = logits - torch.empty_like(logits).exponential_(generator=generator).log()
        return logits.argmax(1)

    def logits(self, images: Tensor) -> Tensor:
        """Return how likely each code is, B x codes x h x w."""
        if not self.config.reads or self.config.latent != self.config.code_width:
            why = "latents and codes differ in width" if self.config.reads else "it has no encoder"
            raise UnivalError(f"this tokenizer cannot make codes of images: {why}")
        return self.quantize.proj(self.quant_conv(self.encoder(images)))


def to_pixels(images: Tensor) -> Tensor:
    """Return images B x 3 x H x W as bytes B x H x W x 3, cut off at -1 and 1 and, as published, rounded down."""
    return ((images.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1)


def load_image_codes(
    path: str | Path,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    section: str = "auto",
    device: torch.device | str = "cpu",
) -> ImageCodes:
    """Load a tokenizer, in evaluation mode, from the published training file or from one `save_image_codes` wrote.

    The tensors tell the architecture. A published `config` (the file `model.yaml`, or what it says) is compared with
    them. A file without encoder gives images of codes only. Raises UnivalError for names and shapes that are no such
    tokenizer's or not the config's; merge.MergeError for unreadable files.
    """
    file = open_checkpoint(path, section)
    tensors = {name: file[name] for name in file if not name.startswith(IGNORED)}
    found = infer_config(tensors, str(path))
    if not found.reads:
        tensors = {name: value for name, value in tensors.items() if not name.startswith(READER)}
    if config is not None:
        refuse_other(found, config if isinstance(config, Mapping) else read_config(Path(config)), str(path))
    with bare():
        model = ImageCodes(found)
    refuse_differences(tensors, model.state_dict(), str(path))
    copied = {name: placed(tensor, device, torch.float32) for name, tensor in tensors.items()}
    model.load_state_dict(copied, assign=True)
    return model.eval()


def save_image_codes(model: ImageCodes, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a tokenizer as safetensors, under the published names."""
    return save_checkpoint(model.state_dict(), path, overwrite=overwrite)


# -- the architecture


def infer_config(file: Mapping[str, Tensor], path: str) -> ImageCodesConfig:
    """Return the architecture that names and shapes of a tokenizer imply."""
    if "quantize.embedding.weight" in file:
        raise UnivalError(f"{path}: its codes are those nearest to a latent: only Gumbel tokenizers can be read")
    try:
        levels = range(_count(file, r"decoder\.up\.(\d+)\."))
        widths = [len(file[f"decoder.up.{level}.block.0.conv2.weight"]) for level in levels]
        reads = any(name.startswith("encoder.") for name in file)
        width = len(file["encoder.conv_in.weight"]) if reads else math.gcd(*widths)
        codes, code_width = file["quantize.embed.weight"].shape
        return ImageCodesConfig(
            codes=codes,
            code_width=code_width,
            latent=len(file["post_quant_conv.weight"]),
            width=width,
            multipliers=tuple(own // width for own in widths),
            blocks=_count(file, r"decoder\.up\.0\.block\.(\d+)\.") - 1,
            attention=tuple(level for level in levels if f"decoder.up.{level}.attn.0.q.weight" in file),
            reads=reads,
        )
    except (KeyError, TypeError, ValueError) as error:
        lacking = f"no {error.args[0]}, only" if isinstance(error, KeyError) else "nothing but"
        raise UnivalError(f"{path}: no image tokenizer: there is {lacking} {', '.join([*file][:3])}, ...") from None


def _count(names: Sequence[str] | Mapping[str, Any], pattern: str) -> int:
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def read_config(path: Path) -> Any:
    """Read a published config, JSON or YAML. Raises UnivalError where it is neither."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text)
    except (OSError, ValueError) as error:
        raise UnivalError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        import yaml  # optional: the extra `yaml`
    except ImportError:
        raise UnivalError(f"{path}: reading YAML needs PyYAML: pip install 'unival-merge[yaml]'") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UnivalError(f"{path}: no YAML: {' '.join(str(error).split())}") from None


def refuse_other(found: ImageCodesConfig, published: Mapping[str, Any], path: str) -> None:
    """Raise UnivalError where a published config is not that of the tensors; what only training needs is not read."""
    try:
        params = published["model"]["params"] if "model" in published else published
        net = params["ddconfig"]
        sizes = [net["resolution"] // 2**level for level in range(len(net["ch_mult"]))]
        wanted = {
            "codes": params["n_embed"],
            "code_width": params["embed_dim"],
            "latent": net["z_channels"],
            "widths": tuple(net["ch"] * factor for factor in net["ch_mult"]),
            "blocks": net["num_res_blocks"],
            "attention": tuple(level for level, size in enumerate(sizes) if size in net["attn_resolutions"]),
        }
    except (KeyError, TypeError) as error:
        raise UnivalError(f"{path}: the config given is no tokenizer's: it lacks {error}") from None
    for name, value in wanted.items():
        if getattr(found, name) != value:
            raise UnivalError(f"{path}: {name} is {getattr(found, name)} in the tensors and {value} in the config")
    if net.get("double_z") or (net.get("in_channels", 3), net.get("out_ch", 3)) != (3, 3):
        raise UnivalError(f"{path}: the config has double_z or images that are not RGB, which is not implemented")
