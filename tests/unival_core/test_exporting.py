"""The model compiled, and as graphs of torch.export: what they compute is what the model computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.docs.blocks import blocks
from tests.unival_core.test_model import draw, mixed, noise
from unival_core.checkpoint import save_model
from unival_core.errors import UnivalError
from unival_core.exporting import export_model
from unival_core.inputs import Inputs
from unival_core.model import UnivalModel
from unival_core.vocabulary import TOKENIZER_KEY, Tokenizer

CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # docs/tasks.md states it
MEDIA: dict[str, Any] = {
    "text": lambda batch: {},
    "image": lambda batch: {"images": noise(2, batch, 3, 48, 48)},
    "video": lambda batch: {"videos": noise(3, batch, 3, 8, 48, 48)},
    "audio": lambda batch: {"audios": 0.1 * noise(4, batch, 16_000)},
}
BREAKS_OF_MIXED = 3  # which rows have which medium is known from their values only


def batch_of(kind: str, batch: int, length: int) -> Inputs:
    return Inputs(draw(1, batch, length), **MEDIA[kind](batch))


def same_steps(model: UnivalModel, inputs: Inputs, reads: Any, writes: Any) -> None:
    """Compare the logits of six tokens, written one by one."""
    config, batch = model.config, len(inputs.tokens)
    cache = model.start(model.encode(inputs))
    memory = reads(inputs)
    keys = values = torch.zeros(config.decoder_layers, batch, config.heads, 0, config.head_width)
    last = torch.zeros(batch, 1, dtype=torch.int64)
    for step in range(6):
        logits, keys, values = writes(last, keys, values, *memory)
        wanted = model.decode(last, cache)[:, 0]
        assert_close(logits, wanted, **CLOSE)
        last = wanted.argmax(-1, keepdim=True) if step else torch.full_like(last, 9)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", MEDIA)
def test_a_batch_of_one_medium_compiles_without_a_break(pocket: UnivalModel, kind: str) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    inputs, targets = batch_of(kind, 3, 9), draw(5, 3, 6)
    compiled = torch.compile(pocket, backend=backend, fullgraph=True)  # a break would be an error
    assert_close(compiled(inputs, targets), pocket(inputs, targets), **CLOSE)
    assert len(graphs) == 1


@pytest.mark.slow
@torch.no_grad()
def test_steps_compile_without_a_break_and_soon_no_more(pocket: UnivalModel) -> None:
    """Of the first tokens one graph each, then one for all lengths."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    inputs, targets = batch_of("text", 3, 9), draw(5, 3, 7)
    decode = torch.compile(pocket.decode, backend=backend, fullgraph=True, dynamic=True)
    one, other = (pocket.start(pocket.encode(inputs)) for _ in range(2))
    for step in range(7):
        tokens = targets[:, step : step + 1]
        assert_close(decode(tokens, one), pocket.decode(tokens, other), **CLOSE)
    assert len(graphs) <= 3


@pytest.mark.slow
@torch.no_grad()
def test_a_mixed_batch_breaks_where_its_rows_are_told_apart(pocket: UnivalModel) -> None:
    torch._dynamo.reset()
    found = torch._dynamo.explain(pocket)(mixed(), draw(5, 7, 6))
    assert found.graph_break_count <= BREAKS_OF_MIXED


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", MEDIA)
def test_exported_graphs_compute_what_the_model_does(pocket: UnivalModel, kind: str) -> None:
    """Made from two texts of five ids, they take one of a single id, and three with padding."""
    graphs = export_model(pocket, batch_of(kind, 2, 5))
    reads, writes = graphs.reads.module(), graphs.writes.module()
    for batch, length in ((1, 1), (3, 9)):
        inputs = batch_of(kind, batch, length)
        same_steps(pocket, inputs, lambda given: reads(given.tokens, *MEDIA[kind](len(given.tokens)).values()), writes)


@pytest.mark.slow
@torch.no_grad()
def test_the_page_exports(pocket: UnivalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block of docs/how-to/export.md writes the graphs that it names."""
    monkeypatch.chdir(tmp_path)
    words = Tokenizer.train(["what does the image describe?"], pocket.config).to_json()
    save_model(pocket, tmp_path / "vqa.safetensors", metadata={TOKENIZER_KEY: words})
    (block,) = blocks("docs/how-to/export.md")
    names: dict[str, Any] = {}
    exec(compile(block.text, block.place, "exec"), names)
    example, reads = names["example"], torch.export.load("reads.pt2").module()
    encoded = pocket.encode(example)
    assert_close(reads(example.tokens, example.images)[0][0], pocket.start(encoded).layers[0].cross_keys, **CLOSE)


def test_what_is_no_example_is_refused(pocket: UnivalModel) -> None:
    with pytest.raises(UnivalError, match="graphs are of one modality and of evaluation"):
        export_model(pocket, mixed())
    with pytest.raises(UnivalError, match=r"tokens of shape \(1, 5\): an example has two texts of two ids or more"):
        export_model(pocket, Inputs(draw(1, 1, 5)))
