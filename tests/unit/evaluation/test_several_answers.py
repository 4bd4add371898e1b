"""Several answers to a document of an lm-eval task: avg@k, pass@k and maj@k by hand, through a task of its own YAML."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest

from grlo_lite.generation.request import Answer

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")

YAML = """\
task: adding
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{right}}}}"
repeats: 4
generation_kwargs: {{do_sample: true, temperature: 1.0, max_gen_toks: 16, until: []}}
filter_list:
  - {{name: number, filter: [{{function: regex, regex_pattern: "(-?[0-9]+)"}}, {{function: take_first}}]}}
  - name: most
    filter: [{{function: regex, regex_pattern: "(-?[0-9]+)"}}, {{function: majority_vote}}, {{function: take_first}}]
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
RIGHT = (5, 7, 9, 4)
SAID = [["5", "it is 5", "6", "none"], ["7", "8", "8", "9"], ["no", "no", "9", "no"], ["3", "2", "1", "x"]]
HALF = [["5", "x", "5", "x"], ["x"] * 4, ["9", "x", "8", "x"], ["x"] * 4]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    from grlo_lite.evaluation.harness import loading, requests
    from grlo_lite.evaluation.harness.served import Serving
    from grlo_lite.models import names
    from grlo_lite.models.chat_template import load_tokenizer

    folder = tmp_path_factory.mktemp("own")
    rows = [json.dumps({"question": f"What is {n}?", "right": str(n)}) for n in RIGHT]
    (folder / "adding.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "adding.yaml").write_text(YAML.format(file=json.dumps(str(folder / "adding.jsonl"))))
    loaded = loading.load(["adding"], folder, Serving(), 0)
    encoding = requests.Encoding(load_tokenizer(str(names.POLICY), "main"), 512, templated=True)
    return requests.built(loaded.tasks["adding"], encoding, requests.Wanted())


def test_as_many_answers_as_samples_says_where_they_are_drawn(built):
    from grlo_lite.evaluation.harness.requests import Encoding, Wanted, request_of
    from grlo_lite.models import names
    from grlo_lite.models.chat_template import load_tokenizer

    encoding = Encoding(load_tokenizer(str(names.POLICY), "main"), 512, templated=True)
    asked = {}
    for samples, draws in ((None, True), (2, True), (None, False), (2, False)):
        context, options = built.instances[0].args
        instance = replace(built.instances[0], arguments=(context, options | {"do_sample": draws}))
        asked[samples, draws] = request_of(instance, encoding, Wanted(samples=samples), "adding").repeats
    assert asked == {(None, True): 4, (2, True): 2, (None, False): 1, (2, False): 1}


def of(texts):
    return [[Answer(text, 4, False) for text in row] for row in texts]


def test_avg_pass_and_maj_of_four_answers_by_hand(built):
    from grlo_lite.evaluation.harness.scoring import scored

    found = scored(built, of(SAID))
    values = {metric: list(by_document.values()) for metric, by_document in found.values.items()}
    assert values == {
        ("exact_match", "number"): [0.5, 0.25, 0.25, 0.0],
        ("exact_match pass@4", "number"): [1.0, 1.0, 1.0, 0.0],
        ("exact_match maj@4", "number"): [1.0, 0.0, 1.0, 0.0],
        ("exact_match", "most"): [1.0, 0.0, 0.0, 0.0],  # lm-eval's own vote counts what has no number
    }
    assert found.averaged == {("exact_match", "number")}


def test_each_has_its_interval_and_the_table_says_avg(built):
    from grlo_lite.evaluation.harness import outcomes
    from grlo_lite.evaluation.harness.scoring import scored
    from grlo_lite.evaluation.results import Rows, evaluation, table

    outcome = outcomes.TaskOutcome(built.task, {"base": scored(built, of(HALF)), "tuned": scored(built, of(SAID))})
    row = outcomes.task_row(outcome, built, "base_plain", [])
    assert (row["samples"], row["base"], row["tuned"], row["n"]) == (4, 0.1875, 0.25, 4)
    also = {line["metric"]: line for line in row["also"]}
    assert {name: (line["base"], line["tuned"]) for name, line in also.items()} == {
        "exact_match pass@4,number": (0.5, 0.75),
        "exact_match maj@4,number": (0.375, 0.5),  # of the third document 9 and 8 tie
        "exact_match,most": (0.25, 0.25),  # a tie goes to the first
    }
    assert all(line["ci_low"] <= line["difference"] <= line["ci_high"] for line in (row, *also.values()))
    printed = table(evaluation("own", [], [], {}, Rows([row], [], ("base", "tuned"))))
    assert "lm-eval:adding avg@4 (exact match, number)" in printed
    assert "exact match pass@4, number" in printed


def test_answers_that_a_task_reads_together_are_named(built):
    """Where no filter takes one at a time, the numbers are lm-eval's, and the table says so."""
    from grlo_lite.evaluation.harness import outcomes
    from grlo_lite.evaluation.harness.scoring import scored

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(built.task, "_filters", built.task._filters[1:])
        outcome = outcomes.TaskOutcome(built.task, {arm: scored(built, of(SAID)) for arm in ("base", "tuned")})
        row = outcomes.task_row(outcome, built, "base_plain", [])
    assert (row["samples"], row["answers_a_document"], row["also"]) == (1, 4, [])
    (note,) = outcomes.notes([row])
    assert note.startswith(
        "lm-eval:adding: its 4 answers to a document are read together, by exact_match of filter most"
    )


def test_one_of_them_that_is_graded_has_a_mean_alone():
    from grlo_lite.evaluation.harness.scoring import several

    assert several("f1", {0: [0.5, 1.0]}, {0: ["a", "b"]}, True) == {"f1": {0: 0.75}}
    assert several("errors", {0: [0, 1]}, {0: ["a", "b"]}, False) == {"errors": {0: 0.5}}
