"""The report in a browser: what it asks for, what it shows of hostile text, whether its numbers are the files', and how
quick and heavy it is.

`GRLO_LITE_SCREENSHOTS=docs/images pytest tests/e2e/test_report.py` makes the documentation's screenshot anew.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from grlo_lite.models.names import DEMO
from grlo_lite.report import main
from grlo_lite.rundir import files

SCREENSHOTS = os.environ.get("GRLO_LITE_SCREENSHOTS")
LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
HOSTILE = (
    "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"></style></svg></html>"
    "<iframe src='https://elsewhere.example/'></iframe>&amp;\u202egnorw\u200f\x1b[31m]]><!-- '\"` ${7*7} {{7*7}}"
    "\n\nnext"
)
# Each chart's title, its ticks with their heights, and its lines; a forest's rows with their places in per cent
CHARTS = """() => [...document.querySelectorAll('.chart')].map(chart => ({
  title: chart.querySelector('b').textContent,
  ticks: [...chart.querySelectorAll('text[text-anchor=end]')].filter(t => !t.textContent.startsWith('step'))
    .map(t => [Number(t.textContent), Number(t.getAttribute('y')) - 3.5]),
  lines: [...chart.querySelectorAll('polyline:not(.mean)')].map(l => l.getAttribute('points')),
}))"""
FORESTS = """() => [...document.querySelectorAll('.forest')].map(forest => ({
  ticks: [...forest.querySelectorAll('.axis text')].map(t => [Number(t.textContent), parseFloat(t.getAttribute('x'))]),
  rows: [...forest.querySelectorAll('.row:not(.axis)')].map(row => [
    ...['.task', '.rates', '.gain'].map(of => row.querySelector(of).textContent),
    ...[['circle', 'cx'], ['.interval', 'x1'], ['.interval', 'x2']].map(
      ([of, name]) => parseFloat(row.querySelector(of).getAttribute(name))),
  ]),
}))"""


@contextmanager
def visit(chromium, file, width=1280, scheme="light"):
    """The page of a file; at the end nothing was said on the console and nothing asked for but the file itself."""
    context = chromium.new_context(viewport={"width": width, "height": 1250}, color_scheme=scheme)
    shown, troubles, asked = context.new_page(), [], []
    shown.on("console", lambda said: troubles.append(said.text))
    shown.on("pageerror", lambda error: troubles.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(file.as_uri())
    yield shown
    assert troubles == []
    assert asked == [file.as_uri()]
    context.close()


@pytest.fixture
def demo(tmp_path):
    shutil.copytree(DEMO, tmp_path / "demo")
    return tmp_path / "demo"


def answered(run, text):
    """Gives a run answers.jsonl, all of them the text."""
    row = {"task": "microcosm-code", "prompt": text, "score": 1.0, "reference": "7", "truncated": False, "tokens": 3}
    rows = [row | {"question": str(n), "arm": arm, "text": text} for n in range(20) for arm in ("base", "tuned")]
    (run / "answers.jsonl").write_text(files.json_lines(rows))


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_hostile_text_is_text_and_nothing_is_asked_for(demo, chromium, width, scheme):
    long = "<b>" + "x" * 1_000_000
    samples = [
        {"step": step, "prompt": HOSTILE, "completion": text, "reward": 1.0, "length": 3, "truncated": False}
        for step in (1, 40)
        for text in (HOSTILE, long)
    ]
    (demo / "samples.jsonl").write_text(files.json_lines(samples))
    row = {"step": 3, "guard": HOSTILE, "message": HOSTILE, "action": "warn", "samples": samples[:1]}
    (demo / "guards.jsonl").write_text(files.json_lines([row]))
    answered(demo, HOSTILE)
    for name in ("summary", "environment"):
        (demo / f"{name}.json").write_text(
            json.dumps(json.loads((demo / f"{name}.json").read_text()) | {"recipe": HOSTILE})
        )
    assert main([str(demo)]) == 0
    assert (demo / "report.html").stat().st_size < 2 * 2**20
    with visit(chromium, demo / "report.html", width, scheme) as shown:
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert "taken" in shown.title()  # the recipe's name, as it was written
        assert shown.locator("script, img, iframe, object").count() == 0
        said = shown.locator(".pair .said").first.inner_text()
        assert said.startswith("<script>document.title='taken'</script><img src=x onerror=")
        assert "[U+202E]gnorw[U+200F][U+001B][31m" in said
        assert said.endswith("\n\nnext")
        body = shown.locator("body").inner_text()
        assert f"{1_000_003 - 2_000:,} more characters" in body
        assert not re.search("[\u200f\u202e\x1b]", body)


def test_every_number_is_the_files(demo, chromium):
    assert main([str(demo)]) == 0
    lines = files.read_lines(demo / "metrics.jsonl")
    found = json.loads((demo / "evaluation.json").read_text())
    summary = json.loads((demo / "summary.json").read_text())
    with visit(chromium, demo / "report.html") as shown:
        drawn = {chart["title"]: chart for chart in shown.evaluate(CHARTS)}
        keys = {
            "Reward": ["reward_mean", "score_mean"], "Shaping": ["reward_truncation_mean"],
            "Length": ["completion_tokens_mean"], "Truncated": ["truncated_fraction"], "Entropy": ["entropy"],
            "Gradient": ["grad_norm"], "Repetition": ["repetition_fraction"],
            "Seconds a step": ["rollout_seconds", "reward_seconds", "update_seconds"],
        }  # fmt: skip
        assert drawn.keys() == keys.keys()
        for title, names in keys.items():
            for name, line in zip(names, drawn[title]["lines"], strict=True):
                (low, bottom), *_, (high, top) = drawn[title]["ticks"]
                heights = [float(point.split(",")[1]) for point in line.split()]
                values = [low + (high - low) * (bottom - height) / (bottom - top) for height in heights]
                assert values == pytest.approx([row[name] for row in lines], abs=0.002 * (high - low)), name
        reward, accuracy = shown.evaluate(FORESTS)
        average = found["average"] | {"task": "average of tasks"}
        for forest, rows in ((reward, found["tasks"][:1]), (accuracy, [*found["tasks"][1:], average])):
            (low, left), *_, (high, right) = forest["ticks"]
            for row, (name, rates, gain, *places) in zip(rows, forest["rows"], strict=True):
                assert name.startswith(row["task"])
                assert rates == f"{row['base']:.3f} → {row['tuned']:.3f}"
                assert gain == f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
                told = [low + (high - low) * (place - left) / (right - left) for place in places]
                assert told == pytest.approx(
                    [row["difference"], row["ci_low"], row["ci_high"]], abs=0.001 * (high - low)
                )
        body = shown.locator("body").inner_text()
        for said in (
            "On 4 tasks with 1,200 questions the tuned model is right 91.8 % of the time and the base 33.7 %",
            f"the reward went from {summary['reward_first']:+.2f} to {summary['reward_last']:+.2f}, and no guard spoke",
            f"{summary['rollouts']:,}", f"{summary['generated_tokens']:,}", summary["adapter_sha256"][:16],
        ):  # fmt: skip
            assert said in body, said
        cells = shown.locator("table").evaluate_all(
            "tables => tables.map(t => [...t.rows].map(r => [...r.cells].map(c => c.textContent)))"
        )
        planned = [f"{summary['plan'][phase]['planned']:.2f}" for phase in summary["plan"]]
        assert [row[1] for table in cells for row in table if row[0].endswith(", seconds a step")] == planned
        windows = {end: sum(row["entropy"] for row in lines[end - 5 : end]) / 5 for end in range(5, 41)}
        lowest = min(windows, key=windows.get)
        row = next(row for table in cells for row in table if row[0] == "entropy")
        assert row == ["entropy", "below 0.02", f"{windows[lowest]:.3f}", str(lowest), f"{windows[40]:.3f}", "no"]


def test_five_hundred_steps_are_written_in_three_seconds_and_two_megabytes(demo):
    lines = files.read_lines(demo / "metrics.jsonl")
    rows = [
        lines[n % 40] | {"step": n + 1, "elapsed_seconds": float(n), "kl": 0.1 * n, "value_loss": 1 / (n + 1)}
        for n in range(500)
    ]
    (demo / "metrics.jsonl").write_text(files.json_lines(rows))
    sample = {"prompt": "why? " * 200, "completion": "because " * 500, "reward": 1.0, "length": 512, "truncated": False}
    (demo / "samples.jsonl").write_text(files.json_lines({"step": n // 4 + 1} | sample for n in range(2000)))
    answered(demo, "word " * 1000)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "grlo_lite.report", demo], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 3
    assert done.stdout.startswith(f"{demo / 'report.html'}, ")
    assert (demo / "report.html").stat().st_size < 2 * 2**20


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (["summary.json", "evaluation.json", "adapter"], ["The run is unfinished: it made 40 of 40 steps", "--resume"]),
        (["evaluation.json"], ["nothing was measured", "python -m grlo_lite.evaluate"]),
        (["samples.jsonl"], ["samples.jsonl is not there", "no samples of training were kept"]),
        (["contamination.json", "environment.json", "recipe.yaml"], ["recipe.yaml is not there", "that is not known"]),
        (["metrics.jsonl"], ["no step has been written", "No step of training has been recorded."]),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(demo, chromium, gone, said):
    for name in gone:
        shutil.rmtree(demo / name) if (demo / name).is_dir() else (demo / name).unlink()
    assert main([str(demo)]) == 0
    with visit(chromium, demo / "report.html", 390, "dark") as shown:
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        body = shown.locator("body").inner_text()
        for words in said:
            assert words in body, words
        assert shown.locator(".refused").count() == 0


def test_runs_lie_over_each_other(demo, chromium, tmp_path):
    others = []
    for number, key in ((1, "seed: 0"), (2, "name: grpo")):
        other = shutil.copytree(demo, tmp_path / f"other-{number}")
        text = (other / "recipe.yaml").read_text()
        assert key in text
        (other / "recipe.yaml").write_text(text.replace(key, {1: "seed: 1", 2: "name: rloo"}[number]))
        others.append(str(other))
    assert main([str(demo), *others]) == 0
    with visit(chromium, demo / "comparison.html", 390, "dark") as shown:
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        body = shown.locator("body").inner_text()
        assert "3 runs of 2 recipes: microcosm, algorithm.name=grpo; microcosm, algorithm.name=rloo." in body
        assert "the answers of at least one recipe were not kept" in body
        first = shown.locator(".chart").first
        assert (first.locator("polygon").count(), first.locator("polyline:not(.raw)").count()) == (1, 2)


def test_ten_answers_stand_side_by_side(demo, chromium):
    answered(demo, "seven is the answer")
    assert main([str(demo)]) == 0
    with visit(chromium, demo / "report.html") as shown:
        pairs = shown.locator(".pair")
        assert pairs.count() == 10
        assert pairs.first.locator(".side.right").count() == 2
        assert pairs.first.inner_text().count("seven is the answer") == 3  # the prompt, base, tuned
        left, right = (pairs.first.locator(".side").nth(side).bounding_box() for side in (0, 1))
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] <= right["x"]


FOLDED = """() => [...document.querySelectorAll('details:not([open]) > :not(summary)')]
  .map(part => part.checkVisibility())"""
CUT = """() => [...document.querySelectorAll('table')].map(table => table.scrollWidth)
  .filter(width => width > window.innerWidth)"""
COLOURS = """() => [document.documentElement, document.body].map(of => getComputedStyle(of))
  .flatMap(style => [style.backgroundColor, style.color])"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_prints_dark_on_white_with_what_is_folded_away(demo, chromium, scheme):
    answered(demo, "seven is the answer")
    assert main([str(demo)]) == 0
    with visit(chromium, demo / "report.html", 794, scheme) as shown:  # A4 at 96 dots an inch
        assert not any(shown.evaluate(FOLDED))
        shown.emulate_media(media="print", color_scheme=scheme)
        folded = shown.evaluate(FOLDED)
        assert (len(folded) >= 2, all(folded)) == (True, True)
        grounds_and_inks = [[int(n) for n in re.findall(r"[\d.]+", c)] for c in shown.evaluate(COLOURS)]
        for ground, ink in (grounds_and_inks[:2], grounds_and_inks[2:]):
            assert ground in ([255, 255, 255], [0, 0, 0, 0])  # white, or none
            assert max(ink) < 64
        assert not shown.locator("nav").is_visible()
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert shown.evaluate(CUT) == []
        pages = len(re.findall(rb"/Type\s*/Page\b", shown.pdf(format="A4", print_background=True)))
        assert 3 <= pages <= 20


@pytest.mark.skipif(not SCREENSHOTS, reason="GRLO_LITE_SCREENSHOTS names no folder")
@pytest.mark.parametrize(("width", "scheme", "name"), [(1280, "light", "desktop"), (390, "dark", "phone")])
def test_the_documentation_has_a_screenshot(trained, chromium, width, scheme, name):
    with visit(chromium, trained.path / "report.html", width, scheme) as shown:
        shown.screenshot(path=Path(SCREENSHOTS) / f"report-{name}.png", scale="css")
