"""Published files in other people's hands: strict loading of everything in them, what they say of their run, and what
is missing beside them."""

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from merge import inspect, open_checkpoint
from tests import ROOT
from tests.unival_core.golden import fill
from tests.unival_core.made_files import SMALL, published, training_file
from unival_core.answering import open_model, read_changes
from unival_core.checkpoint import config_of, load_model
from unival_core.commands import app
from unival_core.config import CONFIGS, UnivalConfig, replace
from unival_core.errors import UnivalError
from unival_core.model import UnivalModel
from unival_core.settings import NETWORK, Settings
from unival_core.tasks import TASKS
from unival_core.vocabulary import load_tokenizer

TINY = replace(SMALL, video=None, audio=None, code_image_size=128, image=replace(SMALL.image, depths=(1, 1)))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """What the original would have saved of a model that sees and hears."""
    model = UnivalModel(SMALL)
    fill(model)
    return published(model)


@pytest.fixture(scope="module")
def seeing() -> dict[str, torch.Tensor]:
    """The same of one that only sees."""
    model = UnivalModel(TINY)
    fill(model)
    return published(model)


# ---- strict loading


def test_a_published_file_is_loaded_strictly_by_plain_torch(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = training_file(tmp_path / "checkpoint_best.pt", state)
    model = UnivalModel(SMALL)
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path)["model"]
    assert model.load_state_dict(content, strict=True) == ([], [])
    assert list(content) == list(state)  # which is not changed
    own, again = model.state_dict(), load_model(path).state_dict()
    assert all(torch.equal(own[name], again[name]) for name in again)
    inner = UnivalModel(SMALL)
    torch.nn.ModuleDict({"inner": inner}).load_state_dict({f"inner.{name}": value for name, value in content.items()})
    assert torch.equal(inner.encoder.pos_ln.weight, model.encoder.pos_ln.weight)


def test_the_script_of_the_readme(
    seeing: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"```python\n([^`]+strict=True\)\n)```", (ROOT / "README.md").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unival_caption_stage_1").mkdir()
    training_file(tmp_path / "unival_caption_stage_1" / "checkpoint_best.pt", seeing)
    monkeypatch.setitem(CONFIGS, "base", TINY)
    names: dict[str, UnivalModel] = {}
    exec(block, names)
    assert torch.equal(names["model"].encoder.pos_ln.weight, seeing["encoder.pos_ln.weight"].float())


def test_what_only_looks_like_it_is_not_loaded(state: dict[str, torch.Tensor]) -> None:
    model = UnivalModel(SMALL)
    turned = {**state, "decoder.image_position_idx": state["decoder.image_position_idx"].flip(0)}
    with pytest.raises(UnivalError, match=r"decoder.image_position_idx, \(1794,\), is not what the config gives"):
        model.load_state_dict(turned)
    name = "decoder.output_projection.weight"
    with pytest.raises(UnivalError, match="one matrix for both"):
        model.load_state_dict({**state, name: state[name] + 1})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*head.weight"):
        model.load_state_dict({**state, "head.weight": torch.ones(2)})


# ---- what a file says of its run


def test_the_fields_that_count_are_read(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    fields = {"hop_size": 480, "interpolate_position": True, "orig_patch_image_size": 224, "mel_bins": 64}
    path = training_file(tmp_path / "a.pt", state, fields=fields)
    config = load_model(path).config
    assert config.audio is not None
    assert (config.audio.hop, config.position_grid) == (480, 14)
    assert config == replace(SMALL, audio=replace(config.audio, hop=480), position_grid=14)
    seen = inspect(path)
    assert seen.settings["cfg.model"]["hop_size"] == 480
    assert seen.settings["cfg.task"] == {"_name": "caption", "patch_image_size": 480}
    assert "  cfg.model: arch unival_base, hop_size 480, disable_entangle True, encoder_prompt False" in seen.text()


def test_a_file_that_tells_no_hop_means_the_default_of_the_original(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({"cfg": {"model": argparse.Namespace(arch="unival_base")}, "model": state}, tmp_path / "a.pt")
    torch.save({"args": argparse.Namespace(hop_size=320), "cfg": None, "model": state}, tmp_path / "b.pt")
    torch.save({"model": state}, tmp_path / "c.pt")
    configs = [config_of(open_checkpoint(tmp_path / f"{name}.pt")) for name in "abc"]
    assert [config.audio and config.audio.hop for config in configs] == [480, 320, 200]


@pytest.mark.parametrize(
    ("fields", "task", "told"),
    [
        ({"with_cls": True}, {}, "cfg.model.with_cls is True, not off"),
        ({"disable_entangle": False}, {}, "cfg.model.disable_entangle is False, not True"),
        ({"attn_scale_factor": 1}, {}, "cfg.model.attn_scale_factor is 1, not 2"),
        ({"decoder_prompt": True}, {}, "cfg.model.decoder_prompt is True, not off"),
        ({"image_encoder_name": "resnet"}, {}, "cfg.model.image_encoder_name is resnet, not timm_resnet"),
        ({"image_bucket_size": 40}, {}, "cfg.model.image_bucket_size is 40, not 42"),
        ({}, {"max_image_size": 640}, "cfg.task.max_image_size is 640, not 512"),
        ({}, {"add_object": True}, "cfg.task.add_object is True, not off"),
    ],
)
def test_what_this_model_is_not_is_refused(
    seeing: dict[str, torch.Tensor], tmp_path: Path, fields: dict[str, object], task: dict[str, object], told: str
) -> None:
    path = training_file(tmp_path / "a.pt", seeing, task, fields=fields)
    with pytest.raises(UnivalError, match=f"made by another network than this one, {told}: give the config") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert load_model(path, TINY).config == TINY


def test_every_field_that_is_refused_would_be(seeing: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = open_checkpoint(training_file(tmp_path / "a.pt", seeing))
    for name in NETWORK:
        with pytest.raises(UnivalError, match=f"cfg.model.{name} is else"):
            Settings({name: "else"}, {}).applied(TINY, str(file.path))


def test_sizes_are_those_of_the_training_where_it_was_on_the_task(
    seeing: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    task = {"patch_image_size": 384, "patch_frame_size": 224, "num_frames": 4}
    settings = Settings.of(open_checkpoint(training_file(tmp_path / "a.pt", seeing, task)))
    said = {name: settings.sizes(known.published.original, known.medium) for name, known in TASKS.items()}
    assert {name: sizes for name, sizes in said.items() if sizes} == {"caption": {"side": 384}}
    video = Settings({}, {**task, "_name": "video_vqa_gen"})
    assert video.sizes(TASKS["video-qa"].published.original, "video") == {"side": 224, "frames": 4}


# ---- a vocabulary of another size


def test_another_vocabulary_is_told_by_the_file_or_by_a_config(seeing: dict[str, torch.Tensor], tmp_path: Path) -> None:
    rows = dict(seeing)
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        rows[name] = seeing["encoder.embed_tokens.weight"][:-500]
    told = training_file(tmp_path / "told.pt", rows, {"num_bins": 500, "code_dict_size": 8192})
    assert config_of(open_checkpoint(told)) == replace(TINY, bins=500)
    silent = training_file(tmp_path / "silent.pt", rows)
    with pytest.raises(UnivalError, match=r"58957 ids is not 50265 text_ids \+ 8192 codes \+ 1000 bins: give the con"):
        load_model(silent)
    (tmp_path / "config.json").write_text('{"bins": 500}')
    changes = read_changes(tmp_path / "config.json")
    assert config_of(open_checkpoint(silent), changes) == replace(TINY, bins=500)
    (tmp_path / "config.json").write_text('{"bins": 500, "shoes": 2}')
    with pytest.raises(UnivalError, match="UnivalConfig has no shoes"):
        open_model(silent, config=tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UnivalError, match="give an object of fields of the config"):
        open_model(silent, config=tmp_path / "config.json")


def test_parts_of_a_config_can_be_changed() -> None:
    assert SMALL.audio is not None
    changed = SMALL.changed({"audio": {"hop": 480}, "video": None, "heads": 4})
    assert changed == replace(SMALL, audio=replace(SMALL.audio, hop=480), video=None, heads=4)
    assert UnivalConfig.from_json(changed.to_json()) == changed


# ---- what lies beside


def test_missing_files_of_the_vocabulary_are_told_before_weights_are_read(
    seeing: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = training_file(tmp_path / "a.pt", seeing)
    monkeypatch.setattr("unival_core.checkpoint.load_model", lambda *_, **__: pytest.fail("weights are read"))
    told = "encoder.json, vocab.bpe, dict.txt are not in .*: copy utils/BPE of the UnIVAL repository there"
    with pytest.raises(UnivalError, match=told):
        open_model(path)
    (tmp_path / "vocab.bpe").touch()
    with pytest.raises(UnivalError, match=r"encoder.json, dict.txt are not in"):
        load_tokenizer(path, TINY)
    image = tmp_path / "image.png"
    image.touch()
    for words in (["generate", "--image", str(image)], ["evaluate", "--data", str(path)]):
        done = CliRunner().invoke(app, [*words, "--task", "caption", "--checkpoint", str(path)])
        assert (done.exit_code, "encoder.json, dict.txt are not in" in done.stderr) == (2, True)
    assert json.loads(TINY.to_json())["text_ids"] == 50_265
