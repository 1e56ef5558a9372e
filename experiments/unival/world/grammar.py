"""The sentences of the world. Every function names a fact in several equal ways; nothing here looks at an image."""

from collections.abc import Sequence

import numpy as np

from experiments.unival.world.concepts import CARD, COLOURS, DIGITS, MOTIONS, PLACES, is_held_out
from experiments.unival.world.scenes import Scene, Thing

__all__ = ["a", "at", "audio_captions", "captions", "pick", "references", "video_captions", "web_caption"]

GOES = {"circle": ("moves in a circle", "goes around in a circle"), "still": ("stands still", "stays still")}
GOES |= {way: (f"moves {way}", f"goes {way}") for way in MOTIONS[:4]}


def pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """Return one of them."""
    return choices[int(rng.integers(len(choices)))]


def a(words: str) -> str:
    """Return the words behind their indefinite article."""
    return f"an {words}" if words.startswith(("eight", "odd", "even")) else f"a {words}"


def at(place: int) -> str:
    """Say 'at the top left', 'on the right', 'in the centre'."""
    words = PLACES[place]
    return f"{'in' if words == 'centre' else 'on' if words in ('left', 'right') else 'at'} the {words}"


def _name(thing: Thing) -> str:
    return f"{COLOURS[thing.colour]} {DIGITS[thing.digit]}"


def captions(scene: Scene) -> list[str]:
    """Return five captions of an image, each naming every digit in reading order and then the card."""
    names = [a(_name(thing)) for thing in scene.things] + [a(CARD)] * (scene.card is not None)
    listed = " and ".join(names)
    # Places of all digits would make a caption of three longer than the 20 words that captioning learns.
    placed = [
        f"{a(_name(t))} {at(t.place)}" if i == 0 or len(scene.things) < 3 else a(_name(t))
        for i, t in enumerate(scene.things)
    ]
    return [
        listed,
        f"there is {listed}",
        f"the image shows {listed}",
        " and ".join(placed + names[len(scene.things) :]),
        "we see " + " with ".join(names),
    ]


def web_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return a careless caption as found on the web: one or two digits, half told, each wrong in one of six.

    No mistake makes a held-out pair.
    """
    things = [scene.things[i] for i in rng.permutation(len(scene.things))[:2]]
    tags = []
    for thing in things:
        told = int(rng.integers(len(DIGITS))) if rng.random() < 1 / 6 else thing.digit
        digit = DIGITS[thing.digit if is_held_out(told, thing.colour) else told]
        tags.append(pick(rng, (f"{COLOURS[thing.colour]} {digit}", digit, f"{digit} {COLOURS[thing.colour]}")))
    words = " ".join(tags)
    return pick(rng, (f"photo of {words}", words, f"nice picture {words}", f"my {words} photo", f"{words} picture"))


def video_captions(scene: Scene) -> list[str]:
    """Return five captions of a video, each naming every digit and its motion."""
    facts = [(_name(thing), *GOES[MOTIONS[thing.motion]]) for thing in scene.things]
    return [
        " and ".join(f"{a(name)} {moves}" for name, moves, _ in facts),
        " while ".join(f"the {name} {moves}" for name, moves, _ in facts),
        "the video shows " + " and ".join(f"{a(name)} that {moves}" for name, moves, _ in facts),
        "there is " + " and ".join(f"{a(name)} that {moves}" for name, moves, _ in facts),
        " and ".join(f"{a(name)} {goes}" for name, _, goes in facts),
    ]


def audio_captions(digits: Sequence[int]) -> list[str]:
    """Return five captions of a dialled number."""
    words = [DIGITS[digit] for digit in digits]
    number = " ".join(words)
    return [
        f"someone dials {number}",
        f"a phone dials {' then '.join(words)}",
        f"the keys {number} are pressed",
        f"we hear the tones {number}",
        f"{number} is dialled on a phone",
    ]


def references(digit: int, colour: int) -> list[str]:
    """Return three ways to speak of one digit by its colour and value."""
    d, c = DIGITS[digit], COLOURS[colour]
    return [f"the {c} {d}", f"the {d} in {c}", f"the {c} number {d}"]
