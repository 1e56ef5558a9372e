"""Caption scores against several references, as the COCO caption evaluation computes them.

Every function takes one caption and the list of its references an example, and the name of a tokenisation (see
`unival_core.metrics.tokens`), which its note repeats. An empty caption scores 0.
"""

import json
import math
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unival_core.errors import UnivalError
from unival_core.metrics.scores import Scores, check_pairs, mean_scores
from unival_core.metrics.tokens import TOKENIZERS

Ngram = tuple[str, ...]
References = Sequence[Sequence[str]]
Tokens = list[str]

ORDERS = 4
LENGTH_SIGMA = 6.0  # CIDEr-D's Gaussian penalty
ROUGE_BETA = 1.2


def tokenize_pairs(
    predictions: Sequence[str], references: References, tokens: str
) -> tuple[list[Tokens], list[list[Tokens]]]:
    """Tokenise every caption and its references; UnivalError when they do not pair up."""
    check_pairs(predictions, references)
    if tokens not in TOKENIZERS:
        raise UnivalError(f"unknown tokenisation {tokens!r}: choose from {', '.join(TOKENIZERS)}")
    for index, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise UnivalError(f"example {index}: references are {texts!r}: give a list of at least one text")
    found = [_tokens(text, tokens) for text in predictions]
    return found, [[_tokens(text, tokens) for text in texts] for texts in references]


@lru_cache(maxsize=1 << 16)
def _tokens(text: str, tokens: str) -> Tokens:
    """Tokenise, once for all metrics and points of a sweep, which share their references; not to be changed."""
    return TOKENIZERS[tokens](text)


def _ngrams(words: Tokens) -> Counter[Ngram]:
    return Counter(tuple(words[i : i + k]) for k in range(1, ORDERS + 1) for i in range(len(words) - k + 1))


def bleu(predictions: Sequence[str], references: References, *, order: int = 4, tokens: str = "ptb") -> Scores:
    """Compute BLEU of n-grams up to `order` (1 to 4), brevity by the closest reference length (Papineni et al., 2002).

    `value` is the score of the corpus; `per_example` are sentence scores, whose mean is another number.
    """
    hypotheses, answers = tokenize_pairs(predictions, references, tokens)
    statistics = np.array([_bleu_statistics(words, texts) for words, texts in zip(hypotheses, answers, strict=True)])
    n = len(statistics)
    value = _bleu_of(statistics.sum(axis=0), order)
    combine = partial(_bleu_of_means, order=order, n=n)
    return Scores(float(value), _bleu_of(statistics, order), n, f"{tokens} tokens", statistics, combine)


def _bleu_statistics(words: Tokens, references: list[Tokens]) -> list[float]:
    """Return matches and n-grams by order, then the caption's and the closest reference's length."""
    counts = _ngrams(words)
    most: dict[Ngram, int] = {}
    for reference in references:
        for ngram, count in _ngrams(reference).items():
            most[ngram] = max(most.get(ngram, 0), count)
    matches = [0] * ORDERS
    for ngram, count in counts.items():
        matches[len(ngram) - 1] += min(count, most.get(ngram, 0))
    guesses = [max(0, len(words) - k) for k in range(ORDERS)]
    closest = min((len(reference) for reference in references), key=lambda length: (abs(length - len(words)), length))
    return [float(number) for number in (*matches, *guesses, len(words), closest)]


def _bleu_of(statistics: np.ndarray, order: int) -> np.ndarray:
    """BLEU of summed statistics (..., 10). 1e-15 and 1e-9 keep the reference's finite values where nothing matches."""
    matches, guesses = statistics[..., :order], statistics[..., ORDERS : ORDERS + order]
    precision = ((matches + 1e-15) / (guesses + 1e-9)).prod(axis=-1) ** (1 / order)
    ratio = (statistics[..., -2] + 1e-15) / (statistics[..., -1] + 1e-9)
    return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))


def _bleu_of_means(means: np.ndarray, *, order: int, n: int) -> np.ndarray:
    return _bleu_of(means * n, order)


def rouge_l(predictions: Sequence[str], references: References, *, tokens: str = "ptb") -> Scores:
    """Score by ROUGE-L: F (beta 1.2) of the best recall and the best precision of the longest common subsequence (Lin,
    2004).

    As in the reference, the two maxima may come from different references.
    """
    hypotheses, answers = tokenize_pairs(predictions, references, tokens)
    values = [_rouge_l(words, texts) for words, texts in zip(hypotheses, answers, strict=True)]
    return mean_scores(np.array(values), f"{tokens} tokens")


def _rouge_l(words: Tokens, references: list[Tokens]) -> float:
    common = [_common_subsequence(words, reference) for reference in references]
    precision = max(common) / max(1, len(words))
    recall = max(length / max(1, len(reference)) for length, reference in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _common_subsequence(first: Tokens, second: Tokens) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


class DocumentFrequencies(NamedTuple):
    """In how many of `documents` examples each n-gram occurs among the references."""

    counts: Mapping[Ngram, float]
    documents: float


def document_frequencies(references: References, *, tokens: str = "ptb") -> DocumentFrequencies:
    """Compute frequencies of the n-grams (1 to 4) of these references, one example a document."""
    _, answers = tokenize_pairs([""] * len(references), references, tokens)
    return _frequencies([[_ngrams(words) for words in texts] for texts in answers])


def _frequencies(grams: list[list[Counter[Ngram]]]) -> DocumentFrequencies:
    return DocumentFrequencies(Counter(ngram for texts in grams for ngram in set().union(*texts)), float(len(grams)))


def cider_d(
    predictions: Sequence[str],
    references: References,
    *,
    tokens: str = "ptb",
    frequencies: DocumentFrequencies | None = None,
) -> Scores:
    """Compute CIDEr-D: clipped tf-idf cosine of n-grams with a penalty on length, times 10 (Vedantam et al., 2015).

    Without `frequencies` (a cached table) the references given are the documents; a single example then scores 0, as
    in the reference. Papers print the value times 100.
    """
    hypotheses, answers = tokenize_pairs(predictions, references, tokens)
    grams = [[_ngrams(words) for words in texts] for texts in answers]
    table = _frequencies(grams) if frequencies is None else frequencies
    log_documents = math.log(table.documents)
    weights: dict[Ngram, float] = {}
    values = []
    for words, texts in zip(hypotheses, grams, strict=True):
        vector = _tf_idf(_ngrams(words), table.counts, log_documents, weights)
        answer_vectors = [_tf_idf(text, table.counts, log_documents, weights) for text in texts]
        similar = sum(_cider_similarity(vector, answer) for answer in answer_vectors)
        values.append(10 * similar / len(texts))
    own = "own" if frequencies is None else "cached"
    return mean_scores(np.array(values), f"{tokens} tokens, {own} document frequencies of {table.documents:g}")


class _TfIdf(NamedTuple):
    weights: dict[Ngram, float]
    norms: list[float]  # squared, by order
    length: int


def _tf_idf(
    counts: Counter[Ngram], frequencies: Mapping[Ngram, float], log_documents: float, known: dict[Ngram, float]
) -> _TfIdf:
    """Weigh n-grams; `known` caches inverse document frequencies over the calls."""
    vector: dict[Ngram, float] = {}
    norms = [0.0] * ORDERS
    length = 0
    for ngram, count in counts.items():
        if ngram not in known:
            known[ngram] = log_documents - math.log(max(1.0, frequencies.get(ngram, 0.0)))
        weight = vector[ngram] = count * known[ngram]
        norms[len(ngram) - 1] += weight * weight
        # The reference takes the number of bigrams for the length: one less than the words, so only differences count.
        length += count if len(ngram) == 2 else 0
    return _TfIdf(vector, norms, length)


def _cider_similarity(caption: _TfIdf, reference: _TfIdf) -> float:
    products = [0.0] * ORDERS
    for ngram, weight in caption.weights.items():
        other = reference.weights.get(ngram)
        if other is not None:
            products[len(ngram) - 1] += min(weight, other) * other
    norms = (math.sqrt(a * b) for a, b in zip(caption.norms, reference.norms, strict=True))
    cosines = (product / norm if norm else product for product, norm in zip(products, norms, strict=True))
    return sum(cosines) / ORDERS * math.exp(-((caption.length - reference.length) ** 2) / (2 * LENGTH_SIGMA**2))


def save_frequencies(path: str | Path, frequencies: DocumentFrequencies) -> None:
    """Write a table as JSON: the number of documents, and counts by n-gram with its words joined by spaces."""
    counts = {" ".join(ngram): count for ngram, count in frequencies.counts.items()}
    Path(path).write_text(json.dumps({"documents": frequencies.documents, "counts": counts}), encoding="utf-8")


def load_frequencies(path: str | Path) -> DocumentFrequencies:
    """Read a table of `save_frequencies` (.json), or the pickle that COCO captioning code publishes (.p, .pkl).

    Of a pickle only plain containers are read; anything else it names is refused with UnivalError, and nothing runs.
    """
    path = Path(path)
    try:
        if path.suffix == ".json":
            table = json.loads(path.read_text(encoding="utf-8"))
            counts = {tuple(words.split(" ")): float(count) for words, count in table["counts"].items()}
            return DocumentFrequencies(counts, float(table["documents"]))
        with path.open("rb") as file:
            table = PlainUnpickler(file, encoding="utf-8").load()
        return DocumentFrequencies(dict(table["document_frequency"]), float(table["ref_len"]))
    except (KeyError, TypeError, json.JSONDecodeError, pickle.UnpicklingError, EOFError) as error:
        raise UnivalError(f"{path}: not a table of document frequencies ({error})") from error


class PlainUnpickler(pickle.Unpickler):
    """Reads plain containers and numbers; anything else is refused by name, and nothing runs."""

    def find_class(self, module_name: str, global_name: str) -> type:
        if (module_name, global_name) == ("collections", "defaultdict"):
            return _PlainDict
        if module_name in ("builtins", "__builtin__") and global_name in ("float", "int"):
            return {"float": float, "int": int}[global_name]
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which is refused")


class _PlainDict(dict[Ngram, float]):
    """A defaultdict without its factory."""

    def __init__(self, _factory: object = None) -> None:
        super().__init__()
