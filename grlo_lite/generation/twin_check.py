"""Whether the decoding twin is the policy: what was sampled, scored again by the forward that is trained."""

from typing import Any

import torch

from grlo_lite.errors import BadInput
from grlo_lite.generation.decoding import Answers, Prompts

ROWS = 4  # of the batch that are compared
TOKENS = 256  # of each completion
MOST = {torch.float32: 1e-3}  # mean difference of a token's log-probability; rounding alone makes 1e-6
MOST_IN_16_BITS = 0.1  # where rounding alone makes 0.005 to 0.04


def require_the_policys(model: Any, prompts: Prompts, answers: Answers) -> None:
    """Raises BadInput where the mean difference of the twin's and the policy's log-probabilities of what was said is
    more than rounding explains: what is sampled would not be what is trained.
    """
    difference = mean_difference(model, prompts, answers)
    most = MOST.get(model.get_input_embeddings().weight.dtype, MOST_IN_16_BITS)
    if not difference <= most:
        raise BadInput(
            f"the rollout engine's log-probabilities differ from the policy's by {difference:.4f} a token on average, "
            f"and rounding explains {most:g}: it samples from another model than the one that is trained, as when a "
            "library has patched one of the two; choose rollout.engine=generate, and report this"
        )


def mean_difference(model: Any, prompts: Prompts, answers: Answers) -> float:
    """Mean |Δ log p| of a token over the first rows: as it was drawn, and by the policy's own forward."""
    rows = min(ROWS, len(prompts.ids_BP))
    length_R = answers.length_B[:rows].clamp(max=TOKENS)
    width = int(length_R.max())
    said_RT, logp_RT = answers.said_BT[:rows, :width], answers.logp_BT[:rows, :width]
    counted_RT = torch.arange(width, device=said_RT.device) < length_R[:, None]
    first = int(prompts.mask_BP[:rows].any(0).int().argmax())
    ids = torch.cat([prompts.ids_BP[:rows, first:], said_RT], 1)
    mask = torch.cat([prompts.mask_BP[:rows, first:], counted_RT], 1)
    in_16_bits = model.get_input_embeddings().weight.dtype
    autocast = torch.autocast(ids.device.type, in_16_bits, enabled=in_16_bits != torch.float32)
    with torch.no_grad(), autocast:
        logits = model(input_ids=ids, attention_mask=mask.long(), position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    temperature = answers.sampling.temperature or 1.0
    scores_RTV = logits[:, -width - 1 : -1].float() / temperature
    policys_RT = scores_RTV.log_softmax(-1).gather(-1, said_RT[..., None])[..., 0]
    return float((policys_RT - logp_RT)[counted_RT].abs().mean())
