"""UnIVAL from media and tokens to logits (arXiv 2307.16184)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unival_core.config import Regularization, UnivalConfig

TEXT, IMAGE, VIDEO, AUDIO = -1, 0, 1, 2


@dataclass(frozen=True)
class Inputs:
    """One batch of B samples for the encoder; each sample has a text and at most one picture, film or sound.

    `tokens` B x T ids, right-padded with 1. `images` holds only the rows of samples that have one, in batch order:
    N x 3 x height x width; `videos` N x 3 x frames x height x width; `audios` N x samples, a waveform in -1..1 at the
    config's rate. `modality` (B, integer) tells each sample's medium: -1 none, 0 image, 1 video, 2 audio; it may be left
    out when all samples have the same. `media_mask` (B, bool) is False where a sample's medium is there but not looked at.
    """

    tokens: Tensor
    images: Tensor | None = None
    videos: Tensor | None = None
    audios: Tensor | None = None
    modality: Tensor | None = None
    media_mask: Tensor | None = None

    def to(self, device: torch.device | str) -> "Inputs":
        """The same batch on another device."""
        raise NotImplementedError


class Encoded(NamedTuple):
    """What the decoder reads of B samples: S = vision tokens + text tokens.

    `states` B x S x width; `padding` B x S, True at positions not to be looked at; `positions` L x S x width, normalised
    position embeddings of the L different layouts in the batch, and `layout` (B) telling each sample's.
    """

    states: Tensor
    padding: Tensor
    positions: Tensor
    layout: Tensor


class DecoderCache:
    """A decoder's memory of R rows over B encoded samples: made by `UnivalModel.start`, grown by `UnivalModel.decode`.

    Rows and samples are one to one at first; `select` makes, reorders and drops rows. The samples' keys and values are
    held once however many rows (beams) read them, and leave with their last row.
    """

    length: int  # target positions decoded so far
    rows: int  # R

    def select(self, rows: Tensor) -> None:
        """Makes row i continue the former row `rows[i]` (int64 indices, any order, repeated or left out).

        >>> cache.select(torch.arange(batch).repeat_interleave(beam))  # doctest: +SKIP
        """
        raise NotImplementedError


class UnivalModel(nn.Module):
    """The encoder-decoder. Tensors are named as in the published checkpoints.

    >>> encoded = model.encode(inputs)                  # doctest: +SKIP
    >>> cache = model.start(encoded)                    # doctest: +SKIP
    >>> logits = model.decode(first_tokens, cache)      # doctest: +SKIP
    >>> logits = model.decode(next_tokens, cache)       # doctest: +SKIP
    """

    def __init__(self, config: UnivalConfig, regularization: Regularization = Regularization()) -> None:
        super().__init__()
        self.config = config

    def encode(self, inputs: Inputs) -> Encoded:
        """Vision tokens, then text tokens, through the encoder."""
        raise NotImplementedError

    def start(self, encoded: Encoded, code_rows: Tensor | None = None) -> DecoderCache:
        """A cache with one row per sample and nothing decoded. `code_rows` (B, bool) marks samples that write an image."""
        raise NotImplementedError

    def decode(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Logits R x n x vocabulary behind each of `tokens` (R x n, right-padded), the next n of every row of `cache`.

        The cache then holds them too: beam search calls `decode` with one column a step. All at once or one by one gives
        the same logits.
        """
        raise NotImplementedError

    def forward(self, inputs: Inputs, targets: Tensor, code_rows: Tensor | None = None) -> Tensor:
        """Logits B x U x vocabulary for decoder inputs `targets` (B x U, beginning with bos, right-padded with 1)."""
        return self.decode(targets, self.start(self.encode(inputs), code_rows))
