"""Image-text matching: whether a sentence, or an answer to a question, fits an image. Published in pretraining only.

Rows either tell it (their weighted answers are yes or no) or, in training, are captions and questions of which half
are made wrong here, with words of another row.
"""

from collections.abc import Callable
from random import Random

from unival_core.data.cells import best, several
from unival_core.data.task import MAX_WORDS, InStage, Row, Task
from unival_core.decoding import GenerationOptions
from unival_core.text import clean_caption, clean_question

CAPTIONS = ("caption", "video_caption", "audio_caption")  # in the column `type` of the published files
QUESTIONS = ("qa", "video_qa")
OBJECT_SHARE = 0.4  # of the wrong captions name another object; the rest are captions of other rows
TRIES = 10  # to draw words that differ


def asked(row: Row, medium: str) -> str:
    """Quote the caption, or the question with an answer (which stands in the column `caption`)."""
    caption = clean_caption(row["caption"], MAX_WORDS)
    if question := clean_question(row["question"], MAX_WORDS):
        return f' what is the answer to question " {question} ". is " {caption} "?'
    return f' does the {medium} describe " {caption} "?'


def prompt(row: Row) -> str:
    """Ask about an image."""
    return asked(row, "image")


def reference(row: Row) -> str:
    """Say yes or no."""
    return best(row["answers"])


def complete(row: Row, another: Callable[[], Row], generator: Random) -> Row:
    """Make of a caption or question a row that is true or, as often, false."""
    is_question = row["type"] in QUESTIONS
    if not is_question and row["type"] not in CAPTIONS:
        return row
    right = best(row["answers"]) if is_question else several(row["caption"])[0]
    wrong = right
    if generator.random() < 0.5:
        choose = _other_answer if is_question else _other_caption
        drawn = (choose(right, row, another(), generator) for _ in range(TRIES))
        wrong = next((text for text in drawn if text != right), right)
    told = "yes" if wrong == right else "no"
    return {**row, "question": row["question"] if is_question else "", "caption": wrong, "answers": f"1.0|!+{told}"}


def _other_answer(answer: str, row: Row, other: Row, generator: Random) -> str:
    return best(other["answers"]) if other["answers"].strip() else answer


def _other_caption(caption: str, row: Row, other: Row, generator: Random) -> str:
    own, foreign = ([name for name in r["objects"].strip().split("&&") if name] for r in (row, other))
    if own and foreign and generator.random() < OBJECT_SHARE:
        return caption.replace(generator.choice(own), generator.choice(foreign))
    return several(other["caption"])[0]


TASK = Task(
    name="image-text-matching",
    columns=("uniq_id", "media", "caption", "question", "answers", "objects", "dataset", "type"),
    prompt=prompt,
    target=lambda row, generator: reference(row),
    reference=reference,
    metrics=("accuracy",),
    generation=GenerationOptions(),
    answers=("yes", "no"),
    rank_answers=True,
    asks="caption",
    complete=complete,
    example={
        "caption": "a red seven",
        "question": "",
        "answers": "1.0|!+yes",
        "objects": "digit",
        "dataset": "made",
        "type": "matching",
    },
    # None was published: as for visual entailment, which is asked alike.
    recipes={"base": {"lr": 5e-5, "epochs": 10, "loss": {"smoothing": 0.0}, "group": "all"}},
    # In the first stage every caption and every question is matched, too.
    pretraining={"base": {"image": InStage(17 / 8), **dict.fromkeys(("image-video", "large"), InStage())}},
)
