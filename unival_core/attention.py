"""Attention, position biases and layers of both stacks (arXiv 2307.16184; heads and norms as in 2110.09456)."""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unival_core.config import UnivalConfig
from unival_core.decoder_cache import LayerMemory, Readers

CODE_TAIL, CODE_TAIL_ID = 769, 1024  # positions behind the last code, and the cell they all name
MASKED = torch.finfo(torch.float32).min / 4  # a finite minus infinity: a row with nothing to look at stays finite


@torch.inference_mode(False)  # else a table first made in evaluation could never be used in training
def token_buckets(length: int, size: int, longest: int, device: torch.device) -> Tensor:
    """Compute the bucket of every pair of text positions, `length` x `length` (query, key), in 0..2 * size - 2.

    Distances up to `size / 2` have a bucket each, larger ones up to `longest - 1` share logarithmically.
    """
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    middle = size // 2
    far = distance.abs().clamp(min=middle).double()
    shared = torch.ceil((far / middle).log() / math.log((longest - 1) / middle) * (middle - 1)).long() + middle
    bucket = torch.where(distance.abs() <= middle, distance, distance.sign() * shared)
    return (bucket + size - 1).to(device)


_kept_buckets = lru_cache(maxsize=32)(token_buckets)


def known_buckets(length: int, config: UnivalConfig, device: torch.device) -> Tensor:
    """Return the buckets of a model's text positions, made once for a length; compilers see them being made."""
    find = token_buckets if torch.compiler.is_compiling() else _kept_buckets
    return find(length, config.token_bucket, config.max_positions, device)


def image_buckets(ids: Tensor, side: int) -> Tensor:
    """Number the pairs among position ids `... x n`, as `... x n x n` (query, key): one per offset in the grid.

    Ids are 1 + row * side + column; id 0, no cell (bos of an image target), gets three buckets of its own.
    """
    spread = 2 * side - 1
    code = (ids - 1) // side * spread + (ids - 1) % side
    bucket = code.unsqueeze(-1) - code.unsqueeze(-2) + (side - 1) * (spread + 1)
    query, key = (ids == 0).unsqueeze(-1), (ids == 0).unsqueeze(-2)
    bucket = bucket.masked_fill(query, spread**2).masked_fill(key, spread**2 + 1)
    return bucket.masked_fill(query & key, spread**2 + 2)


def grid_ids(height: int, width: int, side: int, device: torch.device) -> Tensor:
    """Compute position ids of a grid of tokens, row by row."""
    row, column = torch.arange(height, device=device), torch.arange(width, device=device)
    return (row[:, None] * side + column + 1).flatten()


def position_bias(table: nn.Module, buckets: Tensor) -> Tensor:
    """Return the learned bias of each bucket, `... x n x n` to `... x heads x n x n`."""
    return table(buckets).movedim(-1, -3)


def code_ids(config: UnivalConfig) -> Tensor:
    """Compute position ids of a target that is an image: bos, the grid of codes, and a tail that names one far cell."""
    side = config.code_side
    tail = torch.full((CODE_TAIL,), min(CODE_TAIL_ID, config.image_positions - 1))
    return torch.cat((torch.zeros(1, dtype=torch.long), grid_ids(side, side, config.image_bucket, tail.device), tail))


def token_tables(config: UnivalConfig, layers: int) -> nn.ModuleList:
    """Return each layer's bias of text offsets."""
    return nn.ModuleList(nn.Embedding(2 * config.token_bucket - 1, config.heads) for _ in range(layers))


def image_tables(config: UnivalConfig, layers: int) -> nn.ModuleList:
    """Return each layer's bias of grid offsets; the last three rows belong to position id 0."""
    return nn.ModuleList(nn.Embedding((2 * config.image_bucket - 1) ** 2 + 3, config.heads) for _ in range(layers))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape `N x length x width` to `N x heads x length x head width`."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def attention_scale(config: UnivalConfig) -> float:
    """Scale queries to half the usual variance, as content and position add up in one logit."""
    return (2 * config.head_width) ** -0.5


class Attention(nn.Module):
    """Multi-head attention whose heads are scaled by learned factors (NormFormer, arXiv 2110.09456)."""

    def __init__(self, config: UnivalConfig) -> None:
        super().__init__()
        self.heads, self.scale = config.heads, attention_scale(config)
        self.dropout = 0.0
        self.c_attn = nn.Parameter(torch.ones(config.heads))
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.q_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Make what queries look at: two of N x heads x length x head width."""
        return split_heads(self.k_proj(x), self.heads), split_heads(self.v_proj(x), self.heads)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Attend from x (N x n x width); `bias` is added to the logits, N (or 1) x heads x n x length."""
        query = split_heads(self.q_proj(x), self.heads)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            query, keys, values, bias.to(query.dtype), dropout_p=dropout, scale=self.scale
        )
        mixed = mixed * self.c_attn.view(-1, 1, 1)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """What both kinds of layers share: the feed-forward part, and the way a part's result joins the stream."""

    def __init__(self, config: UnivalConfig) -> None:
        super().__init__()
        self.dropout, self.drop_path = 0.0, 0.0
        self.self_attn = Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.ffn_layernorm = nn.LayerNorm(config.ffn)
        self.fc1 = nn.Linear(config.width, config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.width)
        self.final_layer_norm = nn.LayerNorm(config.width)

    def join(self, x: Tensor, part: Tensor) -> Tensor:
        """Add `part` to x; in training with dropout and, for whole samples, without the part (arXiv 1603.09382)."""
        if not self.training:
            return x + part
        part = F.dropout(part, self.dropout)
        if self.drop_path:
            kept = torch.rand(len(part), 1, 1, device=part.device) >= self.drop_path
            part = part * kept.to(part.dtype) / (1 - self.drop_path)
        return x + part

    def feed_forward(self, x: Tensor) -> Tensor:
        """Run the second half of a layer on x, N x n x width."""
        hidden = self.fc1(self.final_layer_norm(x))
        hidden = F.gelu(hidden.float()).to(hidden.dtype)
        return self.join(x, self.fc2(self.ffn_layernorm(hidden)))


class EncoderLayer(Layer):
    """Self-attention and feed-forward, each normalised before and after."""

    def __init__(self, config: UnivalConfig) -> None:
        super().__init__(config)
        self.attn_ln = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Run the layer on x: B x S x width; bias: B (or 1) x heads x S x S."""
        normed = self.self_attn_layer_norm(x)
        x = self.join(x, self.attn_ln(self.self_attn(normed, *self.self_attn.keys_values(normed), bias)))
        return self.feed_forward(x)


class DecoderLayer(Layer):
    """Self-attention, attention to the encoder, feed-forward."""

    def __init__(self, config: UnivalConfig) -> None:
        super().__init__(config)
        self.self_attn_ln = nn.LayerNorm(config.width)
        self.cross_attn_ln = nn.LayerNorm(config.width)
        self.encoder_attn = Attention(config)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, memory: LayerMemory, bias: Tensor, readers: Readers, cross_bias: Tensor) -> Tensor:
        """Run the layer on x: R x n x width, the next n positions of every row; both biases cover those positions."""
        normed = self.self_attn_layer_norm(x)
        keys, values = memory.append(*self.self_attn.keys_values(normed))
        x = self.join(x, self.self_attn_ln(self.self_attn(normed, keys, values, bias)))
        queries = readers.gather(self.encoder_attn_layer_norm(x))
        seen = self.encoder_attn(queries, memory.cross_keys, memory.cross_values, readers.widen(cross_bias))
        x = self.join(x, self.cross_attn_ln(readers.scatter(seen)))
        return self.feed_forward(x)
