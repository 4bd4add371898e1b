"""Cleaning: Unicode NFC, then out with what is empty, double, of another language, too long, or nearly double."""

import hashlib
import unicodedata
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from grlo_lite.errors import BadInput
from grlo_lite.models.chat_template import Messages
from grlo_lite.prompts.similarity import near_duplicates
from grlo_lite.wording import aligned

TokenCount = Callable[[Messages], int]


@dataclass(frozen=True)
class Step:
    """What one step did to the rows: how many it took out (or cut), how many are left, and one of those it took."""

    name: str
    dropped: int
    left: int
    example: str


def cleaned(
    rows: list[Messages],
    token_count: TokenCount,
    max_tokens: int,
    overlong: str,
    near: float | None,
    language: str | None,
) -> tuple[list[Messages], list[Step]]:
    """The rows worth asking, in their order, and what each step took out. A row is the same whether read alone or not.

    Of double and nearly double rows (`near`: Jaccard similarity, None keeps them) the first stays. `language` is a
    two-letter code, None for any. Raises BadInput where nothing is left.
    """
    steps = [Step("read", 0, len(rows), "")]
    rows = [_composed(row) for row in rows]
    rows = _kept(rows, [bool(row[-1]["content"].strip()) for row in rows], "empty", steps)
    rows = _kept(rows, _first_of_their_kind(rows), "exact duplicates", steps)
    if language:
        rows = _kept(rows, _written_in(rows, language), f"not in {language!r}", steps)
    rows, over, example = fitted(rows, token_count, max_tokens, overlong)
    name = f"over {max_tokens} tokens" + (", cut" if overlong == "truncate" else "")
    steps.append(Step(name, over, len(rows), example))
    if near is not None:
        twins = near_duplicates([text_of(row) for row in rows], near)
        name = f"near duplicates ({near:g})"
        example = next((f"{_short(rows[i])} ~ {_short(rows[j])}" for i, j in twins.items()), None)
        rows = _kept(rows, [i not in twins for i in range(len(rows))], name, steps, example)
    return rows, steps


def text_of(row: Messages) -> str:
    """All that a row says, whoever says it."""
    return row[0]["content"] if len(row) == 1 else "\n".join(message["content"] for message in row)


def steps_table(steps: list[Step]) -> str:
    """The steps as a table, a line each: dropped, left, and an example."""
    rows = [("prompts", "dropped", "left", "for example")]
    rows += [
        (step.name, f"{step.dropped:,}" if step.name != "read" else "", f"{step.left:,}", step.example)
        for step in steps
    ]
    return "\n".join(aligned(rows, left=(0, 3)))


def _composed(row: Messages) -> Messages:
    if all(message["content"].isascii() for message in row):
        return row
    return [{**message, "content": unicodedata.normalize("NFC", message["content"])} for message in row]


def _kept(
    rows: list[Messages], keep: list[bool], name: str, steps: list[Step], example: str | None = None
) -> list[Messages]:
    """The rows to keep, the step noted. Raises BadInput where none is left."""
    kept = [row for row, good in zip(rows, keep, strict=True) if good]
    if example is None:
        example = next((_short(row) for row, good in zip(rows, keep, strict=True) if not good), "")
    steps.append(Step(name, len(rows) - len(kept), len(kept), example))
    if not kept:
        raise BadInput(f"none of the {steps[0].left} prompts is left: the last {len(rows)} were dropped as {name}")
    return kept


def _short(row: Messages) -> str:
    text = " ".join(row[-1]["content"][:200].split())
    return f"{text[:57]}…" if len(text) > 58 else text or "(blank)"


def _first_of_their_kind(rows: list[Messages]) -> list[bool]:
    seen: set[bytes] = set()
    first = []
    for row in rows:
        said = "\0".join(f"{message['role']}\0{message['content'].strip()}" for message in row)
        digest = hashlib.blake2b(said.encode(), digest_size=16).digest()
        first.append(digest not in seen)
        seen.add(digest)
    return first


def _written_in(rows: list[Messages], language: str) -> list[bool]:
    try:
        import py3langid  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise BadInput(
            f"prompts.language={language} needs py3langid: pip install 'grlo-lite[language]', or leave the key out"
        ) from None
    return [py3langid.classify(text_of(row))[0] == language for row in rows]


def fitted(
    rows: list[Messages], token_count: TokenCount, max_tokens: int, overlong: str
) -> tuple[list[Messages], int, str]:
    """The rows that fit into `max_tokens` of the policy's tokens, template included; how many did not; one of those.

    `overlong: drop` leaves those out; `truncate` cuts their last message from the left, so that its end, where the
    question mostly stands, and the template stay whole. Raises BadInput where nothing is left.
    """
    template = token_count([{"role": "user", "content": ""}])
    kept, over, example = [], 0, ""
    for row in rows:
        if _surely_fits(row, max_tokens - template) or token_count(row) <= max_tokens:
            kept.append(row)
            continue
        over += 1
        example = example or _short(row)
        if overlong == "truncate" and (shorter := _cut_to(row, token_count, max_tokens)):
            kept.append(shorter)
    if not kept:
        raise BadInput(
            f"none of the {len(rows)} prompts fits into prompts.max_tokens={max_tokens}; "
            "raise it or use prompts.overlong=truncate"
        )
    return kept, over, example


def _surely_fits(row: Messages, tokens: int) -> bool:
    """Spares most prompts the tokenizer, which would take most of the time: a byte-level tokenizer makes at most one
    token of a byte; 8 are left for what it may add at the seams of the template.
    """
    return len(row) == 1 and row[0]["role"] == "user" and len(row[0]["content"].encode()) + 8 <= tokens


def _cut_to(row: Messages, token_count: TokenCount, max_tokens: int) -> Messages | None:
    """The row with the longest end of its last message that fits, or None where not even one character does."""
    text = row[-1]["content"]

    def cut(length: int) -> Messages:
        return [*row[:-1], {**row[-1], "content": text[len(text) - length :]}]

    def is_too_long(length: int) -> bool:
        return token_count(cut(length)) > max_tokens

    most = 1
    while most < len(text) and not is_too_long(most):  # from below: a text may have megabytes
        most *= 2
    fits = bisect_left(range(1, min(most, len(text))), True, lo=most // 2, key=is_too_long)
    return cut(fits) if fits else None
