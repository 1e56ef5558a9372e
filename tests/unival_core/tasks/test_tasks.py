"""Every task's words, answers and references, from rows as published."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from tests.unival_core.made_rows import POCKET, cells
from unival_core.config import CONFIGS
from unival_core.data.cells import best, codes, plain, region, several, weighted
from unival_core.data.task import Box, Codes
from unival_core.decoding import GenerationOptions
from unival_core.errors import UnivalError
from unival_core.tasks import TASKS
from unival_core.tasks.image_text_matching import complete

WHAT = " what does the video describe?"


@pytest.mark.parametrize(
    ("task", "row", "prompt", "target", "reference"),
    [
        (
            "caption",
            {"caption": "A dog, asleep."},
            " what does the image describe?",
            "A dog asleep",
            ["A dog, asleep."],
        ),
        ("video-caption", {"caption": "a && b"}, WHAT, "a", ["a", "b"]),
        ("audio-caption", {"caption": "rain"}, WHAT, "rain", ["rain"]),
        (
            "vqa",
            {"question": "What is on/off", "answers": "0.3|!+a lamp&&1.0|!+switch&&1.0|!+knob"},
            " what is on off?",
            "switch",
            {"a lamp": 0.3, "switch": 1.0, "knob": 1.0},
        ),
        ("video-qa", {"question": "who?", "answers": "1.0|!+man"}, " who?", "man", {"man": 1.0}),
        (
            "grounding",
            {"text": "Left <person>", "box": "1,2.5,3,4"},
            ' which region does the text " left person " describe?',
            Box(1, 2.5, 3, 4),
            Box(1, 2.5, 3, 4),
        ),
        (
            "entailment",
            {"hypothesis": "Two dogs run", "caption": "unseen", "label": "neutral"},
            ' does the image describe " two dogs run "?',
            "maybe",
            "maybe",
        ),
        (
            "grounded-caption",
            {"text": "The man", "box": "1,2,3,4"},
            ("  what does the region describe? region:", Box(1, 2, 3, 4)),
            "the man",
            ["The man"],
        ),
        (
            "image-text-matching",
            {"caption": "A dog", "question": "", "answers": "1.0|!+no"},
            ' does the image describe " a dog "?',
            "no",
            "no",
        ),
        (
            "image-text-matching",
            {"caption": "Four", "question": "how many?", "answers": "1.0|!+yes"},
            ' what is the answer to question " how many? ". is " four "?',
            "yes",
            "yes",
        ),
        (
            "video-text-matching",
            {"caption": "a dog", "question": "", "answers": "1.0|!+yes"},
            ' does the video describe " a dog "?',
            "yes",
            "yes",
        ),
        (
            "image-generation",
            {"caption": "A dog,  asleep", "codes": "5 0 7"},
            " what is the complete image? caption: A dog, asleep",
            Codes((5, 0, 7)),
            (5, 0, 7),
        ),
    ],
)
def test_words_are_the_published_ones(task, row, prompt, target, reference):
    kind = TASKS[task]
    assert kind.prompt(row) == prompt
    assert kind.target(row, None) == target
    assert kind.reference(row) == reference


def test_every_task_reads_its_layout_and_is_under_its_name():
    for name, task in TASKS.items():
        assert task.name == name
        row = {column: cells(name, 1)[column] for column in task.columns}
        assert task.prompt(row)
        assert task.target(row, Random(0))
        assert 0 < task.confidence(row) <= 1
        assert not task.answers or task.target(row, None) in task.answers


def test_published_settings():
    settings = {
        name: (task.selected_cols, task.side, task.frames, task.generation.beam) for name, task in TASKS.items()
    }
    assert settings["caption"] == ((0, 4, 2), 480, 0, 5)
    assert settings["vqa"] == ((0, 5, 2, 3, 4), 480, 0, 5)
    assert settings["grounding"] == ((0, 4, 2, 3), 512, 0, 5)
    assert settings["entailment"][:2] == ((0, 2, 3, 4, 5), 480)
    assert settings["video-caption"] == ((0, 4, 2), 384, 16, 5)
    assert settings["video-qa"] == ((0, 5, 2, 3, 4), 384, 8, 5)
    repeats = {name for name, task in TASKS.items() if task.repeats_prompt}
    assert repeats == {"vqa", "video-qa", "video-qa-msvd", "entailment"}
    caption, grounding = TASKS["caption"].generation, TASKS["grounding"].generation
    assert (caption.max_len_b, caption.unnormalized, caption.no_repeat_ngram) == (22, True, 3)
    assert (grounding.min_len, grounding.max_len_b) == (4, 4)
    assert TASKS["vqa"].confidence({"answers": "0.3|!+a&&0.6|!+b"}) == 0.6


def test_captions_are_learnt_without_marks_and_from_several_at_random():
    caption = TASKS["caption"]
    long = " ".join(f"w{k}" for k in range(30))
    assert caption.target({"caption": long}, Random(0)) == " ".join(long.split()[:20])
    drawn = {caption.target({"caption": "one. && two! && three"}, Random(seed)) for seed in range(20)}
    assert drawn == {"one", "two", "three"}
    assert caption.answer(" it's  a dog . ") == "its a dog"


def test_sizes_follow_the_model():
    base, caption = CONFIGS["base"], TASKS["video-caption"]
    assert caption.sized_for(base) == replace(caption, generation=caption.published.generation)
    assert caption.sized_for(POCKET).generation == caption.generation
    assert (caption.sized_for(POCKET).side, caption.sized_for(POCKET).frames) == (48, 8)
    assert TASKS["caption"].sized_for(POCKET).frames == 0
    for config, count in ((base, 256), (replace(base, code_image_size=256), 1024), (POCKET, 36)):
        options = TASKS["image-generation"].sized_for(config).generation
        assert (options.min_len, options.max_len_b) == (count, count)


def test_cells_are_read_and_checked():
    assert plain("Don't  stop!") == "Dont stop"
    assert several(" a && && b ") == ["a", "b"]
    assert weighted("1|!+a|b&&0.5|!+c ") == {"a|b": 1.0, "c": 0.5}
    assert best("0.5|!+a&&0.5|!+b") == "a"
    for read, text, message in [
        (several, "&&", "empty"),
        (weighted, "", "confidence"),
        (weighted, "1.0|!+", "confidence"),
        (weighted, "high|!+a", "'high"),
        (weighted, "nan|!+a", "confidence"),
        (weighted, "a&&1.0|!+b", "confidence"),
        (region, "1,2,3", "x0,y0,x1,y1"),
        (region, "1,2,3,x", "x0,y0,x1,y1"),
        (region, "5,2,5,4", "empty or infinite"),
        (region, "1,2,inf,4", "empty or infinite"),
        (codes, "1 b", "integers"),
        (codes, " ", "empty"),
        (TASKS["entailment"].target, {"label": "unclear"}, "'unclear' is none of entailment"),
    ]:
        arguments = (text, None) if isinstance(text, dict) else (text,)
        with pytest.raises(UnivalError, match=message):
            read(*arguments)


def matching_rows(kind: str) -> list[dict[str, str]]:
    rows = [{"caption": f"a {word}", "question": "", "answers": "", "objects": word} for word in ("dog", "cat", "cow")]
    if kind == "qa":
        rows = [{"caption": "", "question": "who?", "answers": f"1.0|!+{word}"} for word in ("man", "boy", "girl")]
    return [{"objects": "", "dataset": "made", "type": kind, **row} for row in rows]


@pytest.mark.parametrize("kind", ["caption", "video_caption", "qa"])
def test_half_of_the_matches_are_made_wrong(kind):
    rows, told = matching_rows(kind), Counter()
    right = "a dog" if kind != "qa" else "man"
    for seed in range(200):
        generator = Random(seed)
        row = complete(rows[0], lambda: generator.choice(rows), generator)  # noqa: B023
        answer = best(row["answers"])
        assert (row["caption"] == right) == (answer == "yes")
        assert row["question"] == rows[0]["question"]
        told[answer] += 1
    assert 75 < told["yes"] < 125


def test_a_match_that_cannot_be_made_wrong_is_right():
    row = matching_rows("caption")[0]
    assert {best(complete(row, lambda: row, Random(seed))["answers"]) for seed in range(20)} == {"yes"}
    told = {**row, "type": "matching", "answers": "1.0|!+no"}
    assert complete(told, lambda: row, Random(0)) == told


def test_a_wrong_task_says_so():
    vqa = TASKS["vqa"]
    with pytest.raises(UnivalError, match="no metric 'VQA': choose from VQA accuracy"):
        replace(vqa, metrics=("VQA",))
    with pytest.raises(UnivalError, match="no column 'question' in its layout, uniq_id, media"):
        replace(vqa, layout=("uniq_id", "media"))
    with pytest.raises(UnivalError, match="its example row has no 'answers'"):
        replace(vqa, example={"question": "who?"})
    with pytest.raises(UnivalError, match="cannot read 'smell' or write 'text'"):
        replace(vqa, medium="smell")
    with pytest.raises(UnivalError, match="name the column of its images 'media'"):
        replace(vqa, columns=("uniq_id", "question", "answers", "objects"))
    assert isinstance(vqa.generation, GenerationOptions)
