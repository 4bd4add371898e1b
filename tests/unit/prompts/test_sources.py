"""Every shape a row comes in, every way a file can be bad, and a network that does not answer."""

import gzip
import hashlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from grlo_lite import prompts
from grlo_lite.errors import BadInput
from grlo_lite.prompts import sources
from grlo_lite.recipe.schema import Part

FIXTURES = Path(__file__).parents[2] / "fixtures" / "prompts"
SAID = ["Why is the sky blue?", "Write a limerick about a teapot,\nin two lines.", "Qu’est-ce qu’un « hérisson » ? 🦔"]


def asked(text):
    return [{"role": "user", "content": text}]


def load(path, **keys):
    return prompts.load((Part(source=str(path), **keys),), None, 0)[0]


@pytest.mark.parametrize("file", sorted(FIXTURES.iterdir()), ids=lambda file: file.name)
def test_every_shape_gives_the_same_prompts_without_being_told(file):
    assert load(file) == [asked(text) for text in SAID]


def test_parquet_of_text_and_of_messages(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for name, column in {"text": SAID, "messages": [asked(text) for text in SAID]}.items():
        pyarrow.parquet.write_table(pyarrow.table({name: column}), tmp_path / f"{name}.parquet")
        assert load(tmp_path / f"{name}.parquet") == [asked(text) for text in SAID]


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    (tmp_path / "p.txt").write_bytes("one\r\n\r\nzwölf 12\n".encode())
    assert load(tmp_path / "p.txt") == [asked("one"), asked("zwölf 12")]


def test_alpacas_input_follows_its_instruction(tmp_path):
    (tmp_path / "a.json").write_text('[{"instruction": "Sum up.", "input": "A story.", "output": "x"}]')
    assert load(tmp_path / "a.json") == [asked("Sum up.\n\nA story.")]


def test_earlier_turns_stay_and_the_last_answer_is_left_out_and_said(tmp_path):
    turns = [("system", "s"), ("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2")]
    rows = [{"conversations": [{"from": who, "value": text} for who, text in turns]}]
    (tmp_path / "c.jsonl").write_text(json.dumps(rows[0]) + "\n")
    loaded, notes = prompts.load((Part(source=str(tmp_path / "c.jsonl")),), None, 0)
    assert [(m["role"], m["content"]) for m in loaded[0]] == [
        ("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2")
    ]  # fmt: skip
    assert notes == [f"1 of the rows of {tmp_path / 'c.jsonl'} ended with an assistant's turn, which is left out"]


def test_of_a_list_of_the_users_turns_the_first_is_asked_and_it_is_said(tmp_path):
    path = tmp_path / "mt_bench.jsonl"
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["Write a post.", "Rewrite it."]},
        {"question_id": 82, "category": "writing", "turns": ["One alone."]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for column in (None, "turns"):
        loaded, notes = prompts.load((Part(source=str(path), column=column),), None, 0)
        assert loaded == [asked("Write a post."), asked("One alone.")]
        assert notes == [
            f"1 of the rows of {path} hold several turns of the user, of which only the first is asked: the others "
            "answer what is not there"
        ]


def test_what_is_ambiguous_is_asked_for_with_the_columns_found(tmp_path):
    path = tmp_path / "two.jsonl"
    path.write_text('{"prompt": "a", "text": "b", "score": 1}\n')
    with pytest.raises(BadInput, match=r"could be any of prompt, text; say which in prompts.column \(found: .*score\)"):
        load(path)
    assert load(path, column="text") == [asked("b")]
    with pytest.raises(BadInput, match=r"line 1: 'score' is neither a text nor a list of messages, but int '1'"):
        load(path, column="score")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{not json", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("9" * 5000, "line 2 is not JSON"),
        ('{"text": "x"}', "line 2 has no key 'prompt' (found: text)"),
        ("[1]", "line 2 has no key 'prompt' (found: list)"),
        ('{"prompt": null}', "line 2: 'prompt' is neither a text nor a list of messages, but null"),
        ('{"prompt": 7}', "line 2: 'prompt' is neither a text nor a list of messages, but int '7'"),
        ('{"prompt": []}', "line 2: 'prompt' is neither a text nor a list of messages, but an empty list"),
        ('{"prompt": ["x", 7]}', "line 2: 'prompt', message 1 is str 'x'"),
        ('{"prompt": ["\\ud83d"]}', "line 2: 'prompt', turn 1 holds half a surrogate pair"),
        ('{"prompt": [{"role": "user"}]}', "line 2: 'prompt', message 1 has no 'content' (found: role)"),
        ('{"prompt": [{"role": "user", "content": null}]}', "line 2: 'prompt', message 1: 'content' is neither"),
        ('{"prompt": [{"role": "tool", "content": "x"}]}', "line 2: 'prompt', message 1: the role 'tool' is unknown"),
        ('{"prompt": [{"role": ["a"], "content": "x"}]}', "line 2: 'prompt', message 1: the role ['a'] is unknown"),
        ('{"prompt": [{"role": "assistant", "content": "x"}]}', "it must be by 'user'"),
        ('{"prompt": [{"role": "user", "content": [{"type": "image_url"}]}]}', "has parts that are no text"),
        ('{"prompt": "\\ud83d"}', "line 2: 'prompt' holds half a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_key(tmp_path, line, told):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "one"}\n' + line + "\n")
    with pytest.raises(BadInput) as refused:
        load(path)
    assert told in str(refused.value)
    assert "p.jsonl" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.json", b'[{"prompt": "a"},\n {"prompt" "b"}]', "p.json, line 2 is not JSON"),
        ("p.json", b'{"data": []}', "p.json holds an object with data; a JSON file of prompts is one list of rows"),
        ("p.json", b'["a", {"prompt": "b"}]', "p.json, row 2 is dict"),
        ("p.json", b"", "p.json is empty"),
        ("p.csv", b"prompt,n\none,1\ntwo\n", "p.csv, line 3 has no cell for 'n'"),
        ("p.csv", b"prompt\none,1\n", "p.csv, line 2 has more cells than the header (prompt)"),
        ("p.csv", b'prompt\n"one"x\n', "p.csv, line 2 is not CSV"),
        ("p.csv", b"Write a poem.\n", "p.csv is empty"),
        ("p.parquet", b"PAR1 but no more", "p.parquet, after row 0: it is no Parquet file"),
        ("p.jsonl", b"", "p.jsonl is empty"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', "p.jsonl, line 2 is not UTF-8 text"),
        ("p.csv", "prompt\né\n".encode() + "é\n".encode("latin-1"), "p.csv, line 3 is not UTF-8 text"),
        ("p.jsonl.gz", b"not compressed", "p.jsonl.gz is a broken gzip file"),
        ("p.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 99, mtime=0)[:-9], "p.jsonl.gz is a broken gzip file"),
        ("p.docx", b"x", "has the suffix '.docx'"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as refused:
        load(tmp_path / name)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_missing_files_and_directories_are_refused(tmp_path):
    with pytest.raises(BadInput, match="is no file here"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match="is no file here"):
        load("data/none.jsonl")  # looks like a Hub id, but is named like a file
    with pytest.raises(BadInput, match="cannot be read: it is a directory"):
        load(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_with_a_mark_and_line_ends_of_every_kind_are_read_right(tmp_path, encoding, end):
    contents = {
        "p.jsonl": '{"prompt": "eins é"}|{"prompt": "zwei"}|',
        "p.csv": "prompt|eins é|zwei|",
        "p.txt": "eins é|zwei",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.replace("|", end).encode(encoding))
        assert load(tmp_path / name) == [asked("eins é"), asked("zwei")], name


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.json", "p.txt", "p.jsonl.gz"])
def test_a_prompt_of_3_megabytes_is_read_whole(tmp_path, name):
    long = "many words " * 280_000
    content = {"p.csv": f"prompt\n{long}\n", "p.json": json.dumps([long]), "p.txt": long}.get(
        name, json.dumps({"prompt": long})
    )
    write = gzip.open if name.endswith(".gz") else open
    with write(tmp_path / name, "wt") as file:
        file.write(content)
    assert load(tmp_path / name) == [asked(long)]


def test_json_lines_under_the_name_of_json_are_read(tmp_path):
    (tmp_path / "p.json").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert load(tmp_path / "p.json") == [asked("a"), asked("b")]


def test_a_hub_data_set_is_read_by_subset_split_revision_and_column(monkeypatch):
    import datasets

    wanted = {}

    def load_dataset(name, subset, split, revision):
        wanted.update(name=name, subset=subset, split=split, revision=revision)
        return datasets.Dataset.from_list([{"a": "x", "b": "one"}, {"a": "y", "b": "two"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load("some/set", subset="main", revision="abc", column="b") == [asked("one"), asked("two")]
    assert wanted == {"name": "some/set", "subset": "main", "split": "train", "revision": "abc"}
    with pytest.raises(BadInput, match=r"some/set, split train, row 1 has no key 'prompt' \(found: a, b\)"):
        load("some/set")


def test_a_hub_data_set_out_of_reach_says_so_and_names_what_is_cached(monkeypatch, tmp_path):
    (tmp_path / "hub" / "datasets--mine--kept").mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BadInput, match=r"needs the network.* at hand without it: microcosm, mine/kept, or a file"):
        load("nobody/nothing")


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A server that answers every request with `served.content`, in place of the one that has grlo-1k."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(server.content)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(sources, "GRLO_1K_URL", f"http://127.0.0.1:{server.server_port}/train.jsonl")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield server
    server.shutdown()
    server.server_close()


def test_grlo_1k_is_fetched_once_checked_and_cached(served, monkeypatch):
    served.content = b'{"prompt": "one"}\n'
    monkeypatch.setattr(sources, "GRLO_1K_SHA256", hashlib.sha256(served.content).hexdigest())
    assert load("grlo-1k") == [asked("one")]
    served.content = b"gone"
    assert load("grlo-1k") == [asked("one")]


def test_a_wrong_checksum_is_refused_and_the_file_kept_aside(served, tmp_path):
    served.content = b'{"prompt": "tampered"}\n'
    with pytest.raises(BadInput, match=r"grlo-1k is refused: its SHA-256 is .* kept for a look as .*\.refused"):
        load("grlo-1k")
    assert [file.name for file in (tmp_path / "grlo_lite").iterdir()] == ["grlo-1k-353c180.jsonl.refused"]
    assert (tmp_path / "grlo_lite" / "grlo-1k-353c180.jsonl.refused").read_bytes() == served.content


@pytest.fixture
def silent():
    """The address of a server that takes connections and never says a word: the slowest way to be offline."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_prompts_on_a_server_that_never_answers_are_given_up_within_10_seconds(silent, monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "GRLO_1K_URL", f"{silent}/train.jsonl")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(
        BadInput, match=r"grlo-1k needs the network, and 127.* at hand without it: microcosm, or a file"
    ):
        load("grlo-1k")
    assert time.monotonic() - began < 10
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_never_answers_is_given_up_within_10_seconds(silent, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", silent)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    began = time.monotonic()
    assert not prompts.hub_answers()
    assert time.monotonic() - began < 10


def test_the_real_file_is_the_release(shared_data):
    path = shared_data / "grlo_prompts_1000.jsonl"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sources.GRLO_1K_SHA256
    rows = load(path)
    assert len(rows) == 1000
    assert all(len(row) == 1 and row[0]["role"] == "user" for row in rows)


def test_a_cache_that_cannot_be_written_is_named(served, monkeypatch, tmp_path):
    served.content = b"x"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BadInput, match=r"grlo-1k cannot be kept as .*: Not a directory; set XDG_CACHE_HOME"):
        load("grlo-1k")
