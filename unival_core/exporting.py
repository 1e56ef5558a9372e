"""The model as graphs that run without this package: `torch.export`, for batches of one modality.

Two graphs: one reads a batch, the other writes the next token of every sample. Searching is up to their caller; greedy
is

    memory = reads(tokens, images)
    keys = values = torch.zeros(layers, batch, heads, 0, head_width)
    while not done:
        logits, keys, values = writes(last, keys, values, *memory)
        last = logits.argmax(-1, keepdim=True)

Batch and lengths are free, sizes of media are those of the example that the graphs are made from. Nothing here is
imported by what loads and generates.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from unival_core.attention import MASKED, DecoderLayer, attention_scale, position_bias, split_heads, token_buckets
from unival_core.decoder_cache import LayerMemory, Readers
from unival_core.errors import UnivalError
from unival_core.inputs import MEDIA, Inputs
from unival_core.model import UnivalModel


class Graphs(NamedTuple):
    """The model in two parts: `reads` a batch, `writes` one token."""

    reads: ExportedProgram
    writes: ExportedProgram


class Reads(nn.Module):
    """Tokens B x T and media, if any, to what `Writes` takes: keys and values of the encoded positions, layers x B x
    heads x S x head width, the keys of their positions, 1 x heads x S x head width, and their padding, B x S."""

    def __init__(self, model: UnivalModel, medium: str | None) -> None:
        super().__init__()
        self.model, self.medium = model, medium

    def forward(self, tokens: Tensor, media: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inputs = Inputs(tokens) if self.medium is None else Inputs(tokens, **{f"{self.medium}s": media})
        cache = self.model.start(self.model.encode(inputs))
        keys, values = ([getattr(memory, f"cross_{name}") for memory in cache.layers] for name in ("keys", "values"))
        return torch.stack(keys), torch.stack(values), cache.position_keys, cache.padding


class Writes(nn.Module):
    """A token of every sample, B x 1, and the keys and values of those before, layers x B x heads x P x head width, to
    the logits of the next one, B x vocabulary, and the keys and values of P + 1."""

    def __init__(self, model: UnivalModel) -> None:
        super().__init__()
        self.decoder, config = model.decoder, model.config
        whole = token_buckets(config.max_positions, config.token_bucket, config.max_positions, torch.device("cpu"))
        self.register_buffer("buckets", whole[:, 0].clone().to(model.encoder.embed_tokens.weight.device))  # by distance

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor, *memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cross_keys, cross_values, position_keys, padding = memory
        decoder, config, length = self.decoder, self.decoder.config, keys.shape[3]
        places, scale = decoder.places(length + 1, code=False), attention_scale(config)
        asks = split_heads(decoder.self_pos_q_linear(places[length:]) * scale, config.heads)
        among = asks @ split_heads(decoder.self_pos_k_linear(places), config.heads).transpose(-1, -2)
        asks = split_heads(decoder.cross_pos_q_linear(places[length:]) * scale, config.heads)
        across = (asks @ position_keys.transpose(-1, -2)).float().masked_fill(padding[:, None, None, :], MASKED)
        distances = cast(Tensor, self.buckets)[: length + 1].flip(0).unsqueeze(0)
        x = decoder.layernorm_embedding(decoder.embed_tokens(tokens))
        readers = Readers(tokens[:, 0], len(tokens), one_to_one=True)
        known: list[LayerMemory] = []
        for number, layer in enumerate(decoder.layers):
            own = LayerMemory(cross_keys[number], cross_values[number])
            own.keys, own.values = keys[number], values[number]
            bias = among.float() + position_bias(decoder.token_rel_pos_table_list[number], distances)
            x = cast(DecoderLayer, layer)(x, own, bias.unsqueeze(0), readers, across)
            known.append(own)
        logits = decoder.output_projection(decoder.layer_norm(x))[:, 0]
        return logits, torch.stack([own.keys for own in known]), torch.stack([own.values for own in known])


@torch.no_grad()
def export_model(model: UnivalModel, example: Inputs) -> Graphs:
    """Return the graphs of a model for batches like `example`: two texts or more, with one medium each or without any.

    Texts may then have any length and number; media have the example's sizes. Raises UnivalError for a mixed batch and
    for a model in training mode.
    """
    media = {name: value for name in MEDIA if (value := getattr(example, f"{name}s")) is not None}
    if model.training or len(media) > 1 or example.modality is not None or example.media_mask is not None:
        raise UnivalError(
            "graphs are of one modality and of evaluation: give Inputs of tokens and one medium, model.eval()"
        )
    if min(example.tokens.shape) < 2:
        raise UnivalError(f"tokens of shape {tuple(example.tokens.shape)}: an example has two texts of two ids or more")
    batch, text = Dim("batch", min=1), Dim("text", min=1, max=model.config.max_positions)
    medium = next(iter(media), None)
    given = (example.tokens, *media.values())
    free = ({0: batch, 1: text}, *({0: batch} for _ in media))
    shapes: dict[str, Any] = dict(zip(("tokens", "media"), free, strict=False))
    reads = export(Reads(model, medium).eval(), given, dynamic_shapes=shapes, strict=True)
    memory = Reads(model, medium).eval()(*given)
    c, count = model.config, len(example.tokens)
    before = memory[0].new_zeros(c.decoder_layers, count, c.heads, 3, c.head_width)
    past, seen = Dim("past", min=0, max=c.max_positions - 1), Dim("seen", min=1)
    keep, look = {1: batch, 3: past}, {1: batch, 3: seen}
    step = ({0: batch}, keep, keep, (look, look, {2: seen}, {0: batch, 1: seen}))
    named: dict[str, Any] = dict(zip(("tokens", "keys", "values", "memory"), step, strict=True))
    given = (example.tokens[:, :1], before, before.clone(), *memory)
    return Graphs(reads, export(Writes(model).eval(), given, dynamic_shapes=named, strict=True))
