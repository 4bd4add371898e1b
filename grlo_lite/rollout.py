"""The kit's own rollout engine: the decoding loop behind `model.generate` while a policy is trained.

It samples from the same distribution as Transformers' `generate`, logits processors included, and differs in what a
token costs: a prompt is read once for all the completions of its group; a row that has ended leaves the batch, and the
next one takes its place; the KV cache is written in place, where Transformers copies it at every token; attention
reads grouped keys without spreading them over the query heads; and, with `folded`, the 4-bit weights are dequantized
once a rollout instead of at every token, with the adapter folded in.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch.nn.functional import linear
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from grlo_lite.hardware import free_bytes

ATTENTION = "grlo_grouped"
ROOM = 256  # columns by which the KV cache grows
WORTH_FOLDING = 16  # completions at once below which a dense copy of the weights costs more than it saves


@contextmanager
def engine(model: Any, fold: bool, rows_at_once: int | str) -> Iterator[None]:
    """Inside, `model.generate` decodes with this engine, and is called as before.

    At most `rows_at_once` completions are decoded together; `auto` is all of them on a CPU, and on a GPU as many as
    `rows_that_fit` says, which also gives up folding where the dense copy would leave room for too few.
    """
    AttentionInterface.register(ATTENTION, grouped_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    before, plain = vars(model).get("generate"), model.generate

    def generate(input_ids: torch.Tensor, generation_config: Any, **inputs: Any) -> torch.Tensor:
        wanted = len(input_ids) if rows_at_once == "auto" else min(int(rows_at_once), len(input_ids))
        rows, folding = wanted, fold
        if model.device.type == "cuda":
            read = len(torch.unique(input_ids, dim=0)) * input_ids.shape[1] / len(input_ids)
            columns = input_ids.shape[1] + generation_config.max_new_tokens + ROOM
            rows, folding = rows_that_fit(model, fold, wanted, columns, read)
        with folded(model) if folding else nullcontext(), _attention(model.config, ATTENTION):
            decoding = partial(decoded, rows_at_once=rows)
            said = plain(input_ids=input_ids, generation_config=generation_config, custom_generate=decoding, **inputs)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # the cache's columns and the dense copy are of other sizes than what comes next
        return said

    model.generate = generate
    try:
        yield
    finally:
        del model.generate
        if before is not None:
            model.generate = before


@contextmanager
def _attention(config: Any, name: str) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def rows_that_fit(model: Any, fold: bool, wanted: int, columns: int, read: float) -> tuple[int, bool]:
    """How many completions fit into the free GPU memory at once, at most `wanted`, and whether to fold.

    A completion is counted with `columns` tokens of KV cache, with its logits while a token is drawn and with its share
    of the prompts, `read` tokens. Folding is given up where it would leave room for fewer than WORTH_FOLDING
    completions and for fewer than there are.
    """
    free = free_bytes(model.device)
    config = model.config.get_text_config()
    copy = folded_bytes(model)
    with_copy = rows_in(config, int(0.9 * free) - copy, columns, read)
    if fold and with_copy >= min(wanted, WORTH_FOLDING):
        return min(wanted, with_copy), True
    return min(wanted, max(1, rows_in(config, int(0.9 * free), columns, read))), False


def rows_in(config: Any, free: int, columns: int, read: float) -> int:
    """How many rows of `columns` tokens go into `free` bytes on a GPU: 16-bit keys and values, one layer of them twice
    while it grows, 16 bytes a logit while a token is drawn, and a layer's activations for `read` tokens of prompt.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_layer = columns * 2 * 2 * heads * head_dim
    reading = int(read * (16 * config.hidden_size + 8 * config.intermediate_size))
    return max(0, free) // ((config.num_hidden_layers + 1) * a_layer + 16 * config.vocab_size + reading)


# --- weights ---------------------------------------------------------------------------------------------------------


@contextmanager
def folded(model: Any) -> Iterator[None]:
    """Inside, every adapted layer multiplies by one dense matrix: its dequantized weight plus `scaling · B A`.

    The sum is made in fp32 and rounded once, to the dtype the layer computes in. The matrices are freed on leaving.
    Where the adapter is disabled, nothing is folded in.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    try:
        for layer in layers:
            layer.forward = partial(linear, weight=folded_weight(layer), bias=layer.get_base_layer().bias)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def folded_weight(layer: Any) -> torch.Tensor:
    """The dense matrix, shape (out, in), that does what a LoRA layer over a 4-bit or dense one does."""
    from bitsandbytes.functional import dequantize_4bit

    base = layer.get_base_layer()
    weight, quantized = base.weight, hasattr(base.weight, "quant_state")
    with torch.no_grad():
        dense = dequantize_4bit(weight.data, weight.quant_state) if quantized else weight.data
        dtype = base.compute_dtype if quantized and base.compute_dtype else dense.dtype
        if layer.disable_adapters:
            return dense.to(dtype)
        dense = dense.float()
        for name in layer.active_adapters:
            dense = torch.addmm(
                dense, layer.lora_B[name].weight.float(), layer.lora_A[name].weight.float(), alpha=layer.scaling[name]
            )
        return dense.to(dtype)


def folded_bytes(model: Any) -> int:
    """What `folded` takes while it is in effect."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return sum(layer.in_features * layer.out_features for layer in layers) * model.dtype.itemsize


# --- attention and cache ---------------------------------------------------------------------------------------------


def grouped_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention of one new token a row, without copies of the keys for each query head; SDPA for anything longer.

    query (B, heads, 1, D), key and value (B, KV heads, T, D), attention_mask boolean (B, 1, 1, T) or None; returns
    (B, 1, heads, D).
    """
    if query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    query_BKGD = query.view(query.shape[0], key.shape[1], -1, query.shape[3])
    scores_BKGT = _products(query_BKGD, key) * options["scaling"]
    if attention_mask is not None:
        scores_BKGT = scores_BKGT.masked_fill(~attention_mask, float("-inf"))
    answer_BKGD = torch.matmul(scores_BKGT.softmax(-1).to(value.dtype), value)
    return answer_BKGD.reshape(query.shape[0], 1, -1, query.shape[3]), None


def _products(query_BKGD: torch.Tensor, key_BKTD: torch.Tensor) -> torch.Tensor:
    """Every query's product with every key, (B, K, G, T), in fp32: bf16 would put a score of 20 off by 0.06."""
    if not query_BKGD.is_cuda or query_BKGD.dtype == torch.float32:
        return torch.matmul(query_BKGD, key_BKTD.transpose(2, 3)).float()
    keys_NDT = key_BKTD.flatten(0, 1).transpose(1, 2)
    products_NGT = torch.bmm(query_BKGD.flatten(0, 1), keys_NDT, out_dtype=torch.float32)
    return products_NGT.unflatten(0, key_BKTD.shape[:2])


class RoomyLayer(DynamicLayer):
    """A layer of the KV cache with room for the tokens to come, so that a new one is written into its place."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room = (key_states[:, :, :0], value_states[:, :, :0])
        used = self.get_seq_length()
        needed = used + key_states.shape[2]
        if needed > self.room[0].shape[2]:
            new = (key_states, value_states)
            self.room = tuple(_with_room(*pair, used, needed + ROOM) for pair in zip(self.room, new, strict=True))
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, used:needed] = new
        self.show(needed)
        return self.keys, self.values

    def show(self, length: int) -> None:
        self.keys, self.values = (room[:, :, :length] for room in self.room)

    def keep(self, rows_R: torch.Tensor, first: int) -> None:
        """Keeps these rows, in this order, and drops the columns before `first`."""
        length = self.keys.shape[2]
        self.room = tuple(room[rows_R, :, first:] for room in self.room)
        self.show(length - first)

    def place(self, rows_R: torch.Tensor, layer: "RoomyLayer", index_R: torch.Tensor) -> None:
        """Puts rows `index_R` of another cache, right-aligned, in place of the rows `rows_R`."""
        width = layer.keys.shape[2]
        length = self.keys.shape[2]
        for room, new in zip(self.room, (layer.keys, layer.values), strict=True):
            room[rows_R, :, length - width : length] = new[index_R]


def _with_room(old: torch.Tensor, new: torch.Tensor, used: int, length: int) -> torch.Tensor:
    room = new.new_empty((*new.shape[:2], length, new.shape[3]))
    room[:, :, :used] = old[:, :, :used]
    return room


# --- the loop --------------------------------------------------------------------------------------------------------


def decoded(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    generation_config: Any,
    rows_at_once: int,
    **model_inputs: Any,
) -> torch.Tensor:
    """Prompts and their completions, shape (B, P + C), as Transformers' own decoding methods return them.

    A custom decoding method in the sense of `generate(custom_generate=…)`. The prompts, shape (B, P), are padded on
    the left; a row ends with an EOS or at the configured length, and is padded behind that.
    """
    rows, prompt_tokens = input_ids.shape
    longest = generation_config.max_length - prompt_tokens
    ends, pad = generation_config._eos_token_tensor, generation_config._pad_token_tensor
    said_BT = input_ids.new_full((rows + 1, longest), int(pad))  # the last row is what slots say that wait
    used_T = torch.zeros(longest, dtype=torch.bool, device=input_ids.device)
    slots = Slots(model, input_ids, model_inputs["attention_mask"].bool(), min(rows_at_once, rows))
    while slots.alive:
        scores_SV = logits_processor(slots.ids_SW, slots.logits_SV.float())
        if generation_config.do_sample:
            tokens_S = torch.multinomial(scores_SV.softmax(-1), 1)[:, 0]
        else:
            tokens_S = scores_SV.argmax(-1)
        said_BT[slots.row_S, slots.count_S] = tokens_S
        used_T[slots.count_S] = True
        slots.advance(tokens_S, torch.isin(tokens_S, ends) | (slots.count_S + 1 == longest))
    return torch.cat([input_ids, said_BT[:rows, : int(used_T.sum())]], 1)


class Slots:
    """The rows that are decoded together. S slots, W columns of tokens that all slots share, padded on the left.

    A slot whose row has ended takes the next prompt, once an eighth of the slots wait; with no prompt left, it goes.
    Until then it decodes into a row that is thrown away, so that a step asks the GPU for one number: the rows alive.
    """

    def __init__(self, model: Any, prompts_BP: torch.Tensor, mask_BP: torch.Tensor, size: int):
        self.model, self.prompts_BP, self.mask_BP = model, prompts_BP, mask_BP
        self.begun = size
        self.row_S = torch.arange(size, device=prompts_BP.device)
        self.ids_SW, self.mask_SW = prompts_BP[:size].clone(), mask_BP[:size].clone()
        self.count_S, self.position_S = torch.zeros_like(self.row_S), self.mask_SW.sum(1)
        self.working_S = torch.ones_like(self.row_S, dtype=torch.bool)
        self.cache, self.logits_SV, index_S = self._read(self.ids_SW, self.mask_SW)
        for layer in self.layers:
            layer.keep(index_S, 0)
        self.alive = size

    @property
    def layers(self) -> list[RoomyLayer]:
        return cast("list[RoomyLayer]", self.cache.layers)

    def advance(self, tokens_S: torch.Tensor, ended_S: torch.Tensor) -> None:
        """Takes in a token a slot; afterwards `logits_SV` are those of the token to come."""
        self.working_S = self.working_S & ~ended_S
        self.row_S = self.row_S.masked_fill(~self.working_S, len(self.prompts_BP))
        self.count_S = (self.count_S + 1).masked_fill(~self.working_S, 0)
        self.alive = int(self.working_S.sum())
        waiting, pending = len(self.row_S) - self.alive, len(self.prompts_BP) - self.begun
        if not self.alive and not pending:
            return
        if not pending and self.alive <= 0.75 * len(self.row_S):
            tokens_S = tokens_S[self.working_S]
            self._keep(self.working_S.nonzero()[:, 0])
        if self.alive:
            self._step(tokens_S)
        if pending and (waiting * 8 >= len(self.row_S) or not self.alive):
            self._refill(min(waiting, pending))

    def _step(self, tokens_S: torch.Tensor) -> None:
        self.ids_SW = torch.cat([self.ids_SW, tokens_S[:, None]], 1)
        self.mask_SW = torch.cat([self.mask_SW, torch.ones_like(tokens_S[:, None], dtype=torch.bool)], 1)
        self.logits_SV = self.model(
            input_ids=tokens_S[:, None],
            attention_mask=self.mask_SW[:, None, None],
            position_ids=self.position_S[:, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.position_S = self.position_S + 1

    def _read(self, ids_RP: torch.Tensor, mask_RP: torch.Tensor) -> tuple[Cache, torch.Tensor, torch.Tensor]:
        """The cache of the distinct prompts, the logits that follow each of the R prompts, and which is whose."""
        _, index_R = torch.unique(torch.where(mask_RP, ids_RP, -1), dim=0, return_inverse=True)
        first_U = torch.stack([(index_R == u).nonzero()[0, 0] for u in range(int(index_R.max()) + 1)])
        cache = Cache(layer_class_to_replicate=RoomyLayer)
        logits_UV = self.model(
            input_ids=ids_RP[first_U],
            attention_mask=mask_RP[first_U].long(),
            position_ids=(mask_RP[first_U].cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return cache, logits_UV[index_R], index_R

    def _keep(self, kept_R: torch.Tensor) -> None:
        """Goes on with these slots, and without the columns that none of them uses any more."""
        unused = int(self.mask_SW[kept_R].any(0).int().argmax())
        first = max(0, min(unused, self.ids_SW.shape[1] - self.prompts_BP.shape[1]))
        for layer in self.layers:
            layer.keep(kept_R, first)
        self.ids_SW, self.mask_SW = self.ids_SW[kept_R, first:], self.mask_SW[kept_R, first:]
        self.row_S, self.count_S, self.position_S = self.row_S[kept_R], self.count_S[kept_R], self.position_S[kept_R]
        self.working_S, self.logits_SV = self.working_S[kept_R], self.logits_SV[kept_R]

    def _refill(self, count: int) -> None:
        """Gives `count` of the waiting slots the next prompts."""
        free_R = (~self.working_S).nonzero()[:count, 0]
        rows_R = torch.arange(self.begun, self.begun + count, device=free_R.device)
        self.begun += count
        width = int(self.mask_BP[rows_R].sum(1).max())
        ids_RP, mask_RP = self.prompts_BP[rows_R, -width:], self.mask_BP[rows_R, -width:]
        cache, logits_RV, index_R = self._read(ids_RP, mask_RP)
        for layer, read in zip(self.layers, cast("list[RoomyLayer]", cache.layers), strict=True):
            layer.place(free_R, read, index_R)
        self.ids_SW[free_R, -width:], self.mask_SW[free_R] = ids_RP, False
        self.mask_SW[free_R, -width:] = mask_RP
        self.logits_SV[free_R] = logits_RV
        self.row_S[free_R], self.count_S[free_R], self.position_S[free_R] = rows_R, 0, mask_RP.sum(1)
        self.working_S[free_R] = True
        self.alive = int(self.working_S.sum())
        if int(self.mask_SW.any(0).int().argmax()) >= ROOM:
            self._keep(torch.arange(len(self.row_S), device=free_R.device))
