"""Options of merges that match rows by token."""

from __future__ import annotations

from typing import Annotated

import typer

_PANEL = "Vocabularies"

Tokenizer = Annotated[
    str,
    typer.Option(
        metavar="first|base|union|NAME|PATH",
        help="Merge rows of embeddings and heads by token, in this vocabulary (docs/vocabularies.md).",
        rich_help_panel=_PANEL,
    ),
]
MissingRows = Annotated[
    str,
    typer.Option(
        metavar="zero-delta|mean|from:NAME|copy:TOKEN|zero|error",
        help="The row of a token that an input lacks: the base's, else the mean of those that have it; that mean; "
        "another input's; its own of another token; zeros.",
        rich_help_panel=_PANEL,
    ),
]
PadToMultiple = Annotated[
    int,
    typer.Option(metavar="N", help="Make the rows a multiple of N; 1: as many as tokens.", rich_help_panel=_PANEL),
]
