import time
import unicodedata

import pytest

from grlo_lite import prompts
from grlo_lite.errors import BadInput
from grlo_lite.prompts import similarity
from grlo_lite.prompts.cleaning import fitted


def asked(text):
    return [{"role": "user", "content": text}]


def characters(messages):
    return sum(len(message["content"]) for message in messages) + 10  # 10 stand for the template


def clean(texts, max_tokens=200, overlong="drop", near=None, language=None):
    rows, steps = prompts.cleaned([asked(t) for t in texts], characters, max_tokens, overlong, near, language)
    return [row[0]["content"] for row in rows], {step.name: (step.dropped, step.left, step.example) for step in steps}


def test_every_step_says_how_many_it_dropped_with_an_example():
    long = "x" * 300
    kept, steps = clean(["one", " \n", "two", "one", " one\n", long])
    assert kept == ["one", "two"]
    assert steps == {
        "read": (0, 6, ""),
        "empty": (1, 5, "(blank)"),
        "exact duplicates": (2, 3, "one"),
        "over 200 tokens": (1, 2, "x" * 57 + "…"),
    }
    table = prompts.steps_table([prompts.Step("read", 0, 1200, ""), prompts.Step("empty", 3, 1197, "(blank)")])
    assert table.splitlines() == [
        "prompts  dropped   left  for example",
        "read              1,200",
        "empty          3  1,197  (blank)",
    ]


def test_texts_are_composed_so_that_the_same_text_is_the_same_prompt():
    kept, _ = clean([unicodedata.normalize("NFD", "Grüße?"), "Grüße?"])
    assert kept == [unicodedata.normalize("NFC", "Grüße?")]


def test_nothing_left_is_refused():
    with pytest.raises(BadInput, match="none of the 2 prompts is left: the last 2 were dropped as empty"):
        clean(["", " "])


def test_similarity_is_the_jaccard_of_5_letter_runs_without_case_and_punctuation():
    assert similarity.similarity("Hello, World!", "hello world") == 1
    # helloworld: hello ellow llowo lowor oworl world; helloword: hello ellow llowo lowor oword → 4 of 7
    assert similarity.similarity("hello world", "hello word") == pytest.approx(4 / 7)
    assert similarity.similarity("?!", "?!") == 1
    assert similarity.similarity("?!", "!?") == 0
    assert similarity.words("Don't ask: f(x_1)=√2, 東京 déjà") == [
        "dont",
        "ask",
        "f",
        "x",
        "1",
        "2",
        "東",
        "京",
        "déjà",
    ]


def test_near_duplicates_are_those_of_exact_similarity_and_the_first_stays():
    base = "Please explain how a bicycle stays upright while it is moving along a straight road without hands"
    texts = [
        base,
        base.replace("hands", "hand"),
        "Something else entirely, about the sea and its tides",
        base.upper() + "!",
    ]
    kept, steps = clean(texts, near=0.8)
    assert kept == [texts[0], texts[2]]
    assert steps["near duplicates (0.8)"][:2] == (2, 2)
    assert clean(texts, near=None)[0] == texts


def test_pairs_over_the_threshold_are_found_and_pairs_under_it_are_kept():
    import random

    rng = random.Random(0)
    letters = "etaoinshrdlu"
    originals = [" ".join("".join(rng.choices(letters, k=6)) for _ in range(20)) for _ in range(400)]
    near = [text.rsplit(" ", 1)[0] + " changed" for text in originals]  # similarity about 0.9
    far = [" ".join(text.split()[:12] + ["other"] * 8) for text in originals]  # about 0.5
    found = similarity.near_duplicates(originals + near + far, 0.8)
    assert all(found.get(400 + i) == i for i in range(400))
    assert set(found) == set(range(400, 800)) | {i for i in found if i >= 800}
    for later, earlier in found.items():
        texts = originals + near + far
        assert similarity.similarity(texts[later], texts[earlier]) >= 0.8


def test_a_crowd_of_nearly_equal_prompts_does_not_cost_its_square():
    crowd = [f"The same long template is asked again and again for every number, here for {i}" for i in range(5000)]
    began = time.process_time()
    assert len(similarity.near_duplicates(crowd, 0.8)) > 4000
    assert time.process_time() - began < 10


def test_overlong_prompts_are_dropped_or_cut_from_the_left_to_the_longest_that_fits():
    rows = [asked("short"), asked("abcdefghijklmnopqrstuvwxyz")]
    assert fitted(rows, characters, 20, "drop") == ([asked("short")], 1, "abcdefghijklmnopqrstuvwxyz")
    assert fitted(rows, characters, 20, "truncate")[0] == [asked("short"), asked("qrstuvwxyz")]
    with pytest.raises(BadInput, match="none of the 2 prompts fits"):
        fitted(rows, characters, 12, "drop")


def test_3_megabytes_are_cut_without_counting_them_again_and_again():
    counted = []

    def counting(messages):
        counted.append(len(messages[-1]["content"]))
        return characters(messages)

    rows, over, _ = fitted([asked("a" * 3_000_000)], counting, 110, "truncate")
    assert (rows, over) == ([asked("a" * 100)], 1)
    assert sum(counted) < 3_010_000  # once whole, then only pieces


def test_the_policys_tokens_decide_and_the_shortcut_never_lets_an_overlong_prompt_in():
    from transformers import AutoTokenizer

    from grlo_lite.models import names
    from grlo_lite.models.chat_template import formatted

    tokenizer = AutoTokenizer.from_pretrained(names.POLICY)

    def tokens(messages):
        return len(tokenizer(formatted(tokenizer, messages), add_special_tokens=False)["input_ids"])

    rows = [asked(char * length) for char in ("a", "é", "東", "🦔", "the river ") for length in range(1, 60)]
    kept, over, _ = fitted(rows, tokens, 40, "drop")
    assert kept == [row for row in rows if tokens(row) <= 40]
    assert over == len(rows) - len(kept) > 0


def test_a_language_can_be_asked_for():
    pytest.importorskip("py3langid", reason="the extra 'language' is not installed")
    texts = ["What is the best way to learn to play the violin?", "Wie lernt man am besten, Geige zu spielen?"]
    assert clean(texts, language="de")[0] == texts[1:]
    assert clean(texts)[0] == texts
