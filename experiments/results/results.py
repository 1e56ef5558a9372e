"""What came out of a study: its rows, and all that is read from them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.errors import StudyError
from experiments.grid.clusters import with_clusters
from experiments.grid.escapes import html, one_line
from experiments.grid.grid import ROWS, Summary
from experiments.grid.lines import files_of
from experiments.grid.notes import Notes, read_notes
from experiments.grid.rows import ROW_DIGEST, Records, latest, names_in, read_rows, read_scores, records, scores_path
from experiments.grid.subject import opened
from experiments.results.search import Named, search
from experiments.statistics.columns import columns_of
from experiments.statistics.selection import (
    ON,
    REPORT,
    Best,
    Candidates,
    best_of,
    candidates,
    check_choosing,
    save_best,
)
from experiments.statistics.summary import MEAN, Kept, kept, mixtures_of, summarise
from merge import Input, digest
from unival_core.metrics import Interval

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from experiments.pages.figures import Drawn, Figure
    from experiments.searches.driver import History
    from experiments.study.study import Study


@dataclass(frozen=True, repr=False)
class Results:
    """The results of a study in a folder; nothing of the study's code is needed.

    Attributes:
        folder: where `rows.jsonl` lies.
        study: the study's name.
        ran: what the run that returned this did; None where the folder was opened only.
        given: the study that was run, for searches; None where the folder was opened only.
    """

    folder: Path
    study: str
    ran: Summary | None = None
    given: Study | None = None

    def __repr__(self) -> str:
        told = self.rows
        parts = [f"{len(told)} rows", f"mixtures {', '.join(self.mixtures) or 'none'}"]
        parts += [f"{name}s {', '.join(names_in(self._records, name))}" for name in ("task", "split", "seed")]
        return one_line(f"<Results of {self.study} in {self.folder}: {'; '.join(parts)}>")

    def _repr_html_(self) -> str:
        """Show what the best of every mixture keeps, and one figure: of the pair that keeps most, if there is one."""
        best = [one for one in self._summary if one.is_best] or self._summary
        pairs = [one for one in best if one.task == MEAN and one.mixture.count("+") == 1]
        names = frozenset(max(pairs, key=lambda one: one.retention).mixture.split("+")) if pairs else None
        with suppress(StudyError):
            if drawn := self._drawn(("plane", "curves"), names)[0] or self._drawn()[0]:
                return f"<div>{_table(best, len(self._summary))}{_svg(drawn[0].figure)}</div>"
        return f"<div>{_table(best, len(self._summary))}</div>"

    # -- what is there

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Return the rows (`experiments.grid.rows.Row`) as a frame, `shares` a mapping, `point` in words.

        Of rows that say the same of one point the last: `read_rows` returns also those that a changed expert, version,
        device or precision has made old.
        """
        found = read_rows(self.folder / ROWS)
        keys = {row["key"] for row in latest(records(found)) if row["study"] == self.study}
        return found.loc[found["key"].isin(keys)].reset_index(drop=True)

    def scores(self, row: Mapping[Hashable, object] | pd.Series | str) -> np.ndarray:
        """Return the scores of the examples (n,) of a row, or of its key; empty where the task gave one number."""
        key = row if isinstance(row, str) else str(row["key"])
        return read_scores(self.folder / ROWS, [key])[key]

    @cached_property
    def notes(self) -> Notes:
        """Return what the folder says of the study besides its rows."""
        return read_notes(self.folder, self.study)

    @property
    def mixtures(self) -> list[str]:
        """Name the mixtures that have rows, as "a+b"."""
        return list(dict.fromkeys("+".join(names) for names, _ in mixtures_of(self._records)))

    # -- what it says

    def summary(self) -> pd.DataFrame:
        """Return what every method keeps: a row for each mixture, method with its parameters, task and split, and for
        the mean over tasks.

        Columns are the fields of `experiments.statistics.summary.Kept`: `retention` (1 is the expert's own skill; the
        `form` says how it is measured) with its 95 % interval `lo`, `hi`, and what the `interval` takes into account:
        seeds and examples, or evaluation noise only. Points are `chosen` on val, and reported on test and on shifted
        splits; `is_best` marks the best of a mixture.
        """
        return pd.DataFrame([asdict(one) for one in self._summary], columns=[one.name for one in fields(Kept)])

    def best(
        self, mixture: Named | None = None, on: str = ON, *, method: str = "", batchnorm: str = "", kind: str = ""
    ) -> Best | list[Best]:
        """Return the best point of a mixture: of highest mean retention on split val, reported on split test, if that
        was evaluated; without a mixture a list, the best of each.

        All methods, their parameters and BatchNorm policies compete, unless one is named, and so do the experts as they
        are; ensembles only by name. `kind` is needed where the rows hold experts of several.
        StudyError for a split that is not for choosing, and where there are no such points.
        """
        check_choosing(on)
        if mixture is None:  # of mixtures without scores on the split nothing can be said, but for one there must be
            every = self._candidates(None, kind)
            known = [own for own in every if own.pick(own.models, on) is not None] or every
            return [self._best(own, on, method, batchnorm) for own in known]
        return self._best(self._one(mixture, kind), on, method, batchnorm)

    def findings(self) -> list[str]:
        """Return what the rows say, in sentences with their numbers; what is not clear is said to be so."""
        from experiments.pages.findings import findings

        return findings(self._records, self._examples, self.notes.contender, self.notes.tasks)

    def curves(self, mixture: Named | None = None) -> Figure | list[Figure]:
        """Draw score against ratio between two experts; without a mixture a list, of every pair."""
        return self._figure("curves", mixture)

    def front(self, mixture: Named | None = None) -> Figure | list[Figure]:
        """Draw the scores of two experts' tasks against each other, a point a ratio; without a mixture a list, of every
        pair."""
        return self._figure("plane", mixture)

    def figures(self, folder: str | Path) -> list[Path]:
        """Draw every figure that the rows allow into a folder, as PNG, SVG and PDF, and return the files."""
        from experiments.pages.figures import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return [path for one in self._drawn()[0] for path in save(one.figure, folder / one.stem)]

    def report(self, path: str | Path | None = None) -> Path:
        """Write one HTML page with all of this, by default `report.html` in the folder, and return where it is."""
        from experiments.pages.report import command_line, write_report

        target = self.folder / "report.html" if path is None else Path(path)
        command = command_line("report", self.study, self.folder, "-o", target)
        return write_report(self.folder, self.study, target, command=command)

    def save_best(
        self,
        path: str | Path,
        mixture: Named | None = None,
        *,
        on: str = ON,
        method: str = "",
        batchnorm: str = "",
        kind: str = "",
        seed: int | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the weights of the best point of a mixture (see `best`), with their recipe beside them.

        They are merged from the files that were evaluated; StudyError where one has changed since, for statistics that
        were measured, and where several mixtures or seeds leave open which is meant. MergeError as `merge.run`.
        """
        if mixture is None:
            mixture = self._only(self.mixtures, "mixture")
        among = self._one(mixture, kind)
        best = self._best(among, on, method, batchnorm, report=False)
        number = int(self._only(list(map(str, best.inputs)), "seed")) if seed is None else seed
        if number not in best.inputs:
            raise StudyError(f"{best} has no seed {number}: choose of {', '.join(map(str, best.inputs))}")
        inputs = {name: self._input(name, number) for name in (*among.names, *best.inputs[number])}
        for name, wanted in best.inputs[number].items():
            if digest(opened(inputs[name]), ROW_DIGEST) != wanted:
                raise StudyError(f"{inputs[name].path} has changed since {name} was evaluated: run the study again")
        return save_best(best, inputs, Path(path), overwrite=overwrite)

    def search(
        self, mixture: Named | None = None, method: str = "adaptive", budget: int = 12, **options: Any
    ) -> History:
        """Look for good shares of a mixture with at most `budget` evaluations on split val; `options` are those of
        `experiments.search`.

        Points with rows cost nothing, and what is evaluated becomes rows. StudyError where the folder was only opened.
        """
        if self.given is None:
            raise StudyError(f"a search evaluates models: give experiments.search the study of {self.folder}")
        try:
            return search(self.given, mixture, self.folder, method=method, budget=budget, **options)
        finally:
            for read in ("rows", "_records", "_examples", "_summary"):  # they are read anew
                self.__dict__.pop(read, None)

    def samples(self, count: int = 8, *, device: str = "cpu") -> int:
        """Keep for the report what models between two experts answer to the first `count` examples of the tasks that
        have `show`; return how many rows got samples.

        StudyError where the folder was only opened, and where no task says what to show.
        """
        if self.given is None:
            raise StudyError(f"samples are answers of models: run the study of {self.folder} first, its rows are kept")
        from experiments.results.samples import make_samples

        return make_samples(self.given, self.folder, count, device=device)

    # -- how it is found

    @cached_property
    def _records(self) -> Records:
        return with_clusters(records(self.rows), self.folder / ROWS)

    @cached_property
    def _examples(self) -> dict[str, np.ndarray]:
        path = self.folder / ROWS
        return read_scores(path) if files_of(scores_path(path)) else {}

    @cached_property
    def _summary(self) -> list[Kept]:
        return summarise(self._records, self._examples, self.notes.tasks)

    def _candidates(self, mixture: Named | None, kind: str = "") -> list[Candidates]:
        """Collect the models of a mixture, or of all, for every kind of experts or one."""
        wanted = None if mixture is None else self._names(mixture)
        known = mixtures_of(self._records)
        kinds = list(dict.fromkeys(own for _, own in known))
        if kind and kind not in kinds:
            raise StudyError(f"{self.study} has no experts of kind {kind!r}: choose of {', '.join(kinds)}")
        columns = columns_of(self._records, self.notes.tasks)
        return [
            candidates(self._records, names, own, columns)
            for names, own in known
            if wanted in (None, frozenset(names)) and kind in ("", own)
        ]

    def _one(self, mixture: Named, kind: str) -> Candidates:
        found = self._candidates(mixture, kind)
        if len(found) != 1:
            kinds = ", ".join(one.kind for one in found)
            raise StudyError(
                f"{'+'.join(found[0].names)} is mixed of experts of several kinds: choose kind= of {kinds}"
            )
        return found[0]

    def _best(self, among: Candidates, on: str, method: str, batchnorm: str, *, report: bool = True) -> Best:
        check_choosing(on)
        method = "average" if method == "interpolate" and len(among.names) > 2 else method  # as in a run
        models = [model for model in among.models if method or model.series.method != "ensemble"]
        for what, wanted in (("method", method), ("batchnorm", batchnorm)):
            known = dict.fromkeys(getattr(model.series, what) for model in models)
            if wanted and wanted not in known:
                label = f"{'+'.join(among.names)} has no points of {what} {wanted!r}"
                raise StudyError(f"{label}: choose of {', '.join(known)}")
            models = [model for model in models if wanted in ("", getattr(model.series, what))]
        report = report and REPORT in names_in(self._records, "split")
        best = best_of(among, models, on, report=report)
        if not report:
            return best
        joint = kept(among, best.model, REPORT, self._examples, chosen=on, is_best=True)[-1]
        return replace(best, interval=Interval(joint.lo, joint.hi))

    def _names(self, mixture: Named) -> frozenset[str]:
        """Return the experts of a mixture that has rows; StudyError with those that have."""
        names = frozenset(mixture.split("+") if isinstance(mixture, str) else mixture)
        if names not in (frozenset(own) for own, _ in mixtures_of(self._records)):
            label = mixture if isinstance(mixture, str) else "+".join(map(str, mixture))
            known = ", ".join(self.mixtures) or "none"
            raise StudyError(f"{self.study} has no rows of the mixture {label!r}: choose of {known}")
        return names

    def _only(self, known: Sequence[str], what: str) -> str:
        if len(known) != 1:
            raise StudyError(f"{self.study} has {len(known)} {what}s: choose {what}= of {', '.join(known)}")
        return known[0]

    def _input(self, name: str, seed: int) -> Input:
        places = self.notes.files.get(name, {})
        if str(seed) not in places:
            raise StudyError(f"{self.folder} does not say where {name} of seed {seed} lies: run the study again")
        path, section, *rename = places[str(seed)]
        return Input(name, Path(path), section, rename=tuple(rename))

    def _figure(self, kind: str, mixture: Named | None) -> Figure | list[Figure]:
        drawn, missing = self._drawn((kind,), None if mixture is None else self._names(mixture))
        if mixture is None:
            return [one.figure for one in drawn]
        if not drawn:
            why = "; ".join(missing) or "nothing that follows shares lies between two experts of it: see figures()"
            raise StudyError(f"{self.study}: no figure of {mixture!r:.80}: {why}")
        return drawn[0].figure

    def _drawn(self, kinds: Sequence[str] = (), names: frozenset[str] | None = None) -> tuple[list[Drawn], list[str]]:
        """Draw what the rows allow, or figures of some kinds, of some experts; a line for each that lacks rows."""
        from experiments.pages.figures import draw
        from experiments.pages.views import PRETRAINED, experts_of, with_owners

        rows = with_owners(self._records, self.notes.tasks)
        own = [row for row in rows if names is None or set(experts_of(row)) <= {*names, PRETRAINED}]
        return draw(own, self._examples, only=kinds)


def open_results(
    folder: str | Path, study: str | None = None, *, ran: Summary | None = None, given: Study | None = None
) -> Results:
    """Open what a folder holds of a study; its name is needed only where the folder holds several.

    Raises StudyError where there are no rows.
    """
    folder = Path(folder)
    names = names_in(records(read_rows(folder / ROWS)), "study")
    if study is None and len(names) != 1:
        raise StudyError(f"{folder} holds rows of {', '.join(names) or 'nothing'}: name one study")
    name = names[0] if study is None else study
    if name not in names:
        raise StudyError(f"{folder / ROWS} holds rows of {', '.join(names) or 'nothing'}, none of {name}")
    return Results(folder, name, ran, given)


def _table(kept: Sequence[Kept], whole: int) -> str:
    """Write retention with its interval by mixture, method and task, a column a split; these are of a `whole`."""
    splits = list(dict.fromkeys(one.split for one in kept))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for one in kept:
        bounds = "" if np.isnan(one.lo) else f" [{one.lo:.2f}, {one.hi:.2f}]"
        label = (one.mixture, one.method, one.point, one.task)
        lines.setdefault(label, {})[one.split] = f"{one.retention:.2f}{bounds}"
    head = "".join(f"<th>{html(name)}</th>" for name in ("mixture", "method", "point", "task", *splits))
    body = "".join(
        f"<tr>{''.join(f'<td>{html(cell)}</td>' for cell in (*label, *(own.get(split, '') for split in splits)))}</tr>"
        for label, own in lines.items()
    )
    noted = "; ".join(dict.fromkeys(one.interval for one in kept))
    caption = f"Retention (1 is the expert's own skill) with 95 % intervals: {noted or 'nothing was merged'}."
    caption += f" The best of every mixture on {ON}; summary() has all {whole} rows." * (len(kept) < whole)
    return f"<table><caption>{html(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue().partition("<svg")[1] + out.getvalue().partition("<svg")[2]
