"""Text, boxes and codes as ids, in the published vocabulary and in a trained one."""

import json
from pathlib import Path

import pytest

from tests.unival_core.golden import SHARED, recorded
from unival_core.config import CONFIGS, EOS, UNK, replace
from unival_core.errors import UnivalError
from unival_core.vocabulary import PUBLISHED_FILES, Tokenizer

POCKET = CONFIGS["pocket"]
TEXTS = ["a red 7 and a blue 12.", "what is it?", 'does the image describe " a red 7 "?']


@pytest.fixture(scope="module")
def published() -> Tokenizer:
    if not (SHARED / "BPE").is_dir():
        pytest.skip(f"needs the published files in {SHARED / 'BPE'}")
    return Tokenizer.published(SHARED / "BPE")


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS, POCKET)


def test_published_ids_as_recorded(published: Tokenizer) -> None:
    _, note = recorded("text")
    for case in note["encode"]:
        assert published.encode(case["text"]) == case["ids"]
        assert published.decode([0, *case["ids"], 2]) == case["decode"]
    special = note["special"]
    assert (published.bos, published.pad, published.eos, published.unk) == (0, 1, 2, 3)
    assert (published.mask, published.code_offset) == (special["mask"], special["code_0"])
    assert (published.bin_offset, published.size) == (special["bin_0"], special["size"])


def test_bins_are_named(published: Tokenizer) -> None:
    _, note = recorded("text")
    for case in note["bins"]:
        assert published.decode(case["ids"]) == case["text"].replace(" ", "")


def test_any_text_survives_the_published_vocabulary(published: Tokenizer) -> None:
    for text in (" Don't  stop:\tcafé 你好 😀 3.14\n", "", "<s> <bin_3> <|endoftext|>", "\u2028\x85\xad"):
        assert published.decode(published.encode(text)) == text


def test_boxes_as_recorded(published: Tokenizer) -> None:
    _, note = recorded("preproc")
    for case in note["images"]:
        size, sides = (case["w"], case["h"]), {"side": case["patch_image_size"], "max_side": case["max_image_size"]}
        ids = published.box_to_ids(case["box"], size, **sides)
        assert [index - published.bin_offset for index in ids] == case["bins"]
        assert published.ids_to_box(ids, size, **sides) == pytest.approx(case["dequantised"], abs=0)


def test_box_to_bins_to_box_moves_at_most_half_a_bin(trained: Tokenizer) -> None:
    box, size = (3.0, 10.0, 40.5, 47.0), (48, 60)
    back = trained.ids_to_box(trained.box_to_ids(box, size), size)
    for one, other, pixels in zip(box, back, size * 2, strict=True):
        assert abs(one - other) <= pixels / (POCKET.bins - 1) / 2 + 1e-4
    ids = trained.box_to_ids(back, size)
    assert trained.box_to_ids(trained.ids_to_box(ids, size), size) == ids


def test_boxes_beyond_the_image_end_at_its_edge(trained: Tokenizer) -> None:
    first, last = POCKET.bin_offset, POCKET.vocabulary - 1
    assert trained.box_to_ids((-3, 0, 70, 48), (48, 48)) == [first, first, last, last]


def test_a_smaller_side_uses_fewer_bins(trained: Tokenizer) -> None:
    whole = trained.box_to_ids((0, 0, 48, 48), (48, 48), side=256, max_side=512)
    assert whole[2] - POCKET.bin_offset == round((POCKET.bins - 1) / 2 + 1e-9)
    assert trained.ids_to_box(whole, (48, 48), side=256, max_side=512)[2] == pytest.approx(48, abs=48 / 23)


@pytest.mark.parametrize("ids", [[400], [400, 401, 402, 5], [400, 401, 402, 424]])
def test_a_box_is_four_bins(trained: Tokenizer, ids: list[int]) -> None:
    with pytest.raises(UnivalError, match=r"a box is four ids in 400\.\.423, got"):
        trained.ids_to_box(ids, (48, 48))


def test_codes_are_ids(trained: Tokenizer) -> None:
    ids = trained.codes_to_ids([0, 15, 3])
    assert ids == [384, 399, 387]
    assert trained.ids_to_codes(ids) == [0, 15, 3]
    with pytest.raises(UnivalError, match=r"0\.\.15, got 0\.\.16"):
        trained.codes_to_ids([0, 16])
    with pytest.raises(UnivalError, match=r"384\.\.399"):
        trained.ids_to_codes([400])


def test_trained_words_survive(trained: Tokenizer) -> None:
    for text in TEXTS:
        assert trained.decode(trained.encode(text)) == text
        assert UNK not in trained.encode(text)


def test_case_and_spaces_do_not_matter_to_a_trained_vocabulary(trained: Tokenizer) -> None:
    assert trained.encode("  A   RED\n7") == trained.encode("a red 7") == trained.encode(" a red 7")


def test_unknown_words_are_unk(trained: Tokenizer) -> None:
    ids = trained.encode("a green 7")
    assert ids == [trained.encode("a")[0], UNK, trained.encode("7")[0]]
    assert "<unk>" in trained.decode(ids)
    assert set(trained.encode("<s><pad></s>")) == {UNK}  # names in a text are no specials


def test_frequent_words_come_first_and_order_of_texts_does_not_matter() -> None:
    one, other = Tokenizer.train(TEXTS, POCKET), Tokenizer.train(reversed(TEXTS), POCKET)
    assert one.to_json() == other.to_json()
    small = Tokenizer.train(TEXTS, replace(POCKET, text_ids=5 + 3))
    assert json.loads(small.to_json())["words"] == ["Ġa", "Ġ7", "Ġred"]
    assert small.size == 8 + POCKET.codes + POCKET.bins


def test_a_trained_vocabulary_is_stored_as_json(trained: Tokenizer) -> None:
    again = Tokenizer.from_json(trained.to_json())
    assert again.to_json() == trained.to_json()
    assert again.encode(TEXTS[2]) == trained.encode(TEXTS[2])
    with pytest.raises(UnivalError, match="not a stored tokenizer"):
        Tokenizer.from_json('{"words": []}')


def test_decoding_drops_bos_and_eos_and_names_the_rest(trained: Tokenizer) -> None:
    ids = [0, *trained.encode("red"), 1, 383, 384, 423, EOS]
    assert trained.decode(ids) == "red<pad><mask><code_0><bin_23>"
    with pytest.raises(UnivalError, match=r"id 424 is outside the vocabulary 0\.\.423"):
        trained.decode([424])


def test_the_layout_must_be_the_models(trained: Tokenizer) -> None:
    assert trained.check(POCKET) is trained
    with pytest.raises(UnivalError, match=r"\(384, 16, 24\) in the tokenizer and \(50265, 8192, 1000\) in the model"):
        trained.check(CONFIGS["base"])


def test_missing_files_are_named_with_their_origin(tmp_path: Path) -> None:
    with pytest.raises(
        UnivalError, match=r"encoder\.json, vocab\.bpe, dict\.txt are not in .*a or .*b: copy utils/BPE"
    ):
        Tokenizer.published(tmp_path / "a", tmp_path / "b")


def test_changed_files_are_refused(tmp_path: Path) -> None:
    for name in PUBLISHED_FILES:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UnivalError, match=r"encoder\.json is not the published file: SHA-256 44136fa355b3"):
        Tokenizer.published(tmp_path)
