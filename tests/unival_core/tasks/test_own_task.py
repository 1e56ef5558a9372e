"""The task of docs/task-of-your-own.md, added as written, on a small file and a pocket model with made-up weights."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests import ROOT
from tests.unival_core.made_rows import POCKET, TOKENIZER, png
from unival_core.checkpoint import save_model
from unival_core.commands import app
from unival_core.data.answers import allowed_answers
from unival_core.data.task import Task
from unival_core.errors import UnivalError
from unival_core.model import UnivalModel
from unival_core.tasks import TASKS
from unival_core.training.recipes import DEFAULTS, options_for
from unival_core.vocabulary import TOKENIZER_KEY, Tokenizer

PAGE = (ROOT / "docs" / "task-of-your-own.md").read_text(encoding="utf-8")
TABLE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def counting() -> Task:
    """The example's entry."""
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    namespace: dict[str, Task] = {}
    exec(compile(code[1], "counting.py", "exec"), namespace)
    assert '\n"counting": counting.TASK,' in PAGE
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "counting", namespace["TASK"])
        yield namespace["TASK"]


@pytest.fixture(scope="module")
def folder(counting: Task, pocket: UnivalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vocabulary holds the task, and three files of four rows, of which one is broken."""
    folder = tmp_path_factory.mktemp("counting")
    tokenizer = Tokenizer.train([" what does the image describe?"], POCKET, behind=counting.learnable_texts())
    save_model(pocket, folder / "pocket.safetensors", metadata={TOKENIZER_KEY: tokenizer.to_json()})
    (folder / "counting").mkdir()
    for row in range(3):
        (folder / "counting" / f"{row}.png").write_bytes(png(row))
    lines = [f"row-{row}\t{row}.png\tdigit\t{row}\n" for row in range(3)] + ["row-3\t0.png\tdigit\tmany\n"]
    for split in ("train", "val"):
        (folder / "counting" / f"{split}.tsv").write_text("".join(lines))
    return folder


def run(folder: Path, command: str, model: str, *words: str) -> Result:
    return CliRunner().invoke(app, [command, model, str(folder / "pocket.safetensors"), "--task", "counting", *words])


def test_it_answers_one_question(folder: Path, counting: Task) -> None:
    ask = ("--image", str(folder / "counting" / "0.png"), "--text")
    done = run(folder, "generate", "--checkpoint", *ask, "digit")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.strip() in counting.answers
    done = run(folder, "generate", "--checkpoint", *ask, "digit and teacup")
    assert done.exit_code == 0
    assert done.stderr == "the model does not know these words of --text, and reads <unk>: and, teacup\n"


def test_it_is_scored(folder: Path) -> None:
    done = run(folder, "evaluate", "--checkpoint", "--data", str(folder / "counting" / "val.tsv"), "--workers", "0")
    assert done.exit_code == 0
    assert "val.tsv:4: count 'many' is not one of 0 to 4" in done.stderr
    assert re.search(r"3 rows in .*\naccuracy +\d+\.\d\d ", done.stdout)


@pytest.mark.filterwarnings("ignore:skipped")
def test_it_is_learnt_by_the_recipe_of_its_setup(folder: Path, counting: Task, tmp_path: Path) -> None:
    assert options_for(counting, "pocket") == DEFAULTS["pocket"]
    short = ("--updates", "2", "--batch", "2", "--workers", "0")
    done = run(folder, "train", "--init", "--data", str(folder), "-o", str(tmp_path / "run"), *short)
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "run" / "best.safetensors"))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["options"]["lr"] == DEFAULTS["pocket"].lr
    assert done.stderr.count("counting has no pocket recipe: trained by the setup's own, 200 updates") == 1


def test_answers_that_the_vocabulary_lacks_are_told(counting: Task) -> None:
    with pytest.raises(UnivalError, match="answer 'zero': the tokenizer has no word 'zero': leave the answer out, or"):
        allowed_answers(counting.answers, TOKENIZER, POCKET)


# -- the table


def whole(name: str, task: Task) -> list[str]:
    """What an entry lacks."""
    lacking = [] if task.name == name else [f"its name, {task.name}"]
    for field in ("columns", "metrics", "example"):
        lacking += [] if getattr(task, field) else [field]
    page = [line for line in TABLE.splitlines() if line.startswith(f"| {name} |")]
    lacking += [] if page else ["a line in docs/tasks.md"]
    for step in (task.prompt, lambda row: task.target(row, None), task.reference):
        try:
            step(task.example)
        except UnivalError as error:
            lacking += [f"a valid example row ({error})"]
    if not task.published.files and task.published.checkpoint:
        lacking += ["published files for the published checkpoint"]
    return lacking


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_whole(name: str) -> None:
    assert not whole(name, TASKS[name]), f"{name} lacks {', '.join(whole(name, TASKS[name]))}"
    path = ROOT / "unival_core" / "tasks" / f"{name.replace('-', '_')}.py"
    assert path.is_file(), f"{name} lacks a file of its name, {path}"


def test_what_a_task_lacks_is_named(counting: Task) -> None:
    assert whole("count", counting) == ["its name, counting", "a line in docs/tasks.md"]
