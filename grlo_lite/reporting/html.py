"""Text, notes and tables as HTML that does nothing."""

import re
from html import escape

# Reordering what is read (Trojan Source, CVE-2021-42574), controls, lone surrogates, and what shows nothing
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def seen(text: str) -> str:
    return UNSEEN.sub(lambda found: found[0] if found[0] == "\r" else f"[U+{ord(found[0]):04X}]", text)


def plain(text: str) -> str:
    """Text in the page's own HTML, of which no Markdown is made: a blank line would end the HTML that it is in."""
    return escape(seen(text)).replace("\r", "").replace("\n", "&#10;")


def excerpt(text: str, most: int = 2000) -> str:
    """The beginning of a text as `plain`, and how much of it is not shown."""
    rest = len(text) - most
    return plain(text) if rest <= 0 else f"{plain(text[:most])}<small> … {rest:,} more characters</small>"


def facts_list(rows: dict[str, str]) -> str:
    """Names and values; the values are cut where they are longer than a line can be read."""
    facts = "".join(f"<div><dt>{plain(name)}</dt><dd>{excerpt(value, 300)}</dd></div>" for name, value in rows.items())
    return f'<dl class="facts">{facts}</dl>' if facts else ""


def note(text: str, kind: str = "note") -> str:
    """A line of the page's own; of kind `refused` it is read out as an alert."""
    role = "alert" if kind == "refused" else "status"
    return f'<p class="{kind}" role="{role}">{plain(text)}</p>' if text else ""


def html_table(head: list[str], rows: list[list[str]]) -> str:
    """An HTML table whose cells are text; the first column is flush left, numbers flush right."""
    cells = "".join(f"<th>{plain(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{plain(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'
