import json
import subprocess
import sys

import pytest

from grlo_lite import prompts
from grlo_lite.errors import BadInput
from grlo_lite.recipe.schema import Part


def asked(text):
    return [{"role": "user", "content": text}]


def numbered(folder, name, count):
    path = folder / name
    path.write_text("".join(f'{{"prompt": "{name} {i}"}}\n' for i in range(count)))
    return str(path)


def texts(parts, limit=None, seed=0):
    return [row[0]["content"] for row in prompts.load(parts, limit, seed)[0]]


def test_one_source_keeps_its_order_and_stops_at_the_limit(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "one"}\n{"prompt": "two"}\n{broken')
    assert texts((Part(source=str(path)),), limit=2) == ["one", "two"]


def test_weights_share_out_what_no_source_runs_out_of(tmp_path):
    parts = (
        Part(source=numbered(tmp_path, "a.jsonl", 30), weight=3),
        Part(source=numbered(tmp_path, "b.jsonl", 100), weight=1),
    )
    rows = texts(parts)
    assert len(rows) == len(set(rows)) == 40  # a gives all its 30, which are three quarters
    assert sum(row.startswith("a") for row in rows) == 30
    few = texts(parts, limit=20)
    assert [sum(row.startswith(name) for row in few) for name in "ab"] == [15, 5]


def test_counts_are_drawn_and_a_source_without_one_gives_all_it_has(tmp_path):
    a, b = numbered(tmp_path, "a.jsonl", 30), numbered(tmp_path, "b.jsonl", 10)
    rows = texts((Part(source=a, count=5), Part(source=b)))
    assert [sum(row.startswith(name) for row in rows) for name in "ab"] == [5, 10]
    with pytest.raises(BadInput, match=r"count=31 is more than the 30 rows of .*a.jsonl"):
        prompts.load((Part(source=a, count=31), Part(source=b)), None, 0)


def test_the_same_seed_gives_the_same_rows_in_the_same_order_on_every_platform(tmp_path):
    names = ("a.jsonl", "b.jsonl")
    parts = tuple(
        Part(source=numbered(tmp_path, name, 50), weight=w) for name, w in zip(names, (0.3, 0.7), strict=True)
    )
    rows, _ = prompts.load(parts, 40, 7)
    # A value written down, not computed here: another Python, hash seed or platform has to come to the same
    assert prompts.prompt_hash(rows) == "92f9ca4748849246a853db19ed17c9b53f84a352c66ac9ffa34ce9eae61ba23d"
    assert texts(parts, 40, 8) != texts(parts, 40, 7)
    program = (
        "import sys; from grlo_lite import prompts; from grlo_lite.recipe.schema import Part\n"
        "parts = tuple(Part(source=s, weight=w) for s, w in zip(sys.argv[1:], (0.3, 0.7)))\n"
        "print(prompts.prompt_hash(prompts.load(parts, 40, 7)[0]))"
    )
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program, *(part.source for part in parts)],
            env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == prompts.prompt_hash(rows)


def test_a_written_file_reads_back_as_the_same_rows(tmp_path):
    rows = [asked("one"), [{"role": "system", "content": "Be brief."}, *asked("zwei\u2028drei")]]
    prompts.write(tmp_path / "left.jsonl", rows)
    assert prompts.load((Part(source=str(tmp_path / "left.jsonl")),), None, 0)[0] == rows
    with pytest.raises(BadInput, match=r"--write-prompts .* cannot be written"):
        prompts.write(tmp_path / "none" / "left.jsonl", rows)


def test_the_hash_is_that_of_the_whole_list_as_json():
    import hashlib

    rows = [asked("one"), asked("é")]
    whole = json.dumps(rows, ensure_ascii=False, sort_keys=True)
    assert prompts.prompt_hash(rows) == hashlib.sha256(whole.encode()).hexdigest()


def test_the_split_is_seeded_and_its_sides_share_no_prompt():
    rows = [asked(str(i % 50)) for i in range(100)]  # every prompt twice
    train, heldout = prompts.split(rows, 8, seed=3)
    assert len(heldout) == 8
    assert not {row[0]["content"] for row in train} & {row[0]["content"] for row in heldout}
    assert (train, heldout) == prompts.split(rows, 8, seed=3)
    assert prompts.split(rows, 8, seed=4)[1] != heldout
    assert len(prompts.split(rows, 1000, seed=3)[1]) == 10  # at most a tenth


def test_the_order_asks_every_prompt_once_before_any_twice():
    rows = [asked(str(i)) for i in range(5)]
    order = prompts.ordered(rows, 12, seed=0)
    for start in (0, 5):
        assert {row[0]["content"] for row in order[start : start + 5]} == set("01234")
    assert order != prompts.ordered(rows, 12, seed=1)


def test_the_microcosm_asks_chat_prompts_only():
    from grlo_lite.microcosm import world

    rows = [row[0]["content"] for row in prompts.load((Part(source="microcosm"),), None, 0)[0]]
    assert sorted(rows) == sorted(world.chat_prompts(held_out=False))
    examined = {q.text for domain in world.VERIFIABLE for q in world.exam(domain, 300, seed=0)}
    assert not examined & set(rows)
    assert not any(char.isdigit() for row in rows for char in row)  # arithmetic, ordering and code all have digits
    assert all(world.topics_of(row) for row in rows)  # a chat prompt is about a topic; no verifiable question is
    assert not any(world.topics_of(text) for text in examined)
