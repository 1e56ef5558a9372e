"""Visual entailment (SNLI-VE): whether a picture implies a hypothesis. The caption of the row is not shown."""

from random import Random

from unival_core.data.task import MAX_WORDS, Row, Task
from unival_core.decoding import GenerationOptions
from unival_core.errors import UnivalError
from unival_core.text import clean_caption

ANSWERS = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}


def prompt(row: Row) -> str:
    """The hypothesis, quoted."""
    return f' does the image describe " {clean_caption(row["hypothesis"], MAX_WORDS)} "?'


def target(row: Row, generator: Random | None) -> str:
    """The label as a word."""
    return reference(row)


def reference(row: Row) -> str:
    """The label as a word."""
    if (label := row["label"].strip()) not in ANSWERS:
        raise UnivalError(f"label {label!r} is none of {', '.join(ANSWERS)}")
    return ANSWERS[label]


TASK = Task(
    name="entailment",
    columns=("uniq_id", "media", "hypothesis", "caption", "label"),
    selected_cols=(0, 2, 3, 4, 5),
    prompt=prompt,
    target=target,
    reference=reference,
    metrics=("accuracy",),
    generation=GenerationOptions(),
    answers=tuple(ANSWERS.values()),
    rank_answers=True,
    repeats_prompt=True,
    asks="hypothesis",
)
