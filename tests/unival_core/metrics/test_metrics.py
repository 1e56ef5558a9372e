"""Metrics: equal to the COCO caption evaluation on its golden captions, and to hand-computed cases."""

import collections
import doctest
import importlib.util
import json
import math
import pickle
import shutil

import numpy as np
import pytest

from tests import DATA
from unival_core import metrics
from unival_core.errors import UnivalError
from unival_core.metrics import METRICS, accuracy, captions, tokens

GOLDEN = json.loads((DATA / "metrics" / "golden_metrics.json").read_text(encoding="utf-8"))
IDS = [item["id"] for item in GOLDEN["items"]]
HYPOTHESES = [item["hyp"] for item in GOLDEN["items"]]
REFERENCES = [item["refs"] for item in GOLDEN["items"]]
GOLDEN_TOKENS = {"ptb": "ptb", "plain": "simple", "raw": "raw_lower"}
GOLDEN_NAMES = {f"BLEU@{k}": f"Bleu_{k}" for k in (1, 2, 3, 4)} | {"ROUGE-L": "ROUGE_L", "CIDEr-D": "CIDEr"}


def assert_golden(scores, name, tokenizer):
    expected = GOLDEN["scores"][GOLDEN_TOKENS[tokenizer]]
    assert scores.value == pytest.approx(expected["corpus"][name], abs=1e-6)
    np.testing.assert_allclose(scores.per_example, [expected["per_item"][name][i] for i in IDS], atol=1e-6)
    assert scores.n == len(IDS)
    assert tokenizer in scores.note


@pytest.mark.parametrize("tokenizer", GOLDEN_TOKENS)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_caption_scores_equal_the_golden_ones(name, tokenizer):
    assert_golden(METRICS[name](HYPOTHESES, REFERENCES, tokens=tokenizer), GOLDEN_NAMES[name], tokenizer)


def test_meteor_equals_the_golden_scores_or_says_why_not():
    scores = METRICS["METEOR"](HYPOTHESES, REFERENCES)
    if importlib.util.find_spec("pycocoevalcap") and shutil.which("java"):
        assert_golden(scores, "METEOR", "ptb")
    else:
        assert math.isnan(scores.value)
        assert len(scores.per_example) == 0
        assert scores.note.startswith("not computed: METEOR needs ")


@pytest.mark.parametrize("tokenizer", ["ptb", "plain"])
def test_tokens_equal_the_golden_tokens(tokenizer):
    golden = GOLDEN["tokens"][GOLDEN_TOKENS[tokenizer]]
    split = tokens.TOKENIZERS[tokenizer]
    for item in GOLDEN["items"]:
        expected = golden["hyp"][item["id"]] + golden["refs"][item["id"]]
        assert [split(text) for text in (item["hyp"], *item["refs"])] == [text.split() for text in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # as the Stanford tokenizer 3.4.1 cuts them, punctuation removed
        ("He shouldn't've gone, they'll say.", "he should n't 've gone they 'll say"),
        ("the dogs' tails at 5 o'clock", "the dogs tails at 5 o'clock"),
        (
            "Mr. Smith of St. Louis, Wash. vs. no. 5 and No one.",
            "mr. smith of st. louis wash. vs. no. 5 and no one",
        ),
        ("10,000 people -- 50% off, 1½ cups (£5)!!", "10,000 people 50 % off 1 1/2 cups -lrb- # 5 -rrb- !!"),
        ("a dog<unk>cat and/or :)", "a dog <unk> cat and/or :-rrb-"),
        ("TV’s “best” café—really…", "tv 's best café really"),
        ("gonna get 'em in the '90s", "gon na get 'em in the '90s"),
        ("A man at AT&T, a&b here.", "a man at at&t a & b here"),
        ("www.example.org or me@example.org", "www.example.org or me@example.org"),
        ("", ""),
    ],
)
def test_ptb_tokens_beyond_the_golden_captions(text, expected):
    assert tokens.TOKENIZERS["ptb"](text) == expected.split()


def test_cider_depends_on_the_documents():
    few = GOLDEN["scores"]["ptb_first8_cider"]
    scores = metrics.cider_d(HYPOTHESES[:8], REFERENCES[:8])
    assert scores.value == pytest.approx(few["corpus"], abs=1e-6)
    np.testing.assert_allclose(scores.per_example, [few["per_item"][i] for i in IDS[:8]], atol=1e-6)
    assert metrics.cider_d(HYPOTHESES[:1], REFERENCES[:1]).value == GOLDEN["scores"]["ptb_single_image_cider"] == 0
    table = metrics.document_frequencies(REFERENCES)
    cached = metrics.cider_d(HYPOTHESES[:1], REFERENCES[:1], frequencies=table)
    assert cached.value == pytest.approx(GOLDEN["scores"]["ptb"]["per_item"]["CIDEr"][IDS[0]], abs=1e-6)
    assert cached.note == "ptb tokens, cached document frequencies of 32"


def test_cider_of_a_perfect_caption_is_ten():
    assert metrics.cider_d(["a b c d", "e f g h"], [["a b c d"], ["e f g h"]]).per_example == pytest.approx([10, 10])


def test_frequency_tables_survive_a_file(tmp_path):
    table = metrics.document_frequencies(REFERENCES)
    metrics.save_frequencies(tmp_path / "table.json", table)
    assert metrics.load_frequencies(tmp_path / "table.json") == table
    published = {"ref_len": 32, "document_frequency": collections.defaultdict(float, table.counts)}
    (tmp_path / "table.p").write_bytes(pickle.dumps(published, protocol=2))
    assert metrics.load_frequencies(tmp_path / "table.p") == table


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Malicious:
        def __reduce__(self):
            return print, ("this ran",)

    (tmp_path / "bad.p").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UnivalError, match=r"bad.p: .*builtins.print, which is refused"):
        metrics.load_frequencies(tmp_path / "bad.p")
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(UnivalError, match=r"empty\.json: not a table"):
        metrics.load_frequencies(tmp_path / "empty.json")


def test_bleu_statistics_recombine_to_the_corpus_score():
    scores = metrics.bleu(HYPOTHESES, REFERENCES, order=4)
    assert scores.combine(scores.statistics.mean(axis=0)) == pytest.approx(scores.value)
    half = metrics.bleu(HYPOTHESES[:16], REFERENCES[:16], order=4).value
    halves = np.stack([scores.statistics[:16].mean(axis=0), scores.statistics[16:].mean(axis=0)])
    assert scores.combine(np.repeat(halves, 2, axis=0)).shape == (4,)
    doubled = np.concatenate([scores.statistics[:16]] * 2).mean(axis=0)
    assert scores.combine(doubled) == pytest.approx(half)


def test_bleu_by_hand():
    # 3 of 4 words and 1 of 3 bigrams match; the closest reference has 5 words: brevity exp(1 - 5/4).
    scores = metrics.bleu(["a b x c"], [["a b c d e"]], order=2)
    assert scores.value == pytest.approx(math.exp(1 - 5 / 4) * math.sqrt(3 / 4 * 1 / 3), abs=1e-8)


def test_rouge_by_hand():
    # longest common subsequence a b c: precision 3/4, recall 3/5.
    expected = (1 + 1.44) * 0.75 * 0.6 / (0.6 + 1.44 * 0.75)
    assert metrics.rouge_l(["a b x c"], [["a b c d e"]]).value == pytest.approx(expected)
    assert metrics.rouge_l([""], [["a"]]).value == 0


def test_vqa_accuracy_weighs_answers_and_only_strips():
    scores = metrics.vqa_accuracy(
        [" red", "Red", "two", "dog"], [{"red": 1.0}, {"red": 1.0}, {"two": 0.3, "2": 0.6}, {}]
    )
    assert scores.per_example.tolist() == [1.0, 0.0, 0.3, 0.0]
    assert scores.value == pytest.approx(0.325)


def test_exact_match():
    assert metrics.exact_match(["yes ", "no"], ["yes", "maybe"]).per_example.tolist() == [1, 0]


def test_box_iou_by_hand():
    iou = metrics.box_iou([[0, 0, 2, 2], [0, 0, 1, 1], [3, 3, 2, 2]], [[1, 0, 3, 2], [2, 2, 3, 3], [0, 0, 1, 1]])
    assert iou == pytest.approx([2 / 6, 0, 0], abs=1e-6)  # the third box is inside out: two negative sides, no overlap


def test_box_accuracy_thresholds_and_misses():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4], [math.nan] * 4]
    whole = [[0, 0, 10, 10]] * 4
    # 1e-6 in the union keeps an exact half just below the threshold, as in the original.
    assert metrics.box_accuracy(boxes, whole).per_example.tolist() == [1, 0, 0, 0]
    assert metrics.box_accuracy(boxes, whole, threshold=0.4).value == 0.5
    assert metrics.box_accuracy(boxes, whole, threshold=0.0).value == 0.75


def test_box_accuracy_by_size():
    areas = [29_999, 30_000, 30_001, 99_999, 100_000, 100_001, 200_000]  # of exactly a limit: of no size
    answers = [[0, 0, area, 1] for area in areas]
    right = [*answers[:3], answers[0], *answers[4:6], answers[0]]
    found = {size: METRICS[f"Acc@0.5 {size}"](right, answers) for size in accuracy.SIZES}
    assert {size: scores.per_example.tolist() for size, scores in found.items()} == {
        "small": [1],
        "medium": [1, 0],
        "large": [1, 0],
    }
    of_all = [METRICS[f"Acc@0.5 {size} of all"](right, answers) for size in accuracy.SIZES]
    assert [scores.value for scores in of_all] == [1 / 7, 1 / 7, 1 / 7]
    assert sum(s.per_example for s in of_all).tolist() == [1, 0, 1, 0, 0, 1, 0]  # as the whole, but for the limits
    own = [metrics.box_accuracy(right, answers, size=size, areas=(30_000, 100_000)).n for size in accuracy.SIZES]
    assert own == [1, 3, 3]
    none = METRICS["Acc@0.5 large of all"](right[:3], answers[:3])
    assert (none.value, none.n) == (0, 3)
    none = metrics.box_accuracy(right, answers, size="small", areas=(1, 2))
    assert math.isnan(none.value)
    assert none.note == "not computed: no small boxes among 7"


def test_box_accuracy_at_published_thresholds():
    boxes = [[0, 0, 10, height] for height in (4.5, 6.5, 7.5, 8.5, 9.5)]
    found = [METRICS[f"Acc@0.{tenths}"](boxes, [[0, 0, 10, 10]] * 5).value for tenths in range(4, 10)]
    assert found == [1.0, 0.8, 0.8, 0.6, 0.4, 0.2]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_refuses_lists_that_do_not_pair_up(name):
    box = [0, 0, 1, 1]
    one, two = ([box], [box, box]) if name.startswith("Acc@") else (["a"], [["a"], ["a"]])
    with pytest.raises(UnivalError, match="1 predictions but 2 references"):
        METRICS[name](one, two)
    with pytest.raises(UnivalError, match="nothing to score"):
        METRICS[name]([], [])


def test_errors_name_what_is_wrong():
    with pytest.raises(UnivalError, match="unknown tokenisation 'bpe': choose from ptb, plain, raw"):
        metrics.bleu(["a"], [["a"]], tokens="bpe")
    with pytest.raises(UnivalError, match="example 1: references are 'a b'"):
        metrics.cider_d(["a", "b"], [["a"], "a b"])
    with pytest.raises(UnivalError, match="unknown box size 'tiny'"):
        metrics.box_accuracy([[0, 0, 1, 1]], [[0, 0, 1, 1]], size="tiny")
    with pytest.raises(UnivalError, match=r"shape \(1, 3\), not \(n, 4\)"):
        metrics.box_iou([[0, 0, 1]], [[0, 0, 1]])


@pytest.mark.parametrize("module", [accuracy, captions, tokens])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


# -- the table

EXAMPLES = {  # by what a metric reads: a right and a wrong prediction, and their references
    "vqa_accuracy": (["red", "two"], [{"red": 1.0}, {"three": 1.0}]),
    "exact_match": (["red", "two"], ["red", "three"]),
    "box_accuracy": ([[0, 0, 9, 9], [50, 50, 60, 60]], [[0, 0, 9, 9], [0, 0, 9, 9]]),
    "code_accuracy": ([[1, 2], [3, 4]], [[1, 2], [5, 6]]),
    "negative log-likelihood": ([0.1, 2.0], ["a", "b"]),
    "confidence": ([0.9, 0.2], ["a", "b"]),
    "captions": (["a dog runs fast now", "two"], [["a dog runs fast now"], ["a cat sat on it"]]),
}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_whole(name):
    metric = METRICS[name]
    assert metric.label, f"{name} lacks a label"
    assert (metric.unit, metric.factor) in (("%", 100), ("× 100", 100), ("nats", 1)), f"{name} lacks a unit"
    least, greatest = metric.range
    assert least < greatest, f"{name} lacks a range"
    function = getattr(metric.function, "func", metric.function)
    predictions, references = EXAMPLES.get(getattr(function, "__name__", ""), EXAMPLES["captions"])
    predictions, references = EXAMPLES.get(name, (predictions, references))
    if metric.size in ("medium", "large"):
        side = {"medium": 200, "large": 400}[metric.size]
        predictions, references = [[0, 0, side, side], [0, 0, 1, 1]], [[0, 0, side, side]] * 2
    scores = metric(predictions, references)
    if scores.note.startswith("not computed"):
        pytest.skip(scores.note)
    assert least <= scores.value <= greatest, f"{name} leaves its range"
    assert len(scores.per_example) == 2, f"{name} lacks scores of examples"
    if metric.is_mean:
        assert scores.value == scores.per_example.mean(), f"{name} is no mean of examples"
    right, wrong = scores.per_example
    assert (right > wrong) == metric.higher_is_better, f"{name} has another direction"


def test_the_bounds_of_box_sizes_can_be_moved():
    boxes = [[0, 0, 9, 9], [0, 0, 99, 99]]
    assert METRICS["Acc@0.5 small"](boxes, boxes, areas=(100, 200)).n == 1
    assert METRICS["Acc@0.5 small"](boxes, boxes, areas=(1e5, 2e5)).n == 2
