"""Hypotheses about images: yes, no, and maybe where the face-down card decides.

The card may hide one digit more, or nothing. Every text comes once with each of the three answers, about three
images, so the text says nothing about the answer.
"""

import numpy as np

from experiments.unival.world.concepts import COLOURS, DIGITS, PLACES
from experiments.unival.world.grammar import a, at, pick
from experiments.unival.world.questions import Ask, Makers, any_colour, ask_each, compare, harder, something
from experiments.unival.world.scenes import Pool

__all__ = ["ENTAILMENT"]


def _verdicts(
    rng: np.random.Generator, pool: Pool, kind: str, text: str, masks: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> list[Ask]:
    """The text with yes, no and maybe. Cards lie in most images of the first two as well, as far as they may."""
    yes, no, maybe = masks
    yes, no = (harder(rng, mask, pool.card >= 0, share=0.7) for mask in (yes, no))
    return ask_each(rng, kind, text, {"yes": yes, "no": no, "maybe": maybe})


def claim_exists(rng: np.random.Generator, pool: Pool) -> list[Ask]:
    """Claim 'there is a red three', or 'there is no red three'; what is not in sight may lie under the card."""
    name, seen, near = something(rng, pool)
    hidden = pool.card >= 0
    absent, maybe = harder(rng, ~seen & ~hidden, near), ~seen & hidden
    if rng.random() < 0.5:
        return _verdicts(rng, pool, "exists", f"there is {a(name)}", (seen, absent, maybe))
    return _verdicts(rng, pool, "absent", f"there is no {name}", (absent, seen, maybe))


def claim_colour(rng: np.random.Generator, pool: Pool) -> list[Ask]:
    """Claim 'the three is red': maybe if there is no three but a card."""
    digit, colour = pool.pair(rng)
    its = pool.colour_of[:, digit]
    text = pick(rng, ("the {d} is {c}", "the colour of the {d} is {c}")).format(d=DIGITS[digit], c=COLOURS[colour])
    wrong = harder(rng, (its >= 0) & (its != colour), pool.digit_of[:, colour] >= 0)
    return _verdicts(rng, pool, "colour", text, (its == colour, wrong, (its < 0) & (pool.card >= 0)))


def claim_count(rng: np.random.Generator, pool: Pool) -> list[Ask]:
    """Claim 'there are exactly two digits', 'there are at least two digits': a card may add one."""
    number = int(rng.integers(1, 5 if pool.novel else 4))
    hidden, seen = pool.card >= 0, pool.count
    if number > 1 and rng.random() < 0.5:
        text, yes, maybe = f"there are at least {DIGITS[number]} digits", seen >= number, hidden & (seen == number - 1)
    else:
        text = f"there {'is' if number == 1 else 'are'} exactly {DIGITS[number]} digit{'s' * (number > 1)}"
        yes, maybe = ~hidden & (seen == number), hidden & ((seen == number) | (seen == number - 1))
    return _verdicts(rng, pool, "count", text, (yes, ~yes & ~maybe, maybe))


def claim_place(rng: np.random.Generator, pool: Pool) -> list[Ask]:
    """Claim 'the red digit is at the top left': maybe if nothing is red and the card lies there."""
    colour, place = any_colour(rng), int(rng.integers(len(PLACES)))
    its = pool.colour_place[:, colour]
    text = f"the {COLOURS[colour]} digit is {at(place)}"
    elsewhere = (its >= 0) & (its != place)
    return _verdicts(rng, pool, "place", text, (its == place, elsewhere, (its < 0) & (pool.card == place)))


def claim_parity(rng: np.random.Generator, pool: Pool) -> list[Ask]:
    """Claim 'the red digit is even': maybe if nothing is red but there is a card."""
    colour, odd = any_colour(rng), int(rng.integers(2))
    its = pool.digit_of[:, colour]
    text = f"the {COLOURS[colour]} digit is {('even', 'odd')[odd]}"
    yes, no = (its >= 0) & (its % 2 == odd), (its >= 0) & (its % 2 != odd)
    return _verdicts(rng, pool, "parity", text, (yes, no, (its < 0) & (pool.card >= 0)))


def claim_order(rng: np.random.Generator, pool: Pool) -> list[Ask]:
    """Claim 'the red number is greater than the blue number': maybe if one of them can only lie under the card."""
    text, yes, no, maybe = compare(rng, pool)
    return _verdicts(rng, pool, "order", text.format("is "), (yes, no, maybe))


ENTAILMENT: Makers = {
    claim_exists: 4,
    claim_colour: 3,
    claim_count: 1.5,
    claim_place: 1.5,
    claim_parity: 1,
    claim_order: 1,
}
