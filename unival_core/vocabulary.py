"""Text, boxes and image codes as token ids.

One layout for every vocabulary: four specials, text pieces, `<mask>`, `<code_i>`, `<bin_i>`, with counts from the
model's config. Text is cut into pieces by GPT-2's rules: byte-level BPE for the published models, whole pieces
("words") for small models that train their own vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from merge import open_checkpoint
from unival_core.config import BOS, CONFIGS, EOS, PAD, PUBLISHED_TEXT, UNK, UnivalConfig
from unival_core.errors import UnivalError

PUBLISHED_FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "dict.txt": "2c31c5b236661067fe8626775eb995ef5fe808ac87d2ad4a6ddbef68550f5cc6",
}
TOKENIZER_KEY = "unival_tokenizer"  # of a safetensors file's metadata
_SPECIALS = {BOS: "<s>", PAD: "<pad>", EOS: "</s>", UNK: "<unk>"}


class Tokenizer:
    """Text <-> ids, boxes <-> bin ids, image codes <-> ids.

    `decode(encode(text))` gives `text` back where every piece is known, up to leading spaces: published models keep
    the one that all their texts begin with, a trained vocabulary ignores case and outer or repeated spaces.
    """

    bos, pad, eos, unk = BOS, PAD, EOS, UNK

    def __init__(self, text: tokenizers.Tokenizer, text_ids: int, codes: int, bins: int) -> None:
        """`text` gives ids below `text_ids - 1`, past the specials; see `published`, `train` and `from_json`."""
        self._text = text
        self.codes, self.bins = codes, bins
        self.mask = text_ids - 1
        self.code_offset, self.bin_offset = text_ids, text_ids + codes
        self.size = text_ids + codes + bins

    def encode(self, text: str) -> list[int]:
        """Return ids of the text alone, without bos and eos. `<bin_0>` in it is plain text."""
        return self._text.encode(text).ids

    def unknown(self, text: str) -> list[str]:
        """List the words of a text that the vocabulary lacks; they are read as `<unk>`."""
        found = self._text.encode(text)
        return [
            text[slice(*span)].strip() for index, span in zip(found.ids, found.offsets, strict=True) if index == UNK
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Give text of `ids`, without bos and eos; whatever is no text appears by its name, as `<unk>` or `<bin_7>`."""
        return self._text.decoder.decode([self._name(int(index)) for index in ids if index not in (BOS, EOS)])

    def box_to_ids(
        self, box: Sequence[float], image_size: tuple[int, int], *, side: int = 512, max_side: int = 512
    ) -> list[int]:
        """Return four ids of a box x0, y0, x1, y1 in pixels of an image of `image_size` (width, height).

        The image is thought resized to `side` squared and a coordinate quantised over `max_side` (they differ only in
        pretraining); what lies outside is moved to the edge.
        """
        scaled = np.asarray(box, dtype=np.float32) * _ratios(image_size, side) / np.float32(max_side)
        numbers = np.round(scaled * np.float32(self.bins - 1)).clip(0, self.bins - 1)
        return [self.bin_offset + int(number) for number in numbers]

    def ids_to_box(
        self, ids: Sequence[int], image_size: tuple[int, int], *, side: int = 512, max_side: int = 512
    ) -> tuple[float, float, float, float]:
        """Return the box that four bin ids stand for, in pixels of the image; the inverse of `box_to_ids`."""
        numbers = np.asarray(ids, dtype=np.float32) - self.bin_offset
        if len(ids) != 4 or (numbers < 0).any() or (numbers >= self.bins).any():
            raise UnivalError(f"a box is four ids in {self.bin_offset}..{self.size - 1}, got {list(ids)}")
        x0, y0, x1, y1 = numbers / np.float32(self.bins - 1) * np.float32(max_side) / _ratios(image_size, side)
        return float(x0), float(y0), float(x1), float(y1)

    def codes_to_ids(self, codes: Sequence[int]) -> list[int]:
        """Return ids of the codes of an image tokenizer."""
        if any(not 0 <= code < self.codes for code in codes):
            raise UnivalError(f"image codes lie in 0..{self.codes - 1}, got {min(codes)}..{max(codes)}")
        return [self.code_offset + code for code in codes]

    def ids_to_codes(self, ids: Sequence[int]) -> list[int]:
        """Return the codes that `ids` stand for; the inverse of `codes_to_ids`."""
        if any(not self.code_offset <= index < self.bin_offset for index in ids):
            raise UnivalError(f"ids of codes lie in {self.code_offset}..{self.bin_offset - 1}, got {list(ids)}")
        return [index - self.code_offset for index in ids]

    def check(self, config: UnivalConfig) -> Tokenizer:
        """Return itself, if it has the layout of `config`; UnivalError otherwise."""
        own, wanted = (self.mask + 1, self.codes, self.bins), (config.text_ids, config.codes, config.bins)
        if own != wanted:
            raise UnivalError(f"text ids, codes and bins are {own} in the tokenizer and {wanted} in the model")
        return self

    @classmethod
    def published(cls, *folders: Path, config: UnivalConfig | None = None) -> Tokenizer:
        """Return the vocabulary of the published models, from the first of `folders` that holds its three files, with
        as many codes and bins as `config` has.

        They are third-party data that the project does not ship: the folder utils/BPE of the UnIVAL repository.
        Raises `UnivalError` when a file is missing or is not the published one.
        """
        files = _published_files(folders)
        symbols = [line.rsplit(" ", 1)[0] for line in files["dict.txt"].splitlines()]
        ids = {symbol: len(_SPECIALS) + line for line, symbol in enumerate(symbols)}
        pieces = {piece: ids[str(number)] for piece, number in json.loads(files["encoder.json"]).items()}
        merges = [(left, right) for left, right in map(str.split, files["vocab.bpe"].splitlines()[1:])]
        text = tokenizers.Tokenizer(models.BPE(vocab=pieces, merges=merges))
        text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        text.decoder = decoders.ByteLevel()
        layout = config or CONFIGS["base"]
        return cls(text, PUBLISHED_TEXT, layout.codes, layout.bins)

    @classmethod
    def train(cls, texts: Iterable[str], config: UnivalConfig, *, behind: Iterable[str] = ()) -> Tokenizer:
        """Make a vocabulary of the words of `texts`, the most frequent first, then of other words of `behind`.

        There are as many as `config` has room for, in the same order for texts in any order. A word is a piece of
        GPT-2's splitting: letters, digits or marks, with the space before it. Unknown words become `<unk>`.
        """
        words: dict[str, None] = {}
        splitter = _word_level([])
        for part in (texts, behind):
            normal = (splitter.normalizer.normalize_str(text) for text in part)
            counts = Counter(piece for text in normal for piece, _ in splitter.pre_tokenizer.pre_tokenize_str(text))
            words |= dict.fromkeys(sorted(counts, key=lambda word: (-counts[word], word)))
        room = config.text_ids - len(_SPECIALS) - 1
        return cls(_word_level(list(words)[:room]), config.text_ids, config.codes, config.bins)

    def to_json(self) -> str:
        """Return a trained vocabulary as one small JSON text. The published one is never written: its files are not
        ours."""
        if not isinstance(self._text.model, models.WordLevel):
            raise UnivalError("only a trained vocabulary can be stored; the published one is read from its three files")
        words = sorted(self._text.get_vocab(), key=self._text.get_vocab().__getitem__)[1:]
        layout = {"text_ids": self.mask + 1, "codes": self.codes, "bins": self.bins}
        return json.dumps({**layout, "words": words}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Return the tokenizer that `to_json` wrote."""
        try:
            stored = json.loads(text)
            words, layout = stored["words"], (stored["text_ids"], stored["codes"], stored["bins"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UnivalError(f"not a stored tokenizer: {type(error).__name__} {error}") from None
        return cls(_word_level(words), *layout)

    def _name(self, index: int) -> str:
        """Return a text piece, or the name of what stands at `index`."""
        if not 0 <= index < self.size:
            raise UnivalError(f"id {index} is outside the vocabulary 0..{self.size - 1}")
        if index >= self.bin_offset:
            return f"<bin_{index - self.bin_offset}>"
        if index >= self.code_offset:
            return f"<code_{index - self.code_offset}>"
        if index == self.mask:
            return "<mask>"
        return _SPECIALS.get(index) or self._text.id_to_token(index) or f"<unused_{index}>"


def load_tokenizer(
    checkpoint: str | Path, config: UnivalConfig, *, bpe: str | Path | None = None, section: str = "auto"
) -> Tokenizer:
    """Return the tokenizer of a model: the published files in the folder `bpe` if given; else the trained vocabulary in
    the checkpoint's metadata; else the published files in the checkpoint's folder, or in `BPE` beside it.

    A trained one is saved as `save_model(model, path, metadata={TOKENIZER_KEY: tokenizer.to_json()})`; merging keeps
    it. Raises UnivalError where there is none, or not of the layout of `config`.
    """
    if bpe is not None:
        return Tokenizer.published(Path(bpe), config=config).check(config)
    stored = open_checkpoint(checkpoint, section).metadata.get(TOKENIZER_KEY)
    if stored is not None:
        return Tokenizer.from_json(stored).check(config)
    if not config.has_published_text:
        raise UnivalError(f"{checkpoint}: no tokenizer is stored in it (metadata {TOKENIZER_KEY!r}): save it with one")
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent
    return Tokenizer.published(folder, folder / "BPE", config=config).check(config)


def _word_level(words: Sequence[str]) -> tokenizers.Tokenizer:
    """Whole pieces with ids in the given order. Every text begins with a space, so that a word has one id anywhere."""
    ids = {word: len(_SPECIALS) + number for number, word in enumerate(words)}
    text = tokenizers.Tokenizer(models.WordLevel(vocab={_SPECIALS[UNK]: UNK, **ids}, unk_token=_SPECIALS[UNK]))
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    text.normalizer = normalizers.Sequence([normalizers.Lowercase(), spaces, normalizers.Strip()])
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    text.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return text


def _published_files(folders: Sequence[Path]) -> dict[str, str]:
    """Return the text of every file, all of them looked for before one is read."""
    places = {name: next((f / name for f in folders if (f / name).is_file()), None) for name in PUBLISHED_FILES}
    if missing := [name for name, path in places.items() if path is None]:
        looked = " or ".join(str(folder) for folder in folders)
        are = "is" if len(missing) == 1 else "are"
        advice = "copy utils/BPE of the UnIVAL repository there, or name its folder"
        raise UnivalError(f"{', '.join(missing)} {are} not in {looked}: {advice}")
    texts = {name: path.read_bytes() for name, path in places.items() if path is not None}
    for name, data in texts.items():
        if (digest := hashlib.sha256(data).hexdigest()) != PUBLISHED_FILES[name]:
            raise UnivalError(
                f"{places[name]} is not the published file: SHA-256 {digest[:12]}..., expected "
                f"{PUBLISHED_FILES[name][:12]}...: copy it unchanged from utils/BPE of the UnIVAL repository"
            )
    return {name: data.decode("utf-8") for name, data in texts.items()}


def _ratios(image_size: tuple[int, int], side: int) -> np.ndarray:
    """Return resized over original pixels for x0, y0, x1, y1."""
    width, height = image_size
    return np.array([side / width, side / height] * 2, dtype=np.float32)
