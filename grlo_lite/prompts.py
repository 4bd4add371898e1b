"""Prompt sources to rows of messages: reading, validating, fitting into the token limit, splitting, ordering."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grlo_lite.recipe import BadInput

Messages = list[dict[str, str]]


def load(source: str, limit: int | None) -> list[Messages]:
    """The source's prompts as lists of messages, in file order, at most `limit` of them.

    `microcosm` is the miniature world's chat prompts. Anything else is a JSONL file whose rows hold a `prompt`: text,
    or messages with `role` and `content` as in verl's and TRL's data sets. Raises BadInput naming file, line and
    mend.
    """
    if source == "microcosm":
        from grlo_lite.microcosm import world

        rows = [[{"role": "user", "content": prompt}] for prompt in world.chat_prompts(held_out=False)]
        random.Random("microcosm prompts").shuffle(rows)
    else:
        rows = _rows_of_jsonl(Path(source))
    return rows[:limit]


def _rows_of_jsonl(path: Path) -> list[Messages]:
    if not path.exists():
        raise BadInput(f"prompts.source={str(path)!r} is no file here; give the path of a JSONL file, or microcosm")
    rows = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(_messages_of_line(line, f"{path}, line {number}"))
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8 JSONL"
        ) from None
    except OSError as error:
        raise BadInput(f"prompts.source={str(path)!r} cannot be read: {error.strerror}") from None
    if not rows:
        raise BadInput(f'{path} is empty; it needs at least one line such as {{"prompt": "…"}}')
    return rows


def _messages_of_line(line: str, where: str) -> Messages:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{where} is not JSON ({error.msg} at column {error.colno}); every line must be one JSON object"
        ) from None
    if not isinstance(row, dict) or "prompt" not in row:
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise BadInput(
            f"{where} has no key 'prompt' (found: {found}); name the text, or the list of messages, 'prompt'"
        )
    prompt = row["prompt"]
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and prompt and all(_is_message(message) for message in prompt):
        if prompt[-1]["role"] != "user":
            raise BadInput(f"{where}: the last message of 'prompt' is by {prompt[-1]['role']!r}; it must be by 'user'")
        return [{"role": message["role"], "content": message["content"]} for message in prompt]
    raise BadInput(f"{where}: 'prompt' is neither a text nor a list of {{'role', 'content'}} messages, or it is empty")


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def fitted(
    rows: list[Messages], token_count: Callable[[Messages], int], max_tokens: int, overlong: str
) -> tuple[list[Messages], int]:
    """The rows that fit into `max_tokens` of the policy's tokens, template included, and how many did not.

    `overlong: drop` leaves those out; `truncate` cuts their last message from the left, so that its end, where the
    question mostly stands, and the template stay whole. Raises BadInput where nothing is left.
    """
    kept, over = [], 0
    for row in rows:
        if token_count(row) <= max_tokens:
            kept.append(row)
            continue
        over += 1
        if overlong == "truncate" and (shorter := _cut_to(row, token_count, max_tokens)):
            kept.append(shorter)
    if not kept:
        raise BadInput(
            f"none of the {len(rows)} prompts fits into prompts.max_tokens={max_tokens}; "
            "raise it or use prompts.overlong=truncate"
        )
    return kept, over


def _cut_to(row: Messages, token_count: Callable[[Messages], int], max_tokens: int) -> Messages | None:
    """The row with the longest end of its last message that fits, or None where not even one character does."""
    text = row[-1]["content"]

    def cut(length: int) -> Messages:
        return [*row[:-1], {**row[-1], "content": text[len(text) - length :]}]

    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if token_count(cut(middle)) <= max_tokens:
            fits = middle
        else:
            too_long = middle
    return cut(fits) if fits else None


def split(rows: list[Messages], heldout: int, seed: int) -> tuple[list[Messages], list[Messages]]:
    """Rows to train on and `heldout` rows to measure on, drawn by the seed; no prompt is in both. At most a tenth is
    held out.
    """
    order = random.Random(f"split {seed}").sample(range(len(rows)), len(rows))
    heldout = min(heldout, len(rows) // 10)
    held = {prompt_hash([rows[i]]) for i in order[:heldout]}
    train = [rows[i] for i in order[heldout:] if prompt_hash([rows[i]]) not in held]
    return train, [rows[i] for i in order[:heldout]]


def ordered(rows: list[Messages], count: int, seed: int) -> list[Messages]:
    """`count` rows in the order a run asks them: one seeded shuffle of all rows after the other."""
    rng, order = random.Random(f"order {seed}"), []
    while len(order) < count:
        order += rng.sample(range(len(rows)), len(rows))
    return [rows[i] for i in order[:count]]


def prompt_hash(rows: list[Messages]) -> str:
    """SHA-256 of the rows, order included."""
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
