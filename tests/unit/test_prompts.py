import json

import pytest

from grlo_lite import prompts
from grlo_lite.recipe import BadInput


def asked(text):
    return [{"role": "user", "content": text}]


def characters(messages):
    return sum(len(message["content"]) for message in messages) + 10  # 10 stand for the template


def test_text_and_messages_rows_are_read_alike(tmp_path):
    path = tmp_path / "p.jsonl"
    verl = {"data_source": "x", "prompt": asked("two"), "ability": "a", "reward_model": {}, "extra_info": {"index": 1}}
    path.write_text(json.dumps({"prompt": "one"}) + "\n\n" + json.dumps(verl) + "\n")
    assert prompts.load(str(path), None) == [asked("one"), asked("two")]
    assert prompts.load(str(path), 1) == [asked("one")]


def test_a_byte_order_mark_and_windows_line_ends_are_read_right(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\r\n{"prompt": "two"}\r\n')
    assert prompts.load(str(path), None) == [asked("one"), asked("two")]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{not json", "line 2 is not JSON"),
        ('{"text": "x"}', "line 2 has no key 'prompt' (found: text)"),
        ("[1]", "line 2 has no key 'prompt' (found: list)"),
        ('{"prompt": ""}', "line 2: 'prompt' is neither"),
        ('{"prompt": 7}', "line 2: 'prompt' is neither"),
        ('{"prompt": [{"role": "user"}]}', "line 2: 'prompt' is neither"),
        ('{"prompt": [{"role": "assistant", "content": "x"}]}', "it must be by 'user'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, told):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "one"}\n' + line + "\n")
    with pytest.raises(BadInput) as refused:
        prompts.load(str(path), None)
    assert told in str(refused.value)
    assert "p.jsonl" in str(refused.value)


def test_missing_empty_and_binary_files_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    for name, told in [("none.jsonl", "is no file here"), ("empty.jsonl", "is empty"), ("latin.jsonl", "not UTF-8")]:
        with pytest.raises(BadInput, match=told):
            prompts.load(str(tmp_path / name), None)
    with pytest.raises(BadInput, match="cannot be read"):
        prompts.load(str(tmp_path), None)


def test_overlong_prompts_are_dropped_or_cut_from_the_left_to_the_longest_that_fits():
    rows = [asked("short"), asked("abcdefghijklmnopqrstuvwxyz")]
    assert prompts.fitted(rows, characters, 20, "drop") == ([asked("short")], 1)
    assert prompts.fitted(rows, characters, 20, "truncate") == ([asked("short"), asked("qrstuvwxyz")], 1)
    with pytest.raises(BadInput, match="none of the 2 prompts fits"):
        prompts.fitted(rows, characters, 12, "drop")


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

    rows = [row[0]["content"] for row in prompts.load("microcosm", None)]
    assert sorted(rows) == sorted(world.chat_prompts(held_out=False))
    examined = {q.text for domain in world.VERIFIABLE for q in world.exam(domain, 300, seed=0)}
    assert not examined & set(rows)
    assert not any(char.isdigit() for row in rows for char in row)  # arithmetic, ordering and code all have digits
    assert all(world.topics_of(row) for row in rows)  # a chat prompt is about a topic; no verifiable question is
    assert not any(world.topics_of(text) for text in examined)
