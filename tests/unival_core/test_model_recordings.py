"""The model against recordings of the published one."""

import json
import random

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.unival_core.golden import KEPT, SHARED, filled, inputs_of, recorded
from unival_core.checkpoint import bare_model
from unival_core.config import CONFIGS, Regularization, replace
from unival_core.model import Encoded, UnivalModel
from unival_core.training.loss import LossOptions, token_loss

TINY, BASE = {"atol": 2e-5, "rtol": 1e-4}, {"atol": 1e-4, "rtol": 1e-4}
LAW = {"atol": 1e-5, "rtol": 1e-5}
CPU = torch.device("cpu")


def run(model: UnivalModel, tensors: dict[str, Tensor]) -> tuple[Encoded, list[Tensor], Tensor]:
    """Encoder output, the stream before and behind every encoder layer, logits."""
    states: list[Tensor] = []

    def keep(_: object, arguments: tuple[Tensor, ...], result: Tensor) -> None:
        states.extend([arguments[0], result] if not states else [result])

    hooks = [layer.register_forward_hook(keep) for layer in model.encoder.layers]
    with torch.no_grad():
        encoded = model.encode(inputs_of(tensors))
        logits = model.decode(tensors["in.prev_output_tokens"], model.start(encoded, tensors.get("in.code_masks")))
    for hook in hooks:
        hook.remove()
    return encoded, states, logits


def check_encoder(encoded: Encoded, states: list[Tensor], tensors: dict[str, Tensor], tolerance: dict) -> None:
    assert_close(encoded.states.transpose(0, 1), tensors["encoder_out"], **tolerance)
    if "encoder_padding_mask" in tensors:
        assert torch.equal(encoded.padding, tensors["encoder_padding_mask"])
        positions = tensors["position_embeddings"]
        assert_close(encoded.positions[encoded.layout][: len(positions)], positions, **tolerance)
    for index, state in enumerate(states):
        if (wanted := tensors.get(f"encoder_state_{index}")) is not None:
            assert_close(state.transpose(0, 1)[:, : wanted.shape[1]], wanted, **tolerance)


@pytest.mark.parametrize("case", ["text", "image", "video", "audio", "maskedimage", "code_all", "code_mixed"])
def test_tiny_recordings(tiny: UnivalModel, case: str) -> None:
    tensors, _ = recorded(f"tiny_{case}")
    encoded, states, logits = run(tiny, tensors)
    check_encoder(encoded, states, tensors, TINY)
    assert_close(logits, tensors["logits"], **TINY)


@pytest.mark.parametrize("case", ["text", "image", "video", "audio", "code_mixed"])
def test_kept_recordings(tiny: UnivalModel, case: str) -> None:
    tensors, _ = recorded(f"tiny_{case}", KEPT)
    assert_close(run(tiny, tensors)[2], tensors["logits"], **TINY)


def test_tiny_decoder_states(tiny: UnivalModel) -> None:
    tensors, _ = recorded("tiny_image")
    states: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, a, r: states.append(r)) for layer in tiny.decoder.layers]
    run(tiny, tensors)
    for hook in hooks:
        hook.remove()
    for index, state in enumerate(states):
        assert_close(state.transpose(0, 1), tensors[f"decoder_state_{index + 1}"], **TINY)


def test_sampled_patches(tiny: UnivalModel) -> None:
    tensors, note = recorded("tiny_sampled_patches")
    tiny.regularize(Regularization(patches=3))
    tiny.encoder.training = True  # only this module: the recording sampled patches in evaluation mode
    try:
        random.seed(note["seeds"]["python_random"])
        encoded, states, logits = run(tiny, tensors)
    finally:
        tiny.eval().regularize(Regularization())
    check_encoder(encoded, states, tensors, TINY)
    assert_close(logits, tensors["logits"], **TINY)


def test_stretched_positions(tiny: UnivalModel) -> None:
    tensors, note = recorded("tiny_interpolate")
    side = note["config"]["orig_patch_image_size"] // 16
    encoded, states, logits = run(filled(replace(tiny.config, video=None, audio=None, position_grid=side)), tensors)
    check_encoder(encoded, states, tensors, TINY)
    assert_close(logits, tensors["logits"], **TINY)


@pytest.mark.parametrize("case", ["text", "image", "video", "video_long", "audio"])
def test_base_recordings(base: UnivalModel, case: str) -> None:
    tensors, note = recorded(f"base_{case}")
    if case == "video_long":
        generator = torch.Generator().manual_seed(note["seeds"]["video"])
        tensors["in.patch_videos"] = torch.randn(1, 3, 32, 64, 64, generator=generator)
    features: list[Tensor] = []
    networks = [base.encoder.get_submodule(f"embed_{name}s") for name in base.config.encoders]
    hooks = [network.register_forward_hook(lambda _, a, r: features.append(r)) for network in networks]
    encoded, states, logits = run(base, tensors)
    for hook in hooks:
        hook.remove()
    for name in ("resnet_features", "video_features", "audio_features"):
        if name in tensors:
            assert_close(features[0][: len(tensors[name])], tensors[name], **BASE)
    if "resnet_features_mean_std" in tensors:
        items = features[0].flatten(1)
        assert_close(torch.stack((items.mean(1), items.std(1))), tensors["resnet_features_mean_std"], **BASE)
    check_encoder(encoded, states, tensors, BASE)
    for got, name in [
        (logits[..., :64], "logits_first64"),
        (logits[..., -64:], "logits_last64"),
        (logits.logsumexp(-1), "logits_logsumexp"),
        (logits.mean(-1), "logits_mean"),
        (logits.std(-1), "logits_std"),
    ]:
        assert_close(got, tensors[name], **BASE)
    assert torch.equal(logits.argmax(-1), tensors["logits_argmax"])


def test_gradients() -> None:
    tensors, note = recorded("tiny_grad")
    model = filled(replace(CONFIGS["tiny"], video=None, audio=None))
    logits = model(inputs_of(tensors), tensors["in.prev_output_tokens"])
    token_loss(logits, tensors["in.target"], LossOptions(smoothing=0.1)).mean.backward()
    parameters = dict(model.named_parameters())
    for name, wanted in tensors.items():
        if name.startswith("grad."):
            assert_close(parameters[name[5:]].grad, wanted, **TINY, msg=lambda text, name=name: f"{name}: {text}")
    for name, wanted in note["grad_norms"].items():
        assert_close(float(parameters[name].grad.norm()), wanted, atol=1e-6, rtol=1e-3)
    assert {name for name, p in parameters.items() if p.grad is None} == set(note["parameters_without_grad"])


@pytest.mark.parametrize(("name", "encoders"), [("image", 1), ("video", 2), ("audio", 3)])
def test_names_and_shapes_equal_the_published(name: str, encoders: int) -> None:
    """Exceptions: `version`, the position tables and the audio front end, which are computed."""
    path = SHARED / f"manifest_base_{name}.json"
    if not path.exists():
        pytest.skip(f"needs {path}")
    dropped = [] if encoders == 3 else ["audio"] if encoders == 2 else ["audio", "video"]
    model = bare_model(replace(CONFIGS["base"], **dict.fromkeys(dropped)))
    published = json.loads(path.read_text())
    computed = {f"{stack}.{key}" for stack in ("encoder", "decoder") for key in ("token_rp_bucket", "image_rp_bucket")}
    computed |= {"encoder.version", "decoder.version", "decoder.image_position_idx"}
    if encoders == 3:
        front = "encoder.embed_audios."
        computed |= {f"{front}spectrogram_extractor.stft.conv_{part}.weight" for part in ("real", "imag")}
        computed |= {f"{front}logmel_extractor.melW"}
    wanted = {key: tuple(shape) for key, (shape, _) in published["state_dict"].items() if key not in computed}
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == wanted
    fixed = sum(torch.Size(published["state_dict"][key][0]).numel() for key in computed if "embed_audios" in key)
    assert sum(p.numel() for p in model.parameters()) == published["parameter_count_unique"] - fixed


@pytest.mark.parametrize(("name", "millions"), [("base", 328.9), ("large", 621.8), ("tiny", 128.2), ("pocket", 1.126)])
def test_every_config_builds(name: str, millions: float) -> None:
    parameters = sum(p.numel() for p in bare_model(CONFIGS[name]).parameters())
    assert parameters == pytest.approx(millions * 1e6, rel=1e-3)
