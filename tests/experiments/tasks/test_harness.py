"""lm-eval's tasks on a live model: a tiny random Llama, a task of one YAML file over JSONL, without a network."""

import json
import pickle

import pytest
import torch

import experiments
from experiments import StudyError
from experiments.tasks import lm_harness, perplexity

harness = pytest.importorskip("lm_eval.tasks")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]

WORDS = ["<s>", "</s>", "<unk>", "red", "green", "blue", "grass", "sky", "rose", "is", "the", "?"]
TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {folder}/val.jsonl, test: {folder}/test.jsonl}}}}
output_type: multiple_choice
validation_split: validation
test_split: test
doc_to_text: "the {{{{thing}}}} is"
doc_to_choice: [red, green, blue]
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def make_llama():
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config)


def llama(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make_llama().eval()


def write(path, things):
    path.write_text("".join(json.dumps({"thing": thing, "label": label}) + "\n" for thing, label in things))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "colours.yaml").write_text(TASK.format(folder=tmp_path))
    write(tmp_path / "val.jsonl", [("rose", 0), ("sky", 2)])
    write(tmp_path / "test.jsonl", [("grass", 1), ("sky", 2), ("rose", 0), ("the", 1)])
    return tmp_path


def best(model, tokenizer, thing):
    """The colour that a model finds likeliest, without any of the harness."""
    tokens = torch.tensor([tokenizer.encode(f"the {thing} is")])
    with torch.no_grad():
        return int(model(tokens).logits[0, -1, tokenizer.convert_tokens_to_ids(["red", "green", "blue"])].argmax())


def test_scores_per_document_and_the_splits_of_a_task(home, tokenizer):
    task, model = lm_harness("colours", tokenizer, include_path=home), llama(0)
    assert (task.metric, task.higher_is_better) == ("acc", True)
    state = torch.random.get_rng_state()
    found = task.score(model, "test")["acc"]
    assert torch.equal(state, torch.random.get_rng_state())
    wanted = [
        best(model, tokenizer, thing) == label for thing, label in [("grass", 1), ("sky", 2), ("rose", 0), ("the", 1)]
    ]
    assert found == wanted
    assert len(task.score(model, "val")["acc"]) == 2
    assert lm_harness("colours", tokenizer, include_path=home, limit=3).score(model, "test")["acc"] == wanted[:3]
    assert task.score(model, "test")["acc"] == found  # tasks stay loaded, and as they were


def test_a_study_of_a_harness_task_and_perplexity(home, tokenizer):
    def study():
        return experiments.Study(
            "colours",
            make_llama,
            {"a": llama(0), "b": llama(1)},
            {
                "colours": lm_harness("colours", tokenizer, include_path=home, expert="a"),
                "words": perplexity(lambda split: ["the sky is blue", "the rose"], tokenizer, expert="b"),
            },
            points=3,
            ensembles=True,
        )

    results = experiments.run(study(), home / "rows", progress=False)
    failed = results.rows[results.rows["value"].isna()]
    assert set(failed["task"]) == {"colours"}
    assert set(failed["method"]) == {"ensemble"}
    assert set(failed["note"]) == {"TypeError: lm_harness asks models of transformers; this is a MeanOutput"}
    assert results.ran.evaluated == 2 * 2 * 4
    assert results.ran.failed == 2
    assert set(results.rows["metric"]) == {"acc", "nll"}
    assert experiments.run(study(), home / "rows", progress=False).ran.evaluated == 0
    write(home / "test.jsonl", [("grass", 1), ("rose", 0)])
    again = experiments.run(study(), home / "rows", progress=False)
    assert again.ran.evaluated == 4
    assert again.rows.query("task == 'colours' and split == 'test'")["n"].tolist()[-4:] == [2, 2, 2, 0]


def test_what_the_harness_lacks_is_one_line(home, tokenizer, monkeypatch):
    manager = harness.TaskManager  # without its own tasks, whose files take it half a minute
    monkeypatch.setattr(harness, "TaskManager", lambda **given: manager(**given | {"include_defaults": False}))
    with pytest.raises(StudyError, match="no task 'shapes' in the harness nor in "):
        lm_harness("shapes", tokenizer, include_path=home)
    with pytest.raises(StudyError, match="colours has no metric 'f1': choose of acc, acc_norm"):
        lm_harness("colours", tokenizer, include_path=home, metric="f1")
    task = lm_harness("colours", tokenizer, include_path=home)
    with pytest.raises(TypeError, match="lm_harness asks models of transformers; this is a Linear"):
        task.score(torch.nn.Linear(1, 1), "test")
    copy = pickle.loads(pickle.dumps(task))
    assert copy.score.digest("test") == task.score.digest("test")
    (home / "colours.yaml").write_text(TASK.format(folder=home).replace("test_split: test", ""))
    with pytest.raises(StudyError, match="colours has only one split: give a task for each"):
        lm_harness("colours", tokenizer, include_path=home).score.digest("val")
