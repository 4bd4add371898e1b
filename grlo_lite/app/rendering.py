"""What models and people wrote, as the page shows it: Markdown, code and LaTeX, and nothing that acts."""

import re
from html import escape

from grlo_lite.compare import Reply

NAMES = {"base": "Base", "tuned": "Tuned"}
# A dollar sign alone stays one: prices are commoner in chat than formulas between single dollars
LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
CODE_OR_FORMULA = re.compile(
    r"(?P<fence>^[ ]{0,3}(?P<mark>`{3,}|~{3,})[^\n]*\n(?:.*?^[ ]{0,3}(?P=mark)[`~]*[ ]*$|.*\Z))"
    r"|(?P<span>(?<!`)(?P<ticks>`+)(?!`)[^\n]+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<formula>\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\))",
    re.MULTILINE | re.DOTALL,
)
# Reordering what is read (Trojan Source, CVE-2021-42574), controls, and what shows nothing
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")


def markdown(text: str) -> str:
    """Text for a Markdown component: its HTML is shown instead of obeyed, and so are characters that reorder others.

    What is code stays as it is: there the component escapes. Images become links, since a page that shows text should
    not load what the text names; the page's Content-Security-Policy holds where this misses something.
    """
    text = UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]" if found[0] != "\r" else "", text)
    shown, end = [], 0
    for found in CODE_OR_FORMULA.finditer(text):
        shown.append(_plain(text[end : found.start()]))
        formula = found["formula"]
        shown.append(formula.replace("<", r"\lt ") if formula else found[0])
        end = found.end()
    return "".join([*shown, _plain(text[end:])])


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("![", "[")


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
    said = " ".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return f'<p class="caption"><b>{escape(name)}</b> {said}</p>'


def note(text: str, kind: str = "note") -> str:
    """A line of the page's own; of kind `refused` it is read out as an alert."""
    role = "alert" if kind == "refused" else "status"
    return f'<p class="{kind}" role="{role}">{escape(text)}</p>' if text else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    """An HTML table whose cells are text; the first column is flush left, numbers flush right."""
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'
