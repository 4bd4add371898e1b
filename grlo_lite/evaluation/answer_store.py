"""What was answered and judged, kept by what it depends on, so that nothing is paid for twice."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def key(**depends_on: Any) -> str:
    """SHA-256 of everything that an entry depends on, by name; JSON values."""
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class AnswerStore:
    """A SQLite file of JSON values. A batch is there whole or not at all, however the program ends."""

    def __init__(self, path: Path):
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT NOT NULL)")

    def known(self, keys: Iterable[str]) -> dict[str, Any]:
        """Those of the keys that are kept, with their values."""
        asked = "SELECT key, value FROM kept WHERE key IN (SELECT value FROM json_each(?))"
        return {key: json.loads(value) for key, value in self.connection.execute(asked, (json.dumps(list(keys)),))}

    def keep(self, entries: dict[str, Any]) -> None:
        """Adds entries in one transaction. Raises IntegrityError where one is kept already: it was paid for twice."""
        rows = [(k, json.dumps(value, ensure_ascii=False)) for k, value in entries.items()]
        self.connection.execute("BEGIN")
        self.connection.executemany("INSERT INTO kept VALUES (?, ?)", rows)
        self.connection.execute("COMMIT")

    def close(self) -> None:
        self.connection.close()
