"""The claims of arXiv 2307.16184, section 5 and the tables that belong to it, each with the measure that tests it.

Numbers of the paper are quoted, those of figures read off to half a point. What is here is smaller: a pretrained model
of 0.9 million parameters, on the embedded world. `knowledge`, `lowquality` and `novel` stand for OKVQA, VizWiz and
nocaps.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.study.points import PRETRAINED
from experiments.unival.paper.evidence import (
    OTHER,
    Measure,
    Places,
    above,
    at,
    average,
    away,
    best,
    cheaper,
    front,
    gain,
    home,
    inside,
    named,
    own,
    weakest,
)

LOSS = 0.02  # of a score that may be lost where the paper says that nothing is
IMAGES = (("vqa", "caption"), ("caption", "grounding"), ("entailment", "grounding"), ("vqa", "grounding"))
VIDEOS = ("video-qa", "video-caption")
KNOWLEDGE, LOWQUALITY, NOVEL = at(("vqa", "knowledge")), at(("vqa", "lowquality")), at(("caption", "novel"))
RADAR = at(("vqa", "knowledge"), ("vqa", "lowquality"), ("caption", "novel"))  # the shifted axes of the paper
start = named(PRETRAINED)


@dataclass(frozen=True)
class Claim:
    """What is claimed, where and with which numbers ("" for none of the paper), the studies whose rows tell, the first
    that there is, and the measure that is above 0 where it holds."""

    place: str
    says: str
    paper: str
    studies: tuple[str, ...]
    measure: Measure


def gains(places: Places, *kinds: str, over: str = "") -> Measure:
    """Measure the averages of several kinds of experts against the pretrained model, or that `over` which they are."""
    return weakest(
        **{kind: gain(average(kind), average(over) if over else start, places, per=own(over or kind)) for kind in kinds}
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Section 5, Figure 2",
        "Between the VQA and the caption expert lie weights that are better at captions than the caption expert",
        "138.26 CIDEr at 0.80 caption, expert 136.10",
        ("interpolation",),
        best(("vqa", "caption"), "caption", "vanilla"),
    ),
    Claim(
        "Figure 2",
        "So they do between the caption and the grounding expert",
        "136.4 CIDEr against 136 (figure)",
        ("interpolation",),
        best(("caption", "grounding"), "caption", "vanilla"),
    ),
    *(
        Claim(
            "Figures 2, 6",
            f"Between {' and '.join(pair)} both skills are kept: points lie above the straight line",
            paper,
            ("interpolation",),
            above(pair, kind="vanilla"),
        )
        for pair, paper in (
            (IMAGES[0], "79 % and 130 CIDEr; ends 82.3 % and 136 (figure)"),
            (IMAGES[1], "134.5 CIDEr and 78.3 %; ends 136 and 82.2 % (figure)"),
            (IMAGES[2], "76.6 % and 77.1 %; ends 78.9 % and 82.2 % (figure)"),
            (IMAGES[3], "so the figure"),
            (VIDEOS, "so the figure"),
        )
    ),
    Claim(
        "Figures 2, 6",
        "The front of ratatouille experts lies above that of vanilla ones, on pairs of image tasks",
        "81.3 % and 131 CIDEr against 79 % and 130 (VQA, captions)",
        ("interpolation",),
        front("ratatouille", "vanilla", *IMAGES),
    ),
    Claim(
        "Figure 6",
        "So it does on the pair of video tasks",
        "so the figure",
        ("interpolation",),
        front("ratatouille", "vanilla", VIDEOS),
    ),
    Claim(
        "Figure 3",
        "The average of four experts beats the pretrained model in distribution, whatever kind of experts it is of",
        "best and pretrained: VQA 75.5, 70.2; captions 127.5, 91.0; grounding 78.3, 70.8; entailment 59.3, 36.4",
        ("averaging",),
        gains(home, "vanilla", "fusing", "ratatouille"),
    ),
    Claim(
        "Figure 3",
        "It does on shifted data too",
        "OKVQA 45.7, 38.9; VizWiz 21.3, 20.2; nocaps 69.9, 47.7",
        ("averaging",),
        gains(away, "vanilla", "fusing", "ratatouille"),
    ),
    Claim(
        "Figure 3",
        "The average of fusing experts is better than that of vanilla ones in distribution",
        "so the figure",
        ("averaging",),
        gains(home, "fusing", over="vanilla"),
    ),
    Claim(
        "Figure 3",
        "It is worse than that of vanilla experts on shifted data (the paper's three splits)",
        "so the figure",
        ("averaging",),
        gain(average("vanilla"), average("fusing"), RADAR, per=own("vanilla")),
    ),
    Claim(
        "Figure 3",
        "The average of ratatouille experts is the best one on shifted data",
        "so the figure",
        ("averaging",),
        weakest(
            **{
                kind: gain(average("ratatouille"), average(kind), away, per=own("vanilla"))
                for kind in ("vanilla", "fusing")
            }
        ),
    ),
    *(
        Claim(
            "Table 20",
            f"Single ratatouille experts are better than vanilla ones on shifted data: {what}",
            paper,
            ("ood", "averaging"),
            gain(own("ratatouille"), own("vanilla"), places),
        )
        for what, paper, places in (
            ("VQA, knowledge", "OKVQA 38.97 against 38.06", KNOWLEDGE),
            ("VQA, lowquality", "VizWiz 18.48 against 13.57", LOWQUALITY),
            ("captions, novel", "nocaps 95.28 against 94.39 CIDEr", NOVEL),
        )
    ),
    Claim(
        "Table 20",
        "They are better than fusing ones there",
        "OKVQA 38.97, 35.12; VizWiz 18.48, 15.63; nocaps 95.28, 93.58",
        ("ood", "averaging"),
        weakest(
            knowledge=gain(own("ratatouille"), own("fusing"), KNOWLEDGE),
            lowquality=gain(own("ratatouille"), own("fusing"), LOWQUALITY),
            novel=gain(own("ratatouille"), own("fusing"), NOVEL),
        ),
    ),
    Claim(
        "Table 2",
        "A curriculum (images first, videos later) takes less time than both from the start",
        "18 % less",
        ("pretraining",),
        cheaper("image-then-video", "video-from-start", "seconds"),
    ),
    Claim(
        "Table 2",
        "It takes less memory",
        "25 % less",
        ("pretraining",),
        cheaper("image-then-video", "video-from-start", "memory"),
    ),
    Claim(
        "Table 2",
        "It loses nothing: the mean score of all tasks",
        "the same scores",
        ("pretraining",),
        gain(named("image-then-video"), named("video-from-start"), home, per=OTHER, margin=LOSS),
    ),
    Claim(
        "Table 3",
        "With unbalanced data, batches balanced over tasks are better than proportional ones",
        "better, most with unbalanced data",
        ("pretraining",),
        gain(named("unbalanced-balanced"), named("unbalanced-proportional"), home, per=OTHER),
    ),
    Claim(
        "Table 4",
        "More tasks in pretraining help each task: VQA with three others against VQA alone, at equal steps",
        "every task is helped, at equal steps",
        ("pretraining",),
        gain(named("image"), named("vqa-only-quarter"), at(("vqa", "test"))),
    ),
    Claim(
        "Table 4",
        "So they do at equal examples in all, where VQA alone sees four times as many questions",
        "",
        ("pretraining",),
        gain(named("image"), named("vqa-only"), at(("vqa", "test"))),
    ),
    Claim(
        "Table 12",
        "Modalities in pretraining help a new one: captions of audio behind images and videos against behind nothing",
        "more modalities, better",
        ("pretraining",),
        gain(named("audio-from-video"), named("audio-from-backbone"), at(("audio-caption", "test"))),
    ),
    Claim(
        "Table 12",
        "Behind images and videos they are better than behind images alone",
        "more modalities, better",
        ("pretraining",),
        gain(named("audio-from-video"), named("audio-from-image"), at(("audio-caption", "test"))),
    ),
    Claim(
        "Table 17",
        "Pretraining on images helps questions about videos",
        "it helps",
        ("pretraining",),
        gain(named("video-from-image"), named("video-from-backbone"), at(("video-qa", "test"))),
    ),
    Claim(
        "Table 17",
        "Pretraining on videos helps questions about images",
        "it helps less",
        ("pretraining",),
        gain(named("vqa-from-video"), named("vqa-from-backbone"), at(("vqa", "test"))),
    ),
    Claim(
        "Table 16",
        "Training the linear projections alone already works, above the pretrained model they start from: VQA",
        "it works",
        ("pretraining",),
        gain(named("vqa-projections"), named("image-longer"), at(("vqa", "test"))),
    ),
    Claim(
        "Table 16",
        "So it does for captions",
        "it works",
        ("pretraining",),
        gain(named("caption-projections"), named("image-longer"), at(("caption", "test"))),
    ),
    Claim(
        "Rewarded soups",
        "Each expert is better at boxes of the size it was rewarded for than the expert that they start from",
        "arXiv 2306.04488: so it is",
        ("rewarded-soups",),
        weakest(
            **{
                size: gain(own("reward"), named("unrewarded"), at((size, "test")))
                for size in ("small", "medium", "large")
            }
        ),
    ),
    Claim(
        "Rewarded soups",
        "Weights between two rewarded experts lie above the straight line",
        "arXiv 2306.04488: a front above the line",
        ("rewarded-soups",),
        above(("small", "medium"), ("small", "large"), ("medium", "large"), kind="reward"),
    ),
    Claim(
        "Rewarded soups",
        "Weights between all three are as good as one model trained on all rewards, in the mean of the sizes",
        "arXiv 2306.04488: near it",
        ("rewarded-soups",),
        gain(
            inside("reward"),
            named("all-rewards"),
            at(("small", "test"), ("medium", "test"), ("large", "test")),
            per=OTHER,
            margin=LOSS,
        ),
    ),
    *(
        Claim(
            "Control",
            f"The average of ratatouille experts is better than that of {what}, {where}",
            "",
            ("averaging",),
            gain(average("ratatouille"), average(kind), places, per=own("vanilla")),
        )
        for kind, what in (("longer", "experts finetuned as long"), ("soup", "soups of as many seeds"))
        for where, places in (("in distribution", home), ("on shifted data", away))
    ),
)
