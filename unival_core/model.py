"""UnIVAL from media and tokens to logits (arXiv 2307.16184).

Read from top to bottom: a batch (`Inputs`) -> vision and text tokens -> `Encoder` -> `Encoded` -> `Decoder` -> logits.
Positions are never added to tokens; they act as biases on the attention logits, absolute ones shared by all layers of a
stack and relative ones learned by each layer.
"""

import math
import random
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unival_core.attention import (
    MASKED,
    Attention,
    DecoderLayer,
    EncoderLayer,
    attention_scale,
    code_ids,
    grid_ids,
    image_buckets,
    image_tables,
    known_buckets,
    position_bias,
    split_heads,
    token_tables,
)
from unival_core.computed import leave_out_computed
from unival_core.config import PAD, Regularization, UnivalConfig
from unival_core.decoder_cache import DecoderCache, Encoded, LayerMemory
from unival_core.encoders.audio import Cnn14
from unival_core.encoders.image import ResNet
from unival_core.encoders.video import VideoResNet
from unival_core.errors import UnivalError
from unival_core.inputs import MEDIA, Inputs, check_ids, check_place, embedded

NETWORKS = {"image": ResNet, "video": VideoResNet, "audio": Cnn14}


class Tokens(NamedTuple):
    """Vision tokens: `states` N x V x width, their position `ids` and embeddings (`positions`) for each layout."""

    states: Tensor
    ids: Tensor  # L x V
    positions: Tensor  # L x V x width
    layout: Tensor  # N
    padding: Tensor  # N x V


class Encoder(nn.Module):
    """Media and text to states."""

    def __init__(self, config: UnivalConfig, embed_tokens: nn.Embedding) -> None:
        super().__init__()
        self.config = config
        self.dropout = 0.0
        self.patches: int | None = None
        width = config.width
        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(width)
        self.type_embedding = nn.Embedding(2, width)  # text, anything else
        for name in config.encoders:
            part = getattr(config, name)
            self.add_module(f"embed_{name}s", NETWORKS[name](part))
            self.add_module(f"{name}_proj", nn.Linear(part.width, width))
            self.add_module(f"embed_{name}_positions", nn.Embedding(config.image_positions, width))
        self.patch_layernorm_embedding = nn.LayerNorm(width)
        self.embed_positions = nn.Embedding(config.max_positions + 2, width)
        self.pos_ln = nn.LayerNorm(width)
        self.image_pos_ln = nn.LayerNorm(width)
        self.pos_q_linear = nn.Linear(width, width)
        self.pos_k_linear = nn.Linear(width, width)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(width)
        self.token_rel_pos_table_list = token_tables(config, config.encoder_layers)
        self.image_rel_pos_table_list = image_tables(config, config.encoder_layers)

    def forward(self, inputs: Inputs) -> Encoded:
        text = self.embed_text(inputs.tokens)
        vision = self.embed_media(inputs)
        positions = self.pos_ln(self.embed_positions.weight[: text.shape[1]])
        x = torch.cat((vision.states, text), dim=1)
        padding = torch.cat((vision.padding, inputs.tokens == PAD), dim=1)
        positions = torch.cat((vision.positions, positions.expand(len(vision.positions), -1, -1)), dim=1)
        x = x * ~padding.unsqueeze(-1)
        shared = self.absolute_bias(positions, vision.layout, padding)
        vision_buckets = image_buckets(vision.ids, self.config.image_bucket)
        for index, layer in enumerate(self.layers):
            x = layer(x, self.add_relative_bias(shared, index, vision_buckets, vision.layout))
        return Encoded(self.layer_norm(x), padding, positions, vision.layout)

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Embed B x T ids as B x T x width."""
        if tokens.shape[1] > self.config.max_positions:
            raise UnivalError(f"text of {tokens.shape[1]} tokens: the model reads {self.config.max_positions}, cut it")
        x = self.layernorm_embedding(embedded(self.embed_tokens, tokens) + self.type_embedding.weight[0])
        return F.dropout(x, self.dropout, self.training)

    def embed_media(self, inputs: Inputs) -> Tokens:
        """Return the vision tokens of the whole batch, padded to the longest; V is 0 without media.

        Batches of one modality have one layout. In mixed ones layout 0 is that of samples without media, and every
        sample gets the tokens of its own medium, whatever the order.
        """
        batch, width, device = len(inputs.tokens), self.config.width, inputs.tokens.device
        parts = [(rows, self.embed_medium(MEDIA[number], media)) for number, media, rows in inputs.media()]
        if len(parts) == 1 and (parts[0][0] is None or len(parts[0][0]) == batch):
            vision = parts[0][1]
        else:
            longest = max([0, *(part.states.shape[1] for _, part in parts)])
            states = self.type_embedding.weight.new_zeros(batch, longest, width)
            padding = torch.ones(batch, longest, dtype=torch.bool, device=device)
            layout = torch.zeros(batch, dtype=torch.long, device=device)
            ids, positions = [layout.new_zeros(1, longest)], [states.new_zeros(1, longest, width)]
            for rows, part in parts:
                rest = longest - part.states.shape[1]
                states[rows] = F.pad(part.states, (0, 0, 0, rest)).to(states.dtype)
                padding[rows] = F.pad(part.padding, (0, rest), value=True)
                layout[rows] = part.layout + sum(map(len, ids))
                ids.append(F.pad(part.ids, (0, rest)))
                positions.append(F.pad(part.positions, (0, 0, 0, rest)))
            vision = Tokens(states, torch.cat(ids), torch.cat(positions), layout, padding)
        if inputs.media_mask is not None:
            vision = vision._replace(padding=vision.padding | ~inputs.media_mask.unsqueeze(1))
        return vision

    def embed_medium(self, name: str, media: Tensor) -> Tokens:
        """Run one modality's media through its network; each cell of the feature map becomes a token."""
        if name not in self.config.encoders:
            raise UnivalError(
                f"the model reads {', '.join(self.config.encoders)}, not {name}: load one with its encoder"
            )
        check_place(media, self.type_embedding.weight.device, f"{name}s")
        network, project = self.get_submodule(f"embed_{name}s"), self.get_submodule(f"{name}_proj")
        table = self.get_submodule(f"embed_{name}_positions")
        features = network(media.to(self.type_embedding.weight.dtype) if name != "audio" else media)
        ids = self.cell_ids(features.shape, name)
        x = project(features.flatten(2).transpose(1, 2)) + self.type_embedding.weight[1]
        x = F.dropout(self.patch_layernorm_embedding(x), self.dropout, self.training)
        positions = table(ids)
        if name == "image":
            positions = self.stretch(positions, features.shape[-2:])
        ids, positions = ids.unsqueeze(0), self.image_pos_ln(positions).unsqueeze(0)
        layout = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if self.training and self.patches is not None and self.patches < x.shape[1]:
            drawn = [random.sample(range(x.shape[1]), self.patches) for _ in range(len(x))]
            order = torch.tensor(drawn, device=x.device)
            layout = torch.arange(len(x), device=x.device)
            x, ids, positions = x[layout[:, None], order], ids[0][order], positions[0][order]
        padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        return Tokens(x, ids, positions, layout, padding)

    def cell_ids(self, shape: torch.Size, name: str) -> Tensor:
        """Return the position ids of the cells of a feature map: image cells by row and column, videos the same for
        every time step, audio (time, mel) laid out row by row on the smallest square that holds it."""
        side, device = self.config.image_bucket, self.embed_positions.weight.device
        height, width = shape[-2:]
        cells = math.prod(shape[2:])
        if name == "audio":
            height = width = math.ceil(math.sqrt(cells))
        if max(height, width) > side:
            raise UnivalError(f"{name} of {height} x {width} tokens: the model knows positions up to {side} x {side}")
        ids = grid_ids(height, width, side, device)
        return ids.repeat(math.ceil(cells / len(ids)))[:cells]

    def stretch(self, positions: Tensor, shape: torch.Size) -> Tensor:
        """Return the positions of an image with more than `position_grid` squared tokens: those of that grid,
        interpolated."""
        side, (height, width) = self.config.position_grid, shape
        if not side or height * width <= side**2:
            return positions
        ids = grid_ids(side, side, self.config.image_bucket, positions.device)
        known = self.get_submodule("embed_image_positions")(ids)
        grid = known.t().reshape(1, -1, side, side)
        return F.interpolate(grid, size=(height, width), mode="bilinear")[0].flatten(1).t()

    def absolute_bias(self, positions: Tensor, layout: Tensor, padding: Tensor) -> Tensor:
        """Compute the biases of absolute positions, B (1 if all samples agree) x heads x S x S."""
        query = split_heads(self.pos_q_linear(positions) * attention_scale(self.config), self.config.heads)
        key = split_heads(self.pos_k_linear(positions), self.config.heads)
        bias = (query @ key.transpose(-1, -2)).float()  # half precision cannot hold MASKED
        if len(bias) > 1:
            bias = bias[layout]
        return bias.masked_fill(padding[:, None, None, :], MASKED) if some(padding) else bias

    def add_relative_bias(self, shared: Tensor, index: int, vision_buckets: Tensor, layout: Tensor) -> Tensor:
        """Add to `shared` a layer's learned biases of offsets among vision tokens and among text tokens."""
        text, vision = shared.shape[-1] - vision_buckets.shape[-1], vision_buckets.shape[-1]
        buckets = known_buckets(text, self.config, shared.device)
        among_text = position_bias(self.token_rel_pos_table_list[index], buckets)
        among_vision = position_bias(self.image_rel_pos_table_list[index], vision_buckets)
        if len(among_vision) > 1:
            among_vision = among_vision[layout]
        bias = shared.clone()
        bias[..., vision:, vision:] += among_text
        bias[..., :vision, :vision] += among_vision
        return bias


class Decoder(nn.Module):
    """States and the tokens so far to logits of the next."""

    def __init__(self, config: UnivalConfig, embed_tokens: nn.Embedding) -> None:
        super().__init__()
        self.config = config
        self.dropout = 0.0
        width = config.width
        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(width)
        self.embed_positions = nn.Embedding(config.max_positions + 2, width)
        self.embed_image_positions = nn.Embedding(config.image_positions, width)
        self.pos_ln = nn.LayerNorm(width)
        self.image_pos_ln = nn.LayerNorm(width)
        self.self_pos_q_linear = nn.Linear(width, width)
        self.self_pos_k_linear = nn.Linear(width, width)
        self.cross_pos_q_linear = nn.Linear(width, width)
        self.cross_pos_k_linear = nn.Linear(width, width)
        self.code_layernorm_embedding = nn.LayerNorm(width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(width)
        self.output_projection = nn.Linear(width, config.vocabulary, bias=False, device="meta")
        self.token_rel_pos_table_list = token_tables(config, config.decoder_layers)
        self.image_rel_pos_table_list = image_tables(config, config.decoder_layers)

    def start(self, encoded: Encoded, code_rows: Tensor | None) -> DecoderCache:
        """Return everything about the encoded samples that every step needs, computed once."""
        layers = [cast(DecoderLayer, layer) for layer in self.layers]
        memories = [LayerMemory(*layer.encoder_attn.keys_values(encoded.states)) for layer in layers]
        position_keys = split_heads(self.cross_pos_k_linear(encoded.positions), self.config.heads)
        return DecoderCache(encoded, position_keys, memories, code_rows)

    def forward(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        check_ids(tokens, "tokens", "rows")
        if len(tokens) != cache.rows:
            raise UnivalError(f"{len(tokens)} rows of tokens for a cache of {cache.rows} rows")
        start, end = cache.length, cache.length + tokens.shape[1]
        if end > cache.capacity:
            self.reserve(cache, end)
        cache.length, cache.hidden = end, torch.cat((cache.hidden, tokens == PAD), dim=1)
        kind = cache.kind[cache.readers.source]
        x = self.embed(tokens, kind, cache.kinds)
        hidden = cache.hidden[:, None, None, :] if some(cache.hidden) else None
        for layer, memory, bias in zip(self.layers, cache.layers, cache.self_bias, strict=True):
            bias = bias[:, :, start:end, :end]
            bias = bias[kind] if len(bias) > 1 else bias
            bias = bias if hidden is None else bias.masked_fill(hidden, MASKED)
            x = layer(x, memory, bias, cache.readers, cache.cross_bias[:, :, start:end])
        return self.output_projection(self.layer_norm(x))

    def embed(self, tokens: Tensor, kind: Tensor, kinds: tuple[bool, ...]) -> Tensor:
        """Embed R x n ids as R x n x width; text and image codes are normalised differently."""
        x = embedded(self.embed_tokens, tokens)
        norms = [self.code_layernorm_embedding if code else self.layernorm_embedding for code in kinds]
        mixed = norms[0](x)
        if len(norms) > 1:
            mixed = torch.where(kind[:, None, None] == 0, mixed, norms[1](x))
        return F.dropout(mixed, self.dropout, self.training)

    def reserve(self, cache: DecoderCache, length: int) -> None:
        """Return position biases for at least `length` target positions; twice as many when decoding goes step by
        step."""
        c = self.config
        limit = min(len(code_ids(c)) if code else c.max_positions for code in cache.kinds)
        if length > limit:
            raise UnivalError(f"target of {length} tokens: the model writes at most {limit}")
        length = length if cache.length == 0 else min(limit, max(16, 2 * length))
        places = torch.stack([self.places(length, code) for code in cache.kinds])  # kinds x length x width
        scale = attention_scale(c)
        query = split_heads(self.self_pos_q_linear(places) * scale, c.heads)
        key = split_heads(self.self_pos_k_linear(places), c.heads)
        future = torch.ones(length, length, dtype=torch.bool, device=places.device).triu(1)
        shared = (query @ key.transpose(-1, -2)).float().masked_fill(future, MASKED)
        buckets = [self.buckets(length, code) for code in cache.kinds]
        layers = range(len(self.layers))
        cache.self_bias = [shared + self.relative_bias(layer, cache.kinds, buckets) for layer in layers]
        query = split_heads(self.cross_pos_q_linear(places) * scale, c.heads)
        cross = (query.unsqueeze(1) @ cache.position_keys.transpose(-1, -2)).float()  # kinds x L x heads x length x S
        cross = cross[0] if cross.shape[:2] == (1, 1) else cross[cache.kind, cache.layout]
        padding = cache.padding[:, None, None, :]
        cache.cross_bias = cross.masked_fill(padding, MASKED) if some(padding) else cross
        cache.capacity = length

    def places(self, length: int, code: bool) -> Tensor:
        """Return normalised embeddings of the first target positions, of text or of image codes."""
        if not code:
            return self.pos_ln(self.embed_positions.weight[:length])
        ids = code_ids(self.config)[:length].to(self.embed_image_positions.weight.device)
        return self.image_pos_ln(self.embed_image_positions(ids))

    def buckets(self, length: int, code: bool) -> Tensor:
        """Compute the bucket of every pair of target positions."""
        c, device = self.config, self.embed_positions.weight.device
        if code:
            return image_buckets(code_ids(c)[:length], c.image_bucket).to(device)
        return known_buckets(length, c, device)

    def relative_bias(self, layer: int, kinds: tuple[bool, ...], buckets: list[Tensor]) -> Tensor:
        """Look up a layer's learned biases of offsets between target positions, kinds x heads x length x length."""
        tables = [self.image_rel_pos_table_list if code else self.token_rel_pos_table_list for code in kinds]
        return torch.stack([position_bias(table[layer], b) for table, b in zip(tables, buckets, strict=True)])


class UnivalModel(nn.Module):
    """The encoder-decoder. Tensors are named as in the published checkpoints.

    >>> from unival_core.config import BOS, CONFIGS
    >>> model = UnivalModel(CONFIGS["pocket"]).eval()
    >>> inputs = Inputs(tokens=torch.tensor([[0, 5, 2]]), images=torch.zeros(1, 3, 48, 48))
    >>> cache = model.start(model.encode(inputs))
    >>> logits = model.decode(torch.tensor([[BOS]]), cache)  # of the first token
    >>> model.decode(logits[:, -1:].argmax(-1), cache).shape  # of the second
    torch.Size([1, 1, 424])
    """

    def __init__(self, config: UnivalConfig, regularization: Regularization | None = None) -> None:
        super().__init__()
        self.config = config
        embed_tokens = nn.Embedding(config.vocabulary, config.width, padding_idx=PAD)
        self.encoder = Encoder(config, embed_tokens)
        self.decoder = Decoder(config, embed_tokens)
        self.tie()
        self.apply(initialise)
        self.register_load_state_dict_pre_hook(leave_out_computed)
        self.regularize(regularization or Regularization())

    def tie(self) -> None:
        """Make the output projection the token matrix, which both stacks share already."""
        self.decoder.output_projection.weight = self.encoder.embed_tokens.weight

    def regularize(self, options: Regularization) -> None:
        """Set what training mode does; evaluation mode never does any of it."""
        for stack in (self.encoder, self.decoder):
            stack.dropout = options.dropout
            last = max(1, len(stack.layers) - 1)
            for index, layer in enumerate(stack.layers):
                layer = cast(EncoderLayer, layer)
                layer.dropout, layer.drop_path = options.dropout, options.drop_path * index / last
        for module in self.modules():
            if isinstance(module, Attention):
                module.dropout = options.attention_dropout
            elif isinstance(module, Cnn14):
                module.dropout = options.audio_dropout
                module.time_stripe, module.mel_stripe = options.time_stripe, options.mel_stripe
        self.encoder.patches = options.patches

    def encode(self, inputs: Inputs) -> Encoded:
        """Run vision tokens, then text tokens, through the encoder."""
        return self.encoder(inputs)

    def start(self, encoded: Encoded, code_rows: Tensor | None = None) -> DecoderCache:
        """Return a cache with one row per sample and nothing decoded. `code_rows` (B, bool): samples that write an
        image."""
        return self.decoder.start(encoded, code_rows)

    def decode(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Return logits R x n x vocabulary behind each of `tokens` (R x n, right-padded), the next n of every row of
        `cache`.

        The cache then holds them too: beam search calls `decode` with one column a step. All at once or one by one
        gives the same logits.
        """
        return self.decoder(tokens, cache)

    def forward(self, inputs: Inputs, targets: Tensor, code_rows: Tensor | None = None) -> Tensor:
        """Return logits B x U x vocabulary for decoder inputs `targets` (B x U, beginning with bos, right-padded with
        1)."""
        return self.decode(targets, self.start(self.encode(inputs), code_rows))


def some(mask: Tensor) -> bool:
    """Tell whether a mask hides anything; compiled code, which must not depend on values, takes it for granted."""
    return torch.compiler.is_compiling() or bool(mask.any())


def initialise(module: nn.Module) -> None:
    """Start training from scratch: normal(0, 0.02) in matrices and tables, He's for convolutions."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
