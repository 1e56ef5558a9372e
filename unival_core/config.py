"""Architecture of a UnIVAL model: the numbers that decide names and shapes of its tensors (arXiv 2307.16184).

Two kinds of options, two frozen dataclasses: `UnivalConfig` is stored with the weights, `Regularization` belongs to a
training run. The published vocabulary, position and mel layouts are the defaults.

>>> config = CONFIGS["pocket"]
>>> UnivalConfig.from_json(config.to_json()) == config
True
>>> replace(CONFIGS["base"], video=None, audio=None).encoders
('image',)
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from unival_core.errors import UnivalError

BOS, PAD, EOS, UNK = 0, 1, 2, 3  # the same ids in every vocabulary
PUBLISHED_TEXT = 50_265  # ids of specials, text pieces and <mask> in published models
CODE_STRIDE = 8  # image generation: one code stands for 8 x 8 pixels


@dataclass(frozen=True)
class ResNetConfig:
    """A bottleneck residual network in two (image) or three (video) dimensions.

    One stage per entry of `depths` and `planes`: `depths[i]` blocks that narrow to `planes[i]` channels and leave with
    `planes[i] * expansion`. The stem halves the image, the pooling behind it halves it again, and so does every stage
    but the first, so the number of stages sets the stride.
    """

    depths: tuple[int, ...]
    planes: tuple[int, ...]
    expansion: int = 4
    groups: int = 1  # of the middle convolution (ResNeXt's cardinality)
    stem: int = 64  # channels behind the first convolution
    kernel: int = 7  # of the first convolution
    classes: int = 0  # rows of the ImageNet head that published files carry and nothing uses

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.planes):
            raise UnivalError(f"a ResNet needs as many planes as depths, got {self.planes} for {self.depths}")

    @property
    def width(self) -> int:
        """Return the channels of the feature map."""
        return self.planes[-1] * self.expansion

    @property
    def stride(self) -> int:
        """Return the pixels (along one side) that become one token."""
        return 2 ** (len(self.depths) + 1)


@dataclass(frozen=True)
class AudioConfig:
    """A CNN14 (arXiv 1912.10211) and the log-mel spectrogram it reads.

    Block i has `channels[i]` channels; all blocks but the last halve time and mel. Frequencies in Hz; `hop` and
    `samples` (the length of a clip) in samples. The published audio models were trained with hop 200; some of the
    published code assumes 480.
    """

    channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    sample_rate: int = 48_000
    samples: int = 480_000
    n_fft: int = 1024
    hop: int = 200
    n_mels: int = 64
    fmin: float = 50.0
    fmax: float = 14_000.0

    def __post_init__(self) -> None:
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise UnivalError(
                f"mel bands {self.fmin}..{self.fmax} Hz do not fit below half the rate {self.sample_rate}"
            )

    @property
    def width(self) -> int:
        """Return the channels of the feature map."""
        return self.channels[-1]


@dataclass(frozen=True)
class UnivalConfig:
    """Everything that decides the tensors of a model, and nothing else.

    Token ids: `text_ids` ids for specials and text (the last one is `<mask>`), then `codes`, then `bins`.
    `image_bucket` is the side of the largest grid of vision tokens, `token_bucket` the number of exactly or
    logarithmically told distances in text, `max_positions` the longest text on either side.
    """

    width: int
    heads: int
    ffn: int
    encoder_layers: int
    decoder_layers: int
    image: ResNetConfig
    video: ResNetConfig | None = None
    audio: AudioConfig | None = None
    text_ids: int = PUBLISHED_TEXT
    codes: int = 8_192
    bins: int = 1_000
    max_positions: int = 1_024
    token_bucket: int = 256
    image_bucket: int = 42
    code_image_size: int = 128  # pixels along the side of a generated image; 256 in the image-generation recipe
    position_grid: int = 0  # side of the grid whose positions are stretched over larger images; 0: never (published)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UnivalError(f"width {self.width} does not divide into {self.heads} heads: choose a multiple")
        if (side := max(self.code_side, self.position_grid)) > self.image_bucket:
            raise UnivalError(
                f"image_bucket {self.image_bucket} cannot hold a grid of {side} x {side} positions: raise it"
            )
        if self.token_bucket // 2 >= self.max_positions - 1:
            raise UnivalError(
                f"token_bucket {self.token_bucket} must stay below 2 x max_positions ({self.max_positions})"
            )

    @property
    def vocabulary(self) -> int:
        """Return the number of token ids."""
        return self.text_ids + self.codes + self.bins

    @property
    def has_published_text(self) -> bool:
        """Tell whether text is cut into the published pieces, whatever the number of codes and bins behind them."""
        return self.text_ids == PUBLISHED_TEXT

    @property
    def code_offset(self) -> int:
        """Return the id of `<code_0>`."""
        return self.text_ids

    @property
    def bin_offset(self) -> int:
        """Return the id of `<bin_0>`."""
        return self.text_ids + self.codes

    @property
    def head_width(self) -> int:
        """Return the channels of one attention head."""
        return self.width // self.heads

    @property
    def code_side(self) -> int:
        """Return codes along one side of a generated image."""
        return self.code_image_size // CODE_STRIDE

    @property
    def image_positions(self) -> int:
        """Return rows of the vision position tables: one per grid cell, and row 0, which no token uses."""
        return self.image_bucket**2 + 1

    @property
    def encoders(self) -> tuple[str, ...]:
        """Return the media this model reads, in the order of their numbers in `Inputs.modality`."""
        return tuple(name for name in ("image", "video", "audio") if getattr(self, name) is not None)

    def to_json(self) -> str:
        """Return one line of JSON, as stored in a checkpoint."""
        return json.dumps(asdict(self))

    def changed(self, changes: Mapping[str, Any]) -> "UnivalConfig":
        """Return the config with other values for some fields, as JSON has them: also `{"audio": {"hop": 480}}` and
        `{"video": null}`. Raises UnivalError for fields that there are not."""
        own = asdict(self)
        for name, value in changes.items():
            whole = own[name] if isinstance(own.get(name), dict) and isinstance(value, dict) else {}
            own[name] = {**whole, **value} if whole else value
        return UnivalConfig.from_json(json.dumps(own))

    @classmethod
    def from_json(cls, text: str) -> "UnivalConfig":
        """Return the config `to_json` wrote; unknown or missing fields raise UnivalError."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UnivalError(f"the stored config is not JSON ({error})") from None
        if not isinstance(values, dict):
            raise UnivalError(f"the stored config is {type(values).__name__}, not an object")
        for name, kind in (("image", ResNetConfig), ("video", ResNetConfig), ("audio", AudioConfig)):
            if values.get(name) is not None:
                values[name] = _build(kind, values[name])
        return _build(cls, values)


@dataclass(frozen=True)
class Regularization:
    """What training adds and evaluation never sees; everything is off by default.

    `drop_path` is the rate of the last layer of each stack (it grows linearly from 0). `patches` keeps that many vision
    tokens per sample, drawn by Python's `random`. `time_stripe` and `mel_stripe` are what the stripes blanked by
    SpecAugment stay below, in frames and mel bands. `PUBLISHED_REGULARIZATION` is what the released recipes use.
    """

    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    patches: int | None = None
    audio_dropout: float = 0.0  # after each block of the CNN14 but the last
    time_stripe: int = 0
    mel_stripe: int = 0


PUBLISHED_REGULARIZATION = Regularization(
    dropout=0.1, drop_path=0.1, patches=784, audio_dropout=0.2, time_stripe=64, mel_stripe=8
)


def _build(kind: Any, values: Mapping[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise UnivalError(
            f"{kind.__name__} has no {', '.join(unknown)}: written by another version? known: {sorted(known)}"
        )
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except TypeError as error:
        raise UnivalError(f"{kind.__name__}: {error}") from None


_RESNET101 = ResNetConfig(depths=(3, 4, 23, 3), planes=(64, 128, 256, 512), classes=1000)
_RESNEXT101_3D = ResNetConfig(depths=(3, 4, 23, 3), planes=(128, 256, 512, 1024), expansion=2, groups=32)
_POCKET_NET = ResNetConfig(depths=(2, 2), planes=(32, 64), expansion=2, stem=32, kernel=3)
_POCKET_AUDIO = AudioConfig(
    (8, 16, 32, 64), sample_rate=8_000, samples=16_000, n_fft=512, hop=160, n_mels=32, fmin=500.0, fmax=2_000.0
)
_BASE = UnivalConfig(768, 12, 3072, 6, 6, image=_RESNET101, video=_RESNEXT101_3D, audio=AudioConfig())
_LARGE = replace(_BASE, width=1024, heads=16, ffn=4096, encoder_layers=12, decoder_layers=12)
_TINY = replace(_BASE, width=64, heads=4, ffn=128, encoder_layers=2, decoder_layers=2)
_POCKET = UnivalConfig(
    96, 4, 192, 2, 2, image=_POCKET_NET, video=_POCKET_NET, audio=_POCKET_AUDIO, image_bucket=12, code_image_size=48
)

CONFIGS: dict[str, UnivalConfig] = {
    # The published 0.25B model. Its files carry the image and video encoders (image alone for grounding, all three for
    # audio captioning): `replace(CONFIGS["base"], audio=None)`.
    "base": _BASE,
    # OFA-large widths (arXiv 2202.03052) with the video and audio encoders of base.
    "large": replace(_LARGE, image=replace(_RESNET101, depths=(3, 8, 36, 3))),
    # Narrow transformer behind full-width encoders: for checking numbers against recorded ones.
    "tiny": replace(
        _TINY,
        image=replace(_RESNET101, depths=(3, 4, 6, 3)),
        video=replace(_RESNEXT101_3D, depths=(3, 4, 6, 3)),
        audio=AudioConfig(hop=480),
        text_ids=100,
        codes=50,
        bins=50,
    ),
    # Trains on a laptop: 48 x 48 images to 6 x 6 tokens, videos of 8 such frames, two seconds of telephone tones. The
    # image networks differ only by the time axis, so that the image kernels can start the video network.
    "pocket": replace(_POCKET, text_ids=384, codes=16, bins=24, max_positions=64, token_bucket=32),
}
