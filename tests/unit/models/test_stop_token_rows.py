"""lora.train_stop_tokens: the stop tokens' own rows are trained, kept, and honoured by every engine."""

from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from grlo_lite.errors import BadInput
from grlo_lite.generation.answers import completion_ids
from grlo_lite.generation.engines import rollouts
from grlo_lite.generation.request import Sampling
from grlo_lite.generation.twin import twin
from grlo_lite.models import backends, chat_template, loading, names, trained_adapter
from grlo_lite.models import policy as policies
from grlo_lite.models.backends import Place
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Lora, Model
from grlo_lite.training import trainer

CPU = torch.device("cpu")
ROWS = Lora(rank=8, alpha=16, train_stop_tokens=True)
TOKENS = torch.arange(100, 140)[None]
TEXTS = ["<|im_start|>user\nTell me about the river.<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>user\n"]


def load(path=names.POLICY, lora=ROWS, **more):
    return policies.load(Model(name=str(path), **more), lora, Place(CPU), 256, 0)


def trained_rows(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}


@pytest.fixture
def moved():
    """A policy whose stop tokens' rows and whose LoRA are no longer what they were."""
    made = load()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def logits(made, ids=TOKENS):
    with torch.no_grad():
        return made.model.eval()(input_ids=ids).logits


def test_tied_rows_are_one_parameter_in_fp32_that_gets_a_gradient_from_both_ends():
    made = load()
    ((name, rows),) = trained_rows(made.model).items()
    assert "embed_tokens" in name
    assert (tuple(rows.shape), rows.dtype) == ((2, 128), torch.float32)
    assert torch.equal(logits(made), logits(load(lora=Lora(rank=8, alpha=16))))  # fresh, they change nothing
    made.model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert (rows.grad.norm(dim=1) > 0).all()  # no stop token is in the text: this came by way of the output layer


def test_untied_rows_are_trained_in_both_layers(tmp_path):
    Qwen3ForCausalLM(
        Qwen3Config(vocab_size=800, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=1, tie_word_embeddings=False)
    ).save_pretrained(tmp_path)  # fmt: skip
    AutoTokenizer.from_pretrained(names.POLICY).save_pretrained(tmp_path)
    rows = trained_rows(load(tmp_path).model)
    assert sorted(name.split(".token_adapter")[0].rpartition(".")[2] for name in rows) == ["embed_tokens", "lm_head"]


def test_the_rows_change_what_is_said_and_the_disabled_adapter_is_the_base(moved):
    ends = chat_template.stop_token_ids(moved.tokenizer)
    other = [i for i in range(moved.model.config.vocab_size) if i not in ends]
    base, tuned = logits(load()), logits(moved)
    assert not torch.allclose(tuned[..., ends], base[..., ends], atol=0.05)
    assert not torch.allclose(tuned[..., other], base[..., other], atol=0.05)  # by LoRA
    with moved.model.disable_adapter():
        assert torch.equal(logits(moved), base)


def test_an_adapter_is_saved_with_its_rows_and_loaded_on_its_base(moved, tmp_path):
    trained_adapter.save_adapter(moved.model, moved.tokenizer, tmp_path, "card")
    again = trained_adapter.load_trained(str(names.POLICY), "main", "nf4", tmp_path, CPU)
    assert torch.equal(logits(again), logits(moved))
    state = get_peft_model_state_dict(moved.model)  # as guards keep the best adapter
    fresh = load()
    set_peft_model_state_dict(fresh.model, state)
    assert torch.equal(logits(fresh), logits(moved))
    assert sum("trainable_tokens_delta" in name for name in state) == 1
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 2**20  # the rows, not the embedding


def test_the_decoder_honours_the_rows_and_leaves_the_base_as_it_was(moved):
    weight = moved.model.get_base_model().lm_head.token_adapter.base_layer.weight
    before, expected = weight.clone(), logits(moved)
    with twin(moved.model, True):
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)
    assert torch.equal(logits(moved), expected)
    with moved.model.disable_adapter(), twin(moved.model, True):
        assert torch.equal(weight, before)


@pytest.mark.parametrize("engine", ["compact", "folded"])
def test_the_kits_engines_say_what_the_policy_says(moved, engine):
    """Greedily, token by token, by PEFT's own forward."""
    moved.model.eval()
    said = completion_ids(moved.model, moved.tokenizer, TEXTS, Sampling(12, temperature=0.0))
    for text, row in zip(TEXTS, said, strict=True):
        asked = moved.tokenizer(text, add_special_tokens=False)["input_ids"]
        best = logits(moved, torch.tensor([asked + row]))[0, len(asked) - 1 : -1].argmax(-1)
        assert best.tolist() == row
    batch = moved.tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    config = moved.model.generation_config
    config.max_new_tokens, config.do_sample = 12, False
    with rollouts(recipes.load("microcosm", []), moved.model, engine, SimpleNamespace(smallest=lambda phase: None)):
        rows = moved.model.generate(**batch, generation_config=config)[:, batch["input_ids"].shape[1] :].tolist()
    assert [row[: len(expected)] for row, expected in zip(rows, said, strict=True)] == said


def test_merged_the_rows_are_in_the_embedding(moved):
    """PEFT's own merge; that it loses the LoRA of a 4-bit model is another matter."""
    ends = chat_template.stop_token_ids(moved.tokenizer)
    ((_, rows),) = trained_rows(moved.model).items()
    merged = moved.model.merge_and_unload()
    assert torch.equal(merged.get_input_embeddings().weight[ends], rows.data)
    assert merged.lm_head.weight is merged.get_input_embeddings().weight or torch.equal(
        merged.lm_head.weight[ends], rows.data
    )


@pytest.mark.parametrize("words", [["algorithm.kl=0.1"], ["algorithm.name=rloo"]])
def test_trls_copy_of_the_adapter_goes_and_the_rows_stay(words, tmp_path):
    """Its `ref` copy would train or mask the same rows."""
    once = "algorithm.updates_per_rollout=1"
    recipe = recipes.load("microcosm", [once, *words, "lora.train_stop_tokens=true", "budget.steps=1"])
    made = loading.load_policy(recipe, Place(CPU))
    asked = [[{"role": "user", "content": "?"}]] * 4
    materials = trainer.Materials(made, lambda completions, **_: [0.0] * len(completions), asked, Place(CPU))
    trainer.composed_trainer(recipe, materials, tmp_path, [], 32)
    assert set(made.model.peft_config) == {"default"}
    assert [p.dtype for p in trained_rows(made.model).values()] == [torch.float32]
    assert torch.equal(logits(made), logits(load(lora=recipe.lora)))


def test_what_cannot_be_had_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "backend_of", lambda *_: "unsloth")  # where Unsloth is not installed as well
    unsloth = recipes.load("microcosm", ["lora.train_stop_tokens=true", "backend=unsloth"])
    with pytest.raises(BadInput, match=r"lora.train_stop_tokens=true with backend=unsloth: .*backend=transformers"):
        backends.place(unsloth)
    tokenizer = AutoTokenizer.from_pretrained(names.POLICY)
    tokenizer.eos_token = None
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((names.POLICY / "config.json").read_bytes())
    with pytest.raises(BadInput, match=r"no token is known that ends an answer of .*model.eos_token$"):
        load(tmp_path)
    with pytest.raises(BadInput, match=r"model.eos_token='<nil>' is no token of"):
        load(eos_token="<nil>")
    assert load(eos_token="<|im_start|>").model.generation_config.eos_token_id == [2, 1]  # the template's, then this
