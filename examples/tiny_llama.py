"""Two LoRA experts of one language model, merged into its weights exactly, and the models between them.

A tiny Llama, from nothing, learns the letters of two kinds of made text: sums ("3+5=8") and rhymes ("the old cat sat on
the red mat"). Two adapters of peft learn one kind each; `merge.apply_adapters` adds each to the base, in float32, which
makes two experts that any method can merge. The study asks for the perplexity of both kinds between them, and of
shifted text: sums and rhymes with words that training has not seen. Lower is better.

    pip install 'unival-merge[hf]'
    unival-merge study run examples/tiny_llama.py llama-study

or `python examples/tiny_llama.py`, which prints the summary. It takes half a minute. The models are trained once, into
examples/llama-experts; without that folder they are trained again.
"""

import random
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import experiments
import merge

HOME = Path(__file__).with_name("llama-experts")
KINDS = ("sums", "rhymes")
LETTERS = "\n 0123456789+=abcdefghijklmnopqrstuvwxyz"
WORDS = {"known": ["cat", "hat", "mat", "rat", "bat"], "new": ["goat", "boat", "coat"]}
SPLITS = {"train": (0, 400), "val": (1, 50), "test": (2, 100), "new": (3, 100)}  # seed, number of texts


def tokens(text: str) -> list[int]:
    return [LETTERS.index(letter) for letter in text]


def texts(kind: str, split: str) -> list[str]:
    """Return texts of two lines; those of split `new` have numbers and words that training has not seen."""
    seed, count = SPLITS[split]
    pick, new, lines = random.Random(seed), split == "new", []
    for _ in range(2 * count):
        first, second = (pick.randint(*((10, 49) if new else (0, 9))) for _ in range(2))
        one, other = pick.sample(WORDS["new" if new else "known"], 2)
        rhyme = f"the {pick.choice(['old', 'red', 'big'])} {one} sat on the {other}"
        lines.append(f"{first}+{second}={first + second}" if kind == "sums" else rhyme)
    return ["\n" + "\n".join(lines[at : at + 2]) for at in range(0, len(lines), 2)]


def make_model() -> LlamaForCausalLM:
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(LETTERS), max_position_embeddings=256, **sizes))


def train(model: torch.nn.Module, lines: list[str], steps: int, rate: float) -> None:
    """Teach a model to foretell the letters of texts."""
    ids, width = torch.tensor(tokens("".join(lines))), 48
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=rate)
    for _ in range(steps):
        batch = torch.stack([ids[at : at + width] for at in torch.randint(len(ids) - width, (16,)).tolist()])
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()


def trained() -> dict[str, Path]:
    """Return the files of the base and of two experts; they are made unless they are there."""
    files = {name: HOME / f"{name}.safetensors" for name in ("base", *KINDS)}
    if all(file.exists() for file in files.values()):
        return files
    HOME.mkdir(exist_ok=True)
    torch.set_num_threads(1)  # as fast for a model so small, and the same numbers everywhere
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make_model()
        train(model, [text for kind in KINDS for text in texts(kind, "train")], 150, 5e-3)
        merge.save_checkpoint(model, files["base"], overwrite=True)
        for kind in KINDS:
            model = make_model()
            model.load_state_dict(merge.load_checkpoint(files["base"]))
            layers = ["q_proj", "v_proj", "up_proj", "down_proj"]
            adapter = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=layers))
            train(adapter, texts(kind, "train"), 150, 2e-3)
            adapter.save_pretrained(HOME / kind)
            merged = merge.apply_adapters(files["base"], [HOME / kind], weights=[1])
            merge.save_checkpoint(merged, files[kind], overwrite=True)
    return files


files = trained()
study = experiments.Study(
    "tiny-llama",
    make_model,
    experts={kind: files[kind] for kind in KINDS},
    pretrained=files["base"],
    tasks={kind: experiments.tasks.perplexity(partial(texts, kind), tokens, batch_size=32) for kind in KINDS},
    splits=("val", "test", "new"),
    methods=("interpolate", ("ties", {"density": 0.2})),
    question="What do the weights between two LoRA experts know of both kinds of text?",
)

if __name__ == "__main__":
    kept = experiments.run(study, "llama-study").summary()
    print(kept[["mixture", "task", "split", "method", "point", "retention", "lo", "hi"]].to_string(index=False))
