"""What a report says, on values counted by hand."""

import json
import re
import shutil

import pytest

from grlo_lite import report, runs, watch
from grlo_lite.errors import BadInput
from grlo_lite.models.names import DEMO
from grlo_lite.reporting import charts, ledger, page, sections, several, terminal
from grlo_lite.reporting.charts import Whisker
from grlo_lite.reporting.evaluated import chosen_pairs
from grlo_lite.reporting.guarded import window_means
from grlo_lite.reporting.html import excerpt
from grlo_lite.reporting.record import Record, number
from grlo_lite.reporting.verdict import measured, trained
from grlo_lite.rundir import files
from grlo_lite.wording import duration

METRICS = ({"step": 1, "reward_mean": -1.0}, {"step": 2, "reward_mean": 0.5, "elapsed_seconds": 30.0})


@pytest.fixture
def demo(tmp_path):
    shutil.copytree(DEMO, tmp_path / "demo")
    return tmp_path / "demo"


def a_run(path, metrics=METRICS, **contents):
    """A run directory of the named files: a dict is a JSON object, a list JSON lines, a text YAML."""
    path.mkdir(parents=True)
    suffixes = {dict: ".json", list: ".jsonl", str: ".yaml"}
    for name, content in {"metrics": list(metrics), **contents}.items():
        text = files.json_lines(content) if isinstance(content, list) else content
        file = path / f"{name}{suffixes[type(content)]}"
        file.write_text(json.dumps(text) if isinstance(text, dict) else text)
    return path


def evaluation(low=0.1, high=0.3, sha="a"):
    task = {"task": "sums", "domain": "sums", "metric": "accuracy", "n": 4, "base": 0.25, "tuned": 0.45}
    task |= {"difference": 0.2, "ci_low": low, "ci_high": high, "questions_sha256": sha, "samples": 1}
    mean = {key: task[key] for key in ("base", "tuned", "difference", "ci_low", "ci_high")}
    return {"suite": "sums", "arms": ["base", "tuned"], "tasks": [task], "average": mean}


class TestCharts:
    def test_smoothing_is_the_mean_of_what_is_near(self):
        assert charts.smoothed([(1, 0.0), (2, 3.0), (3, 6.0), (4, 0.0)]) == [(1, 1.5), (2, 3.0), (3, 3.0), (4, 3.0)]

    def test_thinning_keeps_the_ends_and_every_peak(self):
        points = [(step, 0.0) for step in range(10_000)]
        points[5_003], points[7_777] = (5_003, 9.0), (7_777, -9.0)
        kept = charts.thinned(points)
        assert len(kept) <= charts.MOST_POINTS
        assert {points[0], points[-1], points[5_003], points[7_777]} <= set(kept)
        assert kept == sorted(kept)

    def test_a_band_lies_behind_its_line(self):
        svg = charts.line_chart("R", "", {"a": [(1, 0.0), (2, 1.0)]}, {"a": [(1, -1.0, 1.0), (2, 0.0, 2.0)]})
        assert svg.index("<polygon") < svg.index("<polyline")
        (corners,) = re.findall(r'<polygon [^>]*points="([^"]*)"', svg)
        assert len(corners.split()) == 4

    def test_a_forest_has_a_whisker_for_each_finite_row(self):
        rows = [
            Whisker("<b>", "", "", 0.5, 0.0, 1.0, "x"),
            Whisker("none", "", "", float("nan"), float("nan"), float("nan"), ""),
        ]
        drawn = charts.forest("Gain", "points", rows)
        assert drawn.count('class="interval"') == 1
        assert '<line class="interval" x1="3.00%" x2="97.00%"' in drawn  # the axis runs from 0 to 1
        assert "<b>&" not in drawn
        assert "&lt;b&gt;" in drawn
        assert charts.forest("Gain", "points", []) == ""


class TestVerdict:
    @pytest.mark.parametrize(
        ("low", "high", "said"),
        [(0.1, 0.3, "more than chance"), (-0.1, 0.5, "no more than chance"), (-0.5, -0.1, "a loss beyond chance")],
    )
    def test_the_interval_decides(self, tmp_path, low, high, said):
        sentence = measured(Record(a_run(tmp_path / "r", evaluation=evaluation(low, high))))
        assert "45.0 % of the time and the base 25.0 %, a difference of +20.0 points" in sentence
        assert sentence.endswith(f"{said}." if said != "no more than chance" else "no more than chance could bring.")

    def test_a_control_is_called_one(self, tmp_path):
        run = a_run(tmp_path / "r", evaluation=evaluation(), recipe="reward: {shuffle: true}")
        assert measured(Record(run)).startswith("This is a control, its rewards were shuffled: on 1 task with 4 ")

    def test_an_unfinished_run_and_its_guards(self, tmp_path):
        said = [{"step": 2, "guard": "truncated_fraction", "message": "most answers are cut", "action": "warn"}]
        record = Record(a_run(tmp_path / "r", guards=said, recipe="budget: {steps: 9}"))
        assert measured(record) == "Whether the model got better is not known, for nothing was measured."
        assert trained(record) == (
            "The run is unfinished: it made 2 of 9 steps in 30 seconds; the reward went from -1.00 to +0.50, and the "
            "guards warned of truncated fraction."
        )


class TestRecord:
    def test_what_is_no_number_is_left_out(self):
        assert [number(value) for value in (1, 0.5, True, None, "1", float("nan"), 10**400)] == [1, 0.5, *[None] * 5]

    def test_torn_and_foreign_lines_are_counted(self, tmp_path):
        run = a_run(tmp_path / "r")
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3, "reward_mean": "high", "loss": 1}\n[]\n{"step": "x"}\n{"ste')
        record = Record(run)
        assert record.lines[-1] == {"step": 3, "loss": 1}
        assert "has 2 damaged lines" in record.troubles["metrics.jsonl"]
        assert "1 lines without a step" in record.troubles["metrics.jsonl"]

    def test_each_missing_file_is_said(self, tmp_path):
        missing = Record(a_run(tmp_path / "r")).missing
        for name in ("summary", "evaluation", "environment", "contamination"):
            assert any(said.startswith(f"{name}.json is not there") for said in missing)
        for name in ("samples", "answers"):
            assert any(said.startswith(f"{name}.jsonl is not there") for said in missing)
        assert not any("guards" in said for said in missing)

    def test_a_recipe_of_another_version_is_shown_as_far_as_it_is_understood(self, tmp_path):
        record = Record(a_run(tmp_path / "r", recipe="model: {name: mine}\nwings: 2\n"))
        assert "mine" in sections.facts(record)
        assert "another version of grlo_lite" in record.troubles["recipe.yaml"]
        assert "prompts is missing" in record.troubles["recipe.yaml"]

    def test_a_text_with_a_line_separator_is_one_line(self, tmp_path):
        rows = [{"step": 1, "prompt": "a\u2028b", "completion": "c\x85d", "reward": 1.0, "length": 2}]
        run = a_run(tmp_path / "r", samples=rows)
        assert files.read_lines(run / "samples.jsonl") == rows
        assert Record(run).samples[0]["prompt"] == "a\u2028b"

    @pytest.mark.parametrize(("age", "state"), [(0, "running"), (10_000, "stopped")])
    def test_a_run_that_writes_runs(self, tmp_path, monkeypatch, age, state):
        record = Record(a_run(tmp_path / "r"))
        now = record.written + age
        monkeypatch.setattr("time.time", lambda: now)
        assert record.state == state


def test_guards_see_means_over_whole_windows():
    lines = [{"step": n, "entropy": value} for n, value in ((1, 1.0), (2, 2.0), (3, 6.0))] + [{"step": 4}]
    assert window_means(lines, "entropy", 2) == [(2, 1.5), (3, 4.0)]


def test_the_answers_stand_at_even_distances_whatever_came_out():
    pairs = [("task", str(n), {}) for n in range(40)]
    assert [question for _, question, _ in chosen_pairs(pairs)] == [
        "2",
        "6",
        "10",
        "14",
        "18",
        "22",
        "26",
        "30",
        "34",
        "38",
    ]
    assert chosen_pairs(pairs[:3]) == pairs[:3]


def test_an_excerpt_says_what_it_leaves_out():
    assert excerpt("<" * 2_005) == "&lt;" * 2_000 + "<small> … 5 more characters</small>"
    assert excerpt("\u200fabc\u202e") == "[U+200F]abc[U+202E]"


def took(run):
    return duration(json.loads((run / "summary.json").read_text())["wall_seconds"])


class TestLedger:
    def test_a_run_alone_shows_nothing_of_the_ratios(self, demo):
        claims = {entry.claim: entry.shows for entry in ledger.entries(Record(demo))}
        assert (
            "33.7 → 91.8 on average over 4 tasks"
            in claims["24.1 → 63.1 on average over its domains, from Qwen3-4B-Base"]
        )
        assert claims["from 5K prompts"].startswith("1,743 prompts, 1,280 rollouts")
        assert claims["in 22.7 GPU hours"] == f"{took(demo)} on x86_64, without a GPU"
        nothing = ("46 × less data than RLVR in the domain", "68 × less compute than RLVR in the domain")
        assert all(claims[claim].startswith("nothing: ") for claim in nothing)

    def test_beside_a_baseline_the_ratios_are_counted(self, tmp_path):
        def one(name, recipe, seconds, prompts):
            metrics = [{"step": 1, "reward_mean": 0.0, "rollouts": prompts * 2, "elapsed_seconds": seconds}]
            return Record(a_run(tmp_path / name, metrics, recipe=recipe, contamination={"prompts": prompts}))

        ours = one("ours", "reward: {name: judge}", 10.0, 5)
        theirs = one("theirs", "reward: {verifiable: code}", 30.0, 50)
        shown = [entry.shows for entry in ledger.entries(ours, (theirs,))]
        assert "10 × the prompts (50 for 5), 10 × the rollouts (100 for 10)" in shown[3]
        assert "3 × the seconds (30 for 10)" in shown[4]

    def test_a_second_stage_counts_what_it_gained(self, tmp_path):
        found = evaluation()
        found["arms"].append("stage_1")
        second = {**found["tasks"][0], "against_stage_1": {"ci_low": -0.1, "ci_high": 0.1}}
        found["tasks"] = [{**second, "against_stage_1": {"ci_low": 0.01, "ci_high": 0.1}}, second]
        shown = ledger.entries(Record(a_run(tmp_path / "r", evaluation=found)))[5].shows
        assert shown == "against stage 1, 1 of 2 tasks gained beyond chance, 0 lost"


class TestSeveral:
    def runs(self, tmp_path):
        """Two seeds of one recipe, one of another, which is right where they were half the time."""
        scores = {"a-0": (0, 1, 0, 1), "a-1": (1, 0, 0, 1), "b-0": (1, 1, 1, 1)}
        found = []
        for name, right in scores.items():
            rows = [
                {"task": "sums", "question": str(n), "arm": "tuned", "sample": 0, "score": score, "text": ""}
                for n, score in enumerate(right)
            ]
            recipe = f"seed: {name[-1]}\nalgorithm: {{name: {name[0]}}}\nbudget: {{steps: 9}}"
            metrics = [{"step": 1, "reward_mean": float(name[-1])}, {"step": 2, "reward_mean": 4.0}]
            path = a_run(tmp_path / name, metrics, recipe=recipe, evaluation=evaluation(), answers=rows)
            (path / "summary.json").write_text('{"recipe": "tiny"}')
            found.append(Record(path))
        return several.grouped(found)

    def test_seeds_are_grouped_and_recipes_named_by_what_differs(self, tmp_path):
        groups = self.runs(tmp_path)
        assert {label: [record.path.name for record in records] for label, records in groups.items()} == {
            "tiny, algorithm.name=a": ["a-0", "a-1"],
            "tiny, algorithm.name=b": ["b-0"],
        }
        assert "budget.steps" not in several.apart(groups)

    def test_differences_are_paired_over_the_questions(self, tmp_path):
        shown = several.paired(self.runs(tmp_path))
        # question by question 0.5, 0.5, 0 and 1 against 1: a mean of 0.5, sd 0.408, t(3) 3.182, so ± 0.650
        assert "<td>sums</td><td>4</td><td>0.500</td><td>1.000</td><td>+0.500</td><td>[-0.150, +1.150]</td>" in shown

    def test_other_questions_are_not_paired(self, tmp_path):
        groups = self.runs(tmp_path)
        groups["tiny, algorithm.name=b"][0].evaluation["tasks"][0]["questions_sha256"] = "b"
        assert "not paired, for they were not asked the same: sums" in several.paired(groups)

    def test_the_band_is_from_the_lowest_to_the_highest_seed(self, tmp_path):
        groups = self.runs(tmp_path)
        records = groups["tiny, algorithm.name=a"]
        assert several._mean(records, "reward_mean") == [(1, 0.5), (2, 4.0)]
        assert several._band(records, "reward_mean") == [(1, 0.0, 1.0), (2, 4.0, 4.0)]
        assert several.curves(groups).count("<polygon") == 1


class TestTerminal:
    def test_a_spark_goes_from_the_lowest_to_the_highest(self):
        assert terminal.spark([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
        assert terminal.spark([0, 0, 7, 7], width=2) == "▁█"
        assert terminal.spark([3, 3]) == "▁▁"

    def test_a_screen_stays_in_its_columns_and_obeys_no_escape(self, tmp_path):
        hostile = "\x1b[2J\x07\u202e" + "x" * 1_000_000
        rows = [{"step": 2, "prompt": hostile, "completion": f"a\n{hostile}", "reward": 1.0, "length": 3}]
        lines = terminal.screen(Record(a_run(tmp_path / "r", samples=rows, recipe="budget: {steps: 4}")), 60)
        assert max(map(len, lines)) <= 60
        assert not re.search("[\x00-\x1f\u202e]", "".join(lines))
        assert any("[U+001B][2J" in line for line in lines)
        assert any("step 2 of 4" in line for line in lines)
        assert "█" * 29 + "·" * 29 in "".join(lines)

    def test_runs_are_sorted_and_what_is_not_known_comes_last(self, tmp_path, capsys):
        a_run(tmp_path / "one", evaluation=evaluation())
        a_run(tmp_path / "two", [{"step": 1, "reward_mean": 7.0}])
        (tmp_path / "no run").mkdir()
        assert runs.main([str(tmp_path), "--sort", "gain", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [(row["run"], row["gain"], row["reward"]) for row in rows] == [
            (str(tmp_path / "one"), 0.2, 0.5),
            (str(tmp_path / "two"), None, 7.0),
        ]
        assert runs.main([str(tmp_path), "--sort", "reward"]) == 0
        head, first, second = capsys.readouterr().out.splitlines()
        assert head.split() == ["run", "recipe", "state", "steps", "reward", "gain", "95", "%", "interval", "hours"]
        assert "+7.00" in first
        assert "+0.200  [+0.100, +0.300]" in second
        assert runs.main([str(tmp_path), "--sort", "reward", "--reverse"]) == 0
        assert "+0.50" in capsys.readouterr().out.splitlines()[1]

    def test_watch_shows_a_finished_run_once(self, demo, capsys):
        assert watch.main([str(demo)]) == 0
        shown = capsys.readouterr().out
        assert f"finished: step 40 of 40, {took(demo)}" in shown
        assert re.search(r"average of tasks +0\.337 → 0\.918 +\+0\.582 +\[\+0\.553, \+0\.611\]", shown)
        assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (report.main, ["nowhere"], "nowhere is no run directory: it is no folder"),
        (report.main, ["{demo}", "{folder}"], "has none of recipe.yaml, metrics.jsonl, summary.json"),
        (report.main, ["a" * 5000], "is no run directory"),
        (report.main, ["{demo}", "--to", "{folder}/no/such/file"], "cannot be written: No such file"),
        (watch.main, ["nowhere"], "nowhere is no run directory"),
        (watch.main, ["{demo}", "--every", "0"], "--every=0 is no pause"),
        (watch.main, ["{demo}", "--every", "nan"], "--every=nan is no pause"),
        (runs.main, ["nowhere"], "there is no folder nowhere"),
        (runs.main, ["a" * 5000], "there is no folder"),
        (runs.main, ["{folder}"], "there is no run in"),
    ],
)
def test_bad_input_is_one_line(main, words, said, demo, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=said) as refused:
        main([word.format(demo=demo, folder=tmp_path / "empty") for word in words])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"tasks": 3}', '{"tasks": [{}], "average": {}}', "\x00"])
@pytest.mark.parametrize("name", ["evaluation", "summary", "contamination", "environment", "recipe"])
def test_a_foreign_file_costs_its_own_part_and_never_the_report(demo, name, content):
    (demo / f"{name}.{'yaml' if name == 'recipe' else 'json'}").write_text(content)
    before = page.report_of(Record(DEMO)).count("<section")
    written = page.report_of(Record(demo))
    assert written.count("<section") == before
    assert terminal.row_of(Record(demo)).run == str(demo)
    assert watch.shown(demo, 80)[0]
    assert page.comparison_of([Record(demo), Record(DEMO)])


def test_what_cannot_be_written_ends_no_run(demo):
    run = Record(demo).run
    run.report.mkdir()
    assert page.closing_line(run).startswith("the report could not be written (")
    run.report.rmdir()
    assert page.closing_line(run) == f"the report is {run.report}"
    assert run.report.is_file()
