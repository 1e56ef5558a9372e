"""The one console script, `unival-merge`: the commands of all three packages."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Annotated

import typer

from experiments.commands.pages import app as pages_app
from experiments.commands.pocket import app as pocket_app
from experiments.commands.search import app as search_app
from experiments.commands.study import app as study_app
from experiments.commands.world import app as world_app
from experiments.errors import StudyError
from merge import MergeError, __version__
from merge.commands import app as merge_app
from merge.commands import main as run
from unival_core.commands import app as core_app
from unival_core.commands.training import app as training_app
from unival_core.errors import UnivalError

VERSIONS = ("torch", "numpy", "safetensors", "xxhash", "tokenizers", "typer")

app = typer.Typer(
    help="Merge models finetuned from one ancestor, and study what happens between them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(merge_app)
app.add_typer(core_app)
app.add_typer(training_app)
app.add_typer(world_app, name="world")
app.add_typer(pocket_app)
study_app.add_typer(pages_app)
study_app.add_typer(search_app)
app.add_typer(study_app, name="study")


def _versions(wanted: bool) -> None:
    if not wanted:
        return
    typer.echo(
        f"unival-merge {__version__}, python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    for name in VERSIONS:
        typer.echo(f"{name} {metadata.version(name)}")
    raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the versions that matter.", callback=_versions, is_eager=True)
    ] = False,
) -> None:
    """Merge models finetuned from one ancestor, and study what happens between them."""


def main() -> None:
    """Run the command line: users' errors are one line on stderr and exit code 2, Ctrl-C is 130."""
    run(app, (MergeError, UnivalError, StudyError))
