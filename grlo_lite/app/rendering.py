"""What models and people wrote, as the page shows it: Markdown, code and LaTeX, and nothing that acts."""

import re
from functools import cache, lru_cache
from typing import Any

from grlo_lite.app.comparison.values import Reply
from grlo_lite.reporting.html import plain, seen

NAMES = {"base": "Base", "tuned": "Tuned"}


# A dollar sign alone stays one: prices are commoner in chat than formulas between single dollars
LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]


LONGEST_FORMULA = 2000  # characters; what is longer is shown as it was written


MOST_BRACES = 100  # of a formula: KaTeX recurses into each


MOST_EMPHASES = 800  # asterisks and underscores of a text; browsers take seconds to pair more than thousands


# In the manner of CommonMark, within a line; where the browser's parser would see more code than this, it shows `&lt;`
SPAN_OR_FORMULA = re.compile(
    r"(?P<span>(?<![`\\])(?P<ticks>`+)(?!`)[^\n]+?(?<!`)(?P=ticks)(?!`))"
    rf"|(?P<formula>\$\$(?:(?!\$\$).){{1,{LONGEST_FORMULA}}}?\$\$"
    rf"|\\\[(?:(?!\\\[).){{1,{LONGEST_FORMULA}}}?\\\]|\\\((?:(?!\\\().){{1,{LONGEST_FORMULA}}}?\\\))",
    re.DOTALL,
)


NESTED = re.compile(r"^[ \t]*(?=(?:(?:>|[-*+][ \t]|\d{1,9}[.)][ \t])[ \t]*){10})", re.MULTILINE)


@lru_cache(maxsize=512)
def markdown(text: str) -> str:
    """Text for a Markdown component: its HTML is shown instead of obeyed, and so are characters that reorder others.

    What is code stays as it is: there the component escapes. Images become links, since a page that shows text should
    not load what the text names; the page's Content-Security-Policy holds where this misses something. What would keep
    a browser busy (thousands of emphases, deep nesting, endless formulas) is shown as it was written.
    """
    text = seen(text).replace("\r", "")
    lines = _lines(text)
    if text.count("*") + text.count("_") > MOST_EMPHASES:
        lines = [(line if code else line.replace("*", "&#42;").replace("_", "&#95;"), code) for line, code in lines]
    shown, prose = [], ""
    for line, code in [*lines, ("", True)]:
        if code:
            shown += [_prose(prose), line]
            prose = ""
        else:
            prose += line
    return "".join(shown)


def _lines(text: str) -> list[tuple[str, bool]]:
    """The lines, each with whether it is one of a code block, wherever that is nested."""
    lines, code = [f"{line}\n" for line in text.split("\n")], set()
    lines[-1] = lines[-1][:-1]
    for token in _block_parser().parse(text):
        if token.type in ("fence", "code_block") and token.map:
            code.update(range(*token.map))
    return [(line, number in code) for number, line in enumerate(lines)]


@cache
def _block_parser() -> Any:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark")
    parser.core.ruler.disable("inline")
    return parser


def _prose(text: str) -> str:
    shown, end = [], 0
    for found in SPAN_OR_FORMULA.finditer(text):
        shown.append(_plain(text[end : found.start()]))
        formula = found["formula"]
        if formula and formula.count("{") <= MOST_BRACES:
            shown.append(formula.replace("<", r"\lt "))
        else:
            shown.append(_plain(formula) if formula else found[0])
        end = found.end()
    return "".join([*shown, _plain(text[end:])])


def _plain(text: str) -> str:
    text = NESTED.sub(r"\\", text)
    for acts, shown in (("<", "&lt;"), ("![", "!&#91;"), ("\\(", "&#92;("), ("\\[", "&#92;["), ("$$", "&#36;&#36;")):
        text = text.replace(acts, shown)
    return text


def caption(name: str, reply: Reply | None) -> str:
    """The line above an answer: whose it is, how long it took, how it ended, its score."""
    facts = []
    if reply is not None and (reply.tokens or reply.ended):
        facts.append(f"{reply.tokens} tokens")
        if reply.tokens_per_second:
            facts.append(f"{reply.tokens_per_second:.0f} tokens/s")
        if reply.ended:
            facts.append({"length": "cut at its length"}.get(reply.ended, reply.ended))
        if reply.score is not None:
            facts.append(f"score {reply.score:+.2f}")
    said = " ".join(f"<span>{plain(fact)}</span>" for fact in facts)
    return f'<div class="caption"><h2>{plain(name)}</h2> {said}</div>'
