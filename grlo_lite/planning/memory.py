"""Bytes on the card by phase and part, as the kit's own loading, rollouts, scoring and updates allocate them. No torch.

docs/planner.md derives each number; what is no consequence of a tensor's shape stands here as a named constant.
"""

from dataclasses import dataclass
from math import ceil

from grlo_lite.models.scoring_budget import token_bytes
from grlo_lite.planning.cards import Card
from grlo_lite.planning.model_shapes import Shape, shape_of, weight_bytes
from grlo_lite.recipe.schema import Lora, Recipe

PHASES = ("load", "rollout", "reward", "update")  # and, under PPO, `critic`, which learns before the policy does


PARTS = (
    "weights",
    "adapter",
    "critic",
    "optimizer",
    "activations",
    "logits",
    "vLLM weights",
    "vLLM asleep",
    "KV cache",
    "reward weights",
    "reward activations",
    "CUDA context",
)


WHOLE_BATCH = ("generate", "unsloth")  # engines that read every row's prompt and keep every row to the end


ASLEEP = 2**29  # assumed: what vLLM keeps on the card while it sleeps: its CUDA graphs and the adapter's slots


SAMPLING_BYTES = 16  # of a logit while a token is drawn: 16-bit, fp32, filtered, probability


TOP_P_BYTES = 16  # more of it where top_p sorts: values and 64-bit indices


@dataclass(frozen=True)
class Models:
    """The shapes of a recipe's policy and of its reward models with their quantization, the held-out one included."""

    policy: Shape
    judges: tuple[tuple[Shape, str], ...]


@dataclass(frozen=True)
class Sizes:
    """What a plan chooses: completions generated together, completions a backward pass, padded tokens a scoring
    forward.
    """

    rows_at_once: int
    micro_batch: int
    reward_tokens: int
    engine: str  # as rollout.engine; `unsloth` is Unsloth's own `generate`


def models(recipe: Recipe) -> Models:
    """The recipe's models. Raises BadInput for one whose shape is not at hand."""
    judges = [(j.name, j.quantization) for j in recipe.reward.judges]
    if recipe.reward.heldout.name:
        judges.append((recipe.reward.heldout.name, recipe.reward.heldout.quantization))
    return Models(
        shape_of("model.name", recipe.model.name),
        tuple((shape_of("reward.name", name), quantization) for name, quantization in judges),
    )


def policy_bytes(recipe: Recipe, shape: Shape, card: Card) -> int:
    return weight_bytes(shape, recipe.model.quantization, card.float_bytes, card.float_bytes)


def optimizer_bytes(recipe: Recipe, shape: Shape) -> int:
    """Adam's two moments of every LoRA matrix, the critic's and its head among them."""
    name = recipe.optimizer.name
    total = shape.layers * sum(moment_bytes(name, size) for size in shape.adapter_matrices(recipe.lora))
    if recipe.algorithm.name != "ppo":
        return total
    matrices = shape.adapter_matrices(critic_lora(recipe)) if recipe.algorithm.critic.kind == "adapter" else []
    total += shape.layers * sum(moment_bytes(name, size) for size in matrices)
    return total + moment_bytes(name, shape.hidden) + moment_bytes(name, 1)


def moment_bytes(optimizer: str, size: int) -> int:
    """Adam's two moments of a matrix: fp32, or in 8 bits with an fp32 scale for each 256 where it has at least 4,096
    numbers.
    """
    eight_bit = optimizer == "adamw_8bit" and size >= 4096
    return 2 * (size + 4 * ceil(size / 256)) if eight_bit else 8 * size


def critic_lora(recipe: Recipe) -> Lora:
    """The adapter of PPO's critic."""
    return recipe.lora.model_copy(update={"rank": recipe.critic_rank})


def critic_bytes(recipe: Recipe, shape: Shape) -> int:
    """PPO's critic in fp32: its adapter, and the value head with its bias; nothing under other algorithms."""
    if recipe.algorithm.name != "ppo":
        return 0
    adapter = shape.adapter_parameters(critic_lora(recipe)) if recipe.algorithm.critic.kind == "adapter" else 0
    return 4 * (adapter + shape.hidden + 1)


def largest_matrix(shape: Shape, width: int) -> int:
    return max(outputs * inputs for outputs, inputs in shape.linears.values()) * width


def vram(recipe: Recipe, models: Models, card: Card, sizes: Sizes) -> dict[str, dict[str, int]]:
    """Bytes by phase and part at the longest prompt and completion that the recipe allows."""
    shape, context = models.policy, card.context
    weights = policy_bytes(recipe, shape, card)
    judges = sum(weight_bytes(judge, how, card.float_bytes, 4, scores=True) for judge, how in models.judges)
    adapter = 4 * shape.adapter_parameters(recipe.lora)
    optimizer, critic = optimizer_bytes(recipe, shape), critic_bytes(recipe, shape)
    resting = {"weights": weights, "adapter": adapter, "reward weights": judges, "CUDA context": context}
    resting |= {"critic": critic} if critic else {}
    awake = {"vLLM weights": vllm_weights(shape, card)} if sizes.engine == "vllm" else {}
    asleep = {"vLLM asleep": ASLEEP} if awake and card.cuda else awake  # a CPU's vLLM does not sleep
    found = {
        "load": resting | awake | {"activations": loading_bytes(models, card)},
        "rollout": resting | {"optimizer": optimizer} | rollout_bytes(recipe, shape, card, sizes, weights),
        "reward": resting
        | asleep
        | {"optimizer": optimizer, "reward activations": scoring_bytes(models, card, sizes.reward_tokens)},
        "update": resting
        | asleep
        | {
            "optimizer": optimizer + adapter,  # a gradient for every number of the adapter
            "activations": update_bytes(recipe, shape, card, sizes.micro_batch),
            "logits": logit_bytes(recipe, shape, card, sizes.micro_batch),
        },
    }
    if critic:  # it has no logits
        learning = update_bytes(recipe, shape, card, sizes.micro_batch)
        found["critic"] = resting | asleep | {"optimizer": optimizer + critic, "activations": learning}
    return found


def rollout_bytes(recipe: Recipe, shape: Shape, card: Card, sizes: Sizes, weights: int) -> dict[str, int]:
    """What the rollout's engine needs, by part: weights, cache, the prompts' activations, logits.

    Transformers' `generate` copies a layer's cache where it grows and, for attention under a mask, spreads it over the
    query heads; the other engines do neither. `folded` adds a dense copy of the adapted weights. vLLM takes its share
    of the card, whatever it puts there. The kit's own vLLM has the base's weights a second time, dense, and a cache.
    """
    a_row = row_bytes(recipe, shape, card)
    if sizes.engine == "vllm":
        cache, logits = sizes.rows_at_once * a_row, sizes.rows_at_once * shape.vocabulary * SAMPLING_BYTES
        return {"weights": weights, "vLLM weights": vllm_weights(shape, card), "KV cache": cache, "logits": logits}
    if sizes.engine == "fast_inference":
        return {"weights": weights, "KV cache": max(0, int(recipe.rollout.vllm_memory * card.vram) - weights)}
    cache = sizes.rows_at_once * a_row
    copied = ceil(cache / shape.layers * (1 + shape.heads / shape.kv_heads)) if sizes.engine == "generate" else 0
    dense = card.float_bytes * shape.linear_parameters if sizes.engine == "folded" else 0
    a_logit = SAMPLING_BYTES + (TOP_P_BYTES if recipe.rollout.top_p < 1 else 0)
    return {
        "weights": weights + dense,
        "KV cache": cache + copied,
        "activations": prefill_bytes(recipe, shape, card, sizes),
        "logits": sizes.rows_at_once * shape.vocabulary * a_logit,
    }


def vllm_weights(shape: Shape, card: Card) -> int:
    """The base, dequantized, as vLLM holds it."""
    return weight_bytes(shape, "none", card.float_bytes, card.float_bytes)


def row_bytes(recipe: Recipe, shape: Shape, card: Card) -> int:
    """Bytes of a completion's keys and values at full length, its prompt's included."""
    return (recipe.prompts.max_tokens + recipe.rollout.max_tokens) * shape.kv_bytes_a_token(card.float_bytes)


def vllm_rows(recipe: Recipe, shape: Shape, card: Card) -> int:
    """The completions at full length whose cache fits into vLLM's share beside the weights and a prompt's pass."""
    weights = policy_bytes(recipe, shape, card)
    read = recipe.prompts.max_tokens * lora_layer_bytes(shape, card, 4) + largest_matrix(shape, card.float_bytes)
    return max(0, int(recipe.rollout.vllm_memory * card.vram) - weights - read) // row_bytes(recipe, shape, card)


def loading_bytes(models: Models, card: Card) -> int:
    """What exists for a moment while weights are read: the largest matrix before it is quantized."""
    shapes = (models.policy, *(shape for shape, _ in models.judges))
    return max(largest_matrix(shape, card.float_bytes) for shape in shapes)


def lora_layer_bytes(shape: Shape, card: Card, adapted_width: int) -> int:
    """Bytes a token at the widest point of a layer without gradients, where the MLP's adapter adds its fp32 part."""
    return shape.mlp * (2 * card.float_bytes + 2 * adapted_width) + 2 * shape.hidden * 4


def prefill_bytes(recipe: Recipe, shape: Shape, card: Card, sizes: Sizes) -> int:
    """Bytes of the prompts' forward pass, a prompt once for its group where the kit's engine reads them, and of one
    dequantized matrix.
    """
    a_token = lora_layer_bytes(shape, card, 4)
    rows = sizes.rows_at_once
    prompts = rows if sizes.engine in WHOLE_BATCH else ceil(rows / recipe.rollout.group_size)
    return prompts * recipe.prompts.max_tokens * a_token + largest_matrix(shape, card.float_bytes)


def scoring_bytes(models: Models, card: Card, tokens: int) -> int:
    """Bytes of the widest judge's forward pass over so many padded tokens, counted as the reward model itself does;
    none where rewards come of no model.
    """
    width = card.float_bytes
    return max(
        (
            tokens * token_bytes(shape.hidden, shape.mlp, width) + largest_matrix(shape, width)
            for shape, _ in models.judges
        ),
        default=0,
    )


def update_bytes(recipe: Recipe, shape: Shape, card: Card, micro_batch: int) -> int:
    """What a micro-batch's backward pass keeps: with gradient checkpointing the residual stream between layers and
    one layer's activations; without it every layer's.
    """
    tokens = micro_batch * (recipe.prompts.max_tokens + recipe.rollout.max_tokens)
    layer = int(tokens * layer_bytes(shape, card) * card.activation_share)
    matrix = largest_matrix(shape, card.float_bytes)
    if not recipe.optimizer.checkpoints_activations(card.type):
        return shape.layers * layer + matrix
    return tokens * (shape.layers + 2) * shape.hidden * card.float_bytes + layer + matrix


def layer_bytes(shape: Shape, card: Card) -> int:
    """Bytes a token that one layer saves for its backward pass: each adapted module's input and output, once in fp32
    for the adapter and once in the compute dtype, the MLP's three wide tensors, the norms.
    """
    outputs, inputs = shape.sides
    width = 4 + (2 if card.float_bytes == 2 else 0)
    return width * (inputs + outputs) + card.float_bytes * 3 * shape.mlp + 8 * shape.hidden


def logit_bytes(recipe: Recipe, shape: Shape, card: Card, micro_batch: int) -> int:
    """Bytes of the logits in a micro-batch's loss, forward and backward."""
    return int(micro_batch * (recipe.rollout.max_tokens + 1) * shape.vocabulary * card.logit_bytes)
