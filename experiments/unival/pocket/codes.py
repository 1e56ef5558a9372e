"""Room for an image tokenizer's codes in a model that was pretrained with fewer: rows of its token matrix."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from torch import Tensor

from unival_core import Tokenizer, UnivalModel


def with_codes(tokenizer: Tokenizer, codes: int) -> Tokenizer:
    """Return the tokenizer with so many codes; ids of text stay what they are."""
    if codes == tokenizer.codes:
        return tokenizer
    return Tokenizer.from_json(json.dumps({**json.loads(tokenizer.to_json()), "codes": codes}))


def widened(model: UnivalModel, codebook: Tensor, seed: int) -> UnivalModel:
    """Return the model with a row of its token matrix for every row of a codebook, codes x numbers; its words and bins,
    and all other weights, are the same.

    A code's row is half by chance and half a random projection of its place in the codebook, so that codes that look
    alike start alike. Rows are as long in the mean as those of words.
    """
    config, own = replace(model.config, codes=len(codebook)), model.state_dict()
    words = model.encoder.embed_tokens.weight.detach()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = UnivalModel(config)
        centred = (codebook - codebook.mean(0)) / codebook.std()
        places = centred @ torch.randn(codebook.shape[1], config.width)
        rows = places / places.std() + torch.randn_like(places)
    rows *= words[: config.text_ids].std() / rows.std()
    matrix = torch.cat((words[: model.config.code_offset], rows, words[model.config.bin_offset :]))
    wide.load_state_dict({n: matrix if t.data_ptr() == words.data_ptr() else t for n, t in own.items()})
    return wide
