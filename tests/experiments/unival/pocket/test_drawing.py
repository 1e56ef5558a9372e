"""Drawing at pocket setup: the image tokenizer, what recognises its images, the rows, and the experts."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from experiments.study.points import Expert
from experiments.unival.pocket import codec
from experiments.unival.pocket.backbone import scaled
from experiments.unival.pocket.codebook import SHOWN, apart, halved, k_means, looks, nearest, start_codes, train_codec
from experiments.unival.pocket.codec import CODEC, ROWS, code_rows, read_images, stock_of
from experiments.unival.pocket.codes import widened, with_codes
from experiments.unival.pocket.experts import make_experts
from experiments.unival.pocket.kinds import step_of, with_parents
from experiments.unival.pocket.pipeline import Pocket, file_digest
from experiments.unival.pocket.recogniser import Recogniser, Thing, content, described, recognised, train_recogniser
from experiments.unival.samples import answers
from experiments.unival.setups import CONTENT, PocketSetup
from experiments.unival.studies import STUDIES, Choice
from experiments.unival.subject import UnivalSubject
from experiments.unival.world.grammar import captions
from unival_core import CONFIGS, ImageCodes, ImageCodesConfig, Tokenizer, UnivalModel, load_model
from unival_core.config import ResNetConfig
from unival_core.data import MediaCache
from unival_core.media.image import load_image
from unival_core.training import TrainOptions

BOTH = ("caption", "image-generation")
SMALL = ImageCodesConfig(4, 4, 4, 4, (1, 2), 1, ())


def images(count=16):
    """One red or blue half, left or right, on grey."""
    pixels = torch.full((count, 3, 8, 8), 60, dtype=torch.uint8)
    for number in range(count):
        half = slice(0, 4) if number % 2 else slice(4, 8)
        pixels[number, :, :, half] = torch.tensor([230, 20, 20] if number % 4 < 2 else [20, 20, 230])[:, None, None]
    return pixels


def digits(count=16):
    """Labels of the cells of `images`: a seven where it is red, a two where it is blue, nothing elsewhere."""
    labels = torch.full((count, 2, 2), 11)
    for number in range(count):
        labels[number, :, 0 if number % 2 else 1] = 7 if number % 4 < 2 else 2
    return labels


def test_images_come_back_from_their_codes():
    pixels, labels = images(8), digits(8)
    wanted = halved(pixels)
    options = TrainOptions(lr=2e-2, updates=12, batch=4, seed=1)
    trained = train_codec(SMALL, pixels, labels, options, progress=False)
    with torch.no_grad():
        codes = trained.encode(wanted)
        after = apart(trained.decode(codes), wanted)
        before = apart(torch.zeros_like(wanted), wanted)
    assert after < 0.7 * before
    assert len(codes.unique()) > 1


def test_a_seed_gives_the_same_tokenizer():
    options = TrainOptions(lr=1e-2, updates=2, batch=8, seed=1)
    trained, again = (train_codec(SMALL, images(), digits(), options, progress=False) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(trained.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_cells_that_look_alike_share_a_code():
    """Red, blue and grey cells; those that look the same and show other digits are apart."""
    pixels, labels = halved(images(8)), digits(8)
    torch.manual_seed(0)
    red, blue = looks(pixels, labels, 2)[[1, 8]]
    points = torch.cat((red + 0.01 * torch.randn(9, len(red)), blue + 0.01 * torch.randn(9, len(red))))
    own = nearest(points, k_means(points, 2))
    assert (own[:9] == own[0]).all()
    assert (own[9:] == 1 - own[0]).all()
    other = looks(pixels, labels.where(labels != 7, 3), 2)[1]
    assert (other - red).norm() == pytest.approx(SHOWN * 2**0.5)


def test_codes_begin_with_those_that_are_nearest():
    middles = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    model = ImageCodes(ImageCodesConfig(5, 8, 8, 4, (1, 2), 1, ()))
    start_codes(model, middles)
    rows, namer = model.quantize.embed.weight.detach(), model.quantize.proj
    logits = namer(rows[:, :, None, None]).flatten(1)
    assert logits.argmax(1).tolist() == [*range(5)]
    assert torch.pdist(rows).std() / torch.pdist(rows).mean() == pytest.approx(
        (torch.pdist(middles).std() / torch.pdist(middles).mean()).item(), rel=1e-4
    )


def test_the_tokenizer_fits_the_model():
    pocket = CONFIGS["pocket"]
    assert CODEC.stride * pocket.code_side * 2 == pocket.code_image_size  # it codes images at half their size


def test_a_model_gets_words_for_codes_and_keeps_its_others():
    """The ids of text stay, those of bins move behind the codes; all else is what it was."""
    torch.manual_seed(0)
    config = replace(CONFIGS["pocket"], video=None, audio=None, image=ResNetConfig((1,), (4,), stem=4, kernel=3))
    model = UnivalModel(config).eval()
    codebook = torch.randn(40, 6)
    codebook[7] = codebook[3]
    wide = widened(model, codebook, 1)
    before, after = (own.encoder.embed_tokens.weight.detach() for own in (model, wide))
    assert (wide.config.codes, len(after)) == (40, len(before) + 24)
    assert torch.equal(after[: config.code_offset], before[: config.code_offset])
    assert torch.equal(after[wide.config.bin_offset :], before[config.bin_offset :])
    assert wide.decoder.output_projection.weight is wide.encoder.embed_tokens.weight
    rows = F.normalize(after[config.code_offset : wide.config.bin_offset], dim=1)
    assert rows[3] @ rows[7] > 0.2 + rows[3] @ rows[8]
    for name, tensor in wide.state_dict().items():
        assert tensor.shape[:1] == (wide.config.vocabulary,) or torch.equal(tensor, model.state_dict()[name])
    tokenizer = Tokenizer.train(["a red seven"], config)
    more = with_codes(tokenizer, 40)
    assert more.check(wide.config).encode("a red seven") == tokenizer.encode("a red seven")
    assert with_codes(more, 40) is more


def test_captions_tell_digits_colours_and_places():
    assert described("a red seven at the top left and an eight and a card") == {0: Thing(7, 0)}
    assert described("the image shows a cyan zero on the left and a pink nine") == {5: Thing(0, 3), 4: Thing(9)}
    assert described("a blue two in the centre and a green one at the bottom right") == {2: Thing(2, 4), 1: Thing(1, 8)}
    assert described("a card") == {}


def test_content_is_the_share_of_facts():
    wanted = {0: Thing(7, 0), 2: Thing(2)}
    assert content({0: Thing(7, 0), 2: Thing(2, 5)}, wanted) == 1.0
    assert content({0: Thing(1, 0), 2: Thing(2, 5)}, wanted) == 0.8
    assert content({0: Thing(7, 0)}, wanted) == 0.6
    assert content({0: Thing(7, 0), 2: Thing(2, 5), 3: Thing(0, 1)}, wanted) == pytest.approx(5 / 6)
    assert content({}, wanted) == content({}, {}) == 0.0


def test_cells_become_things():
    """Cells that say seven and red, in the middle of the top row; where none is likelier there is no thing."""

    class Told(Recogniser):
        def forward(self, images):
            digits, colours = torch.zeros(1, 12, 6, 6), torch.zeros(1, 7, 6, 6)
            digits[:, 11], colours[:, 6] = 20.0, 20.0
            digits[0, 7, :2, 2:4], colours[0, 0, :2, 2:4] = 40.0, 40.0
            colours[0, 3, 5, 5] = 19.5
            return digits, colours

    assert recognised(Told(), torch.zeros(1, 3, 48, 48)) == [{0: Thing(7, 1)}]


def test_the_recogniser_learns():
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((32, 2, 6, 6), 11)
    labels[:, 1] = 6
    pixels = torch.randint(40, 60, (32, 3, 48, 48), generator=generator, dtype=torch.uint8)
    for number in range(32):
        pixels[number, number % 3, :16, 16:32] = 230
        labels[number, 0, :2, 2:4], labels[number, 1, :2, 2:4] = 7, number % 3
    model = train_recogniser(pixels, labels, TrainOptions(lr=1e-2, updates=24, batch=8), progress=False)
    found = recognised(model, scaled(pixels[:3]))
    assert [found[number][number] for number in range(3)] == [Thing(7, 1)] * 3


def test_steps_towards_drawing(tmp_path):
    steps = with_parents([step_of(Pocket(tmp_path), Expert(task, task, "drawing")) for task in BOTH])
    assert [step.file for step in steps] == [
        "drawing/stage/last.safetensors",
        "drawing/caption/last.safetensors",
        "drawing/image-generation/last.safetensors",
    ]
    assert (steps[0].parents, steps[0].split, set(steps[0].tasks)) == ((), "pretrain", {"caption", "image-generation"})
    assert {step.parents for step in steps[1:]} == {(steps[0],)}


@pytest.mark.slow
def test_a_pocket_learns_to_draw(tmp_path):
    """All of it, an update each: from nothing to the rows of the study; what was pretrained stays as it is."""
    pocket = Pocket(tmp_path / "pocket", "micro")
    files = make_experts(pocket, [Expert(task, task, "drawing") for task in BOTH], 1, progress=False)
    before = file_digest(pocket.pretrained)
    assert [path.exists() for path in files.values()] == [True, True]
    for split, count in ROWS.items():
        lines = (pocket.folder / "data" / "image-generation" / f"{split}.tsv").read_text().splitlines()
        assert len(lines) == min(count, 60)
        name, codes, caption = lines[0].split("\t")
        assert (name, len(codes.split())) == (f"{split}-000000", 36)
        assert described(caption) or caption
    levels = json.loads((pocket.folder / "recogniser.json").read_text())
    assert [*levels] == ["val", "test", "novel"]
    assert all(low <= value <= high for own in levels.values() for value, low, high in own.values())
    assert [*levels["test"]] == ["images", "codes", "shuffled"]
    stock = stock_of(pocket, "val")
    image = ImageCodes(CODEC).eval()
    rows = list(code_rows(image, stock, "val", 3))
    assert [row[2] for row in rows] == [captions(scene)[codec.TOLD] for scene in stock.pool.scenes[:3]]
    assert torch.equal(
        image.encode(halved(read_images(stock, 1))).flatten(), torch.tensor([*map(int, rows[0][1].split())])
    )
    setup = PocketSetup(pocket.folder)
    subject = UnivalSubject(setup, limit=5)
    cell = next(c for c in STUDIES["drawing"].cells(Choice()) if c.task == "image-generation")
    scores = subject.evaluate(load_model([*files.values()][1]), cell)
    assert set(scores) == {CONTENT, "negative log-likelihood"}
    assert (scores[CONTENT].n, len(scores[CONTENT].per_example)) == (5, 5)
    assert 0 <= scores[CONTENT].value <= 1
    model, options = load_model([*files.values()][1]), setup.generation(cell.task)
    assert model.config.codes == CODEC.codes
    data = setup.dataset(cell.task, "test", setup.tokenizer(model.config), model.config, MediaCache())
    for sample in answers(tmp_path, model, data, options=options, count=2, draw=setup.images):
        assert (sample["answer"], sample["prompt"] != "") == ("", True)
        assert load_image(tmp_path / "samples" / sample["image"]).size == (24, 24)
    make_experts(pocket, [Expert("caption", "caption", "drawing")], 1, progress=False)
    assert file_digest(pocket.pretrained) == before
