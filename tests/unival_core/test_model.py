"""The laws that the model keeps."""

import random

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.unival_core.golden import fill, recorded
from unival_core import attention
from unival_core.attention import code_ids, image_buckets, token_buckets
from unival_core.config import CONFIGS, PUBLISHED_REGULARIZATION, Regularization, replace
from unival_core.errors import UnivalError
from unival_core.model import Encoded, Inputs, UnivalModel
from unival_core.training.loss import token_loss
from unival_core.training.optim import trainable

TINY, BASE = {"atol": 2e-5, "rtol": 1e-4}, {"atol": 1e-4, "rtol": 1e-4}
LAW = {"atol": 1e-5, "rtol": 1e-5}
CPU = torch.device("cpu")


# ---- position tables


def test_position_tables() -> None:
    tensors, note = recorded("tables")
    token = token_buckets(1024, 256, 1024, CPU)
    for row in (0, 500, 1023):
        assert torch.equal(token[row], tensors[f"token_256_row{row}"])
    assert int(token.sum()) == note["token_256"]["sum"]
    assert torch.equal(token_buckets(1024, 64, 1024, CPU)[0], tensors["token_64_row0"])
    image = image_buckets(torch.arange(42 * 42 + 1), 42)
    for row in (0, 1, 900):
        assert torch.equal(image[row], tensors[f"image_42_row{row}"])
    assert (int(image.sum()), int(image.max())) == (note["image_42"]["sum"], note["image_42"]["max"])
    assert torch.equal(image_buckets(torch.arange(50), 7), tensors["image_7"])
    assert torch.equal(code_ids(CONFIGS["base"]), tensors["decoder_image_position_idx"])


def test_shorter_tables_are_corners_of_longer_ones() -> None:
    assert torch.equal(token_buckets(9, 256, 1024, CPU), token_buckets(300, 256, 1024, CPU)[:9, :9])


# ---- laws


def draw(seed: int, rows: int, width: int, config=CONFIGS["pocket"]) -> Tensor:
    """Random texts of at least three tokens, right-padded."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, config.vocabulary, (rows, width), generator=generator)
    tokens[:, 0] = 0
    length = torch.randint(min(3, width), width + 1, (rows, 1), generator=generator)
    return tokens.masked_fill(torch.arange(width) >= length, 1)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


MODALITY = torch.tensor([2, -1, 0, 1, 0, -1, 1], dtype=torch.int8)


def mixed(frames: int = 8) -> Inputs:
    """Seven samples: audio, text, image, video, image, text, video."""
    return Inputs(
        tokens=draw(1, 7, 9),
        images=noise(2, 2, 3, 48, 48),
        videos=noise(3, 2, 3, frames, 48, 48),
        audios=0.1 * noise(4, 1, 16_000),
        modality=MODALITY,
    )


def single(inputs: Inputs, row: int) -> Inputs:
    """One sample of a mixed batch, alone and without padding."""
    kind = int(MODALITY[row])
    tokens = inputs.tokens[row : row + 1]
    tokens = tokens[:, : int((tokens != 1).sum())]
    if kind < 0:
        return Inputs(tokens)
    place = int((MODALITY[:row] == kind).sum())
    name = ("images", "videos", "audios")[kind]
    return Inputs(tokens, **{name: getattr(inputs, name)[place : place + 1]})


@torch.no_grad()
def test_mixed_batch_equals_its_samples_alone(pocket: UnivalModel) -> None:
    """Padding, length and modality of other samples change nothing, and every sample gets its own medium."""
    inputs, targets = mixed(), draw(5, 7, 6)
    together = pocket(inputs, targets)
    for row in range(7):
        length = int((targets[row] != 1).sum())
        alone = pocket(single(inputs, row), targets[row : row + 1, :length])
        assert_close(together[row : row + 1, :length], alone, **LAW)


@torch.no_grad()
def test_other_media_decide_their_own_rows_only(pocket: UnivalModel) -> None:
    targets = draw(5, 7, 6)
    before = pocket(mixed(), targets)
    inputs = mixed()
    inputs.images[0] += 1.0
    changed = (pocket(inputs, targets) - before).abs().amax((1, 2)) > 1e-3
    assert changed.tolist() == [False, False, True, False, False, False, False]
    fewer = (pocket(mixed(frames=3), targets) - before).abs().amax((1, 2)) > 1e-3
    assert fewer.tolist() == [False, False, False, True, False, False, True]


@torch.no_grad()
def test_masked_medium_is_not_looked_at(pocket: UnivalModel) -> None:
    inputs, targets = mixed(), draw(5, 7, 6)
    mask = torch.ones(7, dtype=torch.bool)
    mask[2] = False
    masked = pocket(Inputs(**{**vars(inputs), "media_mask": mask}), targets)
    text = pocket(Inputs(inputs.tokens[2:3]), targets[2:3])
    assert_close(masked[2:3], text, **LAW)
    assert_close(masked[3:], pocket(inputs, targets)[3:], **LAW)


@torch.no_grad()
@pytest.mark.parametrize("code_rows", [None, [True] * 7, [True, False, False, True, False, True, False]])
def test_cached_decoding_equals_uncached(pocket: UnivalModel, code_rows: list[bool] | None) -> None:
    targets = draw(6, 7, 20)
    codes = None if code_rows is None else torch.tensor(code_rows)
    encoded = pocket.encode(mixed())
    whole = pocket.decode(targets, pocket.start(encoded, codes))
    cache, start = pocket.start(encoded, codes), 0
    for step in (1, 1, 3, 1, 12, 2):
        assert_close(pocket.decode(targets[:, start : start + step], cache), whole[:, start : start + step], **LAW)
        start += step


@torch.no_grad()
def test_images_may_be_longer_than_texts(pocket: UnivalModel) -> None:
    codes = torch.tensor([True])
    encoded = pocket.encode(Inputs(draw(1, 1, 4)))
    assert pocket.decode(draw(2, 1, 100), pocket.start(encoded, codes)).shape[1] == 100
    with pytest.raises(UnivalError, match=f"target of 807 tokens: the model writes at most {1 + 6 * 6 + 769}"):
        pocket.decode(draw(2, 1, 807), pocket.start(encoded, codes))


@torch.no_grad()
@pytest.mark.parametrize("codes", [False, True])
def test_selected_rows_go_on_as_if_alone(pocket: UnivalModel, codes: bool) -> None:
    """Rows repeated, reordered and dropped, unevenly among samples, decode what they would have alone."""
    encoded = pocket.encode(mixed())
    code_rows = torch.arange(7) % 2 == 0 if codes else None
    cache = pocket.start(encoded, code_rows)
    tokens = draw(7, 7, 3).clamp_min(4)
    pocket.decode(tokens, cache)
    sample = torch.arange(7)
    for seed, rows in enumerate([[0, 0, 1, 2, 3, 3, 3, 4, 5, 6], [9, 4, 6, 0, 1, 8], [5, 5, 0, 2, 3]]):
        rows = torch.tensor(rows)
        cache.select(rows)
        sample = sample[rows]
        new = draw(seed, len(rows), 2 - seed % 2).clamp_min(4)
        tokens = torch.cat((tokens[rows], new), dim=1)
        step = pocket.decode(new, cache)
        for row, number in enumerate(sample.tolist()):
            one = Encoded(*(part[number : number + 1] for part in encoded[:2]), *encoded[2:])
            one = one._replace(layout=encoded.layout[number : number + 1])
            start = pocket.start(one, None if code_rows is None else code_rows[number : number + 1])
            alone = pocket.decode(tokens[row : row + 1], start)[:, -new.shape[1] :]
            assert_close(step[row : row + 1], alone, **LAW)


@torch.no_grad()
def test_beams_share_keys_and_finished_samples_leave(pocket: UnivalModel) -> None:
    cache = pocket.start(pocket.encode(mixed()))
    before = cache.layers[0].cross_keys
    pocket.decode(torch.zeros(7, 1, dtype=torch.long), cache)
    cache.select(torch.arange(7).repeat_interleave(5))
    assert cache.layers[0].cross_keys is before
    assert cache.rows == 35
    cache.select(torch.tensor([12, 10, 11]))
    assert len(cache.layers[0].cross_keys) == len(cache.padding) == len(cache.cross_bias) == 1
    assert cache.layers[0].keys.shape[0] == 3


@torch.no_grad()
def test_deterministic(pocket: UnivalModel) -> None:
    inputs, targets = mixed(), draw(5, 7, 6)
    assert torch.equal(pocket(inputs, targets), pocket(inputs, targets))


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "mean", "most"), [(torch.bfloat16, 0.02, 0.15), (torch.float16, 0.003, 0.02)])
def test_autocast_stays_close(pocket: UnivalModel, dtype: torch.dtype, mean: float, most: float) -> None:
    """Logits of the pocket model spread by about 0.5; bfloat16 keeps 8 bits of them, float16 11."""
    inputs, targets = mixed(), draw(5, 7, 6)
    exact = pocket(inputs, targets)
    with torch.autocast("cpu", dtype=dtype):
        rounded = pocket(inputs, targets)
    error = (rounded.float() - exact).abs()
    assert float(exact.std()) > 0.3
    assert float(error.mean()) < mean
    assert float(error.max()) < most


@torch.no_grad()
def test_weights_changed_in_place_count_at_once(pocket: UnivalModel) -> None:
    """Nothing derived from weights is kept between calls: merged models are written into a live one."""
    inputs, targets = mixed(), draw(5, 7, 6)
    model = UnivalModel(pocket.config).eval()
    fill(model, scale=2.0)
    model(inputs, targets)
    for name, tensor in model.state_dict().items():
        tensor.copy_(pocket.state_dict()[name])
    assert torch.equal(model(inputs, targets), pocket(inputs, targets))


def test_evaluation_in_inference_mode_does_not_spoil_training() -> None:
    model = UnivalModel(CONFIGS["pocket"])
    attention._kept_buckets.cache_clear()
    with torch.inference_mode():
        model.eval()(mixed(), draw(5, 7, 6))
    model.train()(mixed(), draw(5, 7, 6)).sum().backward()


# ---- training


def test_gradients_reach_every_part() -> None:
    model = UnivalModel(CONFIGS["pocket"], PUBLISHED_REGULARIZATION).train()
    logits = model(mixed(), draw(5, 7, 6), torch.tensor([True, False] * 3 + [True]))
    token_loss(logits, draw(8, 7, 6)).mean.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_options_act_in_training_only(pocket: UnivalModel) -> None:
    model = UnivalModel(pocket.config, replace(PUBLISHED_REGULARIZATION, patches=5, time_stripe=30, mel_stripe=8))
    fill(model)
    with torch.no_grad():
        assert torch.equal(model.eval()(mixed(), draw(5, 7, 6)), pocket(mixed(), draw(5, 7, 6)))
        torch.manual_seed(0)
        random.seed(0)
        model.train()
        assert model.encode(mixed()).states.shape[1] == 5 + 9
        first, second = (model(mixed(), draw(5, 7, 6)) for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-2)


def test_training_without_options_is_deterministic() -> None:
    model = UnivalModel(CONFIGS["pocket"]).train()
    with torch.no_grad():
        assert torch.equal(model(mixed(), draw(5, 7, 6)), model(mixed(), draw(5, 7, 6)))


def test_drop_path_drops_whole_samples() -> None:
    model = UnivalModel(CONFIGS["pocket"], Regularization(drop_path=0.5)).train()
    rates = [layer.drop_path for layer in model.encoder.layers]
    assert rates == [0.0, 0.5]
    x = torch.zeros(400, 3, 2)
    torch.manual_seed(0)
    joined = model.encoder.layers[1].join(x, torch.ones_like(x))
    assert set(joined.flatten().tolist()) == {0.0, 2.0}  # kept parts weigh 1 / (1 - rate)
    assert torch.equal(joined, joined[:, :1, :1].expand_as(joined))
    assert 150 < int((joined[:, 0, 0] == 0).sum()) < 250


def test_trainable_groups() -> None:
    model = UnivalModel(CONFIGS["pocket"])
    every = {name for name, _ in model.named_parameters()}

    def trained() -> set[str]:
        return {name for name, p in model.named_parameters() if p.requires_grad}

    chosen = trainable(model, "projections")
    assert trained() == {f"encoder.{m}_proj.{p}" for m in ("image", "video", "audio") for p in ("weight", "bias")}
    assert len(chosen) == 6
    trainable(model, "all but embeddings")
    assert every - trained() == {"encoder.embed_tokens.weight"}
    assert not model.decoder.output_projection.weight.requires_grad
    trainable(model, "all")
    assert trained() == every
    with pytest.raises(UnivalError, match="no group 'decoder' of parameters: choose one of all, "):
        trainable(model, "decoder")


def test_one_batch_can_be_learned() -> None:
    torch.manual_seed(0)
    model = UnivalModel(CONFIGS["pocket"]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    inputs, targets = mixed(frames=2), draw(5, 7, 6)
    losses = []
    for _ in range(20):
        loss = token_loss(model(inputs, targets[:, :-1]), targets[:, 1:]).mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


# ---- mistakes


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (Inputs(draw(1, 2, 4), images=noise(1, 2, 3, 48, 48), audios=noise(1, 2, 16_000)), "needs `modality`"),
        (Inputs(draw(1, 2, 4), images=noise(1, 1, 3, 48, 48)), "2 samples .* modality image, but 1 images"),
        (Inputs(draw(1, 2, 4), modality=torch.tensor([0, -1])), "1 samples .* modality image, but 0 images"),
        (Inputs(draw(1, 1, 70)), "text of 70 tokens: the model reads 64"),
        (Inputs(draw(1, 1, 4), images=noise(1, 1, 3, 16, 104)), "image of 2 x 13 tokens: .* up to 12 x 12"),
        (Inputs(draw(1, 1, 4), audios=noise(1, 1, 900)), "audio of 900 samples: the model needs 1120"),
    ],
)
def test_wrong_inputs_are_refused(pocket: UnivalModel, inputs: Inputs, message: str) -> None:
    with pytest.raises(UnivalError, match=message):
        pocket.encode(inputs)


@torch.no_grad()
def test_wrong_targets_are_refused(pocket: UnivalModel) -> None:
    cache = pocket.start(pocket.encode(Inputs(draw(1, 2, 4))))
    with pytest.raises(UnivalError, match="3 rows of tokens for a cache of 2 rows"):
        pocket.decode(draw(1, 3, 4), cache)
    with pytest.raises(UnivalError, match="target of 65 tokens: the model writes at most 64"):
        pocket.decode(draw(1, 2, 65), cache)


def test_missing_encoder_is_named(pocket: UnivalModel) -> None:
    model = UnivalModel(replace(pocket.config, video=None))
    with pytest.raises(UnivalError, match="reads image, audio, not video"):
        model.encode(Inputs(draw(1, 1, 4), videos=noise(1, 1, 3, 8, 48, 48)))


def test_a_copy_of_a_cache_grows_by_itself(pocket):
    tokens = draw(3, 3, 4).clamp_min(4)
    with torch.no_grad():
        cache = pocket.start(pocket.encode(Inputs(draw(1, 3, 5))))
        begun = pocket.decode(tokens[:, :2], cache.copy())
        pocket.decode(tokens[:, :2], cache)
        branches = [cache.copy() for _ in range(2)]
        branches[0].select(torch.tensor([2, 0, 0, 1]))
        pocket.decode(tokens[[2, 0, 0, 1], 2:], branches[0])
        rest = pocket.decode(tokens[:, 2:], branches[1])
        whole = pocket.decode(tokens, pocket.start(pocket.encode(Inputs(draw(1, 3, 5)))))
    assert (cache.length, cache.rows, branches[0].rows) == (2, 3, 4)
    torch.testing.assert_close(torch.cat((begun, rest), dim=1), whole)
