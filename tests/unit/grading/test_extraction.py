"""Tables of answers that are taken and refused, each by hand."""

import pytest

from grlo_lite.evaluation.tasks import choices, code
from grlo_lite.evaluation.tasks import mathematics as mathematics_tasks
from grlo_lite.grading.extraction import code_block, last_boxed, stated_letter, stated_number

pytest.importorskip("math_verify", reason="pip install 'grlo-lite[eval]'")

NUMBERS = [  # an answer, the reference, whether it is right
    (r"\boxed{073}", "73", True),
    (r"\boxed{73}", "073", True),
    ("The answer is 73.", "73", True),
    ("The answer is **73**.", "73", True),
    ("**Answer:** 73", "73", True),
    ("Answer: $73$", "73", True),
    ("The final answer is: $\\boxed{73}$. I hope it is correct.", "73", True),
    ("So we get **73**", "73", True),
    ("48 + 25 = 73\n#### 73", "73", True),
    ("She has 73 apples left.", "73", True),
    ("The answer is $1,234.", "1234", True),
    ("The answer is 1,234.00 dollars.", "1234", True),
    (r"The answer is \boxed{1{,}234}.", "1234", True),
    (r"\boxed{\$1,\!234}", "1234", True),
    (r"\boxed{73^\circ}", "73", True),
    (r"\boxed{73\%}", "73", True),
    (r"\boxed{73 \text{ cm}}", "73", True),
    (r"\boxed{73 apples}", "73", True),
    (r"\boxed{\textbf{(073)}}", "73", True),
    (r"\boxed{\frac{146}{2}}", "73", True),
    (r"\boxed{x = 73}", "73", True),
    ("The answer is -5.", "-5", True),
    ("The answer is −5.", "-5", True),
    ("27.0", "27", True),
    (r"First \boxed{72}, no: \boxed{73}.", "73", True),
    ("The answer is 72. Wait, the answer is 73.", "73", True),
    (r"\boxed{73}, as 2 + 71 shows.", "73", True),
    (r"\boxed{7}", "73", False),
    (r"\boxed{173}", "73", False),
    (r"\boxed{7.3}", "73", False),
    (r"\boxed{-73}", "73", False),
    (r"\boxed{73, 74}", "73", False),
    ("The answer is 72, not 73.", "73", False),
    (r"73 is close, but it is \boxed{74}.", "73", False),
    ("The answer is 173.", "73", False),
    ("There are 73 of them. The answer is 5.", "73", False),
    (r"\boxed{}", "73", False),
    (r"\boxed{7", "73", False),
    ("I do not know.", "73", False),
    ("", "73", False),
]

EXPRESSIONS = [
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", True),
    (r"\boxed{\dfrac12}", r"\frac{1}{2}", True),
    (r"\boxed{0.5}", r"\frac{1}{2}", True),
    (r"\boxed{1/2}", r"\frac{1}{2}", True),
    (r"The answer is $\frac{2}{4}$.", r"\frac{1}{2}", True),
    (r"**Answer:** $\frac12$", r"\frac{1}{2}", True),
    (r"Hence \(x\) is \[ \frac{1}{2} \]", r"\frac{1}{2}", True),
    (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"\left( 3, \frac{\pi}{2} \right)", True),
    (r"\boxed{(3, \pi/2)}", r"\left( 3, \frac{\pi}{2} \right)", True),
    (r"\boxed{x^2 + 2x + 1}", "(x+1)^2", True),
    (r"\boxed{3\sqrt{2}}", r"\sqrt{18}", True),
    (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", True),
    (r"The answer is Evelyn.", r"\text{Evelyn}", True),
    (r"\boxed{2, 1}", "1, 2", True),
    (r"\boxed{[2, 5)}", "[2,5)", True),
    (r"The price is \boxed{\$18.90}.", r"\$18.90", True),
    (r"The answer is \$18.90.", r"\$18.90", True),
    (r"\boxed{10\text{ cm}}", "10", True),
    (r"\boxed{\frac{1}{3}}", r"\frac{1}{2}", False),
    (r"\boxed{(\pi/2, 3)}", r"\left( 3, \frac{\pi}{2} \right)", False),
    (r"\boxed{(2, 5)}", "[2,5)", False),
    (r"\boxed{\text{Angela}}", r"\text{Evelyn}", False),
    (r"\boxed{x^2 + 1}", "(x+1)^2", False),
    (r"Perhaps $\frac{1}{2}$ or rather \boxed{2}", r"\frac{1}{2}", False),
    ("I cannot tell.", r"\frac{1}{2}", False),
    ("", "3", False),
]

LETTERS = [
    ("The answer is (C).", "C"),
    ("The answer is C", "C"),
    ("The answer is: **C**", "C"),
    ("**C**", "C"),
    ("**C) Paris**", "C"),
    ("**(C)**", "C"),
    ("Answer: C", "C"),
    ("Answer: **C. Paris**", "C"),
    ("**Answer: C**", "C"),
    ("**Final answer:** (C)", "C"),
    ("The correct answer is option C.", "C"),
    ("The correct option is C.", "C"),
    (r"\boxed{C}", "C"),
    (r"$\boxed{\text{C}}$", "C"),
    (r"\boxed{\text{(C) Paris}}", "C"),
    ("C", "C"),
    ("C.", "C"),
    ("(C)", "C"),
    ("It is in France.\n\nC) Paris", "C"),
    ("The answer is (B). No, the answer is (C).", "C"),
    ("(A) is wrong, (B) is wrong.\nThe answer is (C)", "C"),
    ("The answer is C because A and B are not capitals.", "C"),
    ("A good question. The answer is a mixture.", ""),
    ("The answer is A mixture of things.", ""),
    ("The answer is Cairo.", ""),
    ("The answer is K.", ""),
    ("I think that all of them are right.", ""),
    ("", ""),
]


@pytest.mark.parametrize(("text", "reference", "right"), NUMBERS)
def test_numbers(text, reference, right):
    verdict = mathematics_tasks.judged_number(mathematics_tasks.asked("1", "?", reference), text)
    assert verdict.score == right, verdict


@pytest.mark.parametrize(("text", "reference", "right"), EXPRESSIONS)
def test_expressions(text, reference, right):
    verdict = mathematics_tasks.judged_expression(mathematics_tasks.asked("1", "?", reference), text)
    assert verdict.score == right, verdict


@pytest.mark.parametrize(("text", "letter"), LETTERS)
def test_letters(text, letter):
    assert stated_letter(text, "ABCD")[0] == letter


def test_a_verdict_says_why():
    question = mathematics_tasks.asked("1", "?", "73")
    assert mathematics_tasks.judged_number(question, r"\boxed{72}") == (
        mathematics_tasks.Verdict(0.0, "72", "boxed, and it is not 73")
    )
    assert mathematics_tasks.judged_number(question, "").why == "nothing found"
    assert stated_number("it is 7")[1] == "last number"


def test_boxes_with_braces_inside_and_boxes_that_never_close():
    assert last_boxed(r"\boxed{\frac{1}{2}} and \boxed{3") == r"\frac{1}{2}"
    assert last_boxed(r"\fbox{4}") == "4"
    assert last_boxed(r"\boxed 5") == "5"
    assert last_boxed("none") == ""


def test_the_block_that_defines_the_function_is_taken():
    text = "First:\n```python\ndef f(x):\n    return 1\n```\nfor instance\n```python\nprint(f(1))\n```\n"
    assert code_block(text, "f") == ("def f(x):\n    return 1\n", "fenced")
    assert code_block("```bash\nls\n```\n```\nx = 1\n```", "f") == ("x = 1\n", "fenced without the function")
    assert code_block("```python\ndef f():\n    return 2", "f")[0] == "def f():\n    return 2"  # cut off by the limit
    assert code_block("    return 1", "f") == ("    return 1", "not fenced")


GPQA_ROW = {
    "Record ID": "r1",
    "Question": "Which is prime?",
    "Correct Answer": "7",
    "Incorrect Answer 1": "8",
    "Incorrect Answer 2": "9",
    "Incorrect Answer 3": "10",
}


def test_gpqas_options_are_in_an_order_of_their_own_that_stays():
    rows = [GPQA_ROW | {"Question": f"Which is prime? {i}"} for i in range(200)]
    asked = choices.gpqa(rows)
    assert [q.prompt for q in asked] == [q.prompt for q in choices.gpqa(rows)]
    counts = {letter: sum(q.reference == letter for q in asked) for letter in "ABCD"}
    assert all(30 <= count <= 70 for count in counts.values())  # 50 each, within three standard deviations
    for question in asked:
        assert f"({question.reference}) 7\n" in f"{question.prompt}\n"
        assert choices.judged(question, f"The answer is ({question.reference}).").score == 1


def test_mmlu_pro_has_up_to_ten_options():
    row = {"question_id": 70, "question": "?", "options": [f"o{i}" for i in range(10)], "answer_index": 9}
    (question,) = choices.mmlu_pro([row])
    assert question.reference == "J"
    assert "(J) o9" in question.prompt
    assert choices.judged(question, "**J**").score == 1
    assert choices.judged(question, "**I**").why == "bold, and it is not J"


MBPP_ROW = {
    "task_id": 11,
    "text": "Write a function to add two numbers.",
    "code": "def add(a, b):\n    return a + b",
    "test_list": ["assert set([add(1, 2)]) == {3}", "assert add(0, 0) == 0", "assert add(-1, 1) == 0"],
    "test_setup_code": "",
}


def test_mbpp_runs_the_tests_and_asks_the_test_split_only():
    (question,) = code.mbpp([MBPP_ROW, MBPP_ROW | {"task_id": 5}, MBPP_ROW | {"task_id": 601}])
    assert question.data["entry_point"] == "add"
    if code.passes("pass").passed:
        assert code.judged_mbpp(question, f"Sure:\n```python\n{question.reference}\n```").score == 1
        wrong = code.judged_mbpp(question, "```python\ndef add(a, b):\n    return a - b\n```")
        assert (wrong.score, "AssertionError" in wrong.why) == (0, True)
