"""Visual question answering (VQAv2, OKVQA, VizWiz): a short answer out of a list, the question repeated to the decoder.

The published list holds the 3,129 answers most frequent in training. It is data, given to the dataset; without one the
answer is free text.
"""

from random import Random

from unival_core.data.cells import best, weighted
from unival_core.data.task import MAX_WORDS, Row, Task
from unival_core.decoding import GenerationOptions
from unival_core.text import clean_question


def prompt(row: Row) -> str:
    """The question, with its mark."""
    question = clean_question(row["question"], MAX_WORDS)
    return f" {question}" if question.endswith("?") else f" {question}?"


def target(row: Row, generator: Random | None) -> str:
    """The most confident answer."""
    return best(row["answers"])


def confidence(row: Row) -> float:
    """That of the most confident answer."""
    return max(weighted(row["answers"]).values())


def reference(row: Row) -> dict[str, float]:
    """Every answer with its confidence."""
    return weighted(row["answers"])


TASK = Task(
    name="vqa",
    columns=("uniq_id", "media", "question", "answers", "objects"),
    selected_cols=(0, 5, 2, 3, 4),
    prompt=prompt,
    target=target,
    reference=reference,
    metrics=("VQA accuracy",),
    generation=GenerationOptions(beam=5, unnormalized=True),
    confidence=confidence,
    repeats_prompt=True,
    asks="question",
)
