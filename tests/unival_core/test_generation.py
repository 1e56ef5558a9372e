"""Generation: the recorded beams to the token, and the laws of searching."""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from tests.unival_core.golden import fill, filled, inputs_of, recorded
from unival_core.config import BOS, CONFIGS, EOS, PAD, UNK, replace
from unival_core.decoding import Beam, Greedy, Sampling, check_logits
from unival_core.ensemble import Ensemble
from unival_core.errors import NotFinite, UnivalError
from unival_core.generation import GenerationOptions, Hypothesis, IdRange, generate
from unival_core.likelihood import score_candidates
from unival_core.model import Inputs, UnivalModel
from unival_core.text import Trie

POCKET = CONFIGS["pocket"]
BINS = IdRange(POCKET.bin_offset, POCKET.vocabulary)
ANSWERS = [[10], [10, 11], [12, 13, 14], [15], [15, 16, 17, 18], [19, 11]]
RUNS = ["default", "greedy", "unnormalized", "minlen4_max4", "range", "ngram2", "caption_eval", "lenpen2_temp0.7"]
RUNS += ["trie", "trie_unnormalized", "trie_zero_shot", "trie_prefix_unnormalized", "prefix_unnormalized"]

# The recordings


@pytest.fixture(scope="module")
def narrow() -> UnivalModel:
    _, note = recorded("tiny_beam")
    return filled(replace(CONFIGS["tiny"], video=None, audio=None), scale=note["embed_tokens_multiplier"])


@pytest.fixture
def variant(narrow: UnivalModel, request: pytest.FixtureRequest) -> Iterator[UnivalModel]:
    """The model of the recordings, with the eos row of one of their variants."""
    _, note = recorded("tiny_beam")
    table = narrow.encoder.embed_tokens.weight.data
    before = table[EOS].clone()
    if note["eos_row_tweaks"][request.param]:
        row, factor = note["eos_row_tweaks"][request.param]
        table[EOS] = factor * table[row]
    yield narrow
    table[EOS] = before


def options_of(args: dict[str, Any]) -> GenerationOptions:
    return GenerationOptions(
        beam=args["beam_size"],
        max_len_b=args["max_len_b"],
        min_len=args["min_len"],
        len_penalty=args.get("len_penalty", 1.0),
        unnormalized=not args.get("normalize_scores", True),
        temperature=args.get("temperature", 1.0),
        no_repeat_ngram=args.get("no_repeat_ngram_size", 0),
        renormalize=not args.get("zero_shot", False),
    )


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("variant", ["plain", "eosA", "eosB"], indirect=True)
def test_beams_as_recorded(variant: UnivalModel, name: str, request: pytest.FixtureRequest) -> None:
    tensors, note = recorded("tiny_beam")
    key = f"{request.node.callspec.params['variant']}.{name}"
    run = note["runs"][key]
    constraint = Trie(note["trie_answers"]) if run["trie"] else None
    if "constraint_range" in run["args"]:
        constraint = IdRange(*map(int, run["args"]["constraint_range"].split(",")), specials="written")
    prefix = [[token for token in row if token != PAD] for row in tensors["in.prefix_tokens"].tolist()]
    found = generate(
        variant,
        inputs_of(tensors),
        options_of(run["args"]),
        constraint=constraint,
        prefix=prefix if run["prefix"] else None,
    )
    # Without a trie the original may leave a prefix; where it can, its choice among equals is an accident.
    for sample in [2] if name == "prefix_unnormalized" else range(3):
        hypotheses = found[sample]
        tokens = [[token for token in row if token != PAD] for row in tensors[f"{key}.tokens"][sample].tolist()]
        assert [hypothesis.tokens for hypothesis in hypotheses] == tokens
        scores = tensors[f"{key}.scores"][sample].tolist()
        assert [hypothesis.score for hypothesis in hypotheses] == pytest.approx(scores, abs=1e-4)
        for hypothesis, steps in zip(hypotheses, tensors[f"{key}.positional_scores"][sample].tolist(), strict=True):
            assert hypothesis.token_scores == pytest.approx(steps[: len(hypothesis.tokens)], abs=1e-4)


@pytest.mark.parametrize("variant", ["plain"], indirect=True)
@pytest.mark.parametrize("rows", [64, 4])
def test_candidates_as_recorded(variant: UnivalModel, rows: int) -> None:
    tensors, note = recorded("tiny_allcand")
    answers = list(note["answers"].values())
    prompts = [prompt[1:] for prompt in note["prompts"]]
    scores = score_candidates(variant, inputs_of(tensors), answers, prefix=prompts, rows=rows)
    torch.testing.assert_close(scores, tensors["scores"], atol=1e-4, rtol=0)
    assert torch.equal(scores.argmax(1), tensors["argmax"])


# The laws


@pytest.fixture(scope="module")
def writer() -> UnivalModel:
    """A pocket model that has a lot to say: its words vary, and its sentences differ in length."""
    model = UnivalModel(POCKET)
    fill(model, scale=6.0)
    model.decoder.layernorm_embedding.weight.data.mul_(0.1)  # else it repeats the word it has just read
    table = model.encoder.embed_tokens.weight.data
    table[EOS] = 1.1 * table[166]
    return model.eval()


def batch(seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 300, (3, 9), generator=generator)
    tokens[:, 0] = BOS
    for row, length in enumerate((9, 5, 3)):
        tokens[row, length - 1] = EOS
        tokens[row, length:] = PAD
    return Inputs(tokens=tokens, images=torch.randn(3, 3, 48, 48, generator=generator))


def alone(inputs: Inputs, row: int) -> Inputs:
    assert inputs.images is not None
    kept = inputs.tokens[row] != PAD
    return Inputs(tokens=inputs.tokens[row : row + 1, kept], images=inputs.images[row : row + 1])


@torch.no_grad()
def log_probabilities(model: UnivalModel, inputs: Inputs, tokens: Sequence[int]) -> torch.Tensor:
    """Of every next token behind bos + tokens, without a cache."""
    return model(inputs, torch.tensor([[BOS, *tokens]])).log_softmax(-1)[0]


def same(one: list[Hypothesis], other: list[Hypothesis]) -> None:
    assert [h.tokens for h in one] == [h.tokens for h in other]
    for left, right in zip(one, other, strict=True):
        assert left.score == pytest.approx(right.score, abs=1e-4)
        assert left.token_scores == pytest.approx(right.token_scores, abs=1e-4)


def test_greedy_takes_the_likeliest_token_of_the_uncached_model(writer: UnivalModel) -> None:
    inputs = batch()
    lengths = []
    for row, (hypothesis,) in enumerate(generate(writer, inputs, GenerationOptions(max_len_b=25))):
        tokens: list[int] = []
        while len(tokens) < 25 and EOS not in tokens:
            scores = log_probabilities(writer, alone(inputs, row), tokens)[-1]
            scores[[PAD] if tokens else [PAD, EOS]] = -torch.inf
            tokens.append(int(scores.argmax()))
        assert hypothesis.answer == [token for token in tokens if token != EOS]
        lengths.append(len(tokens))
    assert len(set(lengths)) == 3  # rows were dropped on the way


def test_beam_of_one_is_greedy() -> None:
    scores, totals = torch.randn(5, 1, 30).log_softmax(-1), torch.randn(5, 1)
    greedy, beam = Greedy()(scores, totals), Beam(1)(scores, totals)
    assert torch.equal(beam.token[:, :1], greedy.token)
    assert torch.equal(beam.total[:, :1], greedy.total)


def test_scores_are_those_of_the_uncached_model(writer: UnivalModel) -> None:
    inputs = batch()
    for row, hypotheses in enumerate(generate(writer, inputs, GenerationOptions(beam=4, max_len_b=12))):
        assert len(hypotheses) == 4
        assert hypotheses == sorted(hypotheses, key=lambda h: -h.score)
        for hypothesis in hypotheses:
            scores = log_probabilities(writer, alone(inputs, row), hypothesis.tokens[:-1])
            steps = scores[range(len(hypothesis.tokens)), hypothesis.tokens].tolist()
            assert hypothesis.token_scores == pytest.approx(steps, abs=1e-4)
            assert hypothesis.score == pytest.approx(sum(steps) / len(steps), abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(max_len_b=15),
        GenerationOptions(beam=3, max_len_b=15),
        GenerationOptions(beam=3, max_len_a=1.5, max_len_b=1, no_repeat_ngram=2, unnormalized=True),
    ],
)
@pytest.mark.parametrize("prefix", [None, [[20, 21, 22, 23], [], [24]]])
def test_a_sample_gets_in_a_batch_what_it_gets_alone(
    writer: UnivalModel, options: GenerationOptions, prefix: list[list[int]] | None
) -> None:
    inputs = batch(1)
    for row, together in enumerate(generate(writer, inputs, options, prefix=prefix)):
        own = None if prefix is None else [prefix[row]]
        same(together, generate(writer, alone(inputs, row), options, prefix=own)[0])


def test_a_sample_of_a_mixed_batch_gets_what_it_gets_alone(writer: UnivalModel) -> None:
    videos, options = torch.randn(1, 3, 8, 48, 48), GenerationOptions(beam=3, max_len_b=8)
    plain = batch()
    assert plain.images is not None
    mixed = replace(plain, images=plain.images[:1], videos=videos, modality=torch.tensor([-1, 1, 0]))
    found = generate(writer, mixed, options)
    kept = [plain.tokens[row : row + 1, :length] for row, length in enumerate((9, 5, 3))]
    same(found[0], generate(writer, Inputs(kept[0]), options)[0])
    same(found[1], generate(writer, Inputs(kept[1], videos=videos), options)[0])
    same(found[2], generate(writer, Inputs(kept[2], images=plain.images[:1]), options)[0])


def test_lengths_are_kept(writer: UnivalModel) -> None:
    for hypotheses in generate(writer, batch(), GenerationOptions(beam=3, min_len=6, max_len_b=9)):
        assert all(6 <= len(hypothesis.answer) <= 9 for hypothesis in hypotheses)


def test_the_source_sets_the_length(writer: UnivalModel) -> None:
    options = GenerationOptions(min_len=2, max_len_a=1.0, max_len_b=-1)
    answers = [found[0].answer for found in generate(writer, batch(), options)]
    assert [len(answer) for answer in answers] == [8, 4, 2]


def test_the_models_positions_limit_the_length(writer: UnivalModel) -> None:
    (found,) = generate(writer, alone(batch(), 0), GenerationOptions(min_len=63))[0]
    assert len(found.answer) == POCKET.max_positions - 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_words_are_repeated(writer: UnivalModel, size: int) -> None:
    options = GenerationOptions(beam=3, max_len_b=24, min_len=20, no_repeat_ngram=size)
    for hypotheses in generate(writer, batch(), options):
        for hypothesis in hypotheses:
            row = [BOS, *hypothesis.tokens]
            grams = [tuple(row[start : start + size]) for start in range(len(row) - size + 1)]
            assert len(set(grams)) == len(grams)


@pytest.mark.parametrize("beam", [1, 2, 8])
@pytest.mark.parametrize("renormalize", [True, False])
def test_a_trie_is_never_left(writer: UnivalModel, beam: int, renormalize: bool) -> None:
    options = GenerationOptions(beam=beam, renormalize=renormalize, no_repeat_ngram=3)
    for prefix in (None, [[20, 21, 22], [23], []]):
        found = generate(writer, batch(), options, constraint=Trie(ANSWERS), prefix=prefix)
        for hypotheses in found:
            answers = [hypothesis.answer for hypothesis in hypotheses]
            assert all(answer in ANSWERS for answer in answers)
            assert len(answers) == min(beam, len(ANSWERS)) == len({tuple(answer) for answer in answers})


def test_all_answers_in_a_beam_score_as_candidates(writer: UnivalModel) -> None:
    prefix = [[20, 21, 22], [23], [24, 25]]
    scores = score_candidates(writer, batch(), ANSWERS, prefix=prefix)
    options = GenerationOptions(beam=8, unnormalized=True)
    for row, hypotheses in enumerate(generate(writer, batch(), options, constraint=Trie(ANSWERS), prefix=prefix)):
        for hypothesis in hypotheses:
            steps = hypothesis.token_scores[hypothesis.prefix_length :]
            assert sum(steps) == pytest.approx(float(scores[row, ANSWERS.index(hypothesis.answer)]), abs=1e-4)
    assert torch.allclose(scores.exp().sum(1), torch.ones(3), atol=1e-5)  # one of the answers it is


def test_candidates_are_scored_alike_in_any_portion(writer: UnivalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = writer.encode, []
    monkeypatch.setattr(writer, "encode", lambda inputs: calls.append(1) or encode(inputs))
    whole = score_candidates(writer, batch(), ANSWERS)
    assert calls == [1]  # the media are seen once
    torch.testing.assert_close(score_candidates(writer, batch(), ANSWERS, rows=1), whole)
    for row in range(3):
        torch.testing.assert_close(score_candidates(writer, alone(batch(), row), ANSWERS)[0], whole[row])


@pytest.mark.parametrize("beam", [1, 5])
def test_a_box_is_exactly_four_bins(writer: UnivalModel, beam: int) -> None:
    options = GenerationOptions(beam=beam, min_len=4, max_len_b=4)
    for hypotheses in generate(writer, batch(), options, constraint=BINS):
        assert len(hypotheses) == beam
        for hypothesis in hypotheses:
            assert len(hypothesis.answer) == 4
            assert all(BINS.start <= token < BINS.stop for token in hypothesis.answer)


def test_an_image_is_as_many_codes_as_it_has_cells(writer: UnivalModel) -> None:
    codes, cells = IdRange(POCKET.code_offset, POCKET.bin_offset), POCKET.code_side**2
    options = GenerationOptions(sample=True, top_k=8, min_len=cells, max_len_b=1024)
    tokens = batch().tokens
    found = generate(writer, Inputs(tokens), options, constraint=codes, code_rows=torch.ones(3, dtype=torch.bool))
    for (hypothesis,) in found:
        assert len(hypothesis.answer) == cells
        assert all(codes.start <= token < codes.stop for token in hypothesis.answer)


def test_a_prefix_is_forced_and_scored(writer: UnivalModel) -> None:
    prefix = [[20, 21, 22], [23], []]
    for row, hypotheses in enumerate(generate(writer, batch(), GenerationOptions(beam=3, max_len_b=9), prefix=prefix)):
        for hypothesis in hypotheses:
            assert hypothesis.tokens == [*prefix[row], *hypothesis.answer, EOS]
            scores = log_probabilities(writer, alone(batch(), row), hypothesis.tokens[:-1])
            steps = scores[range(len(hypothesis.tokens)), hypothesis.tokens].tolist()
            assert hypothesis.token_scores == pytest.approx(steps, abs=1e-4)


def test_finished_sentences_cost_nothing(writer: UnivalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, rows = writer.decode, []
    monkeypatch.setattr(writer, "decode", lambda tokens, cache: rows.append(len(tokens)) or decode(tokens, cache))
    found = generate(writer, batch(), GenerationOptions(max_len_b=30))
    lengths = [len(hypothesis.tokens) for (hypothesis,) in found]
    assert rows == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_unknown_words_can_be_made_unlikely(writer: UnivalModel) -> None:
    only = IdRange(50, 51, specials="written")
    free, avoided = (
        generate(writer, batch(), GenerationOptions(min_len=5, max_len_b=5, unk_penalty=penalty), constraint=only)
        for penalty in (-100.0, 100.0)
    )
    assert all(found[0].answer == [UNK] * 5 for found in free)
    assert all(UNK not in found[0].answer for found in avoided)


# Sampling


def test_draws_repeat_with_their_seed(writer: UnivalModel) -> None:
    options = GenerationOptions(sample=True, beam=4, max_len_b=8, temperature=3.0)
    one, again, other = (generate(writer, batch(), replace(options, seed=seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert all(len(hypotheses) == 4 for hypotheses in one)
    assert len({tuple(hypothesis.tokens) for hypothesis in one[0]}) > 1


@pytest.mark.parametrize("narrowed", [{"top_k": 1}, {"top_p": 1e-6}])
def test_a_draw_from_one_id_is_greedy(writer: UnivalModel, narrowed: dict[str, Any]) -> None:
    options = GenerationOptions(max_len_b=8)
    greedy = generate(writer, batch(), options)
    for drawn, found in zip(generate(writer, batch(), replace(options, sample=True, **narrowed)), greedy, strict=True):
        same(drawn, found)


def test_draws_follow_the_probabilities() -> None:
    wanted = torch.tensor([0.5, 0.3, 0.15, 0.05])
    scores, totals = wanted.log().expand(1, 1, 4), torch.zeros(1, 1)
    for options, kept in (
        (GenerationOptions(sample=True, beam=4000), 4),
        (GenerationOptions(sample=True, beam=4000, top_k=3), 3),
        (GenerationOptions(sample=True, beam=4000, top_p=0.7), 2),
        (GenerationOptions(sample=True, beam=4000, top_k=1, top_p=0.9), 3),
    ):
        drawn = Sampling(options, torch.device("cpu"))(scores, totals)
        assert drawn.token.shape == (1, 8000)
        assert torch.isneginf(drawn.total[:, 4000:]).all()
        share = torch.bincount(drawn.token[0, :4000], minlength=4) / 4000
        expected = torch.where(torch.arange(4) < kept, wanted, 0) / wanted[:kept].sum()
        assert (share - expected).abs().max() < 0.03
        assert torch.equal(drawn.total[:, :4000].exp(), wanted.log().exp()[drawn.token[:, :4000]])


# Mistakes


def test_impossible_requests_are_told(writer: UnivalModel) -> None:
    inputs = alone(batch(), 0)
    with pytest.raises(UnivalError, match="beam 213 needs 426 ids, the vocabulary has 424"):
        generate(writer, inputs, GenerationOptions(beam=213))
    with pytest.raises(UnivalError, match="2 prefixes for 1 samples"):
        generate(writer, inputs, prefix=[[5], [6]])
    with pytest.raises(UnivalError, match="sample 0: 5 forced tokens and min_len 1 do not fit into 4"):
        generate(writer, inputs, GenerationOptions(max_len_b=4), prefix=[[5] * 5])
    with pytest.raises(UnivalError, match="sample 0: no allowed answer ends within 2 tokens"):
        generate(writer, inputs, GenerationOptions(max_len_b=1), constraint=Trie([[5, 6]]))
    with pytest.raises(UnivalError, match=r"is not within the ids 4\.\.423"):
        generate(writer, inputs, constraint=IdRange(400, 425))
    with pytest.raises(UnivalError, match="beam and min_len are at least 1"):
        GenerationOptions(beam=0)
    with pytest.raises(UnivalError, match=r"above 0 and top_p in \(0, 1\], got 0.0 and 1.0"):
        GenerationOptions(temperature=0.0)
    writer.train()
    try:
        with pytest.raises(UnivalError, match=r"call model\.eval\(\)"):
            generate(writer, inputs)
    finally:
        writer.eval()


# Numbers that say nothing


def spoiled(model: UnivalModel, name: str, value: float) -> UnivalModel:
    """A copy with one row of one tensor changed."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(name)[0] = value
    return other


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("options", [{}, {"beam": 3}, {"beam": 2, "sample": True}], ids=str)
def test_a_model_of_nan_says_nothing(writer: UnivalModel, options: dict[str, Any], value: float) -> None:
    name = "decoder.layers.0.fc1.weight"
    with pytest.raises(NotFinite, match=rf"logits are not finite: {name} holds NaN or infinity"):
        generate(spoiled(writer, name, value), batch(), GenerationOptions(**options))


@pytest.mark.parametrize("prefix", [None, [[7, 8], [7], []]])
def test_a_model_of_nan_ranks_nothing(writer: UnivalModel, prefix: list[list[int]] | None) -> None:
    with pytest.raises(NotFinite, match=r"decoder.layer_norm.weight holds NaN"):
        score_candidates(spoiled(writer, "decoder.layer_norm.weight", math.nan), batch(), ANSWERS, prefix=prefix)


def test_members_of_an_ensemble_are_named(writer: UnivalModel) -> None:
    both = Ensemble([writer, spoiled(writer, "encoder.layer_norm.bias", math.nan)], [0.5, 0.5]).eval()
    with pytest.raises(NotFinite, match=r"members.1.encoder.layer_norm.bias"):
        generate(both, batch())
    both.shares = [1.0, 0.0]  # who has no share is not asked
    assert generate(both, batch())


def test_numbers_that_overflow_are_not_blamed_on_the_weights(writer: UnivalModel) -> None:
    """The weights are finite, what is computed from them in half precision is not."""
    other = copy.deepcopy(writer)
    with torch.no_grad():
        other.decoder.layer_norm.weight.mul_(1e30)
        other.encoder.embed_tokens.weight.mul_(1e30)
    with pytest.raises(NotFinite, match=r"not finite \(float32\), its weights are: fp16 overflows so, try bf16"):
        generate(other, batch())


def test_ids_that_cannot_follow_may_be_infinitely_unlikely() -> None:
    """Of an ensemble a probability may be 0; a position without any possible id is refused."""
    check_logits(None, torch.tensor([[0.0, -math.inf], [-math.inf, 3.0]]))
    for broken in ([[0.0, math.nan]], [[-math.inf, -math.inf]], [[0.0, math.inf]]):
        with pytest.raises(NotFinite):
            check_logits(None, torch.tensor(broken))
