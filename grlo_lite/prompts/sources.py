"""Where rows come from: files of every usual kind, data sets of the Hub, the authors' prompts; read one by one."""

import csv
import gzip
import hashlib
import http.client
import json
import os
import random
import re
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.models.names import LONGEST_HUB_ID
from grlo_lite.recipe.schema import DataSet
from grlo_lite.wording import shortened

Located = tuple[str, Any]  # where a row stands, for messages, and the row

GRLO_1K_URL = "https://raw.githubusercontent.com/SJY8460/GRLO/353c180be4c9baed3f1680f408e7e3ee47f89390/train.jsonl"
GRLO_1K_SHA256 = "80463c5ec34f3fed7d1db6c9fb2c6b66fc00dca7d021c6f045edeb42b02c8930"
ANSWER_SECONDS = 4  # how long a server may keep us waiting: a run that cannot start must say so within 10 s
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")


class Unreachable(BadInput):
    """A source is on the network, and the network does not answer."""


HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def rows(place: DataSet, default_split: str, key: str) -> Iterator[Located]:
    """The rows of a built-in source, of a file or of a Hub data set, each with where it stands. Reads as it goes.

    Raises BadInput, naming the recipe's `key`, where there is no such source, and naming file and line where the
    source is broken.
    """
    source = place.source
    if source in BUILT_IN:
        yield from BUILT_IN[source]()
        return
    path = os.path.expanduser(source)
    if os.path.isdir(path):  # Path's own raise where a name is longer than the file system takes
        raise BadInput(f"{key}={source!r} cannot be read: it is a directory; name a file in it")
    if os.path.exists(path):
        yield from file_rows(Path(path))
    elif on_the_hub(source):
        yield from _hub_rows(place, default_split, key)
    else:
        raise BadInput(
            f"{key}={shortened(source)} is no file here; give a file ({', '.join(SUFFIXES)}), a Hugging Face data set "
            f"such as owner/name, or one of {', '.join(BUILT_IN)}"
        )


def on_the_hub(source: str) -> bool:
    """Whether a source is a data set's id rather than a file: `owner/name`, no such path here, no file's suffix."""
    named_like_a_file = _suffix(Path(source)) in SUFFIXES
    is_an_id = HUB_ID.fullmatch(source) and len(source) <= LONGEST_HUB_ID
    return bool(is_an_id) and not named_like_a_file and not os.path.exists(source)


def _suffix(path: Path) -> str:
    return Path(path.stem if path.suffix.lower() == ".gz" else path).suffix.lower()


def file_rows(path: Path) -> Iterator[Located]:
    """A file's rows by its suffix, `.gz` allowed behind it. A text file has a prompt a line; blank lines are none.

    Raises BadInput for an unknown suffix, an empty file, and at the first row that cannot be read.
    """
    suffix = _suffix(path)
    readers = {".json": _json_rows, ".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows, ".txt": _text_rows}
    reader = _jsonl_rows if suffix in (".jsonl", ".ndjson") else readers.get(suffix)
    if reader is None:
        raise BadInput(f"{path} has the suffix {suffix!r}; what it holds is told by one of {', '.join(SUFFIXES)}")
    empty = True
    try:
        for located in reader(path):
            empty = False
            yield located
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise BadInput(f"{path} is a broken gzip file; fetch or compress it again") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    if empty:
        raise BadInput(f'{path} is empty; it needs at least one row such as {{"prompt": "…"}}')


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """A text file's lines, numbered from 1, their ends kept: UTF-8 with or without a byte order mark, or UTF-16 with
    one. Raises BadInput at the first line that is neither.
    """
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rb") as file:
        start = file.read(2)
    number, utf16 = 0, start in (b"\xff\xfe", b"\xfe\xff")
    try:
        if utf16:
            with opened(path, "rt", encoding="utf-16", newline="") as file:
                for number, line in enumerate(file, 1):
                    yield number, line
            return
        with opened(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeError as error:
        number += utf16  # the other reader fails inside the line, this one before it
        raise BadInput(f"{path}, line {number} is not UTF-8 text ({error}); save the whole file as UTF-8") from None


def _jsonl_rows(path: Path) -> Iterator[Located]:
    for number, line in lines(path):
        if line.strip():
            yield f"{path}, line {number}", _parsed(line, f"{path}, line {number}")


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        why = f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        why = str(error)
    raise BadInput(f"{where} is not JSON ({why}); every line must be one JSON object")


def _json_rows(path: Path) -> Iterator[Located]:
    try:
        content = json.loads("".join(line for _, line in lines(path)) or "[]")
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under the name of JSON
            yield from _jsonl_rows(path)
            return
        raise BadInput(
            f"{path}, line {error.lineno} is not JSON ({error.msg} at column {error.colno}); mend it there"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON that can be read: {error}") from None
    if not isinstance(content, list):
        found = f"an object with {', '.join(content)}" if isinstance(content, dict) else type(content).__name__
        raise BadInput(f"{path} holds {found}; a JSON file of prompts is one list of rows")
    for number, row in enumerate(content, 1):
        yield f"{path}, row {number}", row


def _csv_rows(path: Path) -> Iterator[Located]:
    csv.field_size_limit(2**31 - 1)  # its default refuses a cell of more than 128 KiB
    reader = csv.DictReader(
        (line for _, line in lines(path)), delimiter="\t" if _suffix(path) == ".tsv" else ",", strict=True
    )
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise BadInput(f"{where} has more cells than the header ({', '.join(reader.fieldnames or ())})")
            if None in row.values():
                missing = next(name for name, cell in row.items() if cell is None)
                raise BadInput(f"{where} has no cell for {missing!r}; every line needs one for each name in the header")
            yield where, row
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.reader.line_num} is not CSV ({error}); mend its quotes") from None


def _parquet_rows(path: Path) -> Iterator[Located]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise BadInput(f"{path}, after row {number}: it is no Parquet file that can be read: {error}") from None


def _text_rows(path: Path) -> Iterator[Located]:
    for number, line in lines(path):
        if line.strip():
            yield f"{path}, line {number}", line.rstrip("\r\n")


def _hub_rows(place: DataSet, default_split: str, key: str) -> Iterator[Located]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    split = place.split or default_split
    try:
        loaded = load_dataset(place.source, place.subset, split=split, revision=place.revision)
    except ConnectionError:
        raise Unreachable(_unreachable(f"{key}={place.source!r}", "the Hugging Face Hub")) from None
    except (OSError, ValueError, DatasetsError) as error:
        why = " ".join(str(error).split())[:300]
        raise BadInput(f"{key}={place.source!r} (split {split!r}) cannot be loaded from the Hub: {why}") from None
    for number, row in enumerate(loaded, 1):
        yield f"{place.source}, split {split}, row {number}", row


def microcosm_rows() -> Iterator[Located]:
    """The miniature world's chat prompts, those that are held out left out, in an order that is always the same."""
    from grlo_lite.microcosm import world

    asked = world.chat_prompts(held_out=False)
    random.Random("microcosm prompts").shuffle(asked)
    for number, prompt in enumerate(asked, 1):
        yield f"the microcosm, prompt {number}", prompt


def grlo_1k_rows() -> Iterator[Located]:
    """The authors' prompts. Raises BadInput where they cannot be had."""
    yield from file_rows(grlo_1k())


# A source by the name that a recipe gives it: its rows, texts or objects, with where each stands
BUILT_IN: dict[str, Callable[[], Iterator[Located]]] = {"grlo-1k": grlo_1k_rows, "microcosm": microcosm_rows}


def grlo_1k() -> Path:
    """The 1,000 prompts that the GRLO authors released, as a file in the user's cache; fetched at the first use.

    Raises BadInput where it can neither be found nor fetched, and where its checksum is not the release's: the file is
    then kept aside as `….refused`.
    """
    path = cache() / "grlo-1k-353c180.jsonl"
    if not path.exists():
        content = _fetched(GRLO_1K_URL)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            raise BadInput(f"grlo-1k cannot be kept as {path}: {error.strerror}; set XDG_CACHE_HOME") from None
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != GRLO_1K_SHA256:
        refused = path.with_name(f"{path.name}.refused")
        path.replace(refused)
        raise BadInput(
            f"grlo-1k is refused: its SHA-256 is {found[:12]}… and not {GRLO_1K_SHA256[:12]}…; the file is kept for a "
            f"look as {refused}; run again to fetch it anew"
        )
    return path


def cache() -> Path:
    """Where fetched prompts are kept: `$XDG_CACHE_HOME/grlo_lite`, or `~/.cache/grlo_lite`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grlo_lite"


def _fetched(url: str) -> bytes:
    try:
        with _opened(url) as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(_unreachable("grlo-1k", f"{url.split('/')[2]} ({getattr(error, 'reason', error)})")) from None


def hub_answers() -> bool:
    """Whether the Hugging Face Hub can be reached; known within a few seconds, where the Hub's own client would go on
    trying for half a minute.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    try:
        _opened(os.environ.get("HF_ENDPOINT", "https://huggingface.co") + "/api/datasets?limit=1").close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _opened(url: str) -> Any:
    """An open response. Raises OSError after ANSWER_SECONDS, name resolution included, which sockets do not limit."""
    outcome: list[Any] = []

    def open_it() -> None:
        try:
            outcome.append(urllib.request.urlopen(url, timeout=ANSWER_SECONDS))
        except OSError as error:
            outcome.append(error)
        except (http.client.HTTPException, ValueError) as error:  # no HTTP, or no URL
            outcome.append(OSError(f"{type(error).__name__} {error}"))

    thread = threading.Thread(target=open_it, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if not outcome:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS} s")
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    return outcome[0]


def _unreachable(what: str, server: str) -> str:
    alternatives = ", ".join(["microcosm", *_cached()])
    return f"{what} needs the network, and {server} cannot be reached; at hand without it: {alternatives}, or a file"


def _cached() -> Iterable[str]:
    if (cache() / "grlo-1k-353c180.jsonl").exists():
        yield "grlo-1k"
    home = Path(os.environ.get("HF_HOME") or cache().parent / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    for folder in sorted(hub.glob("datasets--*--*")):
        yield "/".join(folder.name.split("--")[1:3])
