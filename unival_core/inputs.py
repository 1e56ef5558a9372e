"""One batch for the encoder."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from unival_core.errors import UnivalError

TEXT, IMAGE, VIDEO, AUDIO = -1, 0, 1, 2  # values of Inputs.modality
MEDIA = ("image", "video", "audio")


@dataclass(frozen=True)
class Inputs:
    """One batch of B samples for the encoder; each sample has a text and at most one image, video or audio.

    `tokens` B x T ids, right-padded with 1. `images` holds only the rows of samples that have one, in batch order:
    N x 3 x height x width; `videos` N x 3 x frames x height x width; `audios` N x samples, a waveform in -1..1 at the
    config's rate. `modality` (B, integer) tells each sample's medium: -1 none, 0 image, 1 video, 2 audio; it may be
    left out when all samples have the same. `media_mask` (B, bool) is False where the medium is not to be looked at.
    """

    tokens: Tensor
    images: Tensor | None = None
    videos: Tensor | None = None
    audios: Tensor | None = None
    modality: Tensor | None = None
    media_mask: Tensor | None = None

    def to(self, device: torch.device | str) -> "Inputs":
        """Return the same batch on another device."""
        present = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        return Inputs(**{name: value.to(device) for name, value in present.items()})

    def media(self) -> list[tuple[int, Tensor, Tensor]]:
        """List (modality, media, numbers of the samples they belong to) of each modality present.

        Raises UnivalError where `modality` and the media do not fit together.
        """
        every = ((number, getattr(self, f"{name}s")) for number, name in enumerate(MEDIA))
        given = {number: values for number, values in every if values is not None}
        modality = self.modality
        if modality is None:
            if len(given) > 1:
                raise UnivalError("a batch of several modalities needs `modality`: -1, 0, 1 or 2 for each sample")
            modality = torch.full((len(self.tokens),), next(iter(given), TEXT), device=self.tokens.device)
        found = []
        for number, name in enumerate(MEDIA):
            rows, there = (modality == number).nonzero().flatten(), len(given.get(number, ()))
            if len(rows) != there:
                raise UnivalError(
                    f"{len(rows)} samples of the batch are of modality {name}, but {there} {name}s are given"
                )
            if there:
                found.append((number, given[number], rows))
        return found
