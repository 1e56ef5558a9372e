"""Visual entailment (SNLI-VE): whether an image implies a hypothesis. The caption of the row is not shown."""

from unival_core.data.task import MAX_WORDS, Family, InStage, Published, Row, Task
from unival_core.decoding import GenerationOptions
from unival_core.errors import UnivalError
from unival_core.text import clean_caption

ANSWERS = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}


def prompt(row: Row) -> str:
    """Quote the hypothesis."""
    return f' does the image describe " {clean_caption(row["hypothesis"], MAX_WORDS)} "?'


def reference(row: Row) -> str:
    """Say the label as a word."""
    if (label := row["label"].strip()) not in ANSWERS:
        raise UnivalError(f"label {label!r} is none of {', '.join(ANSWERS)}")
    return ANSWERS[label]


TASK = Task(
    name="entailment",
    columns=("uniq_id", "media", "hypothesis", "caption", "label"),
    layout=("uniq_id", "image_id", "media", "hypothesis", "caption", "label"),
    prompt=prompt,
    target=lambda row, generator: reference(row),
    reference=reference,
    metrics=("accuracy",),
    generation=GenerationOptions(),
    answers=tuple(ANSWERS.values()),
    rank_answers=True,
    repeats_prompt=True,
    asks="hypothesis",
    example={"hypothesis": "a red seven", "caption": "two digits", "label": "entailment"},
    recipes={
        # The paper says that labels are smoothed by 0.1; the script that made the published expert smooths nothing.
        "base": {"lr": 5e-5, "epochs": 10, "loss": {"smoothing": 0.0}, "group": "all"},
        "pocket": {"lr": 1e-3, "updates": 120, "group": "all"},
    },
    # Not in the published pretraining, nor at pocket setup once it knows videos: what finetuning adds can then be seen.
    pretraining={"pocket": {"image": InStage()}},
    published=Published(
        data="SNLI-VE",
        original="snli_ve",
        checkpoint="unival_snli_ve/checkpoint_best.pt",
        files={
            "train": ("snli_ve_data/snli_ve_train.tsv",),
            "val": ("snli_ve_data/snli_ve_dev.tsv",),
            "test": ("snli_ve_data/snli_ve_test.tsv",),
        },
    ),
    family=Family("image", 3),
)
