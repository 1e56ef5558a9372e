"""Text cleaning and the trie of allowed answers."""

import doctest

import pytest
import torch

import unival_core.text
from tests.unival_core.golden import recorded
from unival_core.config import EOS
from unival_core.errors import UnivalError
from unival_core.text import Trie, clean_caption, clean_question

ANSWERS = [[7], [7, 8], [9, 8, 7], [9, 4]]


def test_cleaning_as_recorded() -> None:
    _, note = recorded("text")
    for name, clean in (("pre_question", clean_question), ("pre_caption", clean_caption)):
        for case in note[name]:
            assert clean(case["inp"], case["max_words"]) == case["out"], case


@pytest.mark.parametrize(
    ("text", "words", "cleaned"),
    [
        ("What is the man doing?  ", None, "what is the man doing?"),
        ("...is-this a/b test\n", 4, "is this a b"),
        ("#:;~, Two   DOGS", None, "two dogs"),
        ("<person> runs", None, "<person> runs"),
        ("", None, ""),
    ],
)
def test_questions_are_cleaned(text: str, words: int | None, cleaned: str) -> None:
    assert clean_question(text, words) == cleaned


def test_captions_name_persons() -> None:
    assert clean_caption("<person> and <person>-like") == "person and person like"


def allowed(trie: Trie, tokens: list[int]) -> set[int]:
    node = torch.tensor([Trie.ROOT])
    for token in tokens:
        node = trie.walk(node, torch.tensor([token]))
    return set(trie.keep_allowed(torch.zeros(1, 12), node)[0].exp().nonzero().flatten().tolist())


@pytest.mark.parametrize(
    ("tokens", "follow"),
    [([], {7, 9}), ([7], {EOS, 8}), ([9], {8, 4}), ([9, 8], {7}), ([7, 8, EOS], set()), ([5], set()), ([5, 7], set())],
)
def test_a_trie_allows_what_continues_an_answer(tokens: list[int], follow: set[int]) -> None:
    assert allowed(Trie(ANSWERS), tokens) == follow


def test_the_order_of_answers_does_not_matter() -> None:
    for tokens in ([], [7], [9], [9, 4]):
        assert allowed(Trie(ANSWERS), tokens) == allowed(Trie(ANSWERS[::-1] + ANSWERS), tokens)


def test_rows_walk_and_keep_their_scores_together() -> None:
    trie = Trie(ANSWERS)
    nodes = trie.walk(torch.tensor([Trie.ROOT, Trie.ROOT, trie.dead]), torch.tensor([7, 9, 7]))
    scores = torch.arange(36.0).view(3, 12)
    kept = trie.keep_allowed(scores, nodes)
    never = torch.full_like(scores, -torch.inf)
    never[0, [EOS, 8]] = scores[0, [EOS, 8]]
    never[1, [4, 8]] = scores[1, [4, 8]]
    assert torch.equal(kept, never)


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(UnivalError, match="allowed answer 1 has no tokens"):
        Trie([[5], []])
    with pytest.raises(UnivalError, match="at least one"):
        Trie([])


def test_the_examples_run() -> None:
    assert doctest.testmod(unival_core.text) == doctest.TestResults(failed=0, attempted=5)
