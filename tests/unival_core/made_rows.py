"""Lines of every published layout, made from nothing: images, videos, audios, texts, and a vocabulary for them."""

import base64
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unival_core.config import CONFIGS
from unival_core.data.dataset import TaskDataset
from unival_core.data.table import TsvTable
from unival_core.tasks import TASKS
from unival_core.vocabulary import Tokenizer

POCKET = CONFIGS["pocket"]
WORDS = [
    "what does the image describe?",
    "what does the video describe?",
    'which region does the text " the red seven " describe?',
    'does the image describe " a blue three "?',
    "what does the region describe? region:",
    "what is the complete image? caption: two digits",
    'what is the answer to question " which digit is red ". is " four "?',
    "yes no maybe red dark red green blue one two three four seven left right",
    "which digit is red? what colour is the seven? how many digits are there?",
    "a red seven and a blue three moves left someone dials one two",
]
TOKENIZER = Tokenizer.train(WORDS, POCKET)
RATE = 8_000


def image(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int, size: tuple[int, int] = (60, 40)) -> bytes:
    data = io.BytesIO()
    image(seed, size).save(data, "PNG")
    return data.getvalue()


def gif(seed: int, frames: int = 8) -> bytes:
    data = io.BytesIO()
    images = [image(100 * seed + step, (48, 48)) for step in range(frames)]
    images[0].save(data, "GIF", save_all=True, append_images=images[1:])
    return data.getvalue()


def mp4(seed: int, frames: int = 12) -> bytes:
    import av

    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for step in range(frames):
            frame = av.VideoFrame.from_ndarray(np.asarray(image(100 * seed + step, (64, 48))))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return data.getvalue()


def wav(seed: int, samples: int = 9_000) -> bytes:
    data = io.BytesIO()
    tone = np.sin(np.arange(samples) * (0.3 + 0.1 * seed)) * 9000
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(tone.astype("<i2").tobytes())
    return data.getvalue()


MAKERS = {"image": (png, "jpg.png"), "video": (mp4, "mp4"), "audio": (wav, "wav")}
TEXTS = {  # every column but uniq_id and media, for an even and an odd row
    "caption": ("a red seven", "two digits && a blue three, left && a red seven and a blue three"),
    "question": ("Which digit is red", "what colour is the seven?"),
    "answers": ("1.0|!+four&&0.3|!+two", "0.6|!+red&&1.0|!+dark red"),
    "objects": ("digit&&digit", "digit"),
    "text": ("the red seven", "the blue three"),
    "box": ("3,4,30,36", "10.5,0,59.5,21"),
    "hypothesis": ("a red seven", "the digit is blue"),
    "label": ("entailment", "neutral"),
    "codes": (" ".join(str(k % 16) for k in range(36)), " ".join(str(k % 7) for k in range(36))),
    "dataset": ("made", "made"),
    "type": ("caption", "caption"),
    "image_id": ("5", "6"),
}
# The other tasks ask the same of other data sets.
DISTINCT = [name for name in TASKS if not any(name.startswith(f"{other}-") for other in TASKS)]
LAYOUTS = {name: " ".join(task.layout or task.columns) for name, task in TASKS.items()}


def cell(medium: str, seed: int, folder: Path | None) -> str:
    """A medium as base64, or, with a folder, as the path of a file in it."""
    make, ending = MAKERS[medium]
    if folder is None:
        encode = base64.urlsafe_b64encode if seed % 2 else base64.b64encode
        return encode(make(seed)).decode()
    name = f"{medium}-{seed}.{ending}"
    (folder / name).write_bytes(make(seed))
    return name


def cells(task: str, row: int, folder: Path | None = None) -> dict[str, str]:
    """A row by column names; columns of a new task are those of its example."""
    texts = {name: texts[row % 2] for name, texts in TEXTS.items()}
    found = {**TASKS[task].example, **texts, "uniq_id": f"row-{row}"}
    if "matching" in task:
        found |= {"question": "", "answers": ("1.0|!+yes", "1.0|!+no")[row % 2], "type": "matching"}
    medium = TASKS[task].medium
    return found if medium is None else found | {"media": cell(medium, row, folder)}


def write_file(path: Path, task: str, rows: int = 4, folder: Path | None = None) -> Path:
    """A file of the task in its published layout."""
    lines = ("\t".join(cells(task, row, folder)[name] for name in LAYOUTS[task].split()) for row in range(rows))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def table(path: Path, task: str, rows: int = 4, folder: Path | None = None) -> TsvTable:
    """The same, opened."""
    return TsvTable(write_file(path, task, rows, folder), TASKS[task].columns, TASKS[task].selected_cols)


def dataset(path: Path, task: str, rows: int = 4, folder: Path | None = None, **options: Any) -> TaskDataset:
    """The same, as examples for the pocket model."""
    return TaskDataset(TASKS[task], table(path, task, rows, folder), TOKENIZER, POCKET, **options)
