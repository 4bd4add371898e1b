"""Loading, on a tiny model with an output layer that counts as large."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from grlo_lite.models.quantization import LARGE, from_pretrained

ROWS, HIDDEN = 3, 64
VOCABULARY = LARGE // HIDDEN


def both(folder, cpu_dtype):
    """A model as the kit loads it and as Transformers does, frozen as under an adapter, and tokens to ask them."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[cpu_dtype]
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    ours = from_pretrained(AutoModelForCausalLM, str(folder), "main", "none", "cpu", cpu_dtype)
    return *(model.eval().requires_grad_(False) for model in (ours, plain)), torch.arange(ROWS * 5).view(ROWS, 5)


def logits(model, ids_BT):
    return model(input_ids=ids_BT, logits_to_keep=2).logits


def test_a_large_output_layer_is_not_copied_for_every_row(tmp_path):
    ours, plain, ids_BT = both(tmp_path, "bf16")
    assert largest_copy(plain, ids_BT) == ROWS * HIDDEN * VOCABULARY  # what PyTorch does by itself
    assert largest_copy(ours, ids_BT) < HIDDEN * VOCABULARY
    torch.testing.assert_close(logits(ours, ids_BT), logits(plain, ids_BT), atol=1e-3, rtol=1e-2)


def largest_copy(model, ids_BT):
    """Numbers in the largest tensor that a forward copies."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        logits(model, ids_BT)
    copied = [event.input_shapes[0] for event in profiler.events() if event.name == "aten::copy_"]
    return max(torch.Size(shape).numel() for shape in copied)


def test_in_fp32_logits_are_a_plain_models_to_the_bit(tmp_path):
    """As lm-eval's own, which the kit's are held to; a hook would round them otherwise."""
    ours, plain, ids_BT = both(tmp_path, "fp32")
    assert not ours.get_output_embeddings()._forward_pre_hooks
    assert torch.equal(logits(ours, ids_BT), logits(plain, ids_BT))
