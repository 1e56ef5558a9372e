"""What a study's rows say, in plain sentences with their numbers: good or bad, as it came out.

What a sentence claims was told apart from chance after Holm's correction for all comparisons that the sentence is
about; the others are counted as not told apart. Tests and 95 % intervals are of seeds and examples
(`experiments.statistics.contrasts`); with one seed they are of the examples alone. Scores of different units are never
averaged: what is said of several tasks is said of retention, or in counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.grid.rows import Rows, records
from experiments.pages.findings.averages import against_pretrained, contests, setting
from experiments.pages.findings.experts import specialists
from experiments.pages.findings.kept import above_mixing, kept
from experiments.pages.findings.lines import above_lines, barriers, beat_experts, lines_in
from experiments.pages.findings.robust import robust
from experiments.pages.findings.words import Finding as Finding
from experiments.pages.overview import Chosen, lines_of
from experiments.pages.views import MIXING, main_metrics, one_policy, weights_only, with_owners
from experiments.statistics.contrasts import draws_of
from experiments.statistics.selection import is_merged
from experiments.statistics.tests import Examples


def findings(
    rows: Rows, scores: Examples | None = None, contender: str = "", tasks: Mapping[str, str] | None = None
) -> list[str]:
    """State what the rows of a study allow to be said; the first line of a text is the sentence, further lines details.

    Whether a point between two experts beats the expert on its own task; what merged models keep of their experts'
    skills, whether that is more than the experts' scores in the same shares, and barriers between experts; averages
    against the pretrained model, kinds of experts against each other (the `contender` first), and against the line that
    single models trace on shifted data; what finetuning gave and cost. `scores` are of the examples by row key
    (`read_scores`), `tasks` say whose own the tasks are (`Notes.tasks`).
    """
    found = records(rows)
    return [str(one) for one in each_finding(found, scores or {}, contender, tasks or {})]


def each_finding(
    rows: Rows,
    scores: Examples,
    contender: str = "",
    tasks: Mapping[str, str] | None = None,
    lines: Sequence[Chosen] | None = None,
) -> list[Finding]:
    """Return the findings one by one (see `findings`); `lines` are those of the overview, where they are known."""
    rows = records(rows)
    known = lines_of(rows, scores, tasks or {}) if lines is None else lines
    merged = [line for line in known if is_merged(line.model)]
    owned = with_owners(rows, tasks or {}) if tasks or not all("owner" in row for row in rows) else rows
    main = weights_only(one_policy(main_metrics(owned)))
    draws = draws_of(main, scores)
    first = {(row["task"], row["metric"]) for row in main}
    every = lines_in(weights_only(one_policy([row for row in owned if row["value"] == row["value"]])), scores)
    between = [line for line in every if (line.task, line.metric) in first]
    robustness, beyond = robust([line for line in merged if line.model.series.method in MIXING], main, draws)
    found = [beat_experts(between), kept(merged, beyond), above_mixing(merged, rows, scores), above_lines(between)]
    if (given := setting(main, scores, draws)) is not None:
        found += [against_pretrained(given, beyond), contests(given, contender, beyond)]
    found += [robustness, specialists(main, scores), barriers(every)]
    return [one for one in found if one is not None]
