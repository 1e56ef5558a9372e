"""`make_world`: pools of scenes, the files cut from them, and `world.json`, all or nothing."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.errors import StudyError
from experiments.world.concepts import COLOURS, DIGITS, GENERATOR, is_held_out
from experiments.world.rows import ROWS, Job, Stock, stream
from experiments.world.scenes import Pool, load_scans, sample_film, sample_scene
from experiments.world.tables import TASKS, FileRecord, Row, World, weights, words, write_rows

__all__ = ["DOMAIN_SETS", "SIZES", "make_world"]

_SCANS = (
    "Handwritten digits: the 1,797 scans of scikit-learn's load_digits, the test set of 'Optical Recognition of "
    "Handwritten Digits' (E. Alpaydin, C. Kaynak, 1998; UCI Machine Learning Repository, doi 10.24432/C50P49, "
    "CC BY 4.0), here brightened, resized, turned and coloured."
)
# Which pictures a task is trained and tested on, where they are not clean. Out-of-distribution splits never change.
DOMAIN_SETS: dict[str, dict[str, str]] = {
    "shared": {},
    "split": {"grounding": "lowquality", "entailment": "printed"},
}
_SHIFTS = {"novel": 600, "lowquality": 600, "printed": 600}
_MAIN = {"pretrain": 6000, "train": 6000, "val": 1200, "test": 2000} | _SHIFTS
_SIDE = {"pretrain": 3000, "train": 2000, "val": 600, "test": 600}
_FILM = {"pretrain": 1200, "train": 1500, "val": 600, "test": 1200, "novel": 600, "lowquality": 600}


@dataclass(frozen=True)
class Size:
    """Scenes by pool (pictures, films) and rows by task and split."""

    pictures: Mapping[str, int]
    films: Mapping[str, int]
    rows: Mapping[str, Mapping[str, int]]


_FULL = Size(
    {"pretrain": 7000, "train": 5000, "val": 1500, "test": 2400}
    | dict.fromkeys(("novel", "lowquality", "printed", "knowledge"), 900),
    {"pretrain": 1200, "train": 1200, "val": 600, "test": 1200, "novel": 600, "lowquality": 600},
    {
        "caption": _MAIN | {"pretrain-late": 3000, "train": 4000},
        "vqa": _MAIN | {"knowledge": 600},
        "grounding": _MAIN,
        "entailment": _MAIN,
        "grounded-caption": _SIDE,
        "image-text-matching": _SIDE,
        "video-caption": _FILM,
        "video-qa": _FILM,
        "video-text-matching": {"pretrain": 600, "train": 400, "val": 300, "test": 300},
        "audio-caption": {"train": 600, "val": 300, "test": 1200, "snr": 600},
        "backbone": {"train": 6000, "val": 600},
    },
)


def _cut(size: Size, most: int, scenes: int, films: int) -> Size:
    """The same files with at most so many rows, from smaller pools."""
    return Size(
        {name: min(n, scenes) for name, n in size.pictures.items()},
        {name: min(n, films) for name, n in size.films.items()},
        {task: {split: min(n, most) for split, n in splits.items()} for task, splits in size.rows.items()},
    )


def _finetuning(size: Size) -> Size:
    """Without what only pretraining reads: the other files keep every byte."""
    rows = {
        task: {s: n for s, n in splits.items() if not s.startswith("pretrain")} for task, splits in size.rows.items()
    }
    return Size(size.pictures, size.films, {task: splits for task, splits in rows.items() if task != "backbone"})


SIZES = {"full": _FULL, "quick": _finetuning(_FULL), "micro": _cut(_FULL, most=12, scenes=80, films=40)}


@dataclass
class _Notes:
    """What is learnt about the world while its rows go by."""

    vocabulary: set[str] = field(default_factory=lambda: {"yes", "no", "maybe"})
    answers: dict[str, set[str]] = field(default_factory=dict)
    areas: list[int] = field(default_factory=list)

    def read(self, job: Job, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self.vocabulary |= words(row)
            if "answers" in row:
                self.answers.setdefault(job.task, set()).update(weights(row["answers"]))
            if (job.task, job.split) == ("grounding", "train"):
                x0, y0, x1, y1 = map(int, row["box"].split(","))
                self.areas.append((x1 - x0) * (y1 - y0))
            yield row


def make_world(
    folder: Path | str,
    seed: int = 0,
    size: str = "quick",
    domains: str = "shared",
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write the embedded world into `folder` and return it.

    `full` has every file, `quick` the same ones but for what only pretraining reads (backbone, pretrain splits),
    `micro` a dozen rows of each. `domains="split"` gives tasks pictures of different domains (DOMAIN_SETS). The same
    arguments give the same bytes. Raises StudyError for unknown arguments and where something is in the way; another
    world is replaced with `overwrite`. Nothing appears under the name `folder` before all is written.
    """
    folder = Path(folder)
    for name, value, known in (("size", size, SIZES), ("domain set", domains, DOMAIN_SETS)):
        if value not in known:
            raise StudyError(f"no {name} '{value}': choose one of {', '.join(known)}")
    if seed < 0:
        raise StudyError(f"the seed of a world is at least 0, not {seed}")
    _check_free(folder, overwrite)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        world = _write_files(partial, (seed, size, domains), progress)
        (partial / "world.json").write_text(world.to_json())
        if folder.exists() and overwrite:
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise StudyError(f"{folder} exists: choose another folder or pass --overwrite")
    if not (folder / "world.json").is_file():
        raise StudyError(
            f"{folder} is not a world (it has no world.json), so it is not overwritten: remove it yourself"
        )


def _write_files(folder: Path, settings: tuple[int, str, str], progress: bool) -> World:
    seed, size_name, domains = settings
    size, notes, files = SIZES[size_name], _Notes(), {}
    stocks: dict[tuple[str, str, bool], Stock] = {}
    total = sum(sum(splits.values()) for splits in size.rows.values())
    with tqdm(total=total, desc=f"world {size_name}", unit="row", disable=not progress) as bar:
        for task, splits in size.rows.items():
            layout, medium = TASKS[task]
            for split, count in splits.items():
                stock = None if medium == "audio" else _stock(stocks, size, settings, task, split)
                job = Job(task, split, count, stock, stream(seed, "rows", task, split), seed)
                rows = _counted(notes.read(job, ROWS[task](job)), bar)
                written, size_bytes, digest = write_rows(folder / task / f"{split}.tsv", layout, rows)
                origin = (stock.name, stock.domain) if stock else ("", "clean" if split != "snr" else "noisy")
                files[f"{task}/{split}"] = FileRecord(*origin, written, size_bytes, digest)
    small, large = np.quantile(notes.areas, (1 / 3, 2 / 3)).tolist()
    held_out = [
        f"{COLOURS[c]} {DIGITS[d]}" for d in range(len(DIGITS)) for c in range(len(COLOURS)) if is_held_out(d, c)
    ]
    return World(
        generator=GENERATOR,
        seed=seed,
        size=size_name,
        domains=domains,
        files=files,
        vocabulary=sorted(notes.vocabulary),
        answers={task: sorted(answers) for task, answers in notes.answers.items()},
        small_below=small,
        large_above=large,
        held_out_pairs=held_out,
        scans=_SCANS,
        made_with={name: version(name) for name in ("numpy", "pillow", "scikit-learn")},
    )


def _counted(rows: Iterable[Row], bar: "tqdm") -> Iterator[Row]:
    for row in rows:
        yield row
        bar.update()


def _stock(
    stocks: dict[tuple[str, str, bool], Stock], size: Size, settings: tuple[int, str, str], task: str, split: str
) -> Stock:
    """The scenes of a split in the task's domain, made at the first call."""
    seed, _, domains = settings
    film = TASKS[task][1] == "video"
    name = "pretrain" if split == "pretrain-late" or (task == "backbone" and split == "train") else split
    in_domain = split in ("train", "val", "test")
    domain = (
        DOMAIN_SETS[domains].get(task, "clean")
        if in_domain
        else split
        if split in ("lowquality", "printed")
        else "clean"
    )
    key = (name, domain, film)
    if key not in stocks:
        twin = next((s for (n, _, f), s in stocks.items() if (n, f) == (name, film)), None)
        pool = twin.pool if twin else _pool(seed, name, (size.films if film else size.pictures)[name], film)
        stocks[key] = Stock(name, domain, seed, pool, film)
    return stocks[key]


def _pool(seed: int, name: str, count: int, film: bool) -> Pool:
    rng, by_digit = stream(seed, "film" if film else "picture", name), load_scans().by_digit
    scans = by_digit["train" if name == "pretrain" else name if name in by_digit else "test"]
    novel = name == "novel"
    sample = sample_film if film else sample_scene
    return Pool([sample(rng, scans, novel) for _ in range(count)], novel)
