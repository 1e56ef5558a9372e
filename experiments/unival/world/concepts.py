"""What the embedded world is made of: the words of its digits, colours, places and motions, and its numbers."""

from typing import Final

__all__ = ["CANVAS", "CARD", "CELLS", "COLOURS", "DIGITS", "FRAMES", "GENERATOR", "KEYPAD", "MOTIONS"]
__all__ += ["PLACES", "RATE", "RGB", "VOCABULARY", "is_held_out"]

GENERATOR: Final = 1  # raise it whenever the same seed gives other bytes
CANVAS: Final = 48  # pixels along the side of an image and of a video frame
CELLS: Final = 6  # the backbone's label grid is CELLS x CELLS
FRAMES: Final = 8
RATE: Final = 8_000  # Hz

DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS: Final = ("red", "green", "blue", "yellow", "pink", "cyan")
RGB: Final = ((232, 44, 40), (52, 196, 60), (64, 104, 255), (248, 224, 48), (255, 116, 214), (60, 226, 236))
PLACES: Final = (
    "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
MOTIONS: Final = ("left", "right", "up", "down", "circle", "still")
CARD: Final = "card"  # lies face down: it may hide one more digit, or nothing
_OTHER_WORDS: Final = (
    "a above after an and are around as at before below card colour comes corners dialled dials digit digits "
    "do does exactly go goes greater greatest has hear how image in is keys least many move moves my nice "
    "number numbers of on or phone photo picture pressed see shape shows sides sight smallest someone stand "
    "stands stays sum than that the then there tones video way we what where which while with "
)
_ANSWERS: Final = (*DIGITS, *COLOURS, *PLACES, *MOTIONS, "odd even yes no maybe")
VOCABULARY: Final = tuple(sorted({*_OTHER_WORDS.split(), *" ".join(_ANSWERS).split()}))

# A telephone keypad: each key sounds the tone of its row and the tone of its column (Hz; ITU-T Q.23).
_ROWS: Final = (697.0, 770.0, 852.0, 941.0)
_COLUMNS: Final = (1209.0, 1336.0, 1477.0)
KEYPAD: Final = tuple(
    (_ROWS[3], _COLUMNS[1]) if d == 0 else (_ROWS[(d - 1) // 3], _COLUMNS[(d - 1) % 3]) for d in range(10)
)


def is_held_out(digit: int, colour: int) -> bool:
    """Tell whether this pair is kept for the split `novel`: one colour of every digit, one or two digits of every
    colour."""
    return digit % len(COLOURS) == colour
