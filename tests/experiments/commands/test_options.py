"""The words that options list are those of the tables, which `--help` may not import."""

from collections.abc import Iterable

import pytest
from typer.testing import CliRunner

import unival_core.commands.options as of_the_model
from experiments.commands import app, options
from experiments.grid.engines import ENGINES
from experiments.pages.tables import FORMATS
from experiments.searches.methods import SEARCHES
from experiments.searches.space import OBJECTIVES
from experiments.unival.demo import DEMOS
from experiments.unival.pocket.pipeline import PRESETS
from experiments.unival.setups import SETUPS
from experiments.unival.world.tasks import SIZES
from unival_core import TASKS
from unival_core.training import DEFAULTS, REWARDS
from unival_core.training.options import BATCHNORMS, GROUPS, PRECISIONS

TABLES: dict[str, Iterable[str]] = {
    "SETUPS": SETUPS, "ENGINES": ENGINES, "SEARCHES": SEARCHES, "OBJECTIVES": OBJECTIVES, "FORMATS": FORMATS,
    "PRESETS": PRESETS, "DEMOS": DEMOS, "SIZES": SIZES,
}  # fmt: skip
OF_THE_MODEL: dict[str, Iterable[str]] = {
    "TASK_NAMES": sorted(TASKS), "SETUPS": DEFAULTS, "PRECISIONS": PRECISIONS, "REWARDS": REWARDS["pocket"],
    "GROUPS": GROUPS, "BATCHNORMS": BATCHNORMS,
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_studies_list_what_there_is(name: str) -> None:
    assert list(getattr(options, name)) == list(TABLES[name])


@pytest.mark.parametrize("name", OF_THE_MODEL)
def test_the_model_lists_what_there_is(name: str) -> None:
    assert list(getattr(of_the_model, name)) == list(OF_THE_MODEL[name])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("study run interpolation here --setup bases", "'bases' is not one of pocket, base (did you mean base?)"),
        ("study run interpolation here --split tset", "no split 'tset': choose test, or val"),
        ("study run interpolation here --save worst", "'worst' is not one of best"),
        ("study run interpolation here --engine rays", "is not one of local, ray (did you mean ray?)"),
        ("study search interpolation here --method adaptve", "(did you mean adaptive?)"),
        ("study table interpolation here --format html", "'html' is not one of markdown, csv, latex"),
        ("world make here --size tiny", "'tiny' is not one of full, quick, micro"),
        ("pocket here --preset fll", "(did you mean full?)"),
        ("evaluate --checkpoint a --task vqa --data b --amp fp8", "'fp8' is not one of bf16, fp16"),
        ("train --task vqa --init a --data b -o c --group al", "(did you mean all?)"),
    ],
)
def test_another_word_is_one_line_with_the_words_there_are(words: str, told: str) -> None:
    ran = CliRunner().invoke(app, words.split())
    assert (ran.exit_code, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert told in ran.stderr


@pytest.mark.parametrize(
    ("command", "panels", "shown"),
    [
        ("generate", ("How the task is asked", "Model", "Running"), ("--task TASK", "--bpe DIR", "--device DEVICE")),
        ("evaluate", ("Columns and media of the file", "Running"), ("--amp bf16|fp16", "--selected-cols N,N,...")),
        ("train", ("Instead of the recipe", "Memory and precision", "Validation"), ("--precision fp32|bf16|fp16",)),
        ("study run", ("At setup base", "Which cells", "Running"), ("--setup pocket|base", "--engine local|ray")),
        ("study search", ("At setup base", "Which cells"), ("--method grid|random|coordinate|adaptive|cma|greedy",)),
    ],
)
def test_options_stand_in_panels_and_choices_are_listed(
    command: str, panels: tuple[str, ...], shown: tuple[str, ...]
) -> None:
    told = CliRunner().invoke(app, [*command.split(), "-h"]).stdout
    places = [told.index(f"\n{title}:\n") for title in ("Options", *panels)]
    assert places == sorted(places)
    assert all(text in told for text in shown)
