import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from grlo_lite.errors import BadInput, DoesNotFit
from grlo_lite.microcosm import base_model
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


def a_tokenizer(path, special, eos="<|endoftext|>", pad=None, template=base_model.CHAT_TEMPLATE):
    """Saved as a model's would be: these special tokens, ten words."""
    words = WordLevel({word: n for n, word in enumerate([*special, *"abcdefghij"])}, unk_token="a")
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), eos_token=eos, pad_token=pad, chat_template=template,
        additional_special_tokens=[token for token in special if token not in (eos, pad)],
    )  # fmt: skip
    made.save_pretrained(path)
    return chat_template.load_tokenizer(str(path), "main")


CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize(
    ("special", "options", "pad"),
    [
        # Qwen3's base models pad with their EOS, which ends an answer too
        ([*CHATML, "<|box_end|>", "<|vision_pad|>", "<|image_pad|>"], {"pad": "<|endoftext|>"}, "<|vision_pad|>"),
        # Llama-3.2 has no pad token
        ([*CHATML, "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"], {}, "<|finetune_right_pad_id|>"),
        ([*CHATML, "<|python_tag|>", "<|reserved_special_token_0|>"], {}, "<|reserved_special_token_0|>"),
        # SmolLM2: the end of a document is not what ends its turns
        (CHATML, {"eos": "<|im_end|>"}, "<|endoftext|>"),
        ([*CHATML, "<|vision_pad|>", "<pad>"], {"pad": "<pad>"}, "<pad>"),  # what is right stays
        (CHATML, {}, "<|endoftext|>"),  # nothing else is there
    ],
)
def test_what_pads_ends_no_answer(special, options, pad, tmp_path):
    assert a_tokenizer(tmp_path, special, **options).pad_token == pad


def test_unsloth_is_refused_where_the_pad_ends_an_answer(tmp_path):
    """Its trainers take every token that equals the pad for padding: the model would never learn to stop."""
    tokenizer = a_tokenizer(tmp_path, CHATML)
    with pytest.raises(BadInput, match=r"no token to pad with but <\|endoftext\|>.* use backend=transformers"):
        policies.require_pad_that_ends_nothing("some/base", tokenizer)
    policies.require_pad_that_ends_nothing("some/base", a_tokenizer(tmp_path, [*CHATML, "<|fim_pad|>"]))


def test_the_microcosm_pads_with_a_token_of_its_own(loaded):
    tokenizer, model = loaded.tokenizer, loaded.model
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.pad_token_id not in chat_template.stop_token_ids(tokenizer)
    assert model.generation_config.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0]  # no row was added
    every_byte = "".join(map(chr, range(0x20, 0x2000)))
    assert tokenizer.pad_token_id not in tokenizer(every_byte)["input_ids"]
    assert tokenizer.decode(tokenizer(every_byte)["input_ids"]) == every_byte


def test_vllm_gets_the_revision_as_a_folder(monkeypatch, tmp_path):
    """Unsloth drops `revision` where vLLM loads the weights, and takes the newest."""
    asked = []

    def download(path, revision):
        asked.append((path, revision))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert given_to_unsloth(monkeypatch, "some/base", "abc123", vllm_memory=0.3)["model_name"] == str(tmp_path)
    assert asked == [("some/base", "abc123")]
    assert given_to_unsloth(monkeypatch, "some/base", "abc123", vllm_memory=None)["model_name"] == "some/base"
    assert given_to_unsloth(monkeypatch, str(names.POLICY), "main", vllm_memory=0.3)["model_name"] == str(names.POLICY)
    assert len(asked) == 1


def given_to_unsloth(monkeypatch, path, revision, vllm_memory, raises=None):
    """What a stand-in for Unsloth's loader is called with; its adapter must name the model and no folder of a cache."""
    given = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**options):
            given.update(options)
            if raises:
                raise raises
            return torch.nn.Linear(1, 1), None

        @staticmethod
        def get_peft_model(base, **_):
            base.peft_config = {"default": SimpleNamespace(base_model_name_or_path=given["model_name"])}
            return base

    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=FastLanguageModel))
    made = unsloth.load_with_unsloth(Model(name=path, revision=revision), Lora(), Place(CPU), 64, 0, vllm_memory)
    assert made.peft_config["default"].base_model_name_or_path == path
    return given


def test_what_unsloth_cannot_load_ends_as_one_line(monkeypatch):
    error = RuntimeError("Unsloth: Could not find a valid pad token\nfor the model")
    with pytest.raises(BadInput, match="cannot be loaded by Unsloth: Unsloth: Could not find a valid pad token for"):
        given_to_unsloth(monkeypatch, str(names.POLICY), "main", None, error)
    with pytest.raises(DoesNotFit, match="does not fit into this memory"):
        given_to_unsloth(monkeypatch, str(names.POLICY), "main", None, RuntimeError("CUDA out of memory. Tried"))


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
