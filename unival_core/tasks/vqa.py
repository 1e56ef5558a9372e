"""Visual question answering (VQAv2, OKVQA, VizWiz): a short answer out of a list, the question repeated to the decoder.

The published list holds the 3,129 answers most frequent in training. It is data, given to the dataset; without one the
answer is free text.
"""

from unival_core.data.cells import best, weighted
from unival_core.data.task import MAX_WORDS, Family, InStage, Published, Row, Task
from unival_core.decoding import GenerationOptions
from unival_core.text import clean_question


def prompt(row: Row) -> str:
    """Put the question, with its mark."""
    question = clean_question(row["question"], MAX_WORDS)
    return f" {question}" if question.endswith("?") else f" {question}?"


def confidence(row: Row) -> float:
    """Weigh a row by the confidence of its most confident answer, 0 to 1."""
    return max(weighted(row["answers"]).values())


def reference(row: Row) -> dict[str, float]:
    """Take every answer with its confidence."""
    return weighted(row["answers"])


TASK = Task(
    name="vqa",
    columns=("uniq_id", "media", "question", "answers", "objects"),
    layout=("uniq_id", "image_id", "question", "answers", "objects", "media"),
    prompt=prompt,
    target=lambda row, generator: best(row["answers"]),
    reference=reference,
    metrics=("VQA accuracy",),
    generation=GenerationOptions(beam=5, unnormalized=True),
    confidence=confidence,
    repeats_prompt=True,
    asks="question",
    submits=("question_id", "answer"),
    example={"question": "which digit is red?", "answers": "1.0|!+seven&&0.3|!+one", "objects": "digit"},
    recipes={"base": {"epochs": 20, "warmup": 0.04, "ema": 0.9999}, "pocket": {"lr": 1e-3, "updates": 150}},
    pretraining={
        "base": dict.fromkeys(("image", "image-video", "large"), InStage()),
        "pocket": dict.fromkeys(("image", "image-video"), InStage()),
    },
    published=Published(
        data="VQAv2, OKVQA, VizWiz",
        original="vqa_gen",
        checkpoint="unival_vqa/checkpoint_best.pt",
        average=True,
        files={  # the answers of VQAv2's test set are secret, so its validation file is the test
            "train": ("vqa_data/vqa_train.tsv",),
            "test": ("vqa_data/vqa_val.tsv",),
            "full": ("vqa_data/vqa_fullval.tsv",),  # what averages were evaluated on
            "knowledge": ("vqa_data/okvqa_acc_val.tsv",),
            "lowquality": ("vqa_data/vizwiz_acc_val.tsv",),
        },
        shifts=("knowledge", "lowquality"),
        answers={
            "": "vqa_data/trainval_ans2label.pkl",
            "knowledge": "vqa_data/okvqa_trainval_ans2label.pkl",
            "lowquality": "vqa_data/vizwiz_trainval_ans2label.pkl",
        },
        unrepeated=("knowledge", "lowquality"),
    ),
    family=Family("image", 0),
)
