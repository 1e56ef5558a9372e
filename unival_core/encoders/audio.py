"""CNN14 of PANNs (arXiv 1912.10211) on a log-mel spectrogram, with SpecAugment (arXiv 1904.08779) in training."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unival_core.config import AudioConfig
from unival_core.encoders.image import normalised
from unival_core.errors import UnivalError
from unival_core.media.audio import log_mel, mel_matrix

STRIPES = 2  # SpecAugment blanks this many along time and as many along mel


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions."""

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, leaving, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(leaving)
        self.bn2 = nn.BatchNorm2d(leaving)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(normalised(x, self.conv1, self.bn1), inplace=True)
        return F.relu(normalised(x, self.conv2, self.bn2), inplace=True)


class Cnn14(nn.Module):
    """Waveforms N x samples (-1..1, at the config's rate) to features N x `config.width` x time x mel.

    Time is `samples // hop + 1` frames, mel `n_mels` bands, both halved (rounding down) by every block but the last:
    ten seconds at 48 kHz and hop 200 become 75 x 2.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout, self.time_stripe, self.mel_stripe = 0.0, 0, 0
        self.mel = mel_matrix(config)
        self.bn0 = nn.BatchNorm1d(config.n_mels)
        self.blocks = [f"conv_block{index + 1}" for index in range(len(config.channels))]
        for name, entering, leaving in zip(self.blocks, (1, *config.channels), config.channels, strict=False):
            self.add_module(name, ConvBlock(entering, leaving))

    def forward(self, waveforms: Tensor) -> Tensor:
        c, halvings = self.config, len(self.blocks) - 1
        shortest = max(c.hop * (2**halvings - 1), c.n_fft // 2 + 1)
        if waveforms.shape[1] < shortest:
            raise UnivalError(f"audio of {waveforms.shape[1]} samples: the model needs {shortest}, repeat or pad it")
        x = log_mel(waveforms, c, self.mel).to(self.bn0.weight.dtype)
        x = self.bn0(x.transpose(1, 2)).transpose(1, 2)
        if self.training:
            x = blank(x, dim=1, longest=self.time_stripe)
            x = blank(x, dim=2, longest=self.mel_stripe)
        x = x.unsqueeze(1).contiguous(memory_format=torch.channels_last)
        for index, name in enumerate(self.blocks):
            x = self.get_submodule(name)(x)
            if index < halvings:
                x = F.dropout(F.avg_pool2d(x, 2), self.dropout, self.training)
        return x


def blank(x: Tensor, dim: int, longest: int) -> Tensor:
    """Set to zero two stripes of 0 to `longest - 1` cells along `dim` (1 or 2) of each sample of N x frames x bands."""
    if not longest:
        return x
    cells = x.shape[dim]
    width = torch.randint(min(longest, cells), (len(x), STRIPES, 1), device=x.device)
    start = (torch.rand(width.shape, device=x.device) * (cells - width + 1)).long()
    cell = torch.arange(cells, device=x.device)
    hidden = ((cell >= start) & (cell < start + width)).any(dim=1)
    return x.masked_fill(hidden.unsqueeze(3 - dim), 0.0)
