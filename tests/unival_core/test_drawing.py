"""Images of captions: drawn with a seed, decoded, ranked, put on a sheet, saved."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unival_core.golden import fill
from tests.unival_core.made_rows import POCKET, TOKENIZER
from unival_core.drawing import DrawnImage, clip_scorer, contact_sheet, draw_images, save_images
from unival_core.errors import UnivalError
from unival_core.image_codes import ImageCodes, ImageCodesConfig, to_pixels
from unival_core.media.image import load_image
from unival_core.model import UnivalModel
from unival_core.tasks import TASKS

TASK = TASKS["image-generation"]


@pytest.fixture(scope="module")
def codec() -> ImageCodes:
    model = ImageCodes(ImageCodesConfig(POCKET.codes, 8, 8, 8, (1, 1, 1, 2), 1, ()))
    fill(model)
    return model.eval()


def plain(shade: int, size: tuple[int, int] = (4, 3)) -> Image.Image:
    return Image.new("RGB", size, (shade, 0, 0))


def test_drawing_are_drawn_with_a_seed(pocket: UnivalModel, codec: ImageCodes) -> None:
    one, again, other = (
        draw_images(pocket, TOKENIZER, codec, TASK, "two digits", samples=5, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again != other
    assert len({tuple(image.codes) for image in one}) > 1
    assert [image.score for image in one] == sorted((image.score for image in one), reverse=True)
    for image in one:
        with torch.no_grad():
            pixels = to_pixels(codec.decode(torch.tensor(image.codes).view(1, 6, 6)))[0]
        assert np.array_equal(np.asarray(image.image), pixels.numpy())
        assert (image.image.size, image.fit) == ((48, 48), None)


def test_a_scorer_ranks(pocket: UnivalModel, codec: ImageCodes) -> None:
    asked = []

    def redness(images: list[Image.Image], text: str) -> list[float]:
        asked.append(text)
        return [-float(np.asarray(image)[..., 0].mean()) for image in images]

    found = draw_images(pocket, TOKENIZER, codec, TASK, "two digits", samples=4, scorer=redness)
    reds = [float(np.asarray(image.image)[..., 0].mean()) for image in found]
    assert reds == sorted(reds) == [-image.fit for image in found if image.fit is not None]
    assert asked == ["two digits"]


def test_codes_of_other_tokenizers_are_refused(pocket: UnivalModel) -> None:
    other = ImageCodes(ImageCodesConfig(17, 8, 8, 8, (1,), 1, ()))
    with pytest.raises(UnivalError, match="the image tokenizer has 17 codes, the model writes 16"):
        draw_images(pocket, TOKENIZER, other, TASK, "two digits")


@pytest.mark.parametrize(("count", "size"), [(1, (4, 3)), (2, (10, 3)), (3, (10, 8)), (8, (16, 13)), (9, (16, 13))])
def test_a_sheet_is_about_square(count: int, size: tuple[int, int]) -> None:
    sheet = np.asarray(contact_sheet([plain(shade) for shade in range(count)]))
    assert sheet.shape == (size[1], size[0], 3)
    shades = sheet[..., 0][(sheet[..., 1:] == 0).all(-1)]
    assert sorted(set(shades.tolist())) == list(range(count))
    assert (shades == 0).sum() == 12  # all of the first image


def test_files_are_named_by_rank(tmp_path: Path) -> None:
    images = [DrawnImage(plain(10 * rank), [], -rank) for rank in range(10)]
    names = [path.name for path in save_images(images, tmp_path / "out.png")]
    assert names == ["out.png", *(f"out-{rank:02}.png" for rank in range(1, 11))]
    assert load_image(tmp_path / "out-04.png").getpixel((0, 0)) == (30, 0, 0)
    assert [path.name for path in save_images(images[:1], tmp_path / "one.png")] == ["one.png"]
    assert not (tmp_path / "one-1.png").exists()
    with pytest.raises(UnivalError, match=r"out\.pong: unknown file extension"):
        save_images(images, tmp_path / "out.pong")


def test_clip_by_the_published_formula(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = {word: index for index, word in enumerate(["<|startoftext|>", "<|endoftext|>", *"abcdefg", "a</w>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer.model_max_length = 12
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(words), "max_position_embeddings": 12, "eos_token_id": 1, "bos_token_id": 0}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 8, "patch_size": 4}, projection_dim=6
    )
    model = transformers.CLIPModel(config).eval()
    resizer = transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    model.save_pretrained(tmp_path)
    processor = transformers.CLIPProcessor(resizer, tokenizer)
    processor.save_pretrained(tmp_path)
    images = [plain(0, (9, 12)), plain(200, (9, 12))]
    given = processor(text=["ab a"], images=images, return_tensors="pt")
    with torch.no_grad():
        said = model(**given)
        wanted = said.logits_per_image.flatten() / model.logit_scale.exp()
    scorer = clip_scorer(tmp_path)
    assert scorer(images, "a/b a") == pytest.approx(wanted.tolist(), abs=1e-6)
    assert len(scorer(images, "a " * 50)) == 2  # cut to what CLIP reads
    with pytest.raises(UnivalError, match="no CLIP folder: "):
        clip_scorer(tmp_path / "absent")


def test_clip_needs_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UnivalError, match=r"CLIP needs transformers: pip install 'unival-merge\[hf\]'"):
        clip_scorer(tmp_path)
