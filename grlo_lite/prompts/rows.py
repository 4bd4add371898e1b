"""The rows of a run: loaded from one source or a mixture, written out, split, ordered, hashed."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

from grlo_lite.errors import BadInput
from grlo_lite.models.chat_template import Messages
from grlo_lite.prompts import row_formats, sources
from grlo_lite.recipe.schema import Part
from grlo_lite.rundir.files import json_lines, write_atomically
from grlo_lite.wording import cut


def load(parts: tuple[Part, ...], limit: int | None, seed: int) -> tuple[list[Messages], list[str]]:
    """The prompts as lists of messages, at most `limit`, and what has to be said of them.

    One source is read in its own order and no further than the limit; several are mixed by a draw of the seed, the
    same on every platform. `microcosm` is the miniature world's chat prompts. Raises BadInput naming file, line, key
    and mend.
    """
    notes: list[str] = []
    if len(parts) == 1 and parts[0].weight is None and parts[0].count is None:
        return _read(parts[0], limit, "prompts.source", notes), notes
    read = [_read(part, None, f"prompts.source.{i}", notes) for i, part in enumerate(parts)]
    rows = []
    for number, (part, found, count) in enumerate(zip(parts, read, _counts(parts, read, limit), strict=True)):
        rng = random.Random(f"mixture {seed} {number}")
        rows += [found[i] for i in rng.sample(range(len(found)), count)]
        notes.append(f"{count} of the {len(found)} rows of {part.source}")
    random.Random(f"mixture {seed}").shuffle(rows)
    return rows[:limit], notes


def _read(part: Part, limit: int | None, key: str, notes: list[str]) -> list[Messages]:
    rows, left_out = [], Counter()
    for messages, what_was_left_out in islice(_messages(part, key), limit):
        rows.append(messages)
        left_out.update([what_was_left_out] if what_was_left_out else [])
    notes += [f"{count} of the rows of {part.source} {said}" for said, count in left_out.items()]
    return rows


def _messages(part: Part, key: str) -> Iterator[tuple[Messages, str]]:
    column, first = part.column, True
    for where, row in sources.rows(part, "train", key):
        if first and column is None:
            column = row_formats.prompt_column(row, where)
        first = False
        yield row_formats.messages_of(row, column, where)


def _counts(parts: tuple[Part, ...], read: list[list[Messages]], limit: int | None) -> list[int]:
    """How many rows each source gives: its count, all it has, or its share of the most that no source runs out of."""
    if parts[0].weight is None:
        for part, rows in zip(parts, read, strict=True):
            if part.count is not None and part.count > len(rows):
                raise BadInput(f"count={part.count} is more than the {len(rows)} rows of {part.source}; lower it")
        return [len(rows) if part.count is None else part.count for part, rows in zip(parts, read, strict=True)]
    weights = [Fraction(str(part.weight)) for part in parts]
    shares = [weight / sum(weights) for weight in weights]
    total = min(int(len(rows) / share) for rows, share in zip(read, shares, strict=True))
    total = total if limit is None else min(total, limit)
    return [min(round(total * share), len(rows)) for share, rows in zip(shares, read, strict=True)]


def write(path: Path, rows: list[Messages]) -> None:
    """Writes the rows as JSON lines that `load` reads back. Raises BadInput where the file cannot be written."""
    try:
        write_atomically(path, json_lines({"prompt": row} for row in rows))
    except OSError as error:
        raise BadInput(
            f"--write-prompts {cut(str(path))} cannot be written: {error.strerror}; name another file"
        ) from None


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
    digest = hashlib.sha256(b"[")
    for number, row in enumerate(rows):
        digest.update((", " * (number > 0) + json.dumps(row, ensure_ascii=False, sort_keys=True)).encode())
    digest.update(b"]")
    return digest.hexdigest()
