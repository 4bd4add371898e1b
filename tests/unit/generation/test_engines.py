"""The kit's rollout engine against Transformers' own `generate`."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from grlo_lite.errors import BadInput
from grlo_lite.generation import engines, folded_weights, kv_cache
from grlo_lite.microcosm import world
from grlo_lite.models import backends, chat_template, names
from grlo_lite.models import policy as policies
from grlo_lite.recipe.schema import Lora

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["nf4", "none"])
def moved(request):
    """The microcosm's policy with an adapter that does something, in training mode, as a trainer has it."""
    made = policies.load(str(names.POLICY), "main", request.param, Lora(rank=16, alpha=32), "transformers", CPU, 256, 0)
    torch.manual_seed(0)
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    made.model.train()
    return made


@pytest.fixture(scope="module")
def asked(moved):
    chats, sums = world.chat_prompts(held_out=False)[:3], [question.text for question in world.exam("arithmetic", 2, 0)]
    questions = [question for question in (*chats, *sums) for _ in range(3)]
    texts = [
        chat_template.formatted(moved.tokenizer, [{"role": "user", "content": question}]) for question in questions
    ]
    batch = moved.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    assert not batch["attention_mask"].all()  # the prompts are of several lengths
    return batch


def said(model, batch, tokens=40, **changes):
    ends = model.generation_config
    drawn = {"do_sample": False, "eos_token_id": ends.eos_token_id, "pad_token_id": ends.pad_token_id} | changes
    with torch.no_grad():
        return model.generate(**batch, generation_config=GenerationConfig(max_new_tokens=tokens, **drawn))


@pytest.mark.parametrize("rows_at_once", ["auto", 4])
@pytest.mark.parametrize("fold", [False, True])
def test_greedy_answers_are_those_of_plain_generate(moved, asked, fold, rows_at_once):
    ends = list(range(20, 744, 25))  # an untrained policy would never end
    plain = said(moved.model, asked, eos_token_id=ends)
    assert len(set((plain != moved.tokenizer.pad_token_id).sum(1).tolist())) > 2  # they end at several lengths
    with engines.engine(moved.model, fold, rows_at_once):
        assert torch.equal(said(moved.model, asked, eos_token_id=ends), plain)
    assert torch.equal(said(moved.model, asked, eos_token_id=ends), plain)
    assert moved.model.config._attn_implementation == "sdpa"


def test_a_base_arm_is_not_folded_into(moved, asked):
    with moved.model.disable_adapter():
        plain = said(moved.model, asked)
        with engines.engine(moved.model, True, "auto"):
            assert torch.equal(said(moved.model, asked), plain)
    assert not torch.equal(said(moved.model, asked), plain)


def test_folded_layers_give_the_adapted_logits(moved, asked):
    with torch.no_grad():
        adapted = moved.model(**asked).logits
        with folded_weights.folded(moved.model):
            folded = moved.model(**asked).logits
        assert torch.equal(moved.model(**asked).logits, adapted)
    assert (folded - adapted).abs().max() < 1e-4
    with torch.no_grad(), moved.model.disable_adapter():
        assert (moved.model(**asked).logits - adapted).abs().max() > 0.1


def test_the_dense_copy_takes_what_is_said_of_it(moved):
    assert folded_weights.folded_bytes(moved.model) == 4 * 4 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 384)


@pytest.mark.parametrize("fold", [False, True])
def test_sampled_answers_have_the_models_distribution(fold):
    """Six tokens, two drawn: all 30 outcomes (an end is not followed by another token) against their probabilities."""
    torch.manual_seed(0)
    model = wrapped(Qwen3ForCausalLM(tiny(Qwen3Config, head_dim=16)))
    prompt_BP = torch.tensor([[2, 3, 4, 5], [1, 1, 3, 2]])  # the second is two tokens long, padded on the left
    mask_BP = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    batch = {"input_ids": prompt_BP.repeat_interleave(3000, 0), "attention_mask": mask_BP.repeat_interleave(3000, 0)}
    torch.manual_seed(1)
    with engines.engine(model, fold, 1000):
        drawn = said(model, batch, 2, do_sample=True, top_k=0, temperature=0.7, eos_token_id=[0], pad_token_id=1)
    for row, prompt in enumerate(([2, 3, 4, 5], [3, 2])):
        expected = probabilities(model, prompt, temperature=0.7, end=0, pad=1)
        counts = Counter(tuple(pair) for pair in drawn[row * 3000 : row * 3000 + 3000, 4:].tolist())
        assert set(counts) <= set(expected)
        of_all = 3000 / sum(expected.values())
        assert chisquare([counts[pair] for pair in expected], [p * of_all for p in expected.values()]).pvalue > 0.001


def test_top_p_leaves_out_what_generate_leaves_out():
    torch.manual_seed(0)
    model = wrapped(Qwen3ForCausalLM(tiny(Qwen3Config, head_dim=16)))
    batch = {"input_ids": torch.full((400, 1), 2), "attention_mask": torch.ones(400, 1, dtype=torch.long)}
    options = {"do_sample": True, "top_k": 0, "top_p": 0.5, "eos_token_id": [0], "pad_token_id": 1}
    plain = {tuple(row) for row in said(model, batch, 1, **options).tolist()}
    with engines.engine(model, False, "auto"):
        ours = {tuple(row) for row in said(model, batch, 1, **options).tolist()}
    assert ours == plain
    assert len(plain) < 6


def test_long_runs_of_refills_drop_old_columns_and_stay_exact(monkeypatch):
    """A Llama (other attention, no query norm), a cache that grows and is cut often, many more prompts than slots."""
    monkeypatch.setattr(kv_cache, "ROOM", 4)
    torch.manual_seed(3)
    model = wrapped(LlamaForCausalLM(tiny(LlamaConfig, vocab_size=40)))
    ids_BP = torch.randint(4, 40, (24, 9))
    mask_BP = (torch.arange(9) >= torch.randint(0, 7, (24, 1))).long()
    batch = {"input_ids": ids_BP, "attention_mask": mask_BP}
    options = {"eos_token_id": list(range(8)), "pad_token_id": 1}
    plain = said(model, batch, 30, **options)
    with engines.engine(model, True, 5):
        assert torch.equal(said(model, batch, 30, **options), plain)


def test_grouped_attention_is_sdpa():
    torch.manual_seed(0)
    query_BHQD, key_BKTD, value_BKTD = (torch.randn(shape) for shape in ((3, 8, 1, 16), (3, 2, 7, 16), (3, 2, 7, 16)))
    mask_BQT = (torch.arange(7) >= torch.tensor([0, 3, 6])[:, None])[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query_BHQD, key_BKTD, value_BKTD, attn_mask=mask_BQT, scale=0.25, enable_gqa=True
    )
    answer, _ = kv_cache.grouped_attention(None, query_BHQD, key_BKTD, value_BKTD, mask_BQT, scaling=0.25)
    assert torch.allclose(answer, expected.transpose(1, 2), atol=1e-6)


def test_rows_that_fit_are_counted_by_cache_and_logits():
    config = Qwen3Config(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151_936,
    )
    a_row = 37 * 2048 * 4096 + 16 * 151_936  # 36 layers and one that is copied, 2 × 8 × 128 numbers of 2 bytes a token
    a_row += 16 * (16 * 2560 + 8 * 9728)  # an eighth of a prompt of 128 tokens
    assert engines.rows_in(config, 10 * a_row, 2048, 16) == 10
    assert engines.rows_in(config, 10 * a_row - 1, 2048, 16) == 9
    assert engines.rows_in(config, -5, 2048, 16) == 0


@pytest.mark.parametrize(
    ("copy_rows", "wanted", "expected"), [(0, 64, (40, True)), (30, 64, (40, False)), (30, 10, (10, True))]
)
def test_folding_is_given_up_where_the_copy_leaves_room_for_too_few(copy_rows, wanted, expected, monkeypatch):
    """40 rows fit without the copy, which takes the room of `copy_rows` of them."""
    model = wrapped(Qwen3ForCausalLM(tiny(Qwen3Config, head_dim=16)))
    a_row = 10_000
    monkeypatch.setattr(engines, "rows_in", lambda config, free, *_: free // a_row)
    monkeypatch.setattr(engines, "free_bytes", lambda device: 40 * a_row * 10 // 9 + 2)
    monkeypatch.setattr(engines, "folded_bytes", lambda model: copy_rows * a_row)
    assert engines.rows_that_fit(model, True, wanted, 2048, 16) == expected


def test_rows_that_all_end_at_once_leave_the_prompts_as_they_were():
    torch.manual_seed(0)
    model = wrapped(Qwen3ForCausalLM(tiny(Qwen3Config, head_dim=16)))
    batch = {"input_ids": torch.randint(2, 6, (9, 3)), "attention_mask": torch.ones(9, 3, dtype=torch.long)}
    options = {"eos_token_id": list(range(6)), "pad_token_id": 1}
    plain = said(model, batch, 4, **options)
    with engines.engine(model, False, 2):
        assert torch.equal(said(model, batch, 4, **options), plain)
    assert plain.shape == (9, 4)


GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("engine", "backend", "device", "chosen"),
    [
        ("auto", "transformers", CPU, "generate"),
        ("auto", "transformers", GPU, "folded"),
        ("auto", "unsloth", CPU, "generate"),
        ("compact", "transformers", CPU, "compact"),
    ],
)
def test_the_engine_follows_from_backend_and_device(engine, backend, device, chosen, monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert backends.chosen_engine(engine, backend, "nf4", device) == chosen


def test_vllm_is_chosen_where_it_is_installed_beside_unsloth(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    assert backends.chosen_engine("auto", "unsloth", "nf4", GPU) == "fast_inference"
    assert backends.chosen_engine("auto", "transformers", "nf4", GPU) == "folded"


@pytest.mark.parametrize(
    ("engine", "backend", "why"),
    [
        ("fast_inference", "transformers", "merge the adapter into vLLM's and the policy's 4-bit weights and back"),
        ("fast_inference", "unsloth", "vLLM is not installed"),
        ("folded", "unsloth", "Unsloth's own forward goes around the layers"),
    ],
)
def test_an_engine_that_cannot_be_had_is_refused_with_the_reason(engine, backend, why, monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=why):
        backends.chosen_engine(engine, backend, "nf4", GPU)


def tiny(kind, **changes):
    options = {
        "vocab_size": 6,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 0,
        "initializer_range": 0.5,
    }
    return kind(**options | changes)


def wrapped(base):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return model.eval()


def probabilities(model, prompt, temperature, end, pad):
    """Of every pair of tokens that may follow a prompt; after the end comes padding."""
    with torch.no_grad():
        first = (model(input_ids=torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
        seconds = model(input_ids=torch.tensor([[*prompt, token] for token in range(6)])).logits[:, -1]
    pairs = {
        (a, b): float(first[a] * p)
        for a, row in enumerate((seconds / temperature).softmax(-1))
        for b, p in enumerate(row)
    }
    return {(end, pad): float(first[end])} | {pair: p for pair, p in pairs.items() if pair[0] != end}


def test_in_16_bits_the_engine_answers_as_generate_and_leaves_the_stream_in_16_bits(monkeypatch):
    """As on a GPU: bf16 embeddings, norms and KV cache, NF4 weights, an fp32 adapter."""
    monkeypatch.setattr("grlo_lite.machine.device.float_dtype", lambda device, cpu_dtype="": torch.bfloat16)
    made = policies.load(str(names.POLICY), "main", "nf4", Lora(rank=16, alpha=32), "transformers", CPU, 256, 0)
    assert made.model.dtype == torch.bfloat16
    assert {p.dtype for p in made.model.parameters() if p.requires_grad} == {torch.float32}
    assert made.model.get_input_embeddings().weight.dtype == torch.bfloat16
    text = chat_template.formatted(made.tokenizer, [{"role": "user", "content": world.chat_prompts(held_out=False)[0]}])
    batch = made.tokenizer([text] * 8, return_tensors="pt", add_special_tokens=False)
    caches = []
    update = kv_cache.RoomyLayer.update
    monkeypatch.setattr(
        kv_cache.RoomyLayer,
        "update",
        lambda layer, keys, *rest: caches.append(keys.dtype) or update(layer, keys, *rest),
    )
    plain = said(made.model, batch, 20)
    for fold in (False, True):
        with engines.engine(made.model, fold, "auto"):
            assert (said(made.model, batch, 20) == plain).float().mean() > 0.9  # near ties may tip
    assert set(caches) == {torch.bfloat16}
