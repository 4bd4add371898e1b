"""Really 4-bit, really LoRA, and an adapter that is everybody's."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from grlo_lite.microcosm import world
from grlo_lite.models import chat_template, reward_model
from grlo_lite.models import policy as policies
from grlo_lite.models.backends import Place
from grlo_lite.monitoring.halvings import Halvings
from grlo_lite.monitoring.pace import Pace
from grlo_lite.monitoring.recorder import Recorder
from grlo_lite.prompts import prepared
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Judge, Lora, Model
from grlo_lite.rewards.reward_function import RewardFunction, handed_on
from grlo_lite.rundir.layout import create
from grlo_lite.training import trainer

CPU = torch.device("cpu")

BARE_SCRIPT = """
import json, sys
import torch
from bitsandbytes.nn import Linear4bit
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, BitsAndBytesConfig, GenerationConfig
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
adapter, prompts = sys.argv[1], json.loads(sys.stdin.read())
model = AutoPeftModelForCausalLM.from_pretrained(adapter, quantization_config=nf4, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter)
stop = GenerationConfig.from_pretrained(adapter)
for module in model.modules():
    if isinstance(module, Linear4bit):
        module.support_avx512bf16_for_cpu_here = module.support_avx512bf16_for_cpu
rounds = []
for repacked in (False, True):
    for module in model.modules():  # on CPUs with AVX512-BF16, bitsandbytes repacks the weights and computes in bf16
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = repacked and module.support_avx512bf16_for_cpu_here
    answers = []
    for prompt in prompts:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**ids, generation_config=stop, do_sample=False, max_new_tokens=48)
        answers.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    rounds.append(answers)
print(json.dumps(rounds))
"""


def trained_weights(path):
    return load_file(path / "adapter" / "adapter_model.safetensors")


def test_the_whole_adapter_is_fp32_and_moved(trained):
    tuned = trained_weights(trained.path)
    values = recipes.load(str(trained.path / "recipe.yaml"), [])
    fresh = policies.load(Model(name="microcosm"), values.lora, Place(CPU), 256, values.seed)
    before = {n.replace(".default.", "."): p for n, p in fresh.model.named_parameters() if p.requires_grad}
    assert len(tuned) == 2 * 7 * 4
    assert set(tuned) == set(before)
    for name, tensor in tuned.items():
        assert tensor.dtype == torch.float32
        assert (tensor != before[name]).float().mean() > 0.999, name


def test_training_leaves_every_byte_of_the_base_as_it_was(tmp_path):
    values = recipes.load("microcosm", ["budget.steps=2", "algorithm.updates_per_rollout=1"])
    made = policies.load(Model(name="microcosm"), values.lora, Place(CPU), 304, 0)
    judge = reward_model.load(Judge(name="microcosm"), CPU, 512, 16_384)
    rewards = RewardFunction([("main", 1.0, judge)], chat_template.stop_token_ids(made.tokenizer), values.reward, 8, 0)
    run = create(tmp_path / "r", "microcosm", "")
    recorder = Recorder(run, values, lambda: 0.0, lambda step: {}, Halvings(run), Pace(1, None))
    before = frozen_bytes(made.model), frozen_bytes(judge.model)
    rows = prepared.prompt_rows(values).train
    materials = trainer.Materials(made, handed_on(rewards, recorder.take), rows, Place(CPU))
    trainer.composed_trainer(values, materials, run.partial, [recorder], 32).train()
    assert len(before[0]) == 28 + 18  # 28 quantized layers; embeddings (the tied head with them) and 17 norms
    assert (frozen_bytes(made.model), frozen_bytes(judge.model)) == before


def frozen_bytes(model):
    def digest(tensor):
        return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()

    return {name: digest(p) for name, p in model.named_parameters() if not p.requires_grad}


def test_a_bare_peft_script_gives_the_kits_greedy_answers(trained):
    adapter = trained.path / "adapter"
    asked = [q.text for domain in world.VERIFIABLE for q in world.exam(domain, 3, seed=1)]
    asked += world.chat_prompts(held_out=True)[:8]
    script = subprocess.run(
        [sys.executable, "-c", BARE_SCRIPT, str(adapter)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    kit = policies.load(Model(name="microcosm"), Lora(rank=16, alpha=32), Place(CPU), 256, 0)
    kit.model.load_adapter(str(adapter), "default", is_trainable=False)
    kit.model.eval()
    answers = []
    for prompt in asked:
        text = chat_template.formatted(kit.tokenizer, [{"role": "user", "content": prompt}])
        ids = kit.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        out = kit.model.generate(**ids, do_sample=False, max_new_tokens=48)
        answers.append(kit.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    exact, repacked = json.loads(script.stdout.splitlines()[-1])
    assert exact == answers
    assert sum(a == b for a, b in zip(repacked, answers, strict=True)) >= 0.9 * len(asked)  # in bf16, near ties may tip
    assert len(set(answers)) == len(asked)


def test_the_adapter_holds_no_pickle_and_no_path_that_leads_nowhere(trained):
    adapter: Path = trained.path / "adapter"
    assert not [p for p in adapter.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]).is_dir()
    assert re.search(r"\| arithmetic \(accuracy\) \| 300 \|", (adapter / "README.md").read_text())
