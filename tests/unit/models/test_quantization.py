"""Loading, on a tiny model with an output layer that counts as large."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from grlo_lite.models.quantization import LARGE, from_pretrained

ROWS, HIDDEN = 3, 64


def test_a_large_output_layer_is_not_copied_for_every_row(tmp_path):
    vocabulary = LARGE // HIDDEN
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ours = from_pretrained(AutoModelForCausalLM, str(tmp_path), "main", "none", "cpu", "bf16").eval()
    for model in (plain, ours):
        model.requires_grad_(False)  # as under an adapter
    ids_BT = torch.arange(ROWS * 5).view(ROWS, 5)
    assert largest_copy(plain, ids_BT) == ROWS * HIDDEN * vocabulary  # what PyTorch does by itself
    assert largest_copy(ours, ids_BT) < HIDDEN * vocabulary
    with torch.no_grad():
        said, expected = (m(input_ids=ids_BT, logits_to_keep=2).logits for m in (ours, plain))
    torch.testing.assert_close(said, expected, atol=1e-3, rtol=1e-2)


def largest_copy(model, ids_BT):
    """Numbers in the largest tensor that a forward copies."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        model(input_ids=ids_BT, logits_to_keep=2)
    copied = [event.input_shapes[0] for event in profiler.events() if event.name == "aten::copy_"]
    return max(torch.Size(shape).numel() for shape in copied)
