"""Image generation: from a caption to the codes of an image tokenizer, which itself is not part of this project."""

from random import Random

from unival_core.data.cells import codes
from unival_core.data.task import Codes, Row, Task
from unival_core.decoding import GenerationOptions

MAX_CAPTION_WORDS = 64


def prompt(row: Row) -> str:
    """The caption as it is, of at most 64 words."""
    return f" what is the complete image? caption: {' '.join(row['caption'].split()[:MAX_CAPTION_WORDS])}"


def target(row: Row, generator: Random | None) -> Codes:
    """The codes of the row."""
    return codes(row["codes"])


def reference(row: Row) -> tuple[int, ...]:
    """The codes of the row."""
    return codes(row["codes"]).values


TASK = Task(
    name="image-generation",
    columns=("uniq_id", "caption", "codes"),
    selected_cols=(0, 2, 1),
    prompt=prompt,
    target=target,
    reference=reference,
    metrics=("code accuracy",),
    generation=GenerationOptions(sample=True, top_k=256, min_len=1024, max_len_b=1024),
    medium=None,
    writes="codes",
    asks="caption",
)
