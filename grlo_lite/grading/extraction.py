"""What an answer says: the boxed expression, the stated number, the chosen letter, the code. Pure functions on text.

Each takes the last place where the answer is stated, the most explicit kind of statement first, and says which kind
it was; an empty text means that nothing was found.
"""

import re

BOXED = re.compile(r"\\(?:boxed|fbox)\s*")


STATED = re.compile(
    r"\banswer\b(?:\s+\w+){0,4}?\s*(?:\*\*)?\s*(?:\bis\b|[:=])\s*(?:\*\*)?[:\s]*(?=(.+))", re.IGNORECASE
)


NUMBER = re.compile(r"[-−]?\s?\$?\d(?:[\d,]|\{,\}|\\!)*(?:\.\d+)?|[-−]?\.\d+")


BOLD = re.compile(r"\*\*(.+?)\*\*")


FORMULA = re.compile(r"\$+([^$]+)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


MONEY = "\x00"


FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


def last_boxed(text: str) -> str:
    r"""The content of the last `\boxed{…}` whose braces close, or of a brace-less `\boxed 5`."""
    for match in reversed(list(BOXED.finditer(text))):
        rest = text[match.end() :]
        if not rest.startswith("{"):
            bare = re.match(r"[\w.]+", rest)
            if bare:
                return bare.group()
            continue
        depth = 0
        for at, character in enumerate(rest):
            depth += (character == "{") - (character == "}")
            if depth == 0:
                return rest[1:at].strip()
    return ""


def stated_number(text: str) -> tuple[str, str]:
    """The number that an answer ends on and how it was stated: `("73", "boxed")`; `("", "nothing found")` without one.

    A box counts first, then GSM8K's `####`, then "the answer is …", then bold type, then the last number of all.
    """
    marked = [part.split("\n")[0] for part in text.split("####")[1:]]
    return _last_said(
        {
            "boxed": [last_boxed(text)],
            "after ####": [_number(place, 0) for place in marked],
            "stated": [_number(place, 0) for place in STATED.findall(text)],
            "bold": [_number(place, -1) for place in BOLD.findall(text)],
            "last number": [_number(text, -1)],
        }
    )


def _last_said(found: dict[str, list[str]]) -> tuple[str, str]:
    """The last text of the first kind that has one, and the kind."""
    for kind, texts in found.items():
        if said := [text for text in texts if text]:
            return said[-1], kind
    return "", "nothing found"


def _number(place: str, which: int) -> str:
    """One of a place's numbers, the first or the last, without its dressing; empty where it has none."""
    numbers = NUMBER.findall(place)
    return _plain_number(numbers[which]) if numbers else ""


def _plain_number(text: str) -> str:
    return re.sub(r"[\s$,{}]|\\!", "", text.replace("−", "-")).lstrip("+")


def stated_expression(text: str) -> tuple[str, str]:
    """The mathematical expression that an answer ends on, and how it was stated; without its dollar signs."""
    return _last_said(
        {
            "boxed": [last_boxed(text)],
            "stated": [_bare(place) for place in STATED.findall(text)],
            "bold": [_bare(place) for place in BOLD.findall(text)],
            "last formula": [_bare(place) for place in _formulas(text)],
        }
    )


def _formulas(text: str) -> list[str]:
    """What stands between math delimiters; an escaped dollar is money and delimits nothing."""
    found = FORMULA.findall(text.replace("\\$", MONEY))
    return [next(filter(None, groups)).replace(MONEY, "\\$") for groups in found]


def _bare(statement: str) -> str:
    """A statement's formula where it has one, else its text without bold type and the closing full stop."""
    formulas = _formulas(statement)
    if formulas:
        return formulas[0].strip()
    return statement.replace("**", "").strip().rstrip(".").strip()


def stated_letter(text: str, letters: str) -> tuple[str, str]:
    r"""The option, one of `letters`, that an answer chooses and how it was stated.

    Takes `\boxed{C}`, "The answer is (C)", "Answer: **C**", "option C", a line such as "C." or "**C) Paris**". A
    capital A that begins a sentence is no choice: a letter must be set off by a bracket, punctuation or a line's end.
    """
    letter = rf"[(\[{{*_\s$]*(?:\\(?:text|mathrm|textbf|mathbf)\{{)?[(]?([{letters}])(?![\w'’])"
    set_off = r"(?=\s*(?:[).:,;*\]}$_]|$|\n|because\b|since\b|as\b|–|—|-\s))"
    boxed = re.match(letter, last_boxed(text))
    if boxed:
        return boxed.group(1), "boxed"
    patterns = {
        "stated": rf"\b[Aa](?:nswer|NSWER)\b(?:\s+\w+){{0,4}}?\s*(?:\*\*)?\s*(?:\bis\b|[:=])[:\s]*"
        rf"(?:(?:option|choice)\s+)?{letter}{set_off}",
        "option named": rf"\b(?:[Oo]ption|[Cc]hoice)\s+(?:is\s+)?{letter}{set_off}",
        "bold": rf"\*\*\s*[(]?([{letters}])(?:[).:][^*\n]*)?\s*\*\*",
        "own line": rf"(?m)^\s*[(\[]?([{letters}])[)\].:]*\s*$",
        "first of the last line": rf"(?:\A|\n)\s*[(]?([{letters}])[).:]\s[^\n]*\s*\Z",
    }
    return _last_said({kind: re.findall(pattern, text) for kind, pattern in patterns.items()})


def code_block(text: str, wanted: str) -> tuple[str, str]:
    """The Python of an answer and how it was given: the last fenced block that defines `wanted`, else the last block,
    else the text as it stands.
    """
    blocks = [code for language, code in FENCE.findall(text) if language.lower() in ("", "python", "python3", "py")]
    defining = [
        code for code in blocks if re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(wanted)}\b", code, re.MULTILINE)
    ]
    if defining:
        return defining[-1], "fenced"
    if blocks:
        return blocks[-1], "fenced without the function"
    return text, "not fenced"
