import sqlite3

import pytest

from grlo_lite.evaluation.answer_store import AnswerStore, key


def test_what_was_kept_is_known_to_the_next_process(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite")
    store.keep({"one": {"text": "ä"}, "two": {"text": ""}})
    store.close()
    assert AnswerStore(tmp_path / "a.sqlite").known(["one", "three"]) == {"one": {"text": "ä"}}


def test_nothing_is_paid_for_twice_and_a_batch_is_kept_whole_or_not(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite")
    store.keep({"one": 1})
    with pytest.raises(sqlite3.IntegrityError):
        store.keep({"zero": 0, "one": 1})
    store.close()
    assert AnswerStore(tmp_path / "a.sqlite").known(["zero", "one"]) == {"one": 1}


def test_the_key_depends_on_everything_and_not_on_its_order():
    assert key(a=1, b="x") == key(b="x", a=1)
    assert len({key(a=1), key(a=2), key(b=1), key(a="1"), key(a=None)}) == 5
