"""METEOR by the published Java program, which the `coco` extra brings along."""

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unival_core.errors import UnivalError
from unival_core.metrics.captions import References, tokenize_pairs
from unival_core.metrics.scores import Scores, not_computed


def meteor(predictions: Sequence[str], references: References, *, tokens: str = "ptb") -> Scores:
    """Compute METEOR 1.5 for English (Denkowski and Lavie, 2014); `value` aggregates the corpus.

    Needs Java and `pip install 'unival-merge[coco]'`; without them the scores are reported as not computed.
    """
    hypotheses, answers = tokenize_pairs(predictions, references, tokens)
    jar = _jar()
    if isinstance(jar, str):
        return not_computed(len(hypotheses), jar)
    lines = [
        "SCORE ||| " + " ||| ".join(" ".join(words).replace("|||", "") for words in (*texts, caption))
        for caption, texts in zip(hypotheses, answers, strict=True)
    ]
    *values, value = _run(jar, lines)
    return Scores(value, np.array(values), len(values), f"{tokens} tokens")


def _jar() -> Path | str:
    """Return the program, or why it cannot run."""
    package = importlib.util.find_spec("pycocoevalcap")
    folders = None if package is None else package.submodule_search_locations
    if not folders:
        return "METEOR needs pycocoevalcap: pip install 'unival-merge[coco]'"
    if shutil.which("java") is None:
        return "METEOR needs Java, and no `java` is on the path"
    jar = Path(next(iter(folders))) / "meteor" / "meteor-1.5.jar"
    return jar if jar.is_file() else f"METEOR needs {jar}, which is not there: reinstall pycocoevalcap"


def _run(jar: Path, lines: Sequence[str]) -> list[float]:
    """Scores of every line, then of the corpus: a SCORE line is answered with statistics, these with scores."""
    command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    statistics = _answers(command, jar.parent, lines)
    scores = _answers(command, jar.parent, [" ||| ".join(["EVAL", *statistics])])
    if len(statistics) != len(lines) or len(scores) != len(lines) + 1:
        raise UnivalError(f"METEOR answered {len(scores)} scores for {len(lines)} captions: run it alone to see why")
    return [float(score) for score in scores]


def _answers(command: Sequence[str], folder: Path, lines: Sequence[str]) -> list[str]:
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, cwd=folder, input=text, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise UnivalError(f"METEOR's Java program failed with code {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stdout.split("\n")[:-1]
