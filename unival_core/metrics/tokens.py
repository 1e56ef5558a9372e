"""Caption tokenisation: CIDEr-D moves by 15 % between these three, so every score names the one it used."""

import re
from collections.abc import Callable

# A letter may carry combining marks: decomposed accents (e + U+0301) stay inside their word.
_LETTER = r"(?:[^\W\d_][\u0300-\u036f]*)"
_ALNUM = r"(?:[^\W_][\u0300-\u036f]*)"
_APOSTROPHE = r"['\u2019]"

# Words whose full stop belongs to them: wherever they stand, only with a capital, only before a number.
_ABBREVIATIONS = (
    "jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri|mr|mrs|ms|dr|drs|messrs|mme|mlle"
    "|prof|rev|hon|gen|col|lt|capt|maj|sgt|cpl|pvt|cmdr|adm|sen|sens|rep|reps|gov|govs|lieut|pres|supt|insp|asst|det"
    "|brig|st|mt|ft|ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kan|kans|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn"
    "|va|vt|wis|wisc|wyo|co|cos|corp|inc|ltd|bros|plc|bldg|mfg|intl|assn|assoc|natl|dept|univ|est|ph|esq|jr|sr|bhd"
    r"|bancorp|ave|blvd|rd|sq|al|etc|vs|cf|tel|ext|adj|adv|elec|alex|wm|jos|ph\.d|ed\.d"
)
_CAPITALISED = "Miss|Ark|Del|Ill|La|Mass|Ore|Pa|Tex|Wash"
_BEFORE_NUMBER = "ca|op|no|nos|pp|fig|figs|art|prop"
# One written word, two Penn Treebank tokens: where it is cut.
_CUTS = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3}
_CUTS |= {"'tis": 2, "'twas": 2, "\u2019tis": 2, "\u2019twas": 2}
_FRACTIONS = {"½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "}
_RENAMED = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_RENAMED |= {"£": "#", "€": "$", "¢": "cents"}
# Removed after tokenising. The brackets' names are listed in capitals by the reference and are lower-cased by then,
# so they stay; runs such as "!!" stay too.
_PUNCTUATION = frozenset("'\u2019`.?!,:-;")

# Tried in this order at every position.
_RULES = (
    r"https?://\S+|www\.\S+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+",  # addresses
    r"</?[A-Za-z][^<>\s]*>",  # markup such as <unk>
    rf"(?i:{'|'.join(_CUTS)})(?!{_ALNUM})",
    rf"{_LETTER}+?(?=(?i:n{_APOSTROPHE}t)(?!{_LETTER}))",  # do | n't
    rf"(?i:n{_APOSTROPHE}t)(?!{_LETTER})",
    rf"{_ALNUM}+(?:-{_LETTER}+){{0,2}}(?:/{_ALNUM}+(?:-{_LETTER}+){{0,2}}){{1,2}}",  # and/or
    rf"{_LETTER}(?:\.{_LETTER})+\.(?!{_ALNUM})",  # u.s.
    rf"(?:(?i:{_ABBREVIATIONS})|{_CAPITALISED}|(?i:{_BEFORE_NUMBER})(?=\.\s*\d)|{_LETTER})\.(?!{_ALNUM})",
    rf"[A-Z]+(?:[+&][A-Z]+)+(?!{_ALNUM})",  # AT&T
    rf"{_ALNUM}+(?:[.]\d+)+(?:-{_ALNUM}+)+",  # 3.5-inch
    r"[+-]?\d*(?:[.,:]\d+)+",  # 5.99, 10,000, 5:30
    rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)+",  # a full stop without a space joins
    rf"(?i:somethin{_APOSTROPHE}|ol{_APOSTROPHE}|y{_APOSTROPHE}(?=all)|ma{_APOSTROPHE}am|c{_APOSTROPHE}mon)",
    rf"(?i:[dol]{_APOSTROPHE}(?={_LETTER}{{2}}))?{_ALNUM}+(?:[-_](?:(?i:[dol]{_APOSTROPHE})(?={_LETTER}))?{_ALNUM}+)*",
    rf"(?i:{_APOSTROPHE}(?:s|m|d|ll|re|ve))(?!{_LETTER})",
    rf"(?i:{_APOSTROPHE}(?:em|til|cause|n{_APOSTROPHE}?))(?!{_LETTER})",
    r"'\d\ds?(?!\w)",  # '90s
    rf"#{_LETTER}{_ALNUM}*|@{_LETTER}\w*",
    r"[+-]\d+(?!\w)",
    r"[:;=]-?[()]",  # smileys
    r"[?!]+|\*+|_+",
    r"[^\s\w]",
)
_TOKEN = re.compile("|".join(f"(?:{rule})" for rule in _RULES))
# Dashes, ellipses and quotation marks, which end as punctuation; emoji, which the tokenizer does not know.
_DROPPED = re.compile(
    r"-{2,}|\.{2,}|[\"\u2013\u2014\u2018\u201c\u201d\u201e\u00ab\u00bb\u2026]|''|``|[\U0001f000-\U0001faff]"
)
_PLAIN = re.compile(r"[^\w\s]")


def ptb_tokens(text: str) -> list[str]:
    """Return lower-cased Penn Treebank tokens without punctuation, as the COCO caption evaluation counts them.

    Follows the Stanford tokenizer 3.4.1 on captions; rare web text (nested mark-up, exotic symbols) may differ.

    >>> ptb_tokens("A man's dog isn't on the couch, it's (red)!")
    ['a', 'man', "'s", 'dog', 'is', "n't", 'on', 'the', 'couch', 'it', "'s", '-lrb-', 'red', '-rrb-']
    """
    for sign, spelt in _FRACTIONS.items():
        text = text.replace(sign, spelt)
    tokens: list[str] = []
    for token in _TOKEN.findall(_DROPPED.sub(" ", text)):
        cut = _CUTS.get(token.lower())
        tokens += [token] if cut is None else [token[:cut], token[cut:]]
    return [_written(token) for token in tokens if token not in _PUNCTUATION]


def _written(token: str) -> str:
    if len(token) <= 3 and token[-1] in _RENAMED:
        token = token[:-1] + _RENAMED[token[-1]]
    return token.replace("\u2019", "'").lower()


def plain_tokens(text: str) -> list[str]:
    """Return lower-cased words, every other sign turned into a space.

    >>> plain_tokens("A man's dog, 5:30.")
    ['a', 'man', 's', 'dog', '5', '30']
    """
    return _PLAIN.sub(" ", text.lower()).split()


def raw_tokens(text: str) -> list[str]:
    """Return lower-cased pieces between white space, punctuation kept.

    >>> raw_tokens("A dog.")
    ['a', 'dog.']
    """
    return text.lower().split()


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"ptb": ptb_tokens, "plain": plain_tokens, "raw": raw_tokens}
