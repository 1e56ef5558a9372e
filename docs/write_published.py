"""Write docs/published.md: the published checkpoints and data sets, from `TASKS` and the recipes. Run after a change:
python docs/write_published.py."""

from __future__ import annotations

from pathlib import Path

from experiments.unival.published import BART_FILE, PRETRAINED_FILES
from unival_core import TASKS, GenerationOptions
from unival_core.data import Task, texts_of
from unival_core.training import STAGES, TrainOptions, options_for

HEAD = """# What was published

Every checkpoint and data set that the authors of UnIVAL published, as setup `base` reads them: checkpoints below one
folder, data below another, by the names that they were published under. This page is written by
`python docs/write_published.py` from `unival_core.TASKS`, the recipes and `experiments.unival.published`.

<!-- not run: needs published weights and data -->
```sh
unival-merge study run published DIR --setup base --checkpoints CHECKPOINTS --data DATA --dry-run
unival-merge study run published DIR --setup base --checkpoints CHECKPOINTS --data DATA
```

The first says which of the files are missing and where they come from; the second (`--only TASK` for one task)
evaluates every expert on its own data, and both pretrained models on all that they can read, with the published
prompts, searches, sizes and answers.

**Nothing below was run on the published files themselves**, which have not been at hand. *Tested* is what tests do with
made files of the same names, layout, columns and vocabulary, and narrow networks: the checkpoint is opened with its
settings, of training files with a running average that one is taken, every row is read, asked, searched, answered and
scored (`tests/experiments/unival/test_published.py`).
"""
BELOW_DATA = """\
Columns are numbered from 0, in the order in which the task names them (docs/tasks.md). `novel` is nocaps, whole
and by domain (an image with several rows is asked once), `knowledge` OKVQA, `lowquality` VizWiz. The `test` of VQAv2 is
its validation file, as the answers of its test set are secret. Frames of videos and cuts of long audio are the middle
ones; published scores are of random ones.
"""
BELOW_FINETUNING = """\
As scripted. The paper's numbers of epochs are smaller: of the best checkpoint of a schedule as long as
here. The paper says that labels of SNLI-VE are smoothed by 0.1; the script smooths nothing, and so does this recipe.
The scripts' random augmentation of videos is not done.
"""
BELOW_PRETRAINING = """\
Every stage ends at a share of its schedule: 15, 8 and 1 of 50 epochs. The batches are the paper's. The
first stage starts from BART (`--init bart.base/model.pt`), with rows of the vocabulary by index; the visual networks
then start from nothing, where the original's came from ImageNet and Kinetics.
"""
TESTED = "evaluated on made rows"


def page() -> str:
    """Give the page's text."""
    known = {name: task for name, task in TASKS.items() if task.published.checkpoint}
    return "\n".join(
        [
            HEAD,
            *_table("Checkpoints", ("file", "task", "evaluated are", "tested"), _checkpoints(known)),
            *_table("Data", ("task", "split", "files", "columns", "answers", "captions of", "tested"), _data(known)),
            BELOW_DATA,
            *_table("Questions and searches", ("task", "data", "prompt", "medium", "search"), _asked(known)),
            *_table("Finetuning", _FINETUNING, _finetuned(known)),
            BELOW_FINETUNING,
            *_table("Pretraining", ("stage", "as", "images", "videos", "shares of a batch"), _stages()),
            BELOW_PRETRAINING,
        ]
    )


_FINETUNING = ("task", "epochs", "rate", "batch", "warm-up", "smoothing", "loss", "average", "trained")


def _checkpoints(known: dict[str, Task]) -> list[tuple[str, ...]]:
    before = [(f"`{file}`", "pretrained" if kind == "pretrained" else f"{kind}: images alone", "live weights", TESTED)
              for kind, file in PRETRAINED_FILES.items()]  # fmt: skip
    own = [
        (
            f"`{task.published.checkpoint}`",
            f"`{name}`, {task.published.data}",
            "the running average, where the file has one" if task.published.average else "live weights",
            TESTED,
        )
        for name, task in known.items()
    ]
    start = "`unival-merge pretrain --init` takes it, rows by index"
    return [*before, *own, (f"`{BART_FILE}`", "text, before pretraining", start, "started from a made file")]


def _data(known: dict[str, Task]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, task in known.items():
        told = task.published
        for split, files in told.files.items():
            columns = (1, *task.selected_cols[1:]) if split in told.by_image else task.selected_cols
            answers = told.answers.get(split, told.answers.get("", ""))
            cells = (", ".join(f"`{file}`" for file in files), ",".join(map(str, columns)))
            beside = tuple(f"`{file}`" if file else "" for file in (answers, told.references.get(split, "")))
            rows.append((f"`{name}`", split, *cells, *beside, "read" if split == "train" else TESTED))
    return rows


def _asked(known: dict[str, Task]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, task in known.items():
        repeated = ", repeated to the decoder" if task.repeats_prompt else ""
        if task.published.unrepeated:
            repeated += f" (not on {', '.join(task.published.unrepeated)})"
        search = "every answer scored" if task.rank_answers else _search(task.published.generation or task.generation)
        size = f"{task.side} px" if task.medium == "image" else f"{task.frames} frames of {task.side} px"
        medium = "10 s of audio" if task.medium == "audio" else size
        prompt = "".join(texts_of(task.prompt(task.example)))
        rows.append((f"`{name}`", task.published.data, f"`{prompt}`{repeated}", medium, search))
    return rows


def _search(options: GenerationOptions) -> str:
    """Say what differs from searching greedily."""
    parts = [f"beam {options.beam}", f"at most {options.max_len_b} tokens"]
    parts += [f"at least {options.min_len}"] if options.min_len > 1 else []
    parts += ["unnormalized"] if options.unnormalized else ["normalised by length"]
    parts += [f"no {options.no_repeat_ngram}-gram twice"] if options.no_repeat_ngram else []
    return ", ".join(parts)


def _finetuned(known: dict[str, Task]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, task in known.items():
        options = options_for(task, "base")
        rows.append(
            (
                f"`{name}`",
                f"{options.epochs:g}",
                f"{options.lr:g}",
                str(options.batch),
                f"{options.warmup:g}",
                f"{options.loss.smoothing:g}",
                _loss(options),
                "" if options.ema is None else str(options.ema),
                options.group,
            )
        )
    return rows


def _loss(options: TrainOptions) -> str:
    loss = options.loss
    said = "cross-entropy" if loss.encourage_until is None else f"encouraging until {loss.encourage_until}"
    dropped = f", worst {loss.drop_worst:g} dropped after {loss.drop_after} updates" if loss.drop_worst else ""
    return said + dropped


def _stages() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for stage in STAGES["base"]:
        options = stage.options
        updates, epochs = options.updates * stage.stop, options.epochs * stage.stop
        said = [f"{updates:,.0f} updates" if updates else f"{epochs:g} epoch", f"batch {options.batch}"]
        said += [f"rate {options.lr:g}", f"warm-up {options.warmup:g}", f"clip {options.clip:g}"]
        videos = f"{stage.frames} frames of {stage.video_side} px" if stage.frames else ""
        shares = ", ".join(f"{task} {share:.3g}" for task, share in stage.tasks.items())
        rows.append((f"`{stage.name}`", ", ".join(said), f"{stage.side} px", videos, shares))
    return rows


def _table(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (heads, *rows)]
    return [f"## {title}", "", lines[0], f"|{'---|' * len(heads)}", *lines[1:], ""]


if __name__ == "__main__":
    Path(__file__).with_name("published.md").write_text(page(), encoding="utf-8")
