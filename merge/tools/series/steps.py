"""Checkpoints along a training run: found by their names, in the order of their steps.

Which number of a name is the step is read off all names together: those that differ in nothing but their numbers are
one series. What is not sure is refused, with what was found.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from merge.checkpoint.folder import SHARD, has_weights, is_another, is_state, parts_in
from merge.checkpoint.formats import FORMATS
from merge.checkpoint.hub import is_hub
from merge.errors import MergeError

SHOWN = 6
_METRIC = re.compile(r"([A-Za-z][A-Za-z0-9_./ ]*)=(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")
_TIME = {  # words before (or after) a number that counts a training, with what counts first
    **dict.fromkeys(("epoch", "epochs", "ep", "e"), 0),
    **dict.fromkeys(("step", "steps", "iter", "iters", "iteration", "iterations", "update", "updates", "batch"), 1),
}
# Words before numbers that tell models apart which are no steps of one training, and before numbers that are scores.
_NO_TIME = {"v", "version", "seed", "fold", "rank", "run", "trial", "shard", "part", "split", "worker", "of"}
_SCORE = re.compile(r".*(loss|acc|accuracy|score|bleu|rouge|cider|wer|cer|ppl|perplexity|metric|auc|map|val)")
# Words of files that lie in a run and are no step of it.
_ASIDE = {
    *("best", "last", "latest", "final", "swa", "ema", "avg", "average", "averaged", "merged", "soup", "pretrained"),
    *("init", "initial", "opt", "optim", "optimizer", "scheduler", "rng", "scaler"),
}


@dataclass(frozen=True)
class Series:
    """Checkpoints of one training, oldest first.

    Attributes:
        paths: files or folders.
        steps: the numbers of each that say its place; empty where the order is the user's.
        aside: names of checkpoints in the folder that are no step of the series.
    """

    paths: tuple[Path, ...]
    steps: tuple[tuple[int, ...], ...] = ()
    aside: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """Names for the checkpoints: files' without suffix, with their folders where those are equal."""
        stems = [_stem(path.name) if path.suffix else path.name for path in self.paths]
        if len(set(stems)) == len(stems):
            return stems
        return [_stem(name).replace("/", "-") for name in _called(self.paths)]

    def thinned(self, last: int | None, every: int) -> Series:
        """Give every k-th, counted back from the last, and of these the last so many. Raises MergeError."""
        for key, value in (("last", last), ("every", every)):
            if value is not None and (type(value) is not int or value < 1):
                raise MergeError(f"{key}={value!r}: must be a whole number of checkpoints, 1 or more")
        chosen = list(range(len(self.paths) - 1, -1, -every))[::-1]
        if last is not None and last > len(chosen):
            raise MergeError(f"last={last}: there are only {len(chosen)}: {shown([p.name for p in self.paths])}")
        chosen = chosen[-last:] if last else chosen
        steps = tuple(self.steps[i] for i in chosen) if self.steps else ()
        return Series(tuple(self.paths[i] for i in chosen), steps, self.aside)


def find_series(sources: str | Path | Sequence[str | Path], *, match: str = "", as_given: bool = False) -> Series:
    """Give the checkpoints of a run's folder, or these files and folders, in the order of their steps.

    `match` is a glob of names in the folder; `as_given` takes files in the order in which they are given. Raises
    MergeError where the order is not sure, listing what was found.
    """
    paths = [Path(item) for item in ([sources] if isinstance(sources, (str, Path)) else sources)]
    if len(paths) != 1 or not paths[0].is_dir():
        if match:
            raise MergeError(f"match={match!r} chooses from the folder of a run; {len(paths)} paths were given")
        for path in paths:
            if not path.exists() and not is_hub(path):
                raise MergeError(f"{path}: no such file or folder")
        if as_given or len(paths) == 1:
            return Series(tuple(paths))
        return _ordered(_called(paths), "the paths given", "give them in order and pass as_given=True")
    folder = paths[0]
    if as_given:
        raise MergeError(f"{folder}: as_given=True is for several paths, and this is one folder")
    names = {name: path for name, path in _candidates(folder).items() if not match or fnmatchcase(name, match)}
    numbered = {name: path for name, path in names.items() if _NUMBER.search(_stem(name)) and not SHARD.fullmatch(name)}
    # A word that was asked for or that all have, as of a run called "final", is no reason to leave one out.
    words = _ASIDE - set(_letters(match))
    steps = {name: path for name, path in numbered.items() if not words & set(_letters(_stem(name)))} or numbered
    if not steps:
        raise MergeError(_nothing(folder, names, match))
    groups: dict[str, list[str]] = {}
    for name in steps:
        groups.setdefault(_template(name), []).append(name)
    if len(groups) > 1:
        told = "; ".join(shown(group) for group in groups.values())
        first = max(groups.values(), key=len)[0]
        glob = _NUMBER.sub("[0-9]*", _METRIC.sub(lambda found: f"{found[1]}=*", first))
        raise MergeError(f"{folder}: holds checkpoints of several kinds: {told}: choose some, as match={glob!r}")
    found = _ordered(steps, str(folder), "choose some with match='GLOB', or give files in order with as_given=True")
    return Series(found.paths, found.steps, tuple(name for name in names if name not in steps))


def _called(paths: Sequence[Path]) -> dict[str, Path]:
    """Paths by what tells them apart: without the folders that all have."""
    if len({str(path) for path in paths}) < len(paths):
        double = next(str(path) for path in paths if [str(one) for one in paths].count(str(path)) > 1)
        raise MergeError(f"{double} was given twice")
    parents = [path.parent for path in paths]
    common = os.path.commonpath(parents) if len({path.is_absolute() for path in paths}) == 1 else ""
    return {path.relative_to(common).as_posix() if common else str(path): path for path in paths}


def _candidates(folder: Path) -> dict[str, Path]:
    """What may be a checkpoint of the run, by name: weight files, and folders with weights."""
    ends = tuple(end for format in FORMATS.values() for end in (*format.suffixes, ".tar"))
    found: dict[str, Path] = {}
    for item in sorted(folder.iterdir()):
        if item.name.startswith("."):
            continue
        if item.is_dir():
            if has_weights(item) or (is_another(item.name) and parts_in(item, strict=False)):
                found[item.name] = item
        elif item.name.lower().endswith(ends) and not is_state(item.name):
            found[item.name] = item
    return found


def _letters(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _stem(name: str) -> str:
    """A name without the suffix of a format."""
    ends = sorted({end for format in FORMATS.values() for end in format.suffixes}, key=len, reverse=True)
    name = name.removesuffix(".tar")
    return next((name[: -len(end)] for end in ends if name.lower().endswith(end)), name)


def _template(name: str) -> str:
    """A name with signs for its numbers: those of one series have the same."""
    return _NUMBER.sub("#", _METRIC.sub(_of_metric, _stem(name)))


def _of_metric(found: re.Match[str]) -> str:
    """`key=1.5` as it is where the key counts the training, else without the number, which is a score."""
    return found[0] if _word(found[1]) in _TIME else f"{found[1]}=*"


def _word(text: str) -> str:
    """The last word before a number: "step" of "global_step" and "checkpoint-step="."""
    return (_letters(text) or [""])[-1]


def _ordered(named: Mapping[str, Path], where: str, advice: str) -> Series:
    """Put checkpoints in the order of the numbers in their names. Raises MergeError where it is not sure."""
    names = list(named)
    if len({_template(name) for name in names}) > 1:
        raise MergeError(f"{where}: names do not say their order: {shown(names)}; {advice}")
    keys = _keys(names)
    if keys is None or len(set(keys)) < len(keys):
        why = "names do not say their order" if keys is None else "two names say one step"
        raise MergeError(f"{where}: {why}: {shown(names)}; {advice}")
    order = sorted(range(len(names)), key=keys.__getitem__)
    return Series(tuple(named[names[i]] for i in order), tuple(keys[i] for i in order))


def _keys(names: Sequence[str]) -> list[tuple[int, ...]] | None:
    """The numbers of each name that say its place, epochs first; None where they are not sure.

    Numbers that are equal in all names, and scores, say nothing.
    """
    rows = [_NUMBER.split(_METRIC.sub(_of_metric, _stem(name))) for name in names]
    places: list[tuple[int, int]] = []
    for place in range(1, len(rows[0]), 2):
        values = [row[place] for row in rows]
        before = _word(rows[0][place - 1]) if re.search(r"[A-Za-z]", rows[0][place - 1]) else ""
        behind = re.match(r"[a-z]+", rows[0][place + 1].lower())
        label = behind[0] if behind and behind[0] in _TIME else before
        if len(set(values)) == 1 and len(values) > 1:
            continue
        if _SCORE.fullmatch(label) or any("." in value for value in values):
            if label in _TIME:
                return None
            continue
        if label in _NO_TIME:
            return None
        places.append((_TIME.get(label, 2), place))
    keys = [tuple(int(row[place]) for _, place in sorted(places)) for row in rows]
    sure = len(places) == 1 or all(kind < 2 for kind, _ in places) or _rise_together(keys)
    return keys if places and sure else None


def _rise_together(keys: Sequence[tuple[int, ...]]) -> bool:
    """Whether no number falls where the ones before it rise, as of epochs and all updates so far."""
    ordered = sorted(keys)
    return all(a <= b for one, two in itertools.pairwise(ordered) for a, b in zip(one, two, strict=True))


def shown(names: Sequence[str]) -> str:
    """Give names for a line: all, or the first and the last and how many there are."""
    if len(names) <= SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: SHOWN - 1])} ... {names[-1]} ({len(names)})"


def _nothing(folder: Path, names: Mapping[str, Path], match: str) -> str:
    """What to say of a folder without a series, with the folders in it that have one."""
    found = f": {shown(list(names))}" if names else ""
    below = [
        item.relative_to(folder).as_posix()
        for depth in ("*", "*/*", "*/*/*")
        for item in sorted(folder.glob(depth))
        if item.is_dir()
        and any(_NUMBER.search(_stem(name)) and not SHARD.fullmatch(name) for name in _candidates(item))
    ]
    matching = f" that fit {match!r}" if match else ""
    advice = f"; perhaps you mean {folder / below[0]}" if below else ""
    return f"{folder}: holds no checkpoints with a number in their names{matching}{found}{advice}"
