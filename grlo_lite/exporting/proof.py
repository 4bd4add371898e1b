"""Whether an export is the policy: both score the policy's own samples, beside the gap that no adapter would leave."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from grlo_lite.rundir import files

PROMPTS = 50
MAX_TOKENS = 64
SAME = 0.02  # of the gap that no adapter leaves: what rounding to 16 bits may take at most
GONE = 0.5  # of the gap: what a quantized export may take at most

Scorer = Callable[[list[list[int]], list[list[int]]], list[list[float]]]  # prompts, answers -> log p of each token


@dataclass(frozen=True)
class Samples:
    """The policy's own answers as tokens, with its log-probabilities (nats) of them and the bare base's."""

    prompts: list[list[int]]
    sampled: list[list[int]]
    greedy: list[list[int]]
    policy: list[list[float]]
    base: list[list[float]]


@dataclass(frozen=True)
class Proof:
    """Mean |Δ log p| a token between export and policy, and between no adapter and policy; greedy answers alike."""

    samples: int
    tokens: int
    difference: float
    without_adapter: float
    greedy_equal: int
    allowed: float  # share of the gap

    @property
    def share(self) -> float:
        """The difference as a share of what no adapter leaves."""
        return self.difference / self.without_adapter if self.without_adapter else float(self.difference > 0)

    @property
    def passed(self) -> bool:
        return self.share <= self.allowed

    def facts(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self) | {"share_of_gap": self.share, "passed": self.passed}

    def said(self) -> str:
        """In a line, for people."""
        verdict = "it is the policy" if self.passed and self.allowed == SAME else "it is NOT the policy"
        if self.passed and self.allowed != SAME:
            verdict = f"it keeps {1 - self.share:.1%} of what training changed"
        return (
            f"{verdict}: log-probabilities of its {self.samples} samples ({self.tokens} tokens) differ by "
            f"{self.difference:.2g} nats a token, {self.share:.2%} of the {self.without_adapter:.2g} that no adapter "
            f"leaves; {self.greedy_equal} of {self.samples} greedy answers are equal"
        )


def samples(policy: Any, questions: list[str], max_tokens: int = MAX_TOKENS) -> Samples:
    """What the policy says to the questions, sampled and greedily, and how likely it and its base find the samples."""
    from grlo_lite.generation.answers import completion_ids
    from grlo_lite.generation.request import Sampling
    from grlo_lite.generation.sampling import seeded
    from grlo_lite.models.chat_template import formatted

    model, tokenizer = policy.model.eval(), policy.tokenizer
    texts = [formatted(tokenizer, [{"role": "user", "content": question}]) for question in questions]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    with seeded(model, 0):
        sampled = completion_ids(model, tokenizer, texts, Sampling(max_tokens, 1.0))
    greedy = completion_ids(model, tokenizer, texts, Sampling(max_tokens, 0.0))
    own = log_probabilities(model, prompts, sampled)
    with model.disable_adapter():
        bare = log_probabilities(model, prompts, sampled)
    return Samples(prompts, sampled, greedy, own, bare)


def log_probabilities(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> list[list[float]]:
    """The log-probability of each token of the answers behind their prompts, one conversation at a time."""
    import torch

    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt + answer], device=model.device)
        with torch.inference_mode():
            logits_TV = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
        picked_T = logits_TV.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
        found.append(picked_T.tolist())
    return found


def proof(seen: Samples, theirs: list[list[float]], greedy: list[list[int]], allowed: float) -> Proof:
    """The export held against the policy, from its log-probabilities of the policy's samples and its greedy answers."""
    return Proof(
        len(seen.sampled),
        sum(map(len, seen.sampled)),
        _mean_gap(seen.policy, theirs),
        _mean_gap(seen.policy, seen.base),
        sum(a == b for a, b in zip(seen.greedy, greedy, strict=True)),
        allowed,
    )


def _mean_gap(some: list[list[float]], others: list[list[float]]) -> float:
    gaps = [abs(a - b) for row, other in zip(some, others, strict=True) for a, b in zip(row, other, strict=True)]
    return sum(gaps) / len(gaps)


def questions(subject: Any) -> list[str]:
    """Prompts to hold an export against its policy on: the run's own samples, the newest first, else general ones."""
    rows = reversed(files.read_lines(subject.run.samples))
    found = list(dict.fromkeys(row["prompt"] for row in rows))
    return (found or GENERAL)[:PROMPTS]


_TOPICS = ("bread", "rivers", "sleep", "chess", "bicycles", "volcanoes", "letters", "gardens", "maps", "music")
_ASKED = (
    "Tell me something about {}.",
    "Give me three tips about {}.",
    "Why do people like {}?",
    "Write two sentences about {}.",
    "What should a beginner know about {}?",
)
GENERAL = [asked.format(topic) for asked in _ASKED for topic in _TOPICS]
