"""`unival-merge generate`, on a pocket model with made-up weights."""

import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.unival_core.golden import SHARED
from tests.unival_core.made_rows import DISTINCT
from unival_core.checkpoint import save_model
from unival_core.commands import app as program
from unival_core.config import CONFIGS, replace
from unival_core.errors import UnivalError
from unival_core.image_codes import ImageCodes, ImageCodesConfig, save_image_codes
from unival_core.media.image import load_image
from unival_core.model import UnivalModel
from unival_core.tasks import TASKS
from unival_core.vocabulary import TOKENIZER_KEY, Tokenizer, load_tokenizer

POCKET = CONFIGS["pocket"]
WORDS = ["what does the image describe?", 'does the " describe "?', "yes no maybe", "a red 7 and a blue 3", "video"]


@pytest.fixture(scope="module")
def folder(pocket: UnivalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its tokenizer, and one of each medium."""
    folder = tmp_path_factory.mktemp("pocket")
    tokenizer = Tokenizer.train(WORDS, POCKET)
    save_model(pocket, folder / "pocket.safetensors", metadata={TOKENIZER_KEY: tokenizer.to_json()})
    save_model(pocket, folder / "wordless.safetensors")
    images = [Image.effect_noise((60, 40), 10 * step).convert("RGB") for step in range(1, 10)]
    images[0].save(folder / "image.png")
    images[0].save(folder / "video.gif", save_all=True, append_images=images[1:])
    with wave.open(str(folder / "audio.wav"), "wb") as audio:
        audio.setnchannels(1)
        audio.setsampwidth(2)
        audio.setframerate(16000)
        audio.writeframes((np.sin(np.arange(20000) / 4) * 9000).astype("<i2").tobytes())
    return folder


def run(folder: Path, task: str, *arguments: str, checkpoint: str = "pocket.safetensors") -> Result:
    files = [str(folder / word) if (folder / word).exists() and word else word for word in arguments]
    return CliRunner().invoke(program, ["generate", "--checkpoint", str(folder / checkpoint), "--task", task, *files])


MEDIA = {"image": "image.png", "video": "video.gif", "audio": "audio.wav"}


@pytest.mark.parametrize("task", DISTINCT)
def test_every_task_answers(folder: Path, task: str) -> None:
    ask = TASKS[task]
    words = ["--text", "0,0,30,20" if ask.asks == "box" else "A red 7"] if ask.asks else []
    medium = [f"--{ask.medium}", MEDIA[ask.medium]] if ask.medium else []
    resample = ["--resample"] if ask.medium == "audio" else []
    result = run(folder, task, *medium, *words, *resample)
    assert (result.exit_code, result.stderr) == (0, "")
    answer = result.stdout.strip()
    assert answer
    assert "\n" not in answer
    if ask.answers:
        assert answer in ask.answers
    if ask.writes == "codes":
        assert len([int(code) for code in answer.split()]) == POCKET.code_side**2


def test_help_lists_every_task() -> None:
    text = re.sub(r"[^\w,.-]", "", CliRunner().invoke(program, ["generate", "--help"]).stdout)
    assert f"Oneof{','.join(sorted(TASKS))}." in text


def test_a_box_lies_in_the_image_and_is_drawn(folder: Path, tmp_path: Path) -> None:
    ask = ("grounding", "--image", "image.png", "--text", "a blue 3", "--draw", str(tmp_path / "drawn.png"))
    result = run(folder, *ask)
    x0, y0, x1, y1 = map(float, result.stdout.split())
    assert 0 <= min(x0, x1) <= max(x0, x1) <= 60
    assert 0 <= min(y0, y1) <= max(y0, y1) <= 40
    drawn, plain = (np.asarray(Image.open(path).convert("RGB")) for path in (ask[-1], folder / "image.png"))
    changed = (drawn != plain).any(axis=2)
    assert (drawn[changed] == (255, 0, 0)).all()
    assert changed.any()
    assert f"{ask[-1]} exists: pass --overwrite" in run(folder, *ask).stderr
    assert run(folder, *ask, "--overwrite").exit_code == 0


def test_drawing_are_drawn_and_saved(folder: Path, tmp_path: Path) -> None:
    codec = ImageCodes(ImageCodesConfig(POCKET.codes, 8, 8, 8, (1, 1, 1, 1), 1, ()))
    save_image_codes(codec, tmp_path / "codec.safetensors")
    files = ("--vqgan", str(tmp_path / "codec.safetensors"), "-o", str(tmp_path / "out.png"))
    ask = ("image-generation", "--text", "a red 7", *files, "--samples", "3", "--seed", "4")
    result = run(folder, *ask)
    assert (result.exit_code, result.stderr) == (0, "")
    singles = [tmp_path / f"out-{rank}.png" for rank in (1, 2, 3)]
    lines = [re.fullmatch(r"(\S+)  (-\d+\.\d{4}) nats a code", line) for line in result.stdout.splitlines()]
    assert [Path(line[1]) for line in lines if line] == singles
    assert [load_image(path).size for path in (tmp_path / "out.png", *singles)] == [(98, 98)] + [(48, 48)] * 3
    before = singles[2].read_bytes()
    (tmp_path / "out.png").unlink()
    assert f"{singles[0]} exists: pass --overwrite" in run(folder, *ask).stderr
    assert run(folder, *ask, "--overwrite").stdout == result.stdout
    assert singles[2].read_bytes() == before
    assert run(folder, *ask, "--overwrite", "--side", "32").exit_code == 0
    assert load_image(singles[0]).size == (32, 32)
    assert "hmm\n" in run(folder, *ask, "--overwrite", "--text", "a red hmm").stderr


def test_a_greedy_answer_may_differ_but_repeats(folder: Path) -> None:
    ask = ("caption", "--image", "image.png", "--beam", "1")
    assert run(folder, *ask).stdout == run(folder, *ask).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("captions", "--image", "image.png"), "no task 'captions': choose one of caption, vqa, grounding"),
        (("caption",), "caption needs --image, got none"),
        (("video-qa", "--image", "image.png"), "video-qa needs --video, got --image"),
        (("caption", "--image", "image.png", "--audio", "audio.wav"), "needs --image, got --image --audio"),
        (("vqa", "--image", "image.png"), "vqa needs --text"),
        (("caption", "--image", "image.png", "--text", "a"), "caption takes no --text"),
        (("caption", "--image", "image.png", "--draw", "out.png"), "--draw needs a box, caption has none"),
        (("caption", "--image", "image.png", "--vqgan", "a.pt"), "--vqgan is for images, caption writes text"),
        (("image-generation", "--text", "a", "--samples", "2"), "--samples needs --vqgan FILE and --output FILE"),
        (("image-generation", "--text", "a", "--vqgan", "absent.pt", "-o", "o.png"), "absent.pt: no such file"),
        (("image-generation", "--text", "a", "--vqgan", "a.pt", "-o", "image.png"), "image.png exists: pass --overw"),
        (("caption", "--image", "absent.png"), "absent.png: No such file"),
        (("caption", "--image", "audio.wav"), "not an image"),
        (("audio-caption", "--audio", "audio.wav"), "16000 samples a second, the model expects 8000"),
        (("caption", "--image", "image.png", "--side", "480"), "positions up to 12 x 12"),
        (("caption", "--image", "image.png", "--device", "abacus"), "--device abacus"),
        (
            ("caption", "--image", "image.png", "--bpe", "nowhere"),
            "json, vocab.bpe, dict.txt are not in nowhere",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(folder, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_a_missing_checkpoint_or_tokenizer_is_told(folder: Path) -> None:
    image = ("caption", "--image", "image.png")
    result = run(folder, *image, checkpoint="absent.safetensors")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "no tokenizer is stored in it" in run(folder, *image, checkpoint="wordless.safetensors").stderr


def test_a_model_without_the_encoder_says_which_it_has(folder: Path, tmp_path: Path) -> None:
    model = UnivalModel(replace(POCKET, audio=None)).eval()
    tokenizer = Tokenizer.train(WORDS, POCKET)
    save_model(model, tmp_path / "deaf.safetensors", metadata={TOKENIZER_KEY: tokenizer.to_json()})
    result = run(tmp_path, "audio-caption", "--audio", str(folder / "audio.wav"), checkpoint="deaf.safetensors")
    assert "the model reads image, video, not audio" in result.stderr


def test_the_tokenizer_of_a_checkpoint_is_found_by_one_rule(folder: Path, tmp_path: Path) -> None:
    stored = load_tokenizer(folder / "pocket.safetensors", POCKET)
    assert stored.decode(stored.encode("a red 7")) == "a red 7"
    with pytest.raises(UnivalError, match=r"\(384, 16, 24\) in the tokenizer and \(400, 0, 24\) in the model"):
        load_tokenizer(folder / "pocket.safetensors", replace(POCKET, text_ids=400, codes=0))
    if not (SHARED / "BPE").is_dir():
        pytest.skip(f"needs the published files in {SHARED / 'BPE'}")
    base = CONFIGS["base"]
    (tmp_path / "BPE").symlink_to(SHARED / "BPE")
    model = tmp_path / "wordless.safetensors"
    model.write_bytes((folder / "wordless.safetensors").read_bytes())
    assert load_tokenizer(model, base).size == load_tokenizer(model, base, bpe=SHARED / "BPE").size == 59457


def test_help_needs_no_torch() -> None:
    code = """
import sys
from unival_core.commands import main
sys.argv[1:] = ["generate", "--help"]
try:
    main()
except SystemExit:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert "--draw" in done.stdout


def test_the_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unival_core", "generate"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--checkpoint" in done.stderr
