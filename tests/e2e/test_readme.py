"""What the README tells people to type is what works."""

import re
import shlex
from pathlib import Path

import pytest

from grlo_lite import app, doctor, evaluate, export, plan, report, watch
from grlo_lite.errors import BadInput
from grlo_lite.recipe import loading as recipes
from grlo_lite.train import main

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    for line in block.splitlines()
    if language == "bash" and line.startswith(("python -m grlo_lite", "python app.py"))
]
READERS = {"grlo_lite.evaluate": evaluate, "grlo_lite.export": export, "app.py": app}  # of a run


def test_the_two_commands_of_the_readme_are_there():
    assert "pip install -e . && python -m grlo_lite.train\n" in README
    assert "pip install -e '.[dev]' && pytest\n" in README


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_of_the_readme_is_understood(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("".join(f'{{"prompt": "Tell me about number {i}."}}\n' for i in range(9)))
    module, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
    if module == "grlo_lite.doctor":
        assert doctor.main([*arguments, "--prompts", "0"]) == 0
    elif module == "grlo_lite.plan":
        assert plan.main(arguments) in (0, plan.DoesNotFit.exit_code)
    elif module in ("grlo_lite.report", "grlo_lite.watch"):
        with pytest.raises(BadInput, match="is no run directory"):
            (report if module == "grlo_lite.report" else watch).main(arguments)
    elif module in READERS:
        with pytest.raises(BadInput, match="is neither a run directory"):
            READERS[module].main(arguments)
    elif "--resume" in arguments:
        with pytest.raises(BadInput, match="no unfinished run"):
            main(arguments)
    else:
        assert module == "grlo_lite.train"
        assert main([*dict.fromkeys([*arguments, "--dry-run"])]) == 0
        assert "the first prompt, as the policy sees it:\n<|im_start|>user\n" in capsys.readouterr().out
    assert not list(tmp_path.glob("runs/*"))


def test_the_recipe_of_the_readme_is_one(tmp_path):
    blocks = [block for language, block in BLOCKS if language == "yaml"]
    assert blocks
    for block in blocks:
        (tmp_path / "mine.yaml").write_text(block)
        recipes.load(str(tmp_path / "mine.yaml"), [])


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_shipped_recipe_dry_runs_and_names_its_command(name, capsys):
    assert main([name, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"recipe {name}: named on the command line\n")
    assert "the peak is " in printed
    assert "the first prompt" in printed or "the prompts are not here: " in printed
    assert recipes.shipped()[name].read_text().startswith(f"# python -m grlo_lite.train {name}\n")


def test_every_file_the_readme_names_exists():
    root = Path(__file__).parents[2]
    for path in re.findall(r"`((?:grlo_lite|benchmarks|docs|recipes)/[\w/.]*)`", README):
        assert (root / path).exists() or (root / "grlo_lite/microcosm" / path).exists(), path
