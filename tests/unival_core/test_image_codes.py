"""The image tokenizer: recordings of the published one, its file and config, and what it refuses."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from merge import save_checkpoint
from tests.unival_core.golden import KEPT, SHARED, fill, recorded
from unival_core.checkpoint import bare
from unival_core.errors import UnivalError
from unival_core.image_codes import ImageCodes, ImageCodesConfig, load_image_codes, save_image_codes, to_pixels

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
TINY = ImageCodesConfig(40, 16, 16, 32, (1, 2), 1, (1,))
PARAMS: dict[str, Any] = {
    "embed_dim": 16,
    "n_embed": 40,
    "kl_weight": 1e-8,
    "ddconfig": {
        "double_z": False,
        "z_channels": 16,
        "resolution": 32,
        "in_channels": 3,
        "out_ch": 3,
        "dropout": 0.0,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [16],
    },
    "lossconfig": {"target": "taming.modules.losses.vqperceptual.DummyLoss"},
}


def config_of(note: dict[str, Any]) -> ImageCodesConfig:
    net = note["ddconfig"]
    levels = range(len(net["ch_mult"]))
    attention = tuple(level for level in levels if net["resolution"] >> level in net["attn_resolutions"])
    sizes = (note["n_embed"], note["embed_dim"], net["z_channels"], net["ch"])
    return ImageCodesConfig(*sizes, tuple(net["ch_mult"]), net["num_res_blocks"], attention)


def made(config: ImageCodesConfig, note: dict[str, Any] | None = None) -> ImageCodes:
    """A tokenizer with the recordings' weights."""
    note = note or {}
    with bare():
        model = ImageCodes(config)
    model.to_empty(device="cpu")
    fill(model, salt=note.get("salt", ""))
    with torch.no_grad():
        for name, factor in note.get("scale", {}).items():
            model.get_parameter(name).mul_(factor)
    return model.eval()


@pytest.fixture(scope="module")
def tiny() -> ImageCodes:
    return made(TINY)


# The recordings


@torch.no_grad()
def check(model: ImageCodes, tensors: dict[str, Tensor], note: dict[str, Any]) -> int:
    """Compares every image and every code of a recording; returns how many there were."""
    done = 0
    for number in range(len(note["decode"])):
        if (codes := tensors.get(f"decode{number}.in.codes")) is not None:
            image, done = model.decode(codes), done + 1
            assert_close(image, tensors[f"decode{number}.image"], **CLOSE)
            if (pixels := tensors.get(f"decode{number}.uint8")) is not None:
                apart = (to_pixels(image).int() - pixels.int()).abs()
                assert apart.max() <= 1
                assert (apart > 0).float().mean() < 2e-3
    for number, encoded in enumerate(note["encode"]):
        if (image := tensors.get(f"encode{number}.in.image")) is not None:
            done += 1
            if (logits := tensors.get(f"encode{number}.logits")) is not None:
                assert_close(model.logits(image), logits, **CLOSE)
            assert torch.equal(model.encode(image), tensors[f"encode{number}.codes"])
            if (drawn := tensors.get(f"encode{number}.sampled_codes")) is not None:
                assert torch.equal(model.encode(image, seed=encoded["gumbel_seed"]), drawn)
    return done


@pytest.mark.parametrize(("case", "count"), [("tiny", 4), ("tiny_quiet", 2), ("tiny_uneven", 1)])
def test_recordings(case: str, count: int) -> None:
    tensors, note = recorded(f"vqgan_{case}")
    assert check(made(config_of(note), note), tensors, note) == count


@pytest.mark.parametrize(("case", "count"), [("tiny", 2), ("tiny_quiet", 2), ("tiny_uneven", 1)])
def test_kept_recordings(case: str, count: int) -> None:
    tensors, note = recorded(f"vqgan_{case}", KEPT)
    assert check(made(config_of(note), note), tensors, note) == count


@pytest.mark.slow
@torch.no_grad()
def test_the_published_size() -> None:
    tensors, note = recorded("vqgan_published")
    model = made(config_of(note), note)
    image = model.decode(tensors["decode0.in.codes"])
    assert_close(F.avg_pool2d(image, 8), tensors["decode0.block_mean"], **CLOSE)
    row, column, number = tensors["decode0.pixel_positions"].T
    assert (int(number.max()), image.shape) == (255, (1, 3, 256, 256))
    assert_close(image[row, :, column, number], tensors["decode0.pixels"], **CLOSE)
    apart = (to_pixels(image)[row, column, number].int() - tensors["decode0.uint8_pixels"].int()).abs()
    assert apart.max() <= 1
    drawn = note["encode"][0]
    count, height, width = drawn["image"]
    generator = torch.Generator().manual_seed(drawn["image_seed"])
    low = torch.rand(count, 3, 5, 5, generator=generator)
    fine = torch.rand(count, 3, height, width, generator=generator)
    image = 2 * (0.85 * F.interpolate(low, (height, width), mode="bilinear") + 0.15 * fine) - 1
    assert torch.equal(image[..., :8, :8], tensors["encode0.in.image_corner"])
    batch, row, column = tensors["encode0.logit_positions"].T
    assert_close(model.logits(image)[batch, :, row, column], tensors["encode0.logits"], **CLOSE)
    assert torch.equal(model.encode(image), tensors["encode0.codes"])
    assert torch.equal(model.encode(image, seed=drawn["gumbel_seed"]), tensors["encode0.sampled_codes"])


def test_names_and_shapes_equal_the_published() -> None:
    path = SHARED / "golden_vqgan_manifest.json"
    if not path.exists():
        pytest.skip(f"needs {path}")
    published = json.loads(path.read_text())
    with bare():
        model = ImageCodes(ImageCodesConfig())
    assert config_of(published) == ImageCodesConfig()
    wanted = {name: tuple(shape) for name, (shape, _) in published["state_dict"].items()}
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == wanted


# Files


def trained(folder: Path, model: ImageCodes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training file as Lightning wrote the published one: classes among the keys, weights of the loss."""
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    kept = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = kept
    monkeypatch.setitem(sys.modules, "pytorch_lightning", ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, "pytorch_lightning.callbacks", ModuleType("pytorch_lightning.callbacks"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    loss = {"loss.discriminator.main.0.weight": torch.randn(4, 3, 4, 4), "loss.perceptual_loss.lin0": torch.ones(2)}
    tree = {
        "epoch": 7,
        "global_step": 9,
        "pytorch-lightning_version": "1.0.8",
        "lr_schedulers": [],
        "callbacks": {kept: {"best_model_score": torch.tensor(0.5), "best_model_path": "a.ckpt"}},
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]}],
        "state_dict": {**model.state_dict(), **loss},
    }
    torch.save(tree, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_the_published_files(tiny: ImageCodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = pytest.importorskip("yaml")
    path = trained(tmp_path, tiny, monkeypatch)
    config = tmp_path / "model.yaml"
    config.write_text(yaml.safe_dump({"model": {"target": "taming.models.vqgan.GumbelVQ", "params": PARAMS}}))
    for given in (None, config, PARAMS):
        model = load_image_codes(path, config=given)
        assert (model.config, model.training) == (TINY, False)
        assert all(torch.equal(value, tiny.state_dict()[name]) for name, value in model.state_dict().items())
    (tmp_path / "model.json").write_text(json.dumps(PARAMS | {"n_embed": 41}))
    with pytest.raises(UnivalError, match=r"last\.ckpt: codes is 40 in the tensors and 41 in the config"):
        load_image_codes(path, config=tmp_path / "model.json")
    with pytest.raises(UnivalError, match=r"attention is \(1,\) in the tensors and \(\) in the config"):
        load_image_codes(path, config=PARAMS | {"ddconfig": PARAMS["ddconfig"] | {"resolution": 64}})
    with pytest.raises(UnivalError, match="the config given is no tokenizer's: it lacks 'ddconfig'"):
        load_image_codes(path, config={"model": {"params": {}}})
    (tmp_path / "broken.yaml").write_text("model: [")
    with pytest.raises(UnivalError, match=r"broken\.yaml: no YAML: while parsing"):
        load_image_codes(path, config=tmp_path / "broken.yaml")


def test_a_file_of_ones_own(tiny: ImageCodes, tmp_path: Path) -> None:
    path = save_image_codes(tiny, tmp_path / "tokenizer.safetensors")
    codes = torch.arange(12).view(1, 3, 4)
    with torch.no_grad():
        assert torch.equal(load_image_codes(path).decode(codes), tiny.decode(codes))
        half = save_checkpoint({k: v.half() for k, v in tiny.state_dict().items()}, tmp_path / "half.safetensors")
        assert load_image_codes(half).decode(codes).dtype == torch.float32


def test_the_way_to_images_alone(tiny: ImageCodes, tmp_path: Path) -> None:
    """A file may lack the encoder, and what only the encoder needs may be there all the same."""
    codes, image = torch.arange(6).view(1, 2, 3), torch.zeros(1, 3, 4, 4)
    for number, gone in enumerate((("encoder.", "quant_conv.", "quantize.proj."), ("encoder.",))):
        state = {name: value for name, value in tiny.state_dict().items() if not name.startswith(gone)}
        model = load_image_codes(save_checkpoint(state, tmp_path / f"{number}.safetensors"), config=PARAMS)
        with torch.no_grad():
            assert torch.equal(model.decode(codes), tiny.decode(codes))
        with pytest.raises(UnivalError, match="cannot make codes of images: it has no encoder"):
            model.encode(image)
    uneven = ImageCodes(ImageCodesConfig(8, 4, 8, 8, (1, 1), 1, ()))
    with pytest.raises(UnivalError, match="latents and codes differ in width"):
        uneven.encode(image)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"decoder.mid.attn_1.q.weight": None}, r"missing: decoder\.mid\.attn_1\.q\.weight"),
        ({"quant_conv.bias": None}, r"missing: quant_conv\.bias"),
        ({"decoder.extra": torch.ones(1)}, r"unexpected: decoder\.extra"),
        ({"decoder.conv_in.bias": torch.ones(3)}, r"shapes: decoder\.conv_in\.bias \(3,\) instead of \(64,\)"),
        ({"post_quant_conv.weight": None}, r"no image tokenizer: there is no post_quant_conv\.weight, only "),
        ({"quantize.embedding.weight": torch.ones(4, 2)}, "only Gumbel tokenizers can be read"),
    ],
)
def test_other_files_are_refused(tiny: ImageCodes, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    state = {name: value for name, value in {**tiny.state_dict(), **change}.items() if value is not None}
    path = save_checkpoint(state, tmp_path / "other.safetensors")
    with pytest.raises(UnivalError, match=told):
        load_image_codes(path)


def test_mistakes(tiny: ImageCodes) -> None:
    with pytest.raises(UnivalError, match=r"codes lie in 0\.\.39, got 0\.\.40"):
        tiny.decode(torch.tensor([[[0, 40]]]))
    with pytest.raises(UnivalError, match=r"codes are integers B x h x w, got int64 of shape \(1, 4\)"):
        tiny.decode(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(
        UnivalError, match=r"floats in -1\.\.1, N x 3 x height x width, got float32 of shape \(1, 1, 6, 6\)"
    ):
        tiny.encode(torch.zeros(1, 1, 6, 6))
    with pytest.raises(UnivalError, match=r"sides multiples of 2, got \(1, 3, 6, 5\)"):
        tiny.encode(torch.zeros(1, 3, 6, 5))


def test_bytes_are_rounded_down() -> None:
    image = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 2.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_pixels(image)[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_narrow_tokenizers_have_fewer_groups() -> None:
    model = ImageCodes(ImageCodesConfig(4, 8, 8, 12, (1, 2), 1, ()))
    assert [(norm.num_groups, norm.num_channels) for norm in (model.decoder.norm_out, model.encoder.norm_out)] == [
        (4, 12),
        (8, 24),
    ]
