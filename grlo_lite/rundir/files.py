"""Files that are whole or not at all: JSON and JSON lines."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that the file is whole or absent. Raises ValueError on NaN or infinity, which JSON does not
    have.
    """
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file through a temporary neighbour, so that no reader ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Appends rows as JSON lines in one write. Raises ValueError on NaN or infinity."""
    text = json_lines(rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as JSON, a line each. Raises ValueError on NaN or infinity."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a run directory. Raises BadInput where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}; restore it from a copy of the run") from None
    except ValueError as error:
        raise BadInput(f"{path} is damaged ({error}); restore it from a copy of the run") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} is damaged (no JSON object); restore it from a copy of the run")
    return content


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, none where it is not there. Raises BadInput, naming the line, where one is no
    JSON.
    """
    rows = []
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):  # texts may hold U+2028
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise BadInput(f"{path}, line {number} is no JSON; restore the file from a copy of the run") from None
    return rows


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def flush(path: Path) -> None:
    """What was written to a file, or which names a folder has, is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
