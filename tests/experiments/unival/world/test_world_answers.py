"""What is asked in the embedded world: every answer follows from the scene, and no text gives it away.

The answers are worked out a second time here, by rules of their own that read the question's words.
"""

import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from experiments.unival.world import tasks
from experiments.unival.world.audit import audit, audit_all
from experiments.unival.world.build import make_world
from experiments.unival.world.claims import ENTAILMENT
from experiments.unival.world.concepts import COLOURS, DIGITS, MOTIONS, PLACES, VOCABULARY, is_held_out
from experiments.unival.world.grammar import audio_captions, captions, video_captions, web_caption
from experiments.unival.world.questions import KNOWLEDGE, PRETRAIN_VQA, TRAIN_VQA, VIDEO_QA, draw_rows
from experiments.unival.world.regions import CARD_BOX, GROUNDING
from experiments.unival.world.scenes import Pool, load_scans, sample_scene, sample_video
from experiments.unival.world.tasks import TASKS


def pool_of(count, novel=False, video=False, split="test"):
    rng, scans = np.random.default_rng(0), load_scans().by_digit[split]
    return Pool([(sample_video if video else sample_scene)(rng, scans, novel) for _ in range(count)], novel)


@pytest.fixture(scope="module")
def pool():
    return pool_of(1500)


def named(scene, name):
    """The things that 'three', 'red digit', 'red number' or 'red three' may mean."""
    parts = set(name.split()) - {"digit", "number", "the"}
    return [t for t in scene.things if parts <= {COLOURS[t.colour], DIGITS[t.digit]}]


def only(scene, name):
    (thing,) = named(scene, name)
    return thing


def where(thing):
    return PLACES[thing.place]


def spot(words_):
    return words_.removeprefix("at the ").removeprefix("on the ").removeprefix("in the ")


SIDES = {
    "left of": lambda a, b: a.place % 3 < b.place % 3,
    "right of": lambda a, b: a.place % 3 > b.place % 3,
    "above": lambda a, b: a.place // 3 < b.place // 3,
    "below": lambda a, b: a.place // 3 > b.place // 3,
}
PARITY = ("even", "odd")


def moves(thing, words):
    return MOTIONS[thing.motion] == {"in a circle": "circle"}.get(words, words)


def lie(scene, words):
    """The things at a place, or that move in a way."""
    if words.startswith(("at ", "on ", "in the ")):
        return [thing for thing in scene.things if where(thing) == spot(words)]
    return [thing for thing in scene.things if moves(thing, words)]


def greatest(scene, word):
    return (max if word == "greatest" else min)(thing.digit for thing in scene.things)


RULES = {  # question: answer worked out from the scene alone
    r"what colour is the digit (?:that (?:moves |stands ))?(.*)": lambda s, x: [COLOURS[t.colour] for t in lie(s, x)],
    r"(?:what colour is the|which colour has the) (\w+)": lambda s, n: [COLOURS[only(s, n).colour]],
    r"which digit (?:is|moves|stands) ((?:at|on|in) .*|left|right|up|down|still)": lambda s, x: [
        DIGITS[t.digit] for t in lie(s, x)
    ],
    r"(?:which digit is|what is the) (\w+)(?: digit)?": lambda s, n: [DIGITS[only(s, n).digit]],
    r"where is the (.*)": lambda s, n: [where(only(s, n))],
    r"how many digits (?:do we see|are in sight)": lambda s: [DIGITS[len(s.things)]],
    r"do we see a card": lambda s: [bool(s.card)],
    r"do we see an? (?!card)(.*)": lambda s, n: [bool(named(s, n))],
    r"is the (.*) (left of|right of|above|below) the (.*)": lambda s, a, r, b: [SIDES[r](only(s, a), only(s, b))],
    r"is the (\w+ digit) odd or even": lambda s, n: [PARITY[only(s, n).digit % 2]],
    r"is the (\w+ digit) (odd|even)": lambda s, n, p: [PARITY[only(s, n).digit % 2] == p],
    r"is the (.*) greater than the (.*)": lambda s, a, b: [only(s, a).digit > only(s, b).digit],
    r"which number is the (greatest|smallest)": lambda s, w: [DIGITS[greatest(s, w)]],
    r"what is the sum of the (?:digits|numbers)": lambda s: [DIGITS[sum(t.digit for t in s.things)]],
    r"which number comes after the (.*)": lambda s, n: [DIGITS[only(s, n).digit + 1]],
    r"which number comes before the (.*)": lambda s, n: [DIGITS[only(s, n).digit - 1]],
    r"how many corners has a shape with as many sides as the (.*)": lambda s, n: [DIGITS[only(s, n).digit]],
    r"(?:how|which way) does the (.*) (?:move|go)": lambda s, n: [MOTIONS[only(s, n).motion]],
    r"does the (\w+ digit) (?:move|stand) (.*)": lambda s, n, m: [moves(only(s, n), m)],
}


def solve(scene, question):
    """What every rule that fits the question says; there has to be one."""
    fits = [(rule, re.fullmatch(pattern, question.rstrip("?"))) for pattern, rule in RULES.items()]
    (said,) = [rule(scene, *match.groups()) for rule, match in fits if match]
    return [{True: "yes", False: "no"}.get(answer, answer) for answer in said]


@pytest.mark.parametrize(("makers", "video"), [(TRAIN_VQA, False), (KNOWLEDGE, False), (VIDEO_QA, True)])
@pytest.mark.parametrize("novel", [False, True])
def test_every_answer_follows_from_the_scene(makers, video, novel):
    questions = pool_of(400, novel, video)
    for ask in draw_rows(makers, questions, 600, np.random.default_rng(1)):
        assert solve(questions.scenes[ask.scene], ask.text) == list(ask.answers)[:1], ask


def test_every_word_and_every_answer_is_used(pool):
    rng, videos = np.random.default_rng(9), pool_of(600, video=True)
    asked = {
        "vqa": [*draw_rows(PRETRAIN_VQA, pool, 4000, rng), *draw_rows(KNOWLEDGE, pool, 1000, rng)],
        "video-qa": draw_rows(VIDEO_QA, videos, 2000, rng),
        "entailment": draw_rows(ENTAILMENT, pool, 2000, rng),
    }
    texts = [region.text for region in draw_rows(GROUNDING, pool, 500, rng)] + audio_captions(range(10))
    for task, rows in asked.items():
        assert {answer for ask in rows for answer in ask.answers} == set(TASKS[task].answers)
        texts += [text for ask in rows for text in (ask.text.rstrip("?"), *ask.answers)]
    for scenes, describe in ((pool.scenes, captions), (videos.scenes, video_captions)):
        texts += [text for scene in scenes[:200] for text in describe(scene)]
    texts += [web_caption(scene, rng) for scene in pool.scenes[:200]]
    assert {word for text in texts for word in text.split()} == set(VOCABULARY)


def test_careless_captions_are_sometimes_wrong_but_never_name_a_held_out_pair(pool):
    lone = [scene for scene in pool.scenes if len(scene.things) == 1]
    told = Counter()
    for scene in lone * 4:
        text, thing = web_caption(scene, np.random.default_rng(told.total())), scene.things[0]
        (digit,) = (DIGITS.index(word) for word in text.split() if word in DIGITS)
        assert not is_held_out(digit, thing.colour)
        told[digit == thing.digit] += 1
    assert 0.08 < told[False] / told.total() < 0.2


def test_half_a_place_is_worth_a_part(pool):
    asks = [ask for ask in draw_rows(TRAIN_VQA, pool, 500, np.random.default_rng(0)) if ask.kind == "place"]
    assert {tuple(ask.answers) for ask in asks} >= {("top left", "top", "left"), ("centre",), ("bottom",)}
    assert all(list(ask.answers.values()) in ([1.0], [1.0, 0.3, 0.3]) for ask in asks)


def holds(scene, text):
    """Whether a hypothesis is true of what lies in the scene; 'the red digit' is the first red one, if any."""

    def first(name):
        return next(iter(named(scene, name)), None)

    count = len(scene.things)
    if match := re.fullmatch(r"there is no (.*)", text):
        return not named(scene, match[1])
    if match := re.fullmatch(r"there (?:is|are) (exactly|at least) (\w+) digits?", text):
        wanted = DIGITS.index(match[2])
        return count == wanted if match[1] == "exactly" else count >= wanted
    if match := re.fullmatch(r"there is an? (.*)", text):
        return bool(named(scene, match[1]))
    if match := re.fullmatch(r"the (\w+ number) is greater than the (\w+ number)", text):
        one, other = map(first, match.groups())
        return bool(one and other) and one.digit > other.digit
    if match := re.fullmatch(r"the (\w+ digit) is ((?:at|on|in) .*)", text):
        return bool(first(match[1])) and where(first(match[1])) == spot(match[2])
    if match := re.fullmatch(r"the (\w+ digit) is (odd|even)", text):
        return bool(first(match[1])) and ("even", "odd")[first(match[1]).digit % 2] == match[2]
    match = re.fullmatch(r"(?:the|the colour of the) (\w+) is (\w+)", text)
    return bool(first(match[1])) and COLOURS[first(match[1]).colour] == match[2]


def verdict(scene, text):
    """Yes or no if it is so whatever the card hides (nothing, or any digit of any colour), maybe otherwise."""
    worlds = [scene]
    if scene.card:
        thing = replace(scene.things[0], place=scene.card[0])
        hidden = [replace(thing, digit=digit, colour=colour) for digit in range(10) for colour in range(6)]
        worlds += [replace(scene, things=(*scene.things, more)) for more in hidden]
    truths = {holds(world, text) for world in worlds}
    return "maybe" if len(truths) == 2 else "yes" if truths == {True} else "no"


@pytest.mark.parametrize("novel", [False, True])
def test_every_verdict_follows_from_what_the_card_may_hide(novel):
    claims = pool_of(400, novel)
    for ask in draw_rows(ENTAILMENT, claims, 450, np.random.default_rng(2)):
        assert [verdict(claims.scenes[ask.scene], ask.text)] == list(ask.answers), ask


def test_a_hypothesis_text_comes_as_often_with_each_verdict(pool):
    counts = defaultdict(Counter)
    for ask in draw_rows(ENTAILMENT, pool, 3000, np.random.default_rng(3)):
        counts[ask.text].update(ask.answers)
    assert len(counts) > 150
    assert all(c["yes"] == c["no"] == c["maybe"] for c in counts.values())


def test_a_card_in_sight_does_not_give_the_verdict_away(pool):
    seen = Counter()
    for ask in draw_rows(ENTAILMENT, pool, 3000, np.random.default_rng(4)):
        seen[pool.card[ask.scene] >= 0, next(iter(ask.answers))] += 1
    best = sum(max(seen[card, answer] for answer in ("yes", "no", "maybe")) for card in (True, False))
    assert best / seen.total() < 0.5


def test_yes_and_no_come_with_the_same_texts(pool):
    for makers, scenes in ((TRAIN_VQA, pool), (KNOWLEDGE, pool), (VIDEO_QA, pool_of(600, video=True))):
        counts = defaultdict(Counter)
        for ask in draw_rows(makers, scenes, 2000, np.random.default_rng(5)):
            if {"yes", "no"} & set(ask.answers):
                counts[ask.text].update(ask.answers)
        assert all(abs(c["yes"] - c["no"]) <= 1 for c in counts.values())


def test_regions_are_the_only_ones_that_fit(pool):
    kinds = Counter()
    for region in draw_rows(GROUNDING, pool, 1000, np.random.default_rng(6)):
        scene = pool.scenes[region.scene]
        kinds[region.kind] += 1
        if region.thing == CARD_BOX:
            assert region.text == "the card"
            assert scene.card
            continue
        thing, text = scene.things[region.thing], region.text.replace(" in ", " ").replace("the number", "the")
        if region.kind == "order":
            assert thing.digit == ((max if "greatest" in text else min)(t.digit for t in scene.things))
        elif region.kind == "parity":
            assert [t for t in scene.things if t.digit % 2 == ("odd" in text)] == [thing]
        else:
            assert named(scene, text) == [thing]
    assert set(kinds) == {"pair", "digit", "colour", "card", "parity", "order"}


def test_captions_name_every_digit_in_at_most_twenty_words(pool):
    for scene in (*pool.scenes[:100], *pool_of(100, novel=True).scenes):
        texts = captions(scene)
        assert len(set(texts)) == 5
        for text in texts:
            assert len(text.split()) <= 20
            assert all(f"a {COLOURS[t.colour]} {DIGITS[t.digit]}" in text for t in scene.things)
            assert ("a card" in text) == bool(scene.card)


@pytest.fixture(scope="module")
def middling(tmp_path_factory):
    scenes = {"train": 500, "test": 300}
    rows = {
        task: {"train": 1800, "test": 600}
        for task in ("vqa", "grounding", "entailment", "image-text-matching", "video-qa")
    }
    size = tasks.Size({"image": scenes, "video": {"train": 150, "test": 100}, "audio": {}}, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.SIZES, "middling", size)
        return make_world(tmp_path_factory.mktemp("world") / "middling", size="middling")


def test_no_text_is_worth_more_than_its_kind_of_question(middling):
    for row in audit_all(middling):
        assert row.text_only <= row.prior + 0.06, row
        assert row.majority <= row.prior + 0.03, row
    blind = {row.task: row for row in audit_all(middling)}
    assert blind["entailment"].text_only == pytest.approx(1 / 3, abs=0.01)
    assert blind["image-text-matching"].text_only == pytest.approx(1 / 2, abs=0.01)
    assert blind["vqa"].prior < 0.35
    assert blind["grounding"].text_only < 0.25


def test_the_audit_of_a_leaking_task_shows_the_leak(middling, tmp_path):
    for split in ("train", "test"):
        rows = [line.split("\t") for line in (middling / "entailment" / f"{split}.tsv").read_text().splitlines()]
        leaky = ["\t".join([*row[:3], f"{row[3]} {row[5][::-1]}", *row[4:]]) for row in rows]
        (tmp_path / "entailment").mkdir(exist_ok=True)
        (tmp_path / "entailment" / f"{split}.tsv").write_text("\n".join(leaky) + "\n")
    assert audit(tmp_path, "entailment").text_only > 0.95
