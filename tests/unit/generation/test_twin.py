"""The decoding twin against the model that it is the twin of."""

import gc
import json
import subprocess
import sys
import weakref
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
from transformers import BitsAndBytesConfig

from grlo_lite.errors import BadInput
from grlo_lite.generation import linears, twin_check
from grlo_lite.generation.decoding import Answers, Prompts, decode
from grlo_lite.generation.linears import Linears
from grlo_lite.generation.llama import Llama, grouped_attention
from grlo_lite.generation.request import Sampling
from grlo_lite.generation.stock import Stock
from grlo_lite.generation.twin import copy_bytes, twin
from grlo_lite.generation.whole import whole
from tests.unit.generation.models import KINDS, adapted, bare, generated

ENDS = list(range(60))  # of 300 tokens, so that rows end at several lengths


def prompts(seed=0):
    """Fourteen prompts of several lengths, two of them alike."""
    torch.manual_seed(seed)
    ids_BP = torch.randint(60, 300, (14, 9))
    mask_BP = torch.arange(9) >= torch.randint(0, 7, (14, 1))
    ids_BP[4], mask_BP[4] = ids_BP[3], mask_BP[3]
    return ids_BP, mask_BP


GREEDY = Sampling(20, 0.0)


def decoded(model, fold, rows, sampling=GREEDY):
    ids_BP, mask_BP = prompts()
    asked = Prompts(ids_BP, mask_BP, ENDS, 1)
    answers = Answers(asked, sampling)
    with twin(model, fold) as made:
        decode(made, asked, answers, rows)
    return asked, answers


@pytest.mark.parametrize("kind", list(KINDS))
def test_greedy_answers_are_those_of_transformers(kind):
    model = adapted(bare(kind, vocab_size=300, hidden_size=64))
    ids_BP, mask_BP = prompts()
    said = {}
    for adapter in ("on", "off"):
        with nullcontext() if adapter == "on" else model.disable_adapter():
            plain = generated(model, ids_BP, mask_BP, eos_token_id=ENDS, pad_token_id=1)
            said[adapter] = plain
            assert len(set((plain != 1).sum(1).tolist())) > 2  # they end at several lengths
            for fold, rows in ((True, 14), (True, 4), (False, 4)):
                asked, answers = decoded(model, fold, rows)
                assert torch.equal(torch.cat([ids_BP, answers.tokens_BT], 1), plain), (adapter, fold, rows)
                assert twin_check.mean_difference(model, asked, answers) < 1e-5
    assert said["on"].shape != said["off"].shape or not torch.equal(said["on"], said["off"])


@pytest.mark.skipif(not linears.packs(torch.ones(2, 2)), reason="oneDNN's layout is for x86 alone")
@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # without and with biases
def test_weights_in_onednns_layout_say_what_plain_ones_say(kind, monkeypatch):
    model = adapted(bare(kind, vocab_size=300, hidden_size=64))
    _, plain = decoded(model, True, 14)
    monkeypatch.setattr(linears, "PACKED_FROM", 0)
    with twin(model, True) as made:
        assert made.forward.layers[0].qkv.weight.is_mkldnn
        assert made.forward.head.weight.is_mkldnn
    for rows in (1, 5, 14):
        asked, packed = decoded(model, True, rows)
        assert torch.equal(packed.tokens_BT, plain.tokens_BT)
        assert twin_check.mean_difference(model, asked, packed) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma2"])
def test_greedy_answers_of_4_bit_models_are_those_of_transformers(kind, tmp_path):
    bare(kind, vocab_size=300, hidden_size=64).save_pretrained(tmp_path)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = KINDS[kind][1].from_pretrained(tmp_path, quantization_config=nf4, dtype=torch.float32)
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model = adapted(base)
    ids_BP, mask_BP = prompts()
    for adapter in ("on", "off"):
        with nullcontext() if adapter == "on" else model.disable_adapter():
            plain = generated(model, ids_BP, mask_BP, eos_token_id=ENDS, pad_token_id=1)
            for fold in (True, False):
                asked, answers = decoded(model, fold, 5)
                assert torch.equal(torch.cat([ids_BP, answers.tokens_BT], 1), plain), (adapter, fold)
                assert twin_check.mean_difference(model, asked, answers) < 1e-5


UNSLOTH = """
import json, sys
from contextlib import nullcontext
sys.path.insert(0, {root!r})
from grlo_lite.models.backends import Place, import_unsloth
import_unsloth()
import torch
from transformers import AutoTokenizer
from grlo_lite.models.names import POLICY
from tests.unit.generation.models import generated
from tests.unit.generation.test_twin import ENDS, bare, decoded, prompts, twin_check
from grlo_lite.models.unsloth import load_with_unsloth
from grlo_lite.recipe.schema import Lora, Model
found = {{}}
for kind in ("llama", "qwen2", "qwen3"):
    bare(kind, vocab_size=768, hidden_size=128, initializer_range=0.2).save_pretrained({folder!r} + kind)
    AutoTokenizer.from_pretrained(POLICY).save_pretrained({folder!r} + kind)
    for how in ("nf4", "none"):
        lora = Lora(rank=4, alpha=4)
        named = Model(name={folder!r} + kind, quantization=how)
        model = load_with_unsloth(named, lora, Place(torch.device("cpu")), 64, 0, None)
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
        ids_BP, mask_BP = prompts()
        said = []
        for adapter in ("on", "off"):
            with nullcontext() if adapter == "on" else model.disable_adapter():
                plain = generated(model, ids_BP, mask_BP, eos_token_id=ENDS, pad_token_id=1)
                said.append(plain.tolist())
                for fold in (True, False):
                    asked, answers = decoded(model, fold, 5)
                    same = torch.equal(torch.cat([ids_BP, answers.tokens_BT], 1), plain)
                    difference = twin_check.mean_difference(model, asked, answers)
                    found[f"{{kind}} {{how}} {{fold}}, adapter {{adapter}}"] = same, difference
        assert said[0] != said[1]
print(json.dumps(found))
"""


@pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed")
def test_greedy_answers_through_unsloth_are_its_own(tmp_path, pytestconfig):
    """In a process of its own, for it patches Transformers and PEFT."""
    script = UNSLOTH.format(root=str(pytestconfig.rootpath), folder=f"{tmp_path}/")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 24
    for what, (same, difference) in found.items():
        assert same, what
        assert difference < 1e-5, what


def test_llama_like_models_have_the_lean_forward_and_others_transformers_own():
    kinds = {}
    for kind in KINDS:
        with twin(bare(kind)) as made:
            kinds[kind] = type(made.forward)
    assert kinds == dict.fromkeys(("llama", "llama 3", "qwen2", "qwen3"), Llama) | dict.fromkeys(
        ("mistral", "gemma2", "gemma3"), Stock
    )


def test_a_model_without_keys_and_values_is_refused_by_name():
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_experts=2,
        layer_types=["linear_attention", "full_attention"], linear_num_value_heads=2, linear_num_key_heads=2,
    )  # fmt: skip
    model = Qwen3NextForCausalLM(config)
    with pytest.raises(BadInput, match="qwen3_next remember by linear_attention"), twin(model):
        pass


@pytest.mark.parametrize("fold", [True, False])
def test_an_adapter_that_is_not_plain_lora_is_read_off_its_layers(fold):
    model = adapted(bare("qwen3", vocab_size=300), use_dora=True)
    ids_BP, mask_BP = prompts()
    plain = generated(model, ids_BP, mask_BP, eos_token_id=ENDS, pad_token_id=1)
    _, answers = decoded(model, fold, 14)
    assert torch.equal(torch.cat([ids_BP, answers.tokens_BT], 1), plain)


def test_an_adapter_outside_the_linear_layers_is_refused():
    model = adapted(bare("qwen3", vocab_size=300), target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(BadInput, match="outside the linear layers"), twin(model):
        pass


def test_the_policy_is_not_touched_and_the_copy_is_freed():
    model = adapted(bare("qwen3", vocab_size=300))
    before = {name: (module, vars(module).get("forward")) for name, module in model.named_modules()}
    implementation = model.config._attn_implementation
    with twin(model, True) as made:
        assert isinstance(made.forward, Llama)
        copy = weakref.ref(made.forward.layers[0].qkv.weight)
        assert copy() is not None
        assert made.forward.embedding.data_ptr() == model.get_input_embeddings().weight.data_ptr()
        for name, module in model.named_modules():
            assert before[name] == (module, vars(module).get("forward"))
    del made
    gc.collect()
    assert copy() is None
    assert model.config._attn_implementation == implementation


def test_the_dense_copy_takes_what_is_said_of_it():
    model = adapted(bare("qwen3", vocab_size=300), target_modules=["q_proj"])
    assert copy_bytes(model) == 4 * 2 * (2 * 64 * 32 + 2 * 32 * 32 + 3 * 64 * 32)
    with twin(model, True) as made:
        layers = made.forward.layers
        parts = [p.weight for layer in layers for p in (layer.qkv, layer.output, layer.gate_and_up, layer.down)]
    assert sum(weight.numel() * 4 for weight in parts) == copy_bytes(model)


def test_whole_texts_are_read_as_the_merged_model_reads_them_to_the_bit(monkeypatch):
    """However large the matrices are: lm-eval's likelihoods are held to this."""
    monkeypatch.setattr(linears, "PACKED_FROM", 0)
    wide = bare("qwen3", vocab_size=300, hidden_size=512, intermediate_size=1536)  # narrow ones round alike either way
    model = adapted(wide, target_modules="all-linear")
    ids_BT = torch.randint(60, 300, (2, 30))
    with whole(model) as logits:
        read = logits(ids_BT)
    with torch.no_grad():
        assert torch.equal(read, model.merge_and_unload()(input_ids=ids_BT).logits)


@pytest.mark.skipif(not linears.packs(torch.ones(2, 2)), reason="oneDNN's layout is for x86 alone")
def test_a_head_that_is_laid_anew_is_counted_in_the_copy(monkeypatch):
    model = adapted(bare("qwen3", vocab_size=300), target_modules=["q_proj"])
    monkeypatch.setattr(linears, "PACKED_FROM", 300 * 32)
    assert copy_bytes(model) == 4 * (2 * (2 * 64 * 32 + 2 * 32 * 32 + 3 * 64 * 32) + 300 * 32)
    with twin(model, True) as made:
        assert made.forward.head.weight.is_mkldnn


def test_an_adapter_beside_its_base_goes_to_the_rows_by_their_share():
    model = adapted(bare("qwen3", vocab_size=300), target_modules="all-linear")
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.randn(3, 1, 32)
    both = Linears([layer], torch.float32, fold=True, beside="default")
    with torch.no_grad():
        said = both(x, torch.tensor([0.0, 1.0, 1.0])[:, None, None])
        assert torch.allclose(said[1:], layer(x)[1:], atol=1e-5)
        with model.disable_adapter():
            assert torch.allclose(said[:1], layer(x)[:1], atol=1e-5)
            assert (said[1:] - layer(x)[1:]).abs().max() > 0.01


def test_grouped_attention_is_sdpa():
    torch.manual_seed(0)
    query_BHQD, key_BKTD, value_BKTD = (torch.randn(shape) for shape in ((3, 8, 1, 16), (3, 2, 7, 16), (3, 2, 7, 16)))
    mask_BQT = (torch.arange(7) >= torch.tensor([0, 3, 6])[:, None])[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query_BHQD, key_BKTD, value_BKTD, attn_mask=mask_BQT, scale=0.25, enable_gqa=True
    )
    answer = grouped_attention(query_BHQD[:, :, 0], key_BKTD, value_BKTD, ~mask_BQT, 0.25)
    assert torch.allclose(answer.reshape(3, 8, 16), expected[:, :, 0], atol=1e-6)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
@pytest.mark.parametrize("fold", [True, False])
def test_what_is_sampled_has_the_policys_log_probabilities(dtype, most, fold):
    model = adapted(bare("qwen3", vocab_size=300, initializer_range=0.1).to(dtype))
    asked, answers = decoded(model, fold, 4, Sampling(20, 1.0))
    assert twin_check.mean_difference(model, asked, answers) <= most
    twin_check.require_the_policys(model, asked, answers)


def test_a_twin_with_one_layers_weights_wrong_is_stopped():
    model = adapted(bare("qwen3", vocab_size=300))
    ids_BP, mask_BP = prompts()
    asked = Prompts(ids_BP, mask_BP, ENDS, 1)
    answers = Answers(asked, Sampling(20))
    with twin(model, True) as made:
        made.forward.layers[1].down.weight.mul_(1.1)
        decode(made, asked, answers, 14)
    with pytest.raises(BadInput, match="samples from another model than the one that is trained"):
        twin_check.require_the_policys(model, asked, answers)
