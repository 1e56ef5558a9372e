"""Studies that a file of Python code defines, as the command line and other processes take them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.errors import StudyError
from experiments.grid.modules import ModuleSubject
from experiments.study.study import Study

DEFAULT = "study"  # the name looked for in a file


def is_file_of_study(text: str) -> bool:
    """Tell whether a word names a file of a study: FILE.py or FILE.py:NAME."""
    return split(text)[0].suffix == ".py"


def split(text: str) -> tuple[Path, str]:
    """Split FILE.py:NAME; the name is empty where there is none.

    >>> split("studies/digits.py:small")
    (PosixPath('studies/digits.py'), 'small')
    """
    file, colon, name = text.rpartition(":")
    return (Path(file), name) if colon and file.endswith(".py") else (Path(text), "")


def load_study(text: str) -> Study:
    """Run a file of Python code and return the study that it defines: `study`, the one that is named, or the only one.

    The file's own folder is looked in for what it imports. Raises StudyError where there is no file, where it fails,
    and where it defines no such study.
    """
    path, name = split(text)
    if not path.is_file():
        raise StudyError(f"{path}: no such file: `unival-merge study new {path}` writes one to start from")
    found = {key: value for key, value in vars(_module(path.resolve())).items() if isinstance(value, Study)}
    if not found:
        raise StudyError(f"{path} defines no study: write `study = experiments.Study(...)`")
    wanted = name or (DEFAULT if DEFAULT in found or len(found) > 1 else next(iter(found)))
    if wanted not in found:
        raise StudyError(
            f"{path} defines no study {wanted!r}: choose one of {', '.join(f'{path}:{key}' for key in found)}"
        )
    return found[wanted]


def subject_in(text: str, experts: Mapping[str, Any], pretrained: Any) -> ModuleSubject:
    """Return the subject of a file's study as another process makes it, with the experts that lie in files already."""
    return subject_of(replace(load_study(text), experts=experts, pretrained=pretrained), text)


def subject_of(study: Study, text: str = "") -> ModuleSubject:
    """Return the subject of a study whose experts lie in files; other processes make it from its own file, if any."""
    return ModuleSubject(study, (subject_in, (text, study.experts, study.pretrained)) if text else None)


def absolute(text: str) -> str:
    """Return FILE.py:NAME with the whole path of the file."""
    path, name = split(text)
    return f"{path.resolve()}:{name}" if name else str(path.resolve())


def _module(path: Path) -> ModuleType:
    """The module of a file, run once in this process."""
    name = f"study file {path}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        where = _line(error, path)
        raise StudyError(f"{path}{where}: {type(error).__name__}: {error}{_remedy(error)}") from error
    return module


def _remedy(error: Exception) -> str:
    """What to install where a file imports a package that is not there."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    own = "scikit-learn comes with pip install 'unival-merge[world]'"
    return f"; {own}" if error.name == "sklearn" else f"; install it for {sys.executable}"


def _line(error: BaseException, path: Path) -> str:
    """The last line of a file that an error passed through, as ":12"."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f":{line}" if line else ""
