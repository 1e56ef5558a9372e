"""Evaluation from file to score: every task, every layout, the command line, a task of one's own."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import merge
from tests.unival_core.made_rows import DISTINCT, POCKET, TOKENIZER, cells, dataset, png, table, write_file
from unival_core.checkpoint import save_model
from unival_core.commands import app as program
from unival_core.config import replace as replace_config
from unival_core.data.answers import STORED
from unival_core.data.batch import collate
from unival_core.data.dataset import TaskDataset
from unival_core.data.media_cache import MediaCache
from unival_core.data.table import TsvTable
from unival_core.errors import UnivalError
from unival_core.evaluation import NO_BOX, answer_of, evaluate, predict, score
from unival_core.generation import GenerationOptions
from unival_core.model import UnivalModel
from unival_core.tasks import TASKS
from unival_core.vocabulary import TOKENIZER_KEY


@pytest.mark.parametrize("task", DISTINCT)
@pytest.mark.parametrize("by_path", [False, True])
def test_every_task_from_file_to_score(tmp_path: Path, pocket: UnivalModel, task: str, by_path: bool) -> None:
    if TASKS[task].medium == "video":
        pytest.importorskip("av")
    data = dataset(tmp_path / "data.tsv", task, 5, tmp_path if by_path else None)
    result = evaluate(pocket, data, batch_size=2, output=tmp_path / "said.jsonl", progress=False)
    assert result.task == task
    assert [p.name for p in result.predictions] == [f"row-{row}" for row in range(5)]
    assert result.broken == []
    assert set(result.scores) == set(TASKS[task].metrics)
    for scores in result.scores.values():
        assert scores.n == len(scores.per_example) == 5
        assert 0 <= scores.value <= 10
    for prediction, row in zip(result.predictions, range(5), strict=True):
        assert prediction.reference == data[row].reference
        assert check_answer(data, prediction.answer)
    written = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [line["place"] for line in written] == [f"{tmp_path / 'data.tsv'}:{row + 1}" for row in range(5)]
    assert [line["answer"] for line in written] == [
        p.answer if isinstance(p.answer, str) else list(p.answer) for p in result.predictions
    ]


def check_answer(data: TaskDataset, answer: object) -> bool:
    """Whether it is of the kind that the task writes."""
    if data.task.writes == "text":
        return isinstance(answer, str) and answer in (data.task.answers or [answer])
    assert isinstance(answer, (list, tuple))
    if data.task.writes == "box":
        return len(answer) == 4 and all(0 <= value <= 60 for value in answer)
    return len(answer) == POCKET.code_side**2 and all(0 <= code < POCKET.codes for code in answer)


@pytest.mark.parametrize("task", ["caption", "vqa", "grounding", "entailment", "audio-caption"])
def test_answers_depend_neither_on_batches_nor_workers_nor_caches(tmp_path, pocket, task):
    answers = ["four", "red", "dark red", "two"] if task == "vqa" else ()
    path, cache = tmp_path / "data.tsv", MediaCache()
    wanted = evaluate(pocket, dataset(path, task, 6, answers=answers), batch_size=1, progress=False)
    cached = dataset(path, task, 6, answers=answers, cache=cache)
    for options in ({"batch_size": 4}, {"batch_size": 6, "workers": 2}, {"batch_size": 6}):
        found = evaluate(pocket, cached, progress=False, **options)
        assert [p.answer for p in found.predictions] == [p.answer for p in wanted.predictions]
        ranks = [[p.score for p in result.predictions] for result in (found, wanted)]
        assert np.allclose(*ranks, atol=1e-3)
    if task == "vqa":
        assert {p.answer for p in wanted.predictions} <= set(answers)


def test_ranking_all_answers_is_searching_for_the_best(tmp_path, pocket):
    task = TASKS["entailment"]
    rows = table(tmp_path / "data.tsv", "entailment", 6)
    ranked = TaskDataset(task, rows, TOKENIZER, POCKET)
    searched = TaskDataset(replace(task, rank_answers=False), rows, TOKENIZER, POCKET)
    options = GenerationOptions(beam=3, unnormalized=True)
    first, second = (evaluate(pocket, data, options=options, progress=False) for data in (ranked, searched))
    assert [p.answer for p in first.predictions] == [p.answer for p in second.predictions]


def test_a_search_stops_where_the_list_has_no_further_answer(tmp_path, pocket):
    data = dataset(tmp_path / "data.tsv", "vqa", 1, answers=["four", "dark red"])  # fewer than the beam is wide
    steps: list[int] = []
    hook = pocket.decoder.register_forward_hook(lambda module, arguments, logits: steps.append(logits.shape[1]))
    try:
        evaluate(pocket, data, progress=False)
    finally:
        hook.remove()
    assert steps == [1 + len(data[0].prefix), 1, 1]


def test_predictions_are_on_disk_before_they_are_scored(tmp_path, pocket):
    task = replace(TASKS["caption"], reference=lambda row: row["caption"])  # one text, where metrics want several
    data = TaskDataset(task, table(tmp_path / "data.tsv", "caption"), TOKENIZER, POCKET)
    with pytest.raises(UnivalError, match="give a list of at least one text"):
        evaluate(pocket, data, output=tmp_path / "said.jsonl", progress=False)
    assert len((tmp_path / "said.jsonl").read_text().splitlines()) == 4
    with pytest.raises(UnivalError, match="No such file"):
        evaluate(pocket, data, output=tmp_path / "absent" / "said.jsonl", limit=1, progress=False)


def test_broken_rows_are_left_out_and_all_broken_is_an_error(tmp_path, pocket):
    path = write_file(tmp_path / "data.tsv", "caption", 3)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "broken", *lines[1:]]) + "\n")
    caption = TASKS["caption"]
    data = TaskDataset(caption, TsvTable(path, caption.columns, caption.selected_cols), TOKENIZER, POCKET)
    with pytest.warns(UserWarning, match=r"skipped .*data\.tsv:2"):
        result = evaluate(pocket, data, progress=False)
    assert [p.name for p in result.predictions] == ["row-0", "row-1", "row-2"]
    assert [place for place, _ in result.broken] == [f"{path}:2"]
    path.write_text("broken\n")
    data = TaskDataset(caption, TsvTable(path, caption.columns, caption.selected_cols), TOKENIZER, POCKET)
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(UnivalError, match="no row of 1 could be"):
        evaluate(pocket, data, progress=False)


def test_the_model_is_put_back_into_its_mode_and_mistakes_come_first(tmp_path, pocket):
    data = dataset(tmp_path / "data.tsv", "entailment")
    model = UnivalModel(POCKET)
    for training in (True, False):
        model.train(training)
        model.encoder.get_submodule("embed_images").eval()  # frozen
        evaluate(model, data, limit=1, progress=False)
        assert model.training == training
        assert not model.encoder.get_submodule("embed_images").training
    for options, message in [({"metrics": ["CIDEr"]}, "no metric 'CIDEr'"), ({"amp": "fp8"}, "no precision 'fp8'")]:
        with pytest.raises(UnivalError, match=message):
            evaluate(pocket, data, progress=False, **options)
    assert len(evaluate(pocket, data, limit=3, progress=False).predictions) == 3
    half = evaluate(pocket, data, amp="bf16", progress=False)
    assert {p.answer for p in half.predictions} <= {"yes", "no", "maybe"}


@torch.no_grad()
def test_scores_are_those_of_the_answers(tmp_path, pocket):
    data = dataset(tmp_path / "data.tsv", "grounding", 4)
    result = evaluate(pocket, data, progress=False)
    said = predict(pocket, collate([data[row] for row in range(4)]), data.task, TOKENIZER)
    assert [p.answer for p in said] == [p.answer for p in result.predictions]
    right = [replace(p, answer=p.reference) for p in said[:3]]
    assert score([*right, replace(said[3], answer=NO_BOX)], ["Acc@0.5"])["Acc@0.5"].value == 0.75
    assert np.isnan(answer_of([POCKET.bin_offset], data.task, TOKENIZER, None, (60, 40))).all()


def test_a_model_that_knows_is_told_so(tmp_path, pocket):
    """A model whose output prefers the tokens of one answer gives it, and the score is its confidence."""
    data = dataset(tmp_path / "data.tsv", "vqa", 4, answers=["four", "red", "dark red"])
    model = UnivalModel(POCKET)
    model.load_state_dict(pocket.state_dict())
    (four,) = TOKENIZER.encode(" four")
    with torch.no_grad():
        model.decoder.layer_norm.weight.zero_()
        model.decoder.layer_norm.bias.copy_(model.encoder.embed_tokens.weight[four])
    result = evaluate(model, data, progress=False)
    assert {p.answer for p in result.predictions} == {"four"}
    assert result.scores["VQA accuracy"].per_example.tolist() == [1.0, 0.0, 1.0, 0.0]


# the command line


def save(model: UnivalModel, folder: Path) -> Path:
    return save_model(model, folder / "pocket.safetensors", metadata={TOKENIZER_KEY: TOKENIZER.to_json()})


def run(command: str, checkpoint: Path, task: str, *arguments: str) -> Result:
    return CliRunner().invoke(program, [command, "--checkpoint", str(checkpoint), "--task", task, *arguments])


def test_evaluate_prints_scores_with_intervals(tmp_path, pocket):
    checkpoint, path = save(pocket, tmp_path), write_file(tmp_path / "data.tsv", "vqa", 6)
    answers = tmp_path / "answers.txt"
    answers.write_text("four\nred\ndark red\n")
    said = tmp_path / "said.jsonl"
    arguments = ("--data", str(path), "--answers", str(answers), "-o", str(said), "--limit", "5", "--batch-size", "2")
    result = run("evaluate", checkpoint, "vqa", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    first, second = result.stdout.splitlines()
    assert first.startswith(f"vqa on {path}: 5 rows in ")
    values = [json.loads(line) for line in said.read_text().splitlines()]
    mean = 100 * np.mean([line["reference"].get(line["answer"], 0) for line in values])
    match = re.fullmatch(r"VQA accuracy +([\d.]+)  \[([\d.]+), ([\d.]+)\]  n 5", second)
    assert match is not None
    value, low, high = map(float, match.groups())
    assert value == pytest.approx(mean, abs=0.01)
    assert low <= value <= high
    again = run("evaluate", checkpoint, "vqa", *arguments)
    assert (again.exit_code, again.stderr) == (2, f"error: {said} exists: pass --overwrite\n")
    assert run("evaluate", checkpoint, "vqa", *arguments, "--overwrite").exit_code == 0


def test_the_answers_stored_with_the_weights_are_those_allowed(tmp_path, pocket):
    told = {f"{STORED}vqa": json.dumps(["four", "red", "dark red"]), TOKENIZER_KEY: TOKENIZER.to_json()}
    first, second = (save_model(pocket, tmp_path / name, metadata=told) for name in ("a.safetensors", "b.safetensors"))
    other = save(pocket, tmp_path)  # the first input, which knows of no list
    merge.run(
        merge.Recipe("average", tuple(merge.Input(path.stem, path) for path in (other, first, second))),
        tmp_path / "merged.safetensors",
    )
    path, answers = write_file(tmp_path / "data.tsv", "vqa", 4), tmp_path / "answers.txt"
    answers.write_text("four\nred\ndark red\n")
    arguments, scored = ("--data", str(path), "--batch-size", "4"), lambda result: result.stdout.splitlines()[1:]
    given = run("evaluate", tmp_path / "merged.safetensors", "vqa", *arguments, "--answers", str(answers))
    stored = run("evaluate", tmp_path / "merged.safetensors", "vqa", *arguments)
    assert scored(stored) == scored(given)
    assert (given.stderr, stored.stderr) == ("", "vqa: one of the 3 answers stored with the weights\n")
    free = run("evaluate", tmp_path / "merged.safetensors", "vqa", *arguments, "--answers", "none", "--beam", "1")
    silent = run("evaluate", other, "vqa", *arguments, "--beam", "1")
    assert scored(free) == scored(silent)
    assert silent.stderr.startswith(f"{other} has no list of the answers allowed for vqa: if it was trained with a ")
    (tmp_path / "image.png").write_bytes(png(0))
    asked = ("--image", str(tmp_path / "image.png"), "--text", "which digit is red")
    assert run("generate", tmp_path / "merged.safetensors", "vqa", *asked).stdout.strip() in answers.read_text()
    broken = save_model(pocket, tmp_path / "c.safetensors", metadata={**told, f"{STORED}vqa": "{"})
    assert "metadata expert.answers.vqa is no list of answers" in run("evaluate", broken, "vqa", *arguments).stderr


def test_evaluate_tells_what_it_left_out_and_what_it_could_not_compute(tmp_path, pocket):
    checkpoint, path = save(pocket, tmp_path), write_file(tmp_path / "data.tsv", "caption", 3)
    with path.open("a") as file:
        file.writelines("broken\n" for _ in range(7))
    arguments = ("--data", str(path), "--metrics", "METEOR,ROUGE-L", "--beam", "1", "--selected-cols", "1,4,2")
    result = run("evaluate", checkpoint, "caption", *arguments)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0] == f"left out: {path}:4: 1 columns, at least 5 are wanted"
    assert result.stderr.splitlines()[-1] == "left out: 2 more"
    meteor, rouge = result.stdout.splitlines()[1:]
    assert meteor.startswith("METEOR")
    assert re.match(r"ROUGE-L +\d", rouge)


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("vqas", (), "no task 'vqas': choose one of caption, vqa"),
        ("vqa", ("--data", "absent.tsv"), "absent.tsv: no such file"),
        ("vqa", ("--metrics", "CIDEr"), "no metric 'CIDEr': choose from VQA accuracy"),
        ("vqa", ("--selected-cols", "a,b"), "--selected-cols a,b: give numbers"),
        ("vqa", ("--selected-cols", "0,1"), "need as many numbers"),
        ("vqa", ("--answers", "absent.txt"), "absent.txt: No such file"),
        ("vqa", ("--amp", "fp8"), "'fp8' is not one of bf16, fp16"),
        ("audio-caption", (), "reads image, not audio"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, pocket, task, arguments, message):
    small = UnivalModel(replace_config(POCKET, video=None, audio=None))
    checkpoint, path = save(small, tmp_path), write_file(tmp_path / "data.tsv", "vqa", 1)
    given = arguments if "--data" in arguments else ("--data", str(path), *arguments)
    result = run("evaluate", checkpoint, task, *given)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_a_row_asked_by_hand_is_answered_as_in_its_file(tmp_path, pocket):
    checkpoint = save(pocket, tmp_path)
    data = dataset(tmp_path / "data.tsv", "grounding", 1, tmp_path)
    box = evaluate(pocket, data, progress=False).predictions[0].answer
    asked = ("--image", str(tmp_path / cells("grounding", 0, tmp_path)["media"]), "--text", "The red seven")
    said = run("generate", checkpoint, "grounding", *asked)
    assert said.stdout.split() == [f"{value:.1f}" for value in box]
