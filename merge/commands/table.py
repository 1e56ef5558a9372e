"""The way from a table of commands to a command line: lazy, listed in groups, every mistake one line on stderr."""

# What typer hands over (contexts, formatters) has public names in some of its versions only.
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import ast
import difflib
import gc
import importlib
import inspect
import re
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from merge.commands.paths import as_a_shell_reads
from merge.commands.process import check_folder, ending_on_signals, explained, patient_streams, telling
from merge.errors import MergeWarning

VERSIONS = ("unival-merge", "torch", "numpy", "safetensors", "xxhash", "tokenizers", "typer")
METAVARS = {Path: "FILE", int: "N", float: "NUMBER", str: "TEXT"}
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
# What typer raises for an option that is not there, a value of the wrong kind, ... (click's class, which typer keeps in
# a private place of its own in newer versions).
USAGE: Any = typer.BadParameter.__mro__[2]
# Words of other programs for ours, of which a command has one.
ALSO = {"--alpha": ("--ratio", "--scale"), "--t": ("--ratio",), "--lambda": ("--scale",), "--out": ("--output",)}


@dataclass(frozen=True)
class Telling:
    """The options of every command that say how much is told."""

    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="Print only what was asked for, warnings, errors.", rich_help_panel="Running"
        ),
    ] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tell on stderr what is done meanwhile.", rich_help_panel="Running")
    ] = False


@dataclass(frozen=True)
class Command:
    """A command of the command line; its key in the table is its name ("study run" belongs to the commands of `study`).

    Attributes:
        function: "module:name" of the function, imported when the command is asked for. Its parameters are the
            arguments and options, its docstring the help page, with an example that runs. A parameter whose type is a
            dataclass stands for all of its fields.
        group: the heading that it is listed under.
        summary: what it does, for the list of commands.
        prints: what is printed is what was asked for. Else it tells of files, which are there whether it can or not.
    """

    function: str
    group: str
    summary: str
    prints: bool = False


class Page(TyperCommand):
    """A command whose help shows the options that most need first, and the others by panel."""

    prints = True

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Give the arguments, what options must be given, and then the rest."""
        pieces: list[str] = []
        for param in self.params:
            if param.param_type_name == "argument":
                pieces.append(_argument(param) if param.required else f"[{_argument(param)}]")
            elif param.required:
                pieces.append(f"{param.opts[-1]} {param.metavar}")
        return [*pieces, "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for the arguments and one for every panel."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if param.param_type_name == "argument":
                panels.setdefault("Arguments", []).append((_argument(param), getattr(param, "help", None) or ""))
            elif record := param.get_help_record(ctx):
                panels.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(record)
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _argument(param: Any) -> str:
    name: str = param.metavar or param.name.rstrip("_").upper()
    return f"{name}..." if param.nargs == -1 else name


class Group(TyperGroup):
    """The commands of a table, each imported when it is asked for. The outermost group tells users' mistakes."""

    entries: ClassVar[Mapping[str, Command]] = {}
    errors: ClassVar[tuple[type[Exception], ...]] = ()
    at_hand: Any = None  # the command that is being run: errors name its options
    came: Sequence[int] = ()  # the signal that ended it

    def list_commands(self, ctx: Any) -> list[str]:
        """Give the first words of the commands."""
        return list(dict.fromkeys(name.split()[0] for name in self.entries))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Give the command of this name or the group that it begins, None if there is neither."""
        first = f"{cmd_name} "
        inner = {name[len(first) :]: entry for name, entry in self.entries.items() if name.startswith(first)}
        if cmd_name in self.entries:
            found = _page(cmd_name, self.entries[cmd_name])
            found.prints = self.entries[cmd_name].prints
        elif inner:
            found = typer.main.get_command(application(inner, f"The commands of `{cmd_name}`.", name=cmd_name))
        else:
            self.commands = dict.fromkeys(self.list_commands(ctx))  # type: ignore[assignment]  # names to suggest
            return None
        ctx.find_root().command.at_hand = found
        return found

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for every group, with summaries as long as they are."""
        groups: dict[str, list[tuple[str, str]]] = {}
        width = max(map(len, self.entries))
        for name, entry in self.entries.items():
            groups.setdefault(entry.group, []).append((name.ljust(width), entry.summary))
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run what the arguments say, and exit: users' mistakes are one line on stderr and exit code 2.

        What nobody foresaw is one line too, and its traceback is kept in a file.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", MergeWarning)
                warnings.showwarning = self.tell
                sys.exit(super().main(*args, **{**extra, "standalone_mode": False}) or 0)
        except self.errors as error:
            told, code = f"error: {in_options(str(error), self.at_hand)}", 2
        except USAGE as error:
            text = unknown_option(error) or " ".join(error.format_message().split()).rstrip(".")
            command = error.ctx.command_path if error.ctx else "this program"
            told, code = f"error: {text}; see {command} --help", 2
        except typer.Abort:  # Ctrl-C outside of `run`, which makes it an exit
            told, code = "interrupted", 130
        except Exception as error:
            told, code = ("", 1) if self.came else explained(error)
        if self.came:  # a signal, in the middle of an import that then fails: it was told
            sys.exit(128 + self.came[0])
        typer.echo(printable(told), err=True)
        sys.exit(code)

    def tell(self, message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        """Print a warning of the library in one line on stderr, in options' words; others as Python does."""
        if issubclass(category, MergeWarning):
            typer.echo(printable(f"warning: {in_options(str(message), self.at_hand)}"), err=True)
        else:
            typer.echo(warnings.formatwarning(message, category, *place[:2]), err=True)


def unknown_option(error: Any) -> str:
    """Name the option that was meant by one that a command does not have; "" for any other error."""
    given = getattr(error, "option_name", "")
    if not given or not error.ctx or "no such option" not in error.format_message().lower():
        return ""
    known = [name for param in error.ctx.command.params for name in param.opts if name.startswith("--")]
    other = ALSO.get(given, ())
    close = [name for name in other if name in known] or difflib.get_close_matches(given, known, 1, 0.7)
    return f"No such option: {given}" + (f"; did you mean {close[0]}?" if close else "")


def printable(text: str) -> str:
    """Text in one line, with escapes for what would move the cursor, hide or reorder what is read.

    >>> printable("tensor a\\u2028\\x1b[2Jb")
    'tensor a\\\\u2028\\\\x1b[2Jb'
    """
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def in_options(text: str, command: Any) -> str:
    """An error of the library in one line and, where it speaks of arguments that are options here, in options' words.

    "pass overwrite=True" is "pass --overwrite", "missing='union'" is "--missing union", "rank=..." is "--rank", and
    "keep=['a.*', 'b']" is "--keep 'a.*' --keep b".
    """
    options = {param.name.rstrip("_"): param.opts[0] for param in getattr(command, "params", ())}
    options |= {"slices": options["slice"]} if "slice" in options else {}  # several in Python, one by one here

    def option(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in options:
            return match[0]
        if value in ("True", "..."):
            return options[name]
        try:
            read: str | list[str] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return match[0]
        return " ".join(f"{options[name]} {shlex.quote(item)}" for item in ([read] if isinstance(read, str) else read))

    value = r"True|\.{3}|'[^']*'|\"[^\"]*\"|\[(?:'[^']*'(?:, )?|\"[^\"]*\"(?:, )?)+\]"
    return re.sub(rf"(?<![\w.])([a-z_]+)=({value})", option, " ".join(text.split()))


def _page(name: str, entry: Command) -> Any:
    """The command of an entry, with its function's parameters."""
    module, _, attribute = entry.function.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    bundles: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for item in inspect.signature(function, eval_str=True).parameters.values():
        if is_dataclass(item.annotation):
            bundles[item.name] = item.annotation
            parameters += _fields(item.annotation)
        else:
            parameters.append(item.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    parameters += _fields(Telling)

    def callback(**values: Any) -> None:
        values = as_a_shell_reads(values, page.params)
        told = {item.name: values.pop(item.name) for item in fields(Telling)}
        asked = entry.prints or values.get("json_", False) or values.get("dry_run", False)
        for key, bundle in bundles.items():
            values[key] = bundle(**{item.name: values.pop(item.name) for item in fields(bundle)})
        with telling(**told, asked=asked):
            function(**values)

    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {item.name: item.annotation for item in parameters}
    callback.__doc__ = function.__doc__
    lone = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=SETTINGS)
    lone.command(name, cls=Page)(callback)
    page = typer.main.get_command(lone)
    kinds = {item.name: _kind(item.annotation) for item in parameters}
    for param in page.params:
        if param.param_type_name == "option" and param.metavar is None and param.name in kinds:
            param.metavar = METAVARS.get(kinds[param.name])
    return page


def _fields(bundle: Any) -> list[inspect.Parameter]:
    """The fields of a dataclass as parameters."""
    hints = get_type_hints(bundle, include_extras=True)
    return [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if item.default is MISSING else item.default,
            annotation=hints[item.name],
        )
        for item in fields(bundle)
    ]


def _kind(annotation: Any) -> Any:
    """`Path` of `Annotated[list[Path] | None, ...]`."""
    while get_origin(annotation) in (Annotated, Union, UnionType, list):
        annotation = get_args(annotation)[0]
    return annotation


def application(
    commands: Mapping[str, Command], text: str, errors: tuple[type[Exception], ...] = (), *, name: str = ""
) -> typer.Typer:
    """Make a table of commands a typer application. `errors` are the exceptions that are users' mistakes.

    Without a name it is the whole program, with `--version` and shell completion.
    """
    program = typer.Typer(
        name=name or None,
        help=text,
        cls=type("Commands", (Group,), {"entries": dict(commands), "errors": errors}),
        add_completion=not name,
        context_settings=SETTINGS,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    program.callback(invoke_without_command=True)(_inner if name else _outer)
    return program


def _outer(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the versions that matter.")] = False,
) -> None:
    if version:
        import platform
        from importlib import metadata

        typer.echo(f"python {platform.python_version()}, {platform.system()} {platform.machine()}")
        for package in VERSIONS:
            typer.echo(f"{package} {metadata.version(package)}")
        raise typer.Exit
    _inner(ctx)


def _inner(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def run(program: typer.Typer) -> None:
    """Run a program's command line and exit: 0, 2 for users' mistakes, 1 for ours, 128 + n for a signal n."""
    check_folder()
    # Imports and plans make objects that stay: looking through them for garbage costs a quarter of a second.
    gc.set_threshold(100_000, 50, 50)
    command: Any = typer.main.get_command(program)
    with ending_on_signals() as came, patient_streams() as outlets:
        command.came = came
        code: Any = 0
        try:
            command(prog_name="unival-merge")
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        if (error := outlets[0].error if outlets else None) and not code:
            code = int(getattr(getattr(command, "at_hand", None), "prints", True))  # else help, or a list of commands
            done = "it is incomplete" if code else "the work is done"
            if not isinstance(error, BrokenPipeError):  # of `| head`: nobody wanted more
                typer.echo(f"standard output could not be written ({error.strerror}): {done}", err=True)
    sys.exit(code)
