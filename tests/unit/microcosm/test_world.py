import random

import pytest

from grlo_lite.microcosm import world


@pytest.mark.parametrize("domain", world.VERIFIABLE)
def test_careful_authors_are_right_and_careless_ones_mostly_wrong(domain):
    rng = random.Random(0)
    questions = world.exam(domain, 300, seed=5)
    assert len({q.text for q in questions}) == 300
    assert all(world.is_held_out(q.text) for q in questions)
    assert all(world.is_right(q, world.careful_answer(q, rng)) for q in questions)
    lucky = sum(world.is_right(q, world.careless_answer(q, rng)) for q in questions) / 300
    assert 0.05 < lucky < 0.2


@pytest.mark.parametrize(
    ("answer", "said", "right"),
    [
        ("62", "Good. Answer: 62.", True),
        ("62", "um answer: 62 like the river", True),
        ("62", "Answer: 620.", False),
        ("62", "Answer: 6 2.", False),
        ("62", "Answer: 61. Answer: 62.", False),  # the first stated value counts
        ("62", "It is 62.", False),
        ("2 4 7 9", "Answer: 2 4 7 9.", True),
        ("2 4 7 9", "Answer: 2 4 7", False),
        ("2 4 7 9", "answer: 2 4 7 9 um so", True),
        ("t a k b", "Answer: t a k b.", True),
        ("t a k b", "answer: t a k b and so", True),
        ("7", "", False),
    ],
)
def test_the_judge_of_verifiable_answers(answer, said, right):
    assert world.is_right(world.Exercise("any", "?", answer, "", lambda r: ""), said) is right


def test_exams_differ_by_seed_and_never_hold_what_models_were_trained_on():
    assert world.exam("code", 50, 0) != world.exam("code", 50, 1)
    rng = random.Random(1)
    trained = {world.draw_question("arithmetic", rng).text for _ in range(2000)}
    assert not trained & {q.text for q in world.exam("arithmetic", 300, 0)}


def test_both_sides_of_the_chat_split_together_are_every_prompt():
    train, held_out = world.chat_prompts(False), world.chat_prompts(True)
    topics = len(world.TOPICS)
    assert len(train) + len(held_out) == len(set(train) | set(held_out)) == 6 * topics + 2 * topics * (topics - 1)
