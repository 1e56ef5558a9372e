"""Image captioning: one sentence about an image (COCO, nocaps)."""

from random import Random

from unival_core.data.cells import plain, several
from unival_core.data.task import Family, InStage, Published, Row, Task
from unival_core.decoding import GenerationOptions

MAX_TARGET_WORDS = 20
ENCOURAGING = {"encourage_until": 0.75}  # the loss of all published captioners (arXiv 2107.12592)
NOISY = {**ENCOURAGING, "drop_worst": 0.05, "drop_after": 6000}
DOMAINS = ("in", "near", "out")
NOCAPS = ("novel", *(f"novel-{domain}" for domain in DOMAINS))  # splits
SENTENCE = GenerationOptions(beam=5, max_len_b=22, unnormalized=True, no_repeat_ngram=3)


def prompt(row: Row) -> str:
    """Ask the same of every image."""
    return " what does the image describe?"


def targets(row: Row) -> list[str]:
    """Take the first 20 words of each of the row's captions, without punctuation."""
    return [" ".join(plain(text).split()[:MAX_TARGET_WORDS]) for text in several(row["caption"])]


def target(row: Row, generator: Random | None) -> str:
    """Take one of them, at random in training."""
    return targets(row)[0] if generator is None else generator.choice(targets(row))


def reference(row: Row) -> list[str]:
    """Take all captions as they stand in the file; the metrics tokenise them."""
    return several(row["caption"])


TASK = Task(
    name="caption",
    columns=("uniq_id", "media", "caption"),
    layout=("uniq_id", "image_id", "caption", "objects", "media"),
    prompt=prompt,
    target=target,
    targets=targets,
    reference=reference,
    metrics=("CIDEr-D", "BLEU@4", "ROUGE-L"),
    generation=SENTENCE,
    answer=plain,
    submits=("image_id", "caption"),
    example={"caption": "a red seven && two digits, one of them red"},
    recipes={"base": {"lr": 1e-5, "epochs": 10, "batch": 128, "loss": NOISY}, "pocket": {"lr": 3e-4, "updates": 80}},
    pretraining={
        # Of every eighth row of the first stage's main file, one of CC12M besides.
        "base": {"image": InStage(9 / 8), **dict.fromkeys(("image-video", "large"), InStage())},
        "pocket": {"image": InStage(), "image-video": InStage(split="pretrain-late")},
    },
    published=Published(
        data="COCO captions (Karpathy), nocaps",
        original="caption",
        checkpoint="unival_caption_stage_1/checkpoint_best.pt",
        files={
            "train": ("caption_data/caption_stage1_train.tsv",),
            "val": ("caption_data/caption_val.tsv",),
            "test": ("caption_data/caption_test.tsv",),
            "novel": ("caption_data/nocaps_val.tsv",),
            **{f"novel-{domain}": (f"caption_data/nocaps_{domain}domain_val.tsv",) for domain in DOMAINS},
        },
        shifts=("novel",),
        references={
            "test": "caption_data/test_caption_coco_format.json",
            **dict.fromkeys(NOCAPS, "caption_data/nocaps_val_caption_coco_format.json"),
        },
        by_image=("test", *NOCAPS),
    ),
    family=Family("image", 1),
)
