"""One batch for the encoder, and what makes torch's errors ours: checks of shapes and types, which read no values."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from unival_core.errors import UnivalError

TEXT, IMAGE, VIDEO, AUDIO = -1, 0, 1, 2  # values of Inputs.modality
MEDIA = ("image", "video", "audio")
IDS = (torch.int64, torch.int32)
# Of each medium: its dimensions, and how to make it what it has to be.
LAYOUTS = {
    "image": (4, "N x 3 x height x width", "bytes as pixels / 127.5 - 1, grey ones as images.expand(-1, 3, -1, -1)"),
    "video": (5, "N x 3 x frames x height x width", "bytes as pixels / 127.5 - 1, frames first as x.transpose(1, 2)"),
    "audio": (2, "N x samples", "16-bit integers as samples / 32767, channels in the middle as audios.mean(1)"),
}


@dataclass(frozen=True)
class Inputs:
    """One batch of B samples for the encoder; each sample has a text and at most one image, video or audio.

    `tokens` B x T ids, right-padded with 1. `images` holds only the rows of samples that have one, in batch order:
    N x 3 x height x width; `videos` N x 3 x frames x height x width; `audios` N x samples, a waveform in -1..1 at the
    config's rate. `modality` (B, integer) tells each sample's medium: -1 none, 0 image, 1 video, 2 audio; it may be
    left out when all samples have the same. `media_mask` (B, bool) is False where the medium is not to be looked at.
    Raises UnivalError for tensors of other shapes and types.
    """

    tokens: Tensor
    images: Tensor | None = None
    videos: Tensor | None = None
    audios: Tensor | None = None
    modality: Tensor | None = None
    media_mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_ids(self.tokens, "tokens", "samples")
        for name in MEDIA:
            if (media := getattr(self, f"{name}s")) is not None:
                check_media(name, media)
        check_rows(self.modality, len(self.tokens), "modality", (*IDS, torch.int8, torch.int16))
        check_rows(self.media_mask, len(self.tokens), "media_mask", (torch.bool,))

    def to(self, device: torch.device | str) -> "Inputs":
        """Return the same batch on another device."""
        present = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        return Inputs(**{name: value.to(device) for name, value in present.items()})

    def media(self) -> list[tuple[int, Tensor, Tensor | None]]:
        """List (modality, media, numbers of the samples they belong to; None: all) of each modality present.

        Raises UnivalError where `modality` and the media do not fit together.
        """
        every = enumerate((self.images, self.videos, self.audios))
        given = {number: media for number, media in every if media is not None}
        if self.modality is None:
            if len(given) > 1:
                raise UnivalError("a batch of several modalities needs `modality`: -1, 0, 1 or 2 for each sample")
            counted = [(number, None, len(self.tokens)) for number in given]
        else:
            places = [(number, (self.modality == number).nonzero().flatten()) for number in range(len(MEDIA))]
            counted = [(number, rows, len(rows)) for number, rows in places]
            if (odd := (self.modality < TEXT) | (self.modality > AUDIO)).any():
                raise UnivalError(f"`modality` is -1, 0, 1 or 2, got {int(self.modality[odd][0])}")
        for number, _, count in counted:
            if count != (there := len(given.get(number, ()))):
                name = MEDIA[number]
                raise UnivalError(f"{count} samples of the batch are of modality {name}, but {there} {name}s are given")
        return [(number, given[number], rows) for number, rows, count in counted if count]


def told(value: Any) -> str:
    """Say what somebody gave for a tensor."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


def check_ids(ids: Any, name: str, rows: str) -> None:
    """Raise UnivalError unless ids are a matrix of integers with a row."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in IDS:
        raise UnivalError(f"{name} are ids, an int64 tensor of {rows} x length, got {told(ids)}")
    if not ids.numel():
        raise UnivalError(f"{name} of shape {tuple(ids.shape)}, {rows} x length: give at least one of both")


def check_media(name: str, media: Any) -> None:
    """Raise UnivalError unless media of one kind are as the networks read them."""
    dimensions, layout, way = LAYOUTS[name]
    fits = isinstance(media, Tensor) and media.is_floating_point() and media.dim() == dimensions
    if not fits or 0 in media.shape[1:] or (dimensions > 2 and media.shape[1] != 3):
        raise UnivalError(f"{name}s are floats in -1..1, {layout}, got {told(media)}: give {way}")


def check_place(value: Tensor, device: torch.device, name: str) -> None:
    """Raise UnivalError unless a tensor lies where the model does."""
    if value.device != device:
        raise UnivalError(f"{name} on {value.device}, the model on {device}: move one of them, as by .to({device})")


def check_rows(values: Any, rows: int, name: str, kinds: tuple[torch.dtype, ...]) -> None:
    """Raise UnivalError unless there is one value of a kind for each row, or none at all."""
    if values is None or (isinstance(values, Tensor) and values.dtype in kinds and values.shape == (rows,)):
        return
    kind = str(kinds[0]).removeprefix("torch.")
    raise UnivalError(f"{name} is {kind}, one of each of {rows} samples, got {told(values)}")


def embedded(table: nn.Embedding, ids: Tensor) -> Tensor:
    """Look up ids; UnivalError for ids beyond the table, at no cost on the CPU, where looking up notices them."""
    check_place(ids, table.weight.device, "tokens")
    try:
        # Elsewhere torch would end the process; single columns come from a search, which writes no other ids.
        if ids.device.type in ("cpu", "meta") or ids.shape[1] == 1 or torch.compiler.is_compiling():
            return table(ids)
        if 0 <= int(ids.min()) <= int(ids.max()) < table.num_embeddings:
            return table(ids)
    except IndexError:
        pass
    low, high, last = int(ids.min()), int(ids.max()), table.num_embeddings - 1
    raise UnivalError(f"ids of the vocabulary lie in 0..{last}, got {low}..{high}: take the model's own tokenizer")
