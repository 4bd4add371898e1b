"""What a policy makes of whole texts: the log-probability of each token that stands there, where nothing is decoded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from grlo_lite.generation.stock import Stock
from grlo_lite.generation.twin import base_of, copy_finds_room, token_layers

LOGIT_BYTES = 2**30  # that the logits of one forward pass may take

Logits = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def whole(model: Any) -> Iterator[Logits]:
    """What gives the logits (B, T, V) of token ids (B, T), padded on the right, by the policy with the adapters that
    are in effect: by a dense copy of its weights under Transformers' own forward where there is room for one, as the
    merged model would, else by the policy itself.
    """
    base, made = base_of(model), model
    if copy_finds_room(base) and not token_layers(base):
        with torch.no_grad():
            made = Stock(base, fold=True, few_rows=False).model
    held = [made]
    del made

    def logits(ids_BT: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(ids_BT.device.type, enabled=False):
            return held[0](input_ids=ids_BT, use_cache=False).logits

    try:
        yield logits
    finally:
        held.clear()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def tokens_in_a_forward(model: Any, budget: int) -> int:
    """Padded tokens that one forward pass over whole texts may hold, of a budget."""
    return max(1, min(budget, LOGIT_BYTES // (4 * model.config.vocab_size)))


def continuation_log_probs(
    logits: Logits, device: torch.device, rows: list[list[int]], continuations: list[list[list[int]]]
) -> list[list[tuple[float, bool]]]:
    """For each row of tokens and each of its continuations the sum of its log-probabilities and whether every token
    was the likeliest one. The last token of a continuation follows upon the row's last; the ones before it end the row.
    """
    width = max(map(len, rows))
    padded = [row + [0] * (width - len(row)) for row in rows]
    logits_BTV = logits(torch.tensor(padded, device=device))
    found = []
    for logits_TV, row, wanted in zip(logits_BTV, rows, continuations, strict=True):
        longest = max(map(len, wanted))
        logp_TV = logits_TV[len(row) - longest : len(row)].float().log_softmax(-1)
        likeliest_T = logp_TV.argmax(-1)
        said = []
        for tokens in wanted:
            ids_C = torch.tensor(tokens, device=device)
            logp_C = logp_TV[-len(tokens) :].gather(-1, ids_C[:, None])[:, 0]
            said.append((float(logp_C.sum()), bool((likeliest_T[-len(tokens) :] == ids_C).all())))
        found.append(said)
    return found
