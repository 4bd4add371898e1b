"""Seconds a step by phase, from FLOPs, bytes and what a card reaches of its peak. No torch; see docs/planner.md."""

from math import ceil

from grlo_lite.hardware import Card
from grlo_lite.memory import Models, Sizes, judges_bytes, policy_bytes
from grlo_lite.recipe import Recipe
from grlo_lite.shapes import Shape

PROMPT_SHARE = 0.25  # assumed: an average prompt's share of prompts.max_tokens; the longest of a batch has all of it
COMPLETION_SHARE = 0.5  # assumed: the same of a completion and rollout.max_tokens
FOLDED_LAUNCHES = 0.5  # assumed: kernels of a layer without dequantizing and adapters, as a share of those with them
CACHE_PASSES = 3  # of Transformers' generate, on a CPU: attention reads the cache, growing reads and writes it


def seconds(recipe: Recipe, models: Models, card: Card, sizes: Sizes) -> dict[str, float]:
    """Seconds a step of rollout, reward and update."""
    return {
        "rollout": rollout_seconds(recipe, models, card, sizes, recipe.rollout.batch),
        "reward": reward_seconds(recipe, models, card, sizes.reward_tokens),
        "update": update_seconds(recipe, models, card, sizes.micro_batch),
    }


def rollout_seconds(recipe: Recipe, models: Models, card: Card, sizes: Sizes, completions: int) -> float:
    """Of `completions`: at every token the weights and the cache are read, in NF4 the weights are dequantized as well,
    and the CPU launches every layer's kernels anew; whichever takes longer counts. On a GPU a row that has ended
    makes room for the next, so that only the last rows wait for the longest.
    """
    shape, rows = models.policy, min(sizes.rows_at_once, completions)
    prompt, longest = recipe.prompts.max_tokens, recipe.rollout.max_tokens
    nf4 = recipe.model.quantization == "nf4" and not sizes.folded
    stored = policy_bytes(recipe, shape, card)
    head = shape.embedding_parameters * card.float_bytes
    dense = card.float_bytes * shape.linear_parameters + head
    weights = dense if sizes.folded else dequantized_traffic("nf4" if nf4 else "none", stored, shape, card)
    flops = 2 * rows * (shape.linear_parameters + shape.embedding_parameters)
    passes = 1 if card.cuda else CACHE_PASSES
    cache = passes * rows * shape.kv_bytes_a_token(card.float_bytes) * (prompt + longest / 2)
    on_card = max(weights / card.bytes_a_second, flops / card.flops) + cache / card.bytes_a_second
    launches = shape.layers * card.layer_seconds * (FOLDED_LAUNCHES if sizes.folded else 1)
    waves = ceil(completions / rows)
    steps = longest + (waves - 1) * longest * (COMPLETION_SHARE if card.cuda else 1)
    read = prompt * (completions / recipe.rollout.group_size if card.cuda else completions)
    prefill = 2 * read * shape.linear_parameters / card.flops
    return prefill + steps * max(on_card, launches)


def reward_seconds(recipe: Recipe, models: Models, card: Card, tokens_per_batch: int) -> float:
    """Of all judges that are optimized, over a step's average conversations, their weights dequantized once a
    forward.
    """
    tokens = recipe.rollout.batch * mean_tokens(recipe)
    total = 0.0
    for (shape, how), _ in zip(models.judges, recipe.reward.judges, strict=False):
        stored = judges_bytes(Models(models.policy, ((shape, how),)), card)
        traffic = dequantized_traffic(how, stored, shape, card) * ceil(tokens / tokens_per_batch)
        total += 2 * tokens * shape.linear_parameters / card.flops + traffic / card.bytes_a_second
    return total


def update_seconds(recipe: Recipe, models: Models, card: Card, micro_batch: int) -> float:
    """Of a step's updates, whose micro-batches hold like lengths and are cut to their own width. A forward, on a GPU
    a second one for gradient checkpointing, and a backward pass through frozen weights; one more forward each for a
    reference (`algorithm.kl`) and for the old policy's probabilities where there are several updates.
    """
    shape, batch = models.policy, recipe.rollout.batch
    tokens = batch * mean_tokens(recipe)
    extra = (recipe.algorithm.kl > 0) + (recipe.algorithm.updates_per_rollout > 1)
    passes = (3 if card.cuda else 2) + extra  # each of 2 FLOPs a weight and token; the backward pass is one
    head = (2 + extra) * 2 * batch * COMPLETION_SHARE * recipe.rollout.max_tokens * shape.embedding_parameters
    adapter = 3 * 2 * tokens * shape.adapter_parameters(recipe.lora)
    flops = passes * 2 * tokens * shape.linear_parameters + head + adapter
    traffic = dequantized_traffic(recipe.model.quantization, policy_bytes(recipe, shape, card), shape, card)
    forwards = passes * ceil(batch / micro_batch)
    return flops / card.flops + forwards * max(traffic / card.bytes_a_second, shape.layers * card.layer_seconds)


def dequantized_traffic(quantization: str, stored: int, shape: Shape, card: Card) -> int:
    """Bytes that a forward pass moves for its weights: NF4 is read, written out at 16 bits (fp32 on a CPU), and
    read again.
    """
    return stored + (2 * card.float_bytes * shape.linear_parameters if quantization == "nf4" else 0)


def mean_tokens(recipe: Recipe) -> float:
    """Of an average conversation."""
    return PROMPT_SHARE * recipe.prompts.max_tokens + COMPLETION_SHARE * recipe.rollout.max_tokens


def measurement_seconds(recipe: Recipe, models: Models, card: Card, sizes: Sizes) -> float:
    """Of base against tuned on the held-out prompts, which ends a run."""
    asked = recipe.evaluation.heldout_prompts
    return 2 * rollout_seconds(recipe, models, card, sizes, asked) if asked else 0.0
