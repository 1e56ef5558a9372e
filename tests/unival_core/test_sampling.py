"""Sampling as recorded: one step of the published sampler, and images from the first code to the last."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unival_core.golden import KEPT, SHARED, filled, recorded
from unival_core.config import BOS, CONFIGS, EOS, PAD, UnivalConfig, replace
from unival_core.decoding import NEVER, IdRange, Limits, NoSpecials, OnlyRange, Rows, Sampling
from unival_core.generation import GenerationOptions, generate
from unival_core.model import Inputs, UnivalModel

CPU = torch.device("cpu")
FOLDER = SHARED if SHARED.is_dir() else KEPT


def options_of(run: dict[str, Any], **more: int) -> GenerationOptions:
    """Where both are given, top-p wins; 0 and less turn either off."""
    top_p = run["top_p"] if run["top_p"] > 0 else 1.0
    return GenerationOptions(
        sample=True, top_k=max(0, run["top_k"]), top_p=top_p, temperature=run["temperature"], **more
    )


@pytest.mark.parametrize("number", range(8))
def test_a_step_as_recorded(number: int) -> None:
    tensors, note = recorded("vqgan_sampling", FOLDER)
    tensors = {name.removeprefix(f"case{number}."): value for name, value in tensors.items()}
    case, size, beam = note["cases"][number], note["vocabulary"], note["beam"]
    step, allowed = case["step"], IdRange(*note["constraint"], "counted")
    samples = note["batch"]
    rows = Rows(torch.arange(samples).repeat_interleave(beam), Tensor(), torch.zeros(samples * beam, step), Tensor())
    limits = Limits([step + 1] * samples, torch.full((samples,), step + 1), Tensor(), Tensor())
    scores = OnlyRange(allowed, size, CPU)(tensors["in.logits"] / case["temperature"], rows).log_softmax(-1)
    scores = NoSpecials(limits)(scores, rows)
    torch.testing.assert_close(scores, tensors["log_probs"])
    scores, totals = scores.view(samples, beam, size), tensors["in.scores"][:, :, max(0, step - 1)]
    if not step:  # all rows of a sample are equal
        scores, totals = scores[:, :1], torch.zeros(samples, 1)
    for draw, seed in enumerate(case["seeds"]):
        drawn = Sampling(options_of(case, beam=beam, seed=seed), CPU)(scores, totals)
        assert torch.equal(drawn.token[:, :beam], tensors[f"draw{draw}.ids"])
        assert torch.equal(drawn.parent[:, :beam], tensors[f"draw{draw}.beams"])
        torch.testing.assert_close(drawn.total[:, :beam], tensors[f"draw{draw}.scores"])
    drawn = Sampling(options_of(case, beam=4000), CPU)(scores[:1, :1], totals[:1, :1]).token[0, :4000]
    apart = torch.bincount(drawn, minlength=size) - tensors["row0_counts_4000"]
    assert apart.abs().max() < 160


@pytest.fixture(scope="module")
def painter() -> UnivalModel:
    """The narrow model of the recordings, which writes images of 64 x 64 pixels."""
    tiny = CONFIGS["tiny"]
    return filled(replace(tiny, video=None, audio=None, code_image_size=64, text_ids=120, codes=64, bins=16))


def codes_of(config: UnivalConfig) -> IdRange:
    return IdRange(config.code_offset, config.bin_offset, "counted")


@pytest.mark.parametrize("run", range(3))
def test_images_as_recorded(painter: UnivalModel, run: int) -> None:
    """Whole images to the code, with the seeds of the recording, and their scores."""
    tensors, note = recorded("vqgan_generation", FOLDER)
    assert [painter.config.code_offset, painter.config.bin_offset] == note["constraint_range"]
    given, inputs = note["runs"][run], Inputs(tensors["in.src_tokens"])
    assert painter.config.vocabulary == note["vocabulary"]
    options = options_of(
        given, beam=given["beam"], min_len=given["min_len"], max_len_b=given["max_len_b"], seed=given["torch_seed"]
    )
    everywhere = torch.ones(len(inputs.tokens), dtype=torch.bool)
    found = generate(painter, inputs, options, constraint=codes_of(painter.config), code_rows=everywhere)
    for sample, hypotheses in enumerate(found):
        for rank, hypothesis in enumerate(hypotheses):
            assert hypothesis.tokens == tensors[f"run{run}.tokens"][sample, rank].tolist()
            assert hypothesis.score == pytest.approx(float(tensors[f"run{run}.score"][sample, rank]), abs=1e-4)
            wanted = tensors[f"run{run}.positional_scores"][sample, rank].tolist()
            assert hypothesis.token_scores == pytest.approx(wanted, abs=1e-4)


def test_recorded_images_as_the_model_scores_them(painter: UnivalModel) -> None:
    """Fed with what was written; the logits of ids that cannot follow agree too."""
    tensors, _ = recorded("vqgan_generation")
    tokens = tensors["run1.tokens"][:, 0, :-1]
    with torch.no_grad():
        begin = torch.nn.functional.pad(tokens, (1, 0), value=BOS)
        logits = painter(Inputs(tensors["in.src_tokens"]), begin, torch.ones(len(tokens), dtype=torch.bool))
    torch.testing.assert_close(logits, tensors["run1.forced_logits"], atol=2e-5, rtol=1e-4)


def test_an_image_ends_at_its_length_only(painter: UnivalModel) -> None:
    """Whatever the minimal length: neither eos nor another special is written before, and eos is behind."""
    options = GenerationOptions(sample=True, beam=5, min_len=1, max_len_b=9)
    tokens = torch.tensor([[BOS, 9, 8, EOS], [BOS, 7, EOS, PAD]])
    only = replace(codes_of(painter.config), stop=painter.config.code_offset + 1)
    for hypotheses in generate(painter, Inputs(tokens), options, constraint=only):
        assert [hypothesis.tokens for hypothesis in hypotheses] == [[only.start] * 9 + [EOS]] * 5
        assert all(min(hypothesis.token_scores) < -0.5 for hypothesis in hypotheses)  # specials were counted


def test_rows_without_anything_to_say_stay_without(painter: UnivalModel) -> None:
    scores = torch.full((1, 2, 6), NEVER)
    scores[0, 1, 4] = 0.0
    drawn = Sampling(GenerationOptions(sample=True, beam=2, top_k=3), CPU)(scores, torch.zeros(1, 2))
    assert drawn.total[0, :2].tolist() == [NEVER, 0.0]
    assert int(drawn.token[0, 1]) == 4
