"""`make_world`: pools of scenes, the files cut from them, and `world.json`, all or nothing."""

import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.errors import StudyError
from experiments.unival.world.concepts import COLOURS, DIGITS, GENERATOR, VOCABULARY, is_held_out
from experiments.unival.world.rows import Order
from experiments.unival.world.stock import Stocks, stream
from experiments.unival.world.tables import SHEET, FileRecord, Row, World, write_rows
from experiments.unival.world.tasks import SIZES, TASKS, read_rows
from merge import alone

__all__ = ["make_world"]

DOMAINS = ("shared", "split")

_SCANS = (
    "Handwritten digits: scans of scikit-learn's load_digits, the test set of 'Optical Recognition of Handwritten "
    "Digits' (E. Alpaydin, C. Kaynak, 1998; UCI Machine Learning Repository, doi 10.24432/C50P49, CC BY 4.0), here "
    "brightened, resized, turned and coloured."
)


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
    `micro` a dozen rows of each. `domains="split"` gives tasks images of different domains. The same
    arguments give the same bytes. Raises StudyError for unknown arguments and where something is in the way; another
    world is replaced with `overwrite`. Nothing appears under the name `folder` before all is written, beside it; while
    another one is written there, this one waits.
    """
    folder = Path(folder)
    for name, value, known in (("size", size, SIZES), ("domain set", domains, DOMAINS)):
        if value not in known:
            raise StudyError(f"no {name} '{value}': choose one of {', '.join(known)}")
    if folder.name in ("", ".."):
        raise StudyError(f"{folder} is no name for a world: name a new folder")
    if seed < 0:
        raise StudyError(f"the seed of a world is at least 0, not {seed}")
    _check_free(folder, overwrite)
    partial = folder.with_name(f".{folder.name}.partial-world")
    with alone(partial):
        try:
            _check_free(folder, overwrite)  # again: who was here before may have made it
            for path in partial.iterdir():  # of a run that was killed
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            world = _write_files(partial, (seed, size, domains), progress)
            (partial / "world.json").write_text(world.to_json())
            if folder.exists() and overwrite:
                shutil.rmtree(folder)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return folder


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise StudyError(f"{folder} exists: choose another folder or pass --overwrite")
    if not (folder / "world.json").is_file():
        raise StudyError(f"{folder} is no world (it has no world.json), so it is not overwritten: remove it yourself")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if not path.name.endswith((".tsv", ".index.npy")) and path.name not in ("world.json", SHEET):
            raise StudyError(f"{path} is no part of the world in {folder}, which is not overwritten: move it away")


def _write_files(folder: Path, settings: tuple[int, str, str], progress: bool) -> World:
    seed, size_name, domains = settings
    size, files = SIZES[size_name], {}
    stocks = Stocks(seed, size.scenes)
    wanted = [(name, split, count) for name, splits in size.rows.items() for split, count in splits.items()]
    with tqdm(
        total=sum(n for *_, n in wanted), desc=f"world {size_name}", unit="row", disable=None if progress else True
    ) as bar:
        for name, split, count in wanted:
            task = TASKS[name]
            stock = stocks.get(task.medium, split, task.split_domain if domains == "split" else "clean")
            order = Order(name, split, count, stock, stream(seed, "rows", name, split))
            written = write_rows(folder / name / f"{split}.tsv", task.columns, _counted(task.rows(order), bar))
            files[f"{name}/{split}"] = FileRecord(stock.name, stock.domain, *written)
    boxes = [[int(v) for v in row["box"].split(",")] for row in read_rows(folder, "grounding", "train")]
    small, large = np.quantile([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes], (1 / 3, 2 / 3)).tolist()
    answers = [(name, task.answers) for name, task in TASKS.items() if task.answers]
    pairs = [(digit, colour) for digit in range(len(DIGITS)) for colour in range(len(COLOURS))]
    return World(
        generator=GENERATOR,
        seed=seed,
        size=size_name,
        domains=domains,
        files=files,
        vocabulary=list(VOCABULARY),
        answers={name: list(answers) for name, answers in sorted(answers, key=lambda item: -len(item[1]))},
        small_below=small,
        large_above=large,
        held_out_pairs=[f"{COLOURS[colour]} {DIGITS[digit]}" for digit, colour in pairs if is_held_out(digit, colour)],
        scans=_SCANS,
        made_with={name: version(name) for name in ("numpy", "pillow", "scikit-learn")},
    )


def _counted(rows: Iterable[Row], bar: "tqdm") -> Iterator[Row]:
    for row in rows:
        yield row
        bar.update()
