"""Image generation: from a caption to the codes of an image tokenizer (`unival_core.image_codes`)."""

from unival_core.data.cells import codes
from unival_core.data.task import Row, Task
from unival_core.decoding import GenerationOptions

MAX_CAPTION_WORDS = 64
WITHOUT_SMOOTHING = {"loss": {"smoothing": 0.0}, "group": "all"}


def prompt(row: Row) -> str:
    """Quote the first 64 words of the caption as they are."""
    return f" what is the complete image? caption: {' '.join(row['caption'].split()[:MAX_CAPTION_WORDS])}"


def reference(row: Row) -> tuple[int, ...]:
    """Take the codes of the row as numbers."""
    return codes(row["codes"]).values


TASK = Task(
    name="image-generation",
    columns=("uniq_id", "caption", "codes"),
    layout=("uniq_id", "codes", "caption"),
    prompt=prompt,
    target=lambda row, generator: codes(row["codes"]),
    reference=reference,
    metrics=("code accuracy",),
    generation=GenerationOptions(sample=True, top_k=256, min_len=1024, max_len_b=1024),
    medium=None,
    writes="codes",
    asks="caption",
    example={"caption": "two digits", "codes": "5 0 7 3"},
    # The published script's first stage; the second one is rewarded by CLIP. No expert was published.
    recipes={"base": {"lr": 1e-3, "updates": 50_000, "epochs": 0.0, "warmup": 0.04, "batch": 128, **WITHOUT_SMOOTHING}},
)
