"""Bad input: exit code 2, one or two lines that say what, where and how to mend it, and nothing left behind."""

import os
import shutil

import pytest
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

from grlo_lite import doctor
from grlo_lite.cli import run_command
from grlo_lite.models import names
from grlo_lite.train import main


@pytest.fixture
def files(tmp_path):
    (tmp_path / "broken.yaml").write_text("model: [")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "words.jsonl").write_text("just words\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "fine"}\n{"prompt": 3}\n')
    (tmp_path / "existing").mkdir()
    Qwen3ForSequenceClassification(
        Qwen3Config(vocab_size=800, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=1, num_labels=3)
    ).save_pretrained(tmp_path / "three")  # fmt: skip
    AutoTokenizer.from_pretrained(names.REWARD).save_pretrained(tmp_path / "three")
    shutil.copytree(names.POLICY, tmp_path / "gguf", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "gguf" / "model.Q4_1.gguf").write_bytes(b"GGUF")
    return tmp_path


CASES = {
    "unknown recipe": (["microcosmo"], ["microcosmo", "did you mean 'microcosm'"]),
    "no YAML": (["broken.yaml"], ["broken.yaml", "is not a YAML file"]),
    "unknown key": (["rollout.bach=8"], ["rollout.bach is not a key; did you mean rollout.batch?"]),
    "bad value": (["optimizer.learning_rate=fast"], ["optimizer.learning_rate='fast'"]),
    "no equals sign": (["microcosm", "seed"], ["'seed' has no '='", "section.key=value"]),
    "group size": (["rollout.group_size=5"], ["rollout.group_size=5 does not divide rollout.batch=32", "such as 4"]),
    "existing directory": (["--run-dir", "existing"], ["existing", "exists already", "--resume"]),
    "unwritable directory": (["--run-dir", "empty.jsonl/run"], ["empty.jsonl/run", "cannot be made"]),
    "missing prompts": (["prompts.source=none.jsonl"], ["none.jsonl", "is no file here"]),
    "empty prompts": (["prompts.source=empty.jsonl"], ["empty.jsonl is empty"]),
    "prompts no JSONL": (["prompts.source=words.jsonl"], ["words.jsonl, line 1 is not JSON"]),
    "a bad line": (["prompts.source=bad.jsonl"], ["bad.jsonl, line 2: 'prompt' is neither"]),
    "a part of a mixture": (
        ["prompts.source=[{source: microcosm}, {source: bad.jsonl}]"],
        ["bad.jsonl, line 2: 'prompt' is neither"],
    ),
    "prompts of the Hub, offline": (["prompts.source=nobody/nothing"], ["needs the network", "at hand without it"]),
    "a missing evaluation set": (
        ["prompts.decontaminate.against=[none.jsonl]"],
        ["prompts.decontaminate.against='none.jsonl' is no file here"],
    ),
    "prompts cannot be written": (["--write-prompts", "no/where.jsonl"], ["--write-prompts no/where.jsonl"]),
    "no such model": (["model.name=./nowhere"], ["model.name='./nowhere'", "there is no such directory"]),
    "no such Hub model": (["model.name=nobody/nothing"], ["nobody/nothing"]),
    "a model's name of thousands of letters": ([f"model.name={'a' * 5000}"], [f"model.name='{'a' * 52}…", "no such"]),
    "and with a slash": ([f"model.name=a/{'a' * 5000}"], ["there is no such directory"]),
    "a reward model's": ([f"reward.name=a/{'a' * 5000}"], ["reward.name='a/", "there is no such directory"]),
    "a source's": ([f"prompts.source=a/{'a' * 5000}"], ["prompts.source='a/", "is no file here"]),
    "an evaluation set's": ([f"prompts.decontaminate.against=[{'a' * 5000}]"], ["against='aaa", "is no file here"]),
    "a run directory's": (["--run-dir", "a" * 5000], ["cannot be made: File name too long"]),
    "a run directory's to resume": (["--resume", "--run-dir", "a" * 5000], ["is no run directory"]),
    "somebody's home who is nobody": (["model.name=~nobody-here/x"], ["there is no such directory"]),
    "no causal LM": ([f"model.name={names.REWARD}"], ["is not a causal language model"]),
    "no such reward model": (["reward.name=./nowhere"], ["reward.name='./nowhere'", "there is no such directory"]),
    "a causal LM as reward model": ([f"reward.name={names.POLICY}"], ["has no one-logit head", "Qwen3ForCausalLM"]),
    "three labels": (["reward.name=three"], ["has no one-logit head", "with 3 labels"]),
    "a reward function's, before any model is loaded": (
        ["reward.name=three", "reward.python=nowhere.py:f"],
        ["reward.python='nowhere.py:f'", "there is no file nowhere.py"],
    ),
    "a second recipe's": (["microcosm", "b" * 5000], [f"'{'b' * 52}…{'b' * 25}' has no '='", "second recipe"]),
    "nothing to resume": (["--resume"], ["no unfinished run"]),
    "resume what is no run": (["--resume", "--run-dir", "existing"], ["has no recipe.yaml"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(files, case, capsys, monkeypatch):
    words, told = CASES[case]
    before = sorted(os.listdir(files))
    monkeypatch.chdir(files)
    assert run_command(lambda: main(words)) == 2
    printed = capsys.readouterr().err
    assert 1 <= len(printed.strip().splitlines()) <= 2, printed
    for part in told:
        assert part in printed
    runs = files / "runs"
    assert [name for name in sorted(os.listdir(files)) if name != "runs"] == before
    assert not runs.exists() or not list(runs.iterdir())
    assert not list((files / "existing").iterdir())


@pytest.mark.parametrize("key", ["model.name", "reward.name", "reward.heldout.name"])
@pytest.mark.parametrize("command", [main, doctor.main], ids=["train", "doctor"])
def test_a_directory_with_a_gguf_and_no_safetensors_is_refused_in_a_line(files, key, command, capsys, monkeypatch):
    monkeypatch.chdir(files)
    assert run_command(lambda: command(["microcosm", f"{key}=gguf"])) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {key}='gguf' holds model.Q4_1.gguf and no safetensors; ")
    assert "gguf_file=" in printed
    assert printed.count("\n") == 1
    shutil.copy(names.POLICY / "model.safetensors", files / "gguf")
    assert names.base_path("gguf") == "gguf"


def test_the_command_itself_exits_2_without_a_traceback(train, tmp_path):
    done = train("reward.name=./nowhere", code=2, cwd=tmp_path)
    assert done.stderr.startswith("error: reward.name='./nowhere'")
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_write_permission(train, tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be made: Permission denied" in train("--run-dir", tmp_path / "r", code=2).stderr
