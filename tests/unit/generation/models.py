"""Tiny models with an adapter that does something, and what Transformers' own `generate` says with them."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama 3": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": STRETCHED}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 6}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"sliding_window": 6, "tie_word_embeddings": False}),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {"sliding_window": 6, "tie_word_embeddings": False}),
}


def config(kind, **changes):
    options = {
        "vocab_size": 6,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 0,
        "initializer_range": 0.5,
    }
    return KINDS[kind][0](**options | KINDS[kind][2] | changes)


def bare(kind, **changes):
    torch.manual_seed(0)
    base = KINDS[kind][1](config(kind, **changes))
    for name, parameter in base.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.3)
    return base.eval()


def adapted(base, **options):
    config = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    model = get_peft_model(base, LoraConfig(**config))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return model.eval()


def generated(model, ids_BP, mask_BP, tokens=20, **changes):
    """Prompts and completions by `model.generate`, whatever that is at the moment."""
    ends = model.generation_config
    drawn = {"do_sample": False, "eos_token_id": ends.eos_token_id, "pad_token_id": ends.pad_token_id} | changes
    with torch.no_grad():
        return model.generate(
            input_ids=ids_BP,
            attention_mask=mask_BP.long(),
            generation_config=GenerationConfig(max_new_tokens=tokens, **drawn),
        )
