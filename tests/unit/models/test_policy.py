import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoTokenizer

from grlo_lite.errors import BadInput
from grlo_lite.models import backends, chat_template, names, unsloth
from grlo_lite.models import policy as policies
from grlo_lite.models.backends import Place
from grlo_lite.recipe.schema import Lora, Model

CPU = torch.device("cpu")


def load(**changes):
    options = {"quantization": "nf4", "lora": Lora(rank=8, alpha=16), "seed": 0} | changes
    base = Model(name="microcosm", quantization=options["quantization"])
    return policies.load(base, options["lora"], Place(CPU), 256, options["seed"])


@pytest.fixture(scope="module")
def loaded():
    return load()


def test_every_linear_layer_is_nf4_with_double_quantization_and_carries_lora(loaded):
    quantized = {n: m for n, m in loaded.model.named_modules() if isinstance(m, Linear4bit)}
    assert len(quantized) == 7 * 4  # q, k, v, o, gate, up, down in each of four layers
    assert {m.weight.quant_type for m in quantized.values()} == {"nf4"}
    assert all(m.weight.quant_state.nested for m in quantized.values())
    trained = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 4
    assert all("lora_" in name for name in trained)


def test_the_adapter_is_fp32_even_after_something_made_it_bf16(loaded):
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            parameter.data = parameter.data.bfloat16()
    policies.trainable_in_fp32(loaded.model)
    assert {p.dtype for p in loaded.model.parameters() if p.requires_grad} == {torch.float32}


def test_cpu_weights_are_never_repacked(loaded):
    """bitsandbytes repacks at the first no-grad forward in eval mode, after which LoRA's gradients shrink about
    100-fold.
    """

    def gradient():
        loaded.model.zero_grad()
        loaded.model.train()
        loaded.model(input_ids=tokens, labels=tokens).loss.backward()
        return sum(p.grad.norm() for p in loaded.model.parameters() if p.requires_grad).item()

    assert not any(m.support_avx512bf16_for_cpu for m in loaded.model.modules() if isinstance(m, Linear4bit))
    tokens = torch.arange(100, 140)[None]
    before = gradient()
    loaded.model.eval()
    with torch.no_grad():
        loaded.model(input_ids=tokens)
    assert gradient() == pytest.approx(before, rel=1e-5)


def test_a_fresh_adapter_changes_nothing_and_depends_on_the_seed_alone(loaded):
    def weights(made):
        return torch.cat([p.detach().flatten() for n, p in made.model.named_parameters() if "lora_A" in n])

    tokens = torch.arange(100, 120)[None]
    fresh = load()
    with torch.no_grad():
        tuned = fresh.model.eval()(input_ids=tokens).logits
        with fresh.model.disable_adapter():
            assert torch.equal(tuned, fresh.model(input_ids=tokens).logits)
    assert torch.equal(weights(load()), weights(fresh))
    assert not torch.equal(weights(load(seed=1)), weights(fresh))


def test_both_stop_tokens_are_known_to_the_model(loaded):
    tokenizer = loaded.tokenizer
    assert tokenizer.eos_token == "<|endoftext|>"  # as Qwen3's base models have it
    expected = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    assert loaded.model.generation_config.eos_token_id == expected


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        ("{% for m in messages %}{{ m['content'] }}<|im_end|>\n{% endfor %}", ["<|im_end|>", "<|endoftext|>"]),
        ("{% for m in messages %}{{ m['content'] }} \n{% endfor %}", ["<|endoftext|>"]),
        ("{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}", ["<|endoftext|>"]),
    ],
)
def test_stop_tokens_are_read_off_the_chat_template(template, ends):
    tokenizer = AutoTokenizer.from_pretrained(names.POLICY)
    tokenizer.chat_template = template
    assert [tokenizer.decode([i]) for i in chat_template.stop_token_ids(tokenizer)] == ends


def test_a_base_without_a_chat_template_is_asked_in_plain_text(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(names.POLICY)
    tokenizer.chat_template, tokenizer.bos_token = None, "<|im_start|>"
    tokenizer.save_pretrained(tmp_path)
    made = chat_template.load_tokenizer(str(tmp_path), "main")
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two?"}]
    expected = "<|im_start|>Be brief.\n\nUser: Two?\n\nAssistant:"
    assert chat_template.formatted(made, asked) == expected
    said = made.apply_chat_template([*asked, {"role": "assistant", "content": "2"}], tokenize=False)
    assert said == f"{expected} 2<|endoftext|>\n\n"
    assert chat_template.stop_token_ids(made) == [made.convert_tokens_to_ids("<|endoftext|>")]
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="neither a chat template nor an EOS token"):
        chat_template.load_tokenizer(str(tmp_path), "main")


def test_what_is_no_causal_language_model_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is not a causal language model"):
        policies.load(Model(name=str(names.REWARD)), Lora(), Place(CPU), 64, 0)
    with pytest.raises(BadInput, match="has no tokenizer"):
        policies.load(Model(name=str(tmp_path)), Lora(), Place(CPU), 64, 0)
    with pytest.raises(BadInput, match=r"lora\.targets=\('nothing',\) cannot be adapted"):
        load(lora=Lora(targets=("nothing",)))


def test_auto_is_transformers_on_a_cpu():
    assert backends.chosen_backend("auto", CPU) == "transformers"


@pytest.mark.parametrize(("rank", "least"), [(1, 8), (8, 8), (16, 16), (24, 32), (33, 64)])
def test_vllm_is_given_a_rank_that_it_takes(rank, least):
    assert unsloth.vllm_rank(rank) == least
