"""Image captioning: one sentence about a picture (COCO, nocaps)."""

from random import Random

from unival_core.data.cells import plain, several
from unival_core.data.task import Row, Task
from unival_core.decoding import GenerationOptions

MAX_TARGET_WORDS = 20
SENTENCE = GenerationOptions(beam=5, max_len_b=22, unnormalized=True, no_repeat_ngram=3)


def prompt(row: Row) -> str:
    """The same words for every picture."""
    return " what does the image describe?"


def target(row: Row, generator: Random | None) -> str:
    """One of the row's captions, at random in training."""
    texts = several(row["caption"])
    return shortened(texts[0] if generator is None else generator.choice(texts))


def shortened(text: str) -> str:
    """A caption without punctuation, of at most 20 words."""
    return " ".join(plain(text).split()[:MAX_TARGET_WORDS])


def reference(row: Row) -> list[str]:
    """All captions as they stand in the file; the metrics tokenise them."""
    return several(row["caption"])


TASK = Task(
    name="caption",
    columns=("uniq_id", "media", "caption"),
    selected_cols=(0, 4, 2),
    prompt=prompt,
    target=target,
    reference=reference,
    metrics=("CIDEr-D", "BLEU@4", "ROUGE-L"),
    generation=SENTENCE,
    answer=plain,
)
