"""What callers from Python give wrongly is told in our words: what it is, both values, the way out, in one line."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unival_core.config import CONFIGS
from unival_core.decoder_cache import DecoderCache
from unival_core.errors import UnivalError
from unival_core.generation import GenerationOptions, generate
from unival_core.inputs import Inputs
from unival_core.likelihood import score_candidates
from unival_core.model import UnivalModel
from unival_core.text import Trie

LAST = CONFIGS["pocket"].vocabulary - 1
IDS = f"ids of the vocabulary lie in 0..{LAST}"
IMAGES = "images are floats in -1..1, N x 3 x height x width, got "
VIDEOS = "videos are floats in -1..1, N x 3 x frames x height x width, got "
AUDIOS = "audios are floats in -1..1, N x samples, got "
FAR = torch.zeros(1, 3, 8, 8, device="meta")
FIVE = GenerationOptions(max_len_b=5)


def ids(*shape: int) -> Tensor:
    return torch.full(shape, 7)


def flags(*values: bool) -> Tensor:
    return torch.tensor(values)


# What somebody gives besides two texts of four ids, or in their place; and what is said.
BATCHES: list[tuple[dict[str, Any], str]] = [
    ({"tokens": ids(0, 4)}, "tokens of shape (0, 4), samples x length: give at least one of both"),
    ({"tokens": ids(2, 0)}, "tokens of shape (2, 0), samples x length: give at least one of both"),
    ({"tokens": ids(4)}, "tokens are ids, an int64 tensor of samples x length, got int64 of shape (4,)"),
    ({"tokens": ids(2, 4).float()}, "an int64 tensor of samples x length, got float32 of shape (2, 4)"),
    ({"tokens": [[0, 5, 2]]}, "an int64 tensor of samples x length, got a list"),
    ({"images": torch.zeros(2, 1, 48, 48)}, f"{IMAGES}float32 of shape (2, 1, 48, 48): give "),
    ({"images": torch.zeros(3, 48, 48)}, f"{IMAGES}float32 of shape (3, 48, 48)"),
    ({"images": torch.zeros(2, 48, 48, 3)}, f"{IMAGES}float32 of shape (2, 48, 48, 3)"),
    ({"images": torch.zeros(2, 3, 0, 48)}, f"{IMAGES}float32 of shape (2, 3, 0, 48)"),
    ({"images": torch.zeros(2, 3, 48, 48, dtype=torch.uint8)}, f"{IMAGES}uint8 of shape (2, 3, 48, 48)"),
    ({"images": torch.zeros(2, 3, 48, 48).numpy()}, f"{IMAGES}a ndarray"),
    ({"videos": torch.zeros(2, 8, 3, 48, 48)}, f"{VIDEOS}float32 of shape (2, 8, 3, 48, 48)"),
    ({"videos": torch.zeros(2, 3, 48, 48)}, f"{VIDEOS}float32 of shape (2, 3, 48, 48)"),
    ({"audios": torch.zeros(2, 1, 16_000)}, f"{AUDIOS}float32 of shape (2, 1, 16000)"),
    ({"audios": torch.zeros(2, 16_000, dtype=torch.int16)}, f"{AUDIOS}int16 of shape (2, 16000)"),
    ({"modality": torch.tensor([0.0, -1.0])}, "modality is int64, one of each of 2 samples, got float32 of shape (2,)"),
    ({"modality": torch.tensor([-1])}, "modality is int64, one of each of 2 samples, got int64 of shape (1,)"),
    ({"media_mask": torch.ones(2)}, "media_mask is bool, one of each of 2 samples, got float32 of shape (2,)"),
]


@pytest.mark.parametrize(("given", "told"), BATCHES, ids=[f"{'-'.join(given)}-{told[-24:]}" for given, told in BATCHES])
def test_a_batch_of_the_wrong_kind_is_refused_where_it_is_made(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UnivalError) as error:
        Inputs(**{"tokens": ids(2, 4), **given})
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def begun(model: UnivalModel, code_rows: Any = None) -> DecoderCache:
    return model.start(model.encode(Inputs(ids(2, 4))), code_rows)


def stepped(model: UnivalModel, tokens: Tensor) -> Tensor:
    cache = begun(model)
    model.decode(ids(2, 1), cache)
    return model.decode(tokens, cache)


def chosen(model: UnivalModel, rows: Any) -> None:
    begun(model).select(rows)


def says(model: UnivalModel, **given: Any) -> None:
    generate(model, Inputs(ids(1, 4)), FIVE, **given)


CALLS: list[tuple[Callable[[UnivalModel], Any], str]] = [
    (lambda m: m.encode(Inputs(ids(2, 4) + LAST)), f"{IDS}, got {LAST + 7}..{LAST + 7}"),
    (lambda m: m.encode(Inputs(ids(2, 4) - 8)), f"{IDS}, got -1..-1"),
    (lambda m: m.encode(Inputs(ids(2, 4).to("meta"))), "tokens on meta, the model on cpu: move one of them, as by"),
    (lambda m: m.encode(Inputs(ids(1, 4), images=FAR)), "images on meta, the model on cpu"),
    (lambda m: m.encode(Inputs(ids(2, 4), modality=torch.tensor([3, -1]))), "`modality` is -1, 0, 1 or 2, got 3"),
    (lambda m: m.decode(ids(2, 3) + LAST, begun(m)), IDS),
    (lambda m: stepped(m, ids(2, 1) + LAST), IDS),
    (lambda m: m.decode(ids(2, 0), begun(m)), "tokens of shape (2, 0), rows x length: give at least one of both"),
    (lambda m: m.decode(ids(2), begun(m)), "tokens are ids, an int64 tensor of rows x length, got int64 of shape (2,)"),
    (lambda m: begun(m, flags(True)), "code_rows is bool, one of each of 2 samples, got bool of shape (1,)"),
    (lambda m: begun(m, torch.tensor([1, 0])), "code_rows is bool, one of each of 2 samples, got int64 of shape (2,)"),
    (lambda m: chosen(m, torch.tensor([0, 2])), "rows to go on lie in 0..1, got [0, 2]"),
    (lambda m: chosen(m, ids(0)), "rows to go on are int64 indices, at least one, got int64 of shape (0,)"),
    (lambda m: chosen(m, flags(True, False)), "rows to go on are int64 indices, at least one, got bool of shape (2,)"),
    (lambda m: says(m, prefix=[[LAST + 1]]), f"{IDS}, got 0..{LAST + 1}"),
    (lambda m: says(m, prefix=[5]), "prefixes are lists of ids, one list for each sample, got [5]"),
    (lambda m: says(m, constraint=Trie([[900]])), f"an allowed answer has the id 900, the vocabulary ends at {LAST}"),
    (lambda m: score_candidates(m, Inputs(ids(1, 4)), [[900]]), f"{IDS}, got 900..900"),
    (lambda m: GenerationOptions(beam=2.5), "beam, min_len, no_repeat_ngram and top_k are whole numbers, got 2.5"),
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(("call", "told"), CALLS, ids=[told[:30] + str(place) for place, (_, told) in enumerate(CALLS)])
def test_what_a_model_cannot_do_is_told(pocket: UnivalModel, call: Callable[[UnivalModel], Any], told: str) -> None:
    with pytest.raises(UnivalError) as error:
        call(pocket)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_ids_at_the_ends_and_other_floats_are_fine(pocket: UnivalModel) -> None:
    """What is refused above begins where it should: the last id, int32, media in another precision."""
    images = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    exact = pocket(Inputs(torch.tensor([[0, LAST]]), images=images), torch.tensor([[0]]))
    for tokens, media in ((torch.tensor([[0, LAST]]).int(), images), (torch.tensor([[0, LAST]]), images.double())):
        assert torch.equal(pocket(Inputs(tokens, images=media), torch.tensor([[0]])), exact)
