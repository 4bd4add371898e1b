"""Seconds a step by phase, from FLOPs, bytes and what a card reaches of its peak. No torch; see docs/planner.md."""

from dataclasses import dataclass
from math import ceil

from grlo_lite.evaluation.tasks import suites
from grlo_lite.generation.engine_table import CPU_ROWS
from grlo_lite.planning import fused
from grlo_lite.planning.cards import Card
from grlo_lite.planning.memory import WHOLE_BATCH, Models, Sizes, critic_lora
from grlo_lite.planning.model_shapes import Shape
from grlo_lite.recipe.loading import changed
from grlo_lite.recipe.schema import Recipe

PROMPT_SHARE = 0.25  # assumed: an average prompt's share of prompts.max_tokens; the longest has twice as much


COMPLETION_SHARE = 0.5  # assumed: the same of a completion and rollout.max_tokens


# average and longest of a source whose tokens were counted
PROMPTS = {
    "microcosm": (17, 20),
    "microcosm-arithmetic": (18, 18),
    "microcosm-ordering": (20, 20),
    "microcosm-spelling": (15, 15),
    "microcosm-code": (26, 26),
    "microcosm-questions": (20, 26),
}


LOSS_BYTES = 56  # that a logit's loss and entropy read and write: about nine passes in fp32 forward, five backward


BACKWARD_TRAFFIC = 1.5  # assumed: bytes that a layer's element-wise kernels move backward, over those forward


BACKWARD_ATTENTION = 2.5  # the backward pass multiplies five matrices where the forward pass multiplies two


ADAPTED = ("generate", "compact")  # engines whose layers carry their adapter; vLLM's and Unsloth's kernels fuse it


@dataclass(frozen=True)
class Work:
    """What a layer's pass costs over some tokens: floating-point operations, and bytes of element-wise kernels."""

    flops: float
    traffic: float

    def seconds(self, card: Card) -> float:
        return self.flops / card.flops + self.traffic / card.activation_bytes_a_second


def seconds(recipe: Recipe, models: Models, card: Card, sizes: Sizes) -> dict[str, float]:
    """Seconds a step of rollout, reward and update."""
    return {
        "rollout": rollout_seconds(recipe, models.policy, card, sizes, recipe.rollout.batch),
        "reward": reward_seconds(recipe, models, card, sizes.reward_tokens),
        "update": update_seconds(recipe, models.policy, card, sizes.micro_batch),
    }


def weights_seconds(quantization: str, shape: Shape, card: Card) -> float:
    """Seconds of all linear layers' weights in one pass: NF4 is dequantized, and what is dense is read."""
    dense = card.float_bytes * shape.linear_parameters / card.bytes_a_second
    return dense + (shape.linear_parameters / card.dequantized_a_second if quantization == "nf4" else 0.0)


def token_traffic(shape: Shape, card: Card, adapted: bool) -> int:
    """Bytes a token that one layer's kernels move forward beside the weights: each linear layer reads its input and
    writes its output; norms are in fp32; an adapter reads the input in fp32, and its output is written, scaled and
    added.
    """
    width = card.float_bytes
    outputs, inputs = shape.sides
    heads = (shape.heads + shape.kv_heads) * shape.head_dim  # what rotary embeddings turn, and Qwen3's norms of heads
    plain = width * (inputs + outputs + 5 * shape.mlp + 6 * shape.hidden + 12 * heads) + 4 * 12 * shape.hidden
    if not adapted:
        return plain
    cast = width + 4 if width < 4 else 0
    return plain + inputs * (cast + 4) + outputs * (16 + 2 * width)


def forward(recipe: Recipe, shape: Shape, card: Card, tokens: float, attended: float, adapted: bool) -> Work:
    """The work of a forward pass through all layers over `tokens`, each attending to `attended`."""
    attention = 4 * tokens * attended * shape.heads * shape.head_dim * shape.layers
    adapter = 2 * tokens * shape.adapter_parameters(recipe.lora) if adapted else 0
    flops = 2 * tokens * shape.linear_parameters + attention + adapter
    return Work(flops, tokens * shape.layers * token_traffic(shape, card, adapted))


def rollout_seconds(recipe: Recipe, shape: Shape, card: Card, sizes: Sizes, completions: int) -> float:
    """Seconds of a rollout of `completions`: a pass over the prompts and then a pass a token.

    On a GPU the kernels of a pass are launched by the CPU while others run, so whichever takes longer counts; on a CPU
    both do. Transformers' own `generate`, and Unsloth's, keep a row to the end and read each row's prompt; the other
    engines read a prompt once for its group and let a row go when it ends, for the next to take its place.
    """
    longest = recipe.rollout.max_tokens
    rows, whole = min(sizes.rows_at_once, completions), sizes.engine in WHOLE_BATCH
    waves = ceil(completions / rows)
    steps = longest * (waves if whole else 1 + (waves - 1) * COMPLETION_SHARE)
    alive = completions * longest * (1 if whole else COMPLETION_SHARE) / steps
    prompt, _ = prompt_tokens(recipe)
    read = prompt * completions / (1 if whole else recipe.rollout.group_size)
    prefill = forward(recipe, shape, card, read, prompt, sizes.engine in ADAPTED).seconds(card)
    return prefill + steps * token_seconds(recipe, shape, card, sizes.engine, alive)


def token_seconds(recipe: Recipe, shape: Shape, card: Card, engine: str, rows: float) -> float:
    """Seconds of one token of `rows` completions that are half as long as they may become."""
    attended = prompt_tokens(recipe)[0] + recipe.rollout.max_tokens / 2
    traffic = rows * shape.layers * token_traffic(shape, card, engine in ADAPTED)
    multiplied = shape.linear_parameters + shape.embedding_parameters
    if engine in ADAPTED and recipe.model.quantization == "nf4":
        weights = fused.weights_seconds(shape, card, rows, weights_seconds("nf4", shape, card))
    else:
        weights = weights_seconds("none" if engine in ("folded", "vllm") else recipe.model.quantization, shape, card)
    head = shape.embedding_parameters * card.float_bytes / card.bytes_a_second
    products = 2 * rows * multiplied / card.few_rows_flops + (weights + head)
    cache = cache_passes(shape, engine) * rows * attended * shape.kv_bytes_a_token(card.float_bytes)
    drawing = rows * shape.vocabulary / card.drawn_a_second * (2 if recipe.rollout.top_p < 1 else 1)
    on_card = products + (traffic + cache) / card.activation_bytes_a_second + drawing
    return combined(card, on_card, host_seconds(shape, card, engine))


def cache_passes(shape: Shape, engine: str) -> float:
    """How often a token reads or writes the cache: attention reads it; in Transformers' `generate` it grows by being
    copied, and is spread over the query heads, which is what attention reads.
    """
    return 3 + 2 * shape.heads / shape.kv_heads if engine == "generate" else 1


def host_seconds(shape: Shape, card: Card, engine: str) -> float:
    """Seconds that the CPU takes to launch a token's kernels; vLLM replays them from a CUDA graph."""
    if engine in ("fast_inference", "vllm"):
        return card.token_seconds
    a_layer = card.dense_layer_seconds if engine in ("folded", "unsloth") else card.layer_seconds
    return card.token_seconds + shape.layers * a_layer


def reward_seconds(recipe: Recipe, models: Models, card: Card, tokens_per_batch: int) -> float:
    """Seconds a step of all judges that are optimized. Conversations are sorted by length, padded to the
    longest of a forward and cut at a budget of tokens; each forward dequantizes the weights.
    """
    if not recipe.reward.judges:
        return 0.0
    tokens = recipe.rollout.batch * mean_tokens(recipe)
    passes = ceil(tokens / tokens_per_batch)
    tokens *= (passes + 1) / passes
    total = 0.0
    for (shape, how), _ in zip(models.judges, recipe.reward.judges, strict=False):
        work = forward(recipe, shape, card, tokens, mean_tokens(recipe), adapted=False)
        launches = shape.layers * card.dense_layer_seconds
        total += combined(card, work.seconds(card) + passes * weights_seconds(how, shape, card), passes * launches)
    return total


def update_seconds(recipe: Recipe, shape: Shape, card: Card, micro_batch: int) -> float:
    """Seconds of a step's updates, whose micro-batches hold like lengths and are cut to their own width: a forward
    pass, a second one with gradient checkpointing, and a backward pass through frozen weights; one more forward each
    for a reference (`algorithm.kl`) and for the old policy's probabilities where there are several updates.
    """
    batch = recipe.rollout.batch
    extra = (recipe.algorithm.kl > 0) + (recipe.algorithm.updates_per_rollout > 1)
    forwards = 1 + recipe.optimizer.checkpoints_activations(card.type) + extra
    prompt, completion = padded_tokens(recipe, micro_batch)
    tokens = prompt + completion
    work = update_work(recipe, shape, card, batch * tokens, tokens, forwards)
    logits = batch * completion * shape.vocabulary
    head = (2 + extra) * 2 * logits * shape.hidden / card.flops + LOSS_BYTES * logits / card.activation_bytes_a_second
    passes = (forwards + 1) * ceil(batch / micro_batch)
    weights = passes * weights_seconds(recipe.model.quantization, shape, card)
    launches = passes * shape.layers * card.layer_seconds
    policys = combined(card, work.seconds(card) + head + weights, launches)
    return policys + (critic_seconds(recipe, shape, card, micro_batch) if recipe.algorithm.name == "ppo" else 0.0)


def critic_seconds(recipe: Recipe, shape: Shape, card: Card, micro_batch: int) -> float:
    """Seconds of the critic's passes over a step's rollouts: one forward for the values, and its update's, which is the
    policy's without logits, or another forward where the head is all that learns.
    """
    batch, trains = recipe.rollout.batch, recipe.algorithm.critic.kind == "adapter"
    tokens = sum(padded_tokens(recipe, micro_batch))
    forwards = 2 + (recipe.optimizer.checkpoints_activations(card.type) if trains else 0)
    if trains:
        critics = recipe.model_copy(update={"lora": critic_lora(recipe)})
        work = update_work(critics, shape, card, batch * tokens, tokens, forwards)
    else:
        once = forward(recipe, shape, card, batch * tokens, tokens, adapted=False)
        work = Work(forwards * once.flops, forwards * once.traffic)
    passes = (forwards + trains) * ceil(batch / micro_batch)
    weights = passes * weights_seconds(recipe.model.quantization, shape, card)
    launches = passes * shape.layers * (card.layer_seconds if trains else card.dense_layer_seconds)
    return combined(card, work.seconds(card) + weights, launches)


def update_work(recipe: Recipe, shape: Shape, card: Card, tokens: float, attended: float, forwards: int) -> Work:
    """The work of so many forward passes with their adapter and one backward pass, whose matrix products are as many
    as the forward's, and for the adapter twice as many.
    """
    once = forward(recipe, shape, card, tokens, attended, adapted=True)
    attention = 4 * tokens * attended * shape.heads * shape.head_dim * shape.layers
    adapter = 2 * tokens * shape.adapter_parameters(recipe.lora)
    backward = once.flops + adapter + (BACKWARD_ATTENTION - 1) * attention
    return Work(forwards * once.flops + backward, (forwards + BACKWARD_TRAFFIC) * once.traffic)


def combined(card: Card, on_card: float, launches: float) -> float:
    """Seconds of kernels and of launching them: side by side on a GPU, one after the other on a CPU."""
    return max(on_card, launches) if card.cuda else on_card + launches


def prompt_tokens(recipe: Recipe) -> tuple[float, float]:
    """Tokens of an average prompt and of the longest, by PROMPTS, or as if lengths were spread evenly around
    PROMPT_SHARE.
    """
    limit, source = recipe.prompts.max_tokens, recipe.prompts.source
    known = PROMPTS.get(source) if isinstance(source, str) else None
    return (min(known[0], limit), min(known[1], limit)) if known else (PROMPT_SHARE * limit, 2 * PROMPT_SHARE * limit)


def mean_tokens(recipe: Recipe) -> float:
    """Tokens of an average conversation, prompt and completion."""
    return prompt_tokens(recipe)[0] + COMPLETION_SHARE * recipe.rollout.max_tokens


def padded_tokens(recipe: Recipe, micro_batch: int) -> tuple[float, float]:
    """Tokens of a row of an average micro-batch, prompt and completion, padding included, where lengths are spread
    evenly from nothing to the longest: completions are sorted, so that k micro-batches are (k + 1) / 2k of the longest
    wide on average; the longest of m prompts stands at m / (m + 1) of the way from the shortest to the longest.
    """
    mean, longest = prompt_tokens(recipe)
    update = recipe.rollout.batch // recipe.algorithm.updates_per_rollout
    k, m = max(1, update // micro_batch), min(micro_batch, max(1, update // recipe.rollout.group_size))
    shortest = 2 * mean - longest
    completion = 2 * COMPLETION_SHARE * recipe.rollout.max_tokens * (k + 1) / (2 * k)
    return shortest + (longest - shortest) * m / (m + 1), completion


def measurement_seconds(recipe: Recipe, models: Models, card: Card, engine: str) -> float:
    """Seconds of base against tuned, which ends a run: held-out prompts and the suite's questions, answered by the
    kit's decoder, with its dense copy unless a rollout has no room for one.
    """
    wanted = recipe.evaluation
    asked = [(wanted.heldout_prompts, recipe.rollout.max_tokens)]
    tasks = [task for task in suites.run_tasks(recipe) if not task.runs_code]  # which a run leaves out
    asked += [(min(wanted.limit, task.size or wanted.limit) * task.samples, task.max_tokens) for task in tasks]
    rows = recipe.rollout.batch if card.cuda else CPU_ROWS
    sizes = Sizes(rows, 1, 1, "compact" if engine == "compact" else "folded")
    return sum(
        2 * rollout_seconds(changed(recipe, {"rollout.max_tokens": tokens}), models.policy, card, sizes, count)
        for count, tokens in asked
        if count
    )
