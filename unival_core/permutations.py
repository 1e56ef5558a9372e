"""What of a UnIVAL model can be reordered without changing what it computes, for aligning two of them.

`width`: the stream of encoder and decoder, one group because both share the token matrix; layer norms move along.
`encoder.places`, `decoder.places`: channels of the position embeddings, up to the position projections.
`encoder.heads`, `decoder.heads`, `decoder.cross_heads`: attention heads, in one order in all layers of a stack, as they
share one absolute bias; `c_attn` and the columns of the relative tables move along.
`*.keys`, `*.values`: channels within each head, by layer, and those of the position projections.
`*.hidden`: units of each feed-forward part, with the norm between its two maps.
`*.stem`, `*.layerN`: the stream of each stage of an image or video network; `*.in`, `*.out`: channels within a block;
`*.groups`: groups of its middle convolution. `*.conv1`, `*.conv2`: channels of the audio network.

Left as they are: rows of the token matrix, positions, mel bands, pixels, the unused ImageNet head's classes, and the
continuous symmetries (scales between a map and the next, rotations between queries and keys).
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from merge import Alignment, Checkpoint, PermutationSpec, open_checkpoint, patterns, permutation_spec
from merge import align_checkpoint as align_any
from unival_core.checkpoint import bare_model, config_of, refuse_differences
from unival_core.computed import TIED, is_computed
from unival_core.config import AudioConfig, ResNetConfig, UnivalConfig
from unival_core.errors import UnivalError

WIDTH = "width"
attention, bottleneck, linear, norm = patterns.attention, patterns.bottleneck, patterns.linear, patterns.norm
Patterns = dict[str, str]


def align_checkpoint(
    first: str | Path,
    second: str | Path,
    output: str | Path,
    *,
    groups: str | Path | None = None,
    section: str = "auto",
    overwrite: bool = False,
    progress: Callable[[str], object] | None = None,
) -> Alignment:
    """Write the second model with its units in the first one's order, as near to its weights as an order can come.

    What the file computes stays the same, and so does its layout; other sections of a training file keep their order,
    and no longer belong to the aligned one. `section` is used of both files; `progress` is called with each group that
    was solved. Of two models that are not UnIVAL's the groups are those of the file `groups`, or derived (see
    `merge.align_checkpoint`). Raises UnivalError where one file alone is a UnIVAL model or the two have different parts
    or sizes, and merge.MergeError for what cannot be read, aligned or written, or without SciPy.
    """
    a, b = open_checkpoint(first, section), open_checkpoint(second, section)
    if groups is not None or not (is_unival(a) or is_unival(b)):
        return align_any(a, b, output, groups=groups, overwrite=overwrite, progress=progress)
    for path, file in ((first, a), (second, b)):
        weights = {name: file[name] for name in file if not is_computed(name)}
        refuse_differences(weights, bare_model(config_of(file)).state_dict(), str(path))
    spec = permutations(config_of(b), b)
    wrong = [name for name in spec.axes if name not in a or a[name].shape != b[name].shape]
    wrong += [name for name in a if name not in b and not is_computed(name)]
    if wrong:
        told = f"{first} and {second} differ in {len(wrong)} tensors ({', '.join(wrong[:3])} ...)"
        raise UnivalError(f"{told}: only models with the same parts and sizes can be aligned")
    return align_any(a, b, output, groups=spec, overwrite=overwrite, progress=progress)


def is_unival(file: Checkpoint) -> bool:
    """Tell whether a checkpoint holds a UnIVAL model."""
    try:
        config_of(file)
    except UnivalError:
        return False
    return True


def permutations(config: UnivalConfig, tensors: Mapping[str, Tensor]) -> PermutationSpec:
    """Return the groups of the model's units (see above). Raises merge.MergeError where the tensors are not the
    config's."""
    patterns = stack("encoder", config.encoder_layers) | stack("decoder", config.decoder_layers)
    patterns |= encoder_inputs(config)
    for name in ("decoder.embed_positions", "decoder.embed_image_positions"):
        patterns |= {f"{name}.weight": "_ decoder.places"}
    patterns |= norm("decoder.code_layernorm_embedding", WIDTH)
    patterns |= positions("decoder.self_pos", "decoder.heads", "decoder.places", "decoder.places")
    patterns |= positions("decoder.cross_pos", "decoder.cross_heads", "decoder.places", "encoder.places")
    patterns |= {name: f"_ {WIDTH}" for name in TIED if name in tensors}
    return permutation_spec(patterns, tensors)


def encoder_inputs(config: UnivalConfig) -> Patterns:
    """Return embeddings of the encoder, and the networks of its media."""
    patterns = {f"encoder.{name}.weight": f"_ {WIDTH}" for name in ("embed_tokens", "type_embedding")}
    patterns |= norm("encoder.patch_layernorm_embedding", WIDTH)
    patterns |= {"encoder.embed_positions.weight": "_ encoder.places"}
    patterns |= positions("encoder.pos", "encoder.heads", "encoder.places", "encoder.places")
    for medium in config.encoders:
        name, part = f"encoder.embed_{medium}s", getattr(config, medium)
        network, last = (
            audio_network(name, part) if medium == "audio" else image_network(name, part, 3 if medium == "video" else 2)
        )
        patterns |= network | linear(f"encoder.{medium}_proj", WIDTH, last)
        patterns |= {f"encoder.embed_{medium}_positions.weight": "_ encoder.places"}
    return patterns


def positions(name: str, heads: str, query: str, key: str) -> Patterns:
    """Return the two projections of an absolute position bias, added to the logits of every layer."""
    look = f"({heads} {name}.keys)"
    return linear(f"{name}_q_linear", look, query) | linear(f"{name}_k_linear", look, key)


def stack(name: str, layers: int) -> Patterns:
    """Return what encoder and decoder have in common: norms, position norms, relative tables, layers."""
    patterns = norm(f"{name}.layernorm_embedding", WIDTH) | norm(f"{name}.layer_norm", WIDTH)
    patterns |= norm(f"{name}.pos_ln", f"{name}.places") | norm(f"{name}.image_pos_ln", f"{name}.places")
    for index in range(layers):
        for kind in ("token", "image"):
            patterns |= {f"{name}.{kind}_rel_pos_table_list.{index}.weight": f"_ {name}.heads"}
        patterns |= layer(f"{name}.layers.{index}", name)
    return patterns


def layer(name: str, stack: str) -> Patterns:
    """Name the groups of one layer; that of a decoder also looks at the encoder."""
    hidden = f"{name}.hidden"
    patterns = attention(f"{name}.self_attn", f"{stack}.heads", WIDTH, WIDTH)
    patterns |= {f"{name}.self_attn.c_attn": f"{stack}.heads"}
    norms = ["self_attn_layer_norm", "final_layer_norm"]
    if stack == "encoder":
        norms += ["attn_ln"]
    else:
        norms += ["self_attn_ln", "cross_attn_ln", "encoder_attn_layer_norm"]
        patterns |= attention(f"{name}.encoder_attn", "decoder.cross_heads", WIDTH, WIDTH)
        patterns |= {f"{name}.encoder_attn.c_attn": "decoder.cross_heads"}
    for each in norms:
        patterns |= norm(f"{name}.{each}", WIDTH)
    patterns |= linear(f"{name}.fc1", hidden, WIDTH) | norm(f"{name}.ffn_layernorm", hidden)
    return patterns | linear(f"{name}.fc2", WIDTH, hidden)


def image_network(name: str, config: ResNetConfig, dims: int) -> tuple[Patterns, str]:
    """Return a residual network, and the group of its features."""
    stream = f"{name}.stem"
    patterns = linear(f"{name}.conv1", stream, "_", bias=False, kernel=dims) | norm(f"{name}.bn1", stream, running=True)
    entering = config.stem
    for stage, (depth, planes) in enumerate(zip(config.depths, config.planes, strict=True), start=1):
        for index in range(depth):
            changes = index == 0 and (stage > 1 or entering != planes * config.expansion)
            leaving = f"{name}.layer{stage}" if changes else stream
            block = f"{name}.layer{stage}.{index}"
            patterns |= bottleneck(block, stream, leaving, dims=dims, grouped=config.groups > 1, downsample=changes)
            stream = leaving
        entering = planes * config.expansion
    if config.classes:
        patterns |= linear(f"{name}.fc", "_", stream)
    return patterns, stream


def audio_network(name: str, config: AudioConfig) -> tuple[Patterns, str]:
    """Return the convolutions on a spectrogram, and the group of their features."""
    patterns, stream = norm(f"{name}.bn0", "_", running=True), "_"
    for index in range(1, len(config.channels) + 1):
        for part in (1, 2):
            conv = f"{name}.conv_block{index}.conv{part}"
            patterns |= linear(conv, conv, stream, bias=False, kernel=2)
            patterns |= norm(f"{name}.conv_block{index}.bn{part}", conv, running=True)
            stream = conv
    return patterns, stream
