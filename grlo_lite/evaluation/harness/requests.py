"""What lm-eval's tasks ask of a model, in tokens: texts to be scored and prompts to be answered."""

import random
from dataclasses import dataclass, field
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.evaluation.harness.loading import PREFIX, quiet
from grlo_lite.evaluation.harness.served import LENGTHS
from grlo_lite.generation.request import Sampling
from grlo_lite.models.chat_template import TEMPLATE_OPTIONS, Messages

MAX_TOKENS = 1024  # of an answer where a task's YAML sets no limit; lm-eval would take 256

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # tokens that stand before, and those that are scored


@dataclass(frozen=True)
class Wanted:
    """How lm-eval's tasks are asked: how much of them, how long an answer may be, how many where they are drawn (None:
    as each task says), and by which text.
    """

    limit: int | None = None
    max_tokens: int | None = None
    samples: int | None = None
    templated: bool = True
    seed: int = 0


@dataclass
class Encoding:
    """A tokenizer as lm-eval's own models use theirs; `templated` text has all its special tokens already."""

    tokenizer: Any
    max_length: int
    templated: bool = False
    backend: str = field(default="causal", init=False)  # what lm-eval's _encode_pair asks

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    def tok_encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        bos = self.tokenizer.bos_token
        bare = self.templated or add_special_tokens is False or bool(bos and text.startswith(bos))
        return self.tokenizer.encode(text, add_special_tokens=not bare)

    def pair(self, context: str, continuation: str) -> Pair:
        """A context and its continuation as lm-eval splits them, cut on the left to what the model can read."""
        from lm_eval.api.model import TemplateLM

        if context:
            before, after = TemplateLM._encode_pair(self, context, continuation)  # pyright: ignore[reportArgumentType]
        else:
            after = self.tok_encode(continuation, add_special_tokens=False)
            before = [self.prefix_token_id]
            if after[:1] == before:
                before, after = after[:1], after[1:]
        if not 0 < len(after) <= self.max_length:
            raise BadInput(f"a continuation of {len(after)} tokens; this model reads 1 to {self.max_length}")
        kept = (before + after)[-(self.max_length + 1) :]
        return tuple(kept[: len(kept) - len(after)]), tuple(after)

    def windows(self, text: str) -> list[Pair]:
        """A whole text in pieces that the model can read, each token scored once."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        pieces = get_rolling_token_windows(
            token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
            context_len=1,
        )  # fmt: skip
        return [(tuple(before), tuple(after)) for before, after in map(make_disjoint_window, pieces)]

    def prompt(self, context: str, max_tokens: int) -> list[int]:
        """A prompt's tokens, cut on the left so that the answer finds room."""
        return self.tok_encode(context)[-max(1, self.max_length - max_tokens) :]

    def apply_chat_template(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """A conversation as the policy reads it in training; its last message unfinished where none is to be begun."""
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt, **TEMPLATE_OPTIONS,
        )  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One of a task's requests: what is scored, or a prompt's tokens with how its answer is drawn, so many times."""

    pairs: tuple[Pair, ...] = ()
    prompt: tuple[int, ...] = ()
    sampling: Sampling | None = None
    repeats: int = 1


@dataclass
class Built:
    """A task's instances, as lm-eval made them, with our request for each; and which documents they are about."""

    task: Any
    instances: list[Any]
    requests: list[Request]
    documents: list[int]


def documents_asked(task: Any, limit: int | None) -> list[int]:
    """The numbers of the documents that are asked: all, or a random choice that depends on the task alone and of which
    a smaller limit's is a part.
    """
    there = len(task.eval_docs)
    if limit is None or limit >= there:
        return list(range(there))
    return sorted(random.Random(f"limit {task.task_name}").sample(range(there), there)[:limit])


def built(task: Any, encoding: Encoding, wanted: Wanted) -> Built:
    """A task's requests. Raises BadInput where it asks for something that the kit cannot do."""
    documents = documents_asked(task, wanted.limit)
    task.set_fewshot_seed(wanted.seed)
    with quiet():
        task.build_all_requests(
            samples=documents,
            apply_chat_template=encoding.templated,
            fewshot_as_multiturn=True,
            chat_template=encoding.apply_chat_template if encoding.templated else None,
        )
    instances = task.instances
    for instance in instances:
        instance.doc_id = documents[instance.doc_id]
    requests = [request_of(instance, encoding, wanted, task.task_name) for instance in instances]
    return Built(task, instances, requests, documents)


def request_of(instance: Any, encoding: Encoding, wanted: Wanted, name: str) -> Request:
    """An instance of lm-eval as a request. Raises BadInput for a kind that is not known."""
    kind, arguments = instance.request_type, instance.args
    if kind == "loglikelihood":
        return Request(pairs=(encoding.pair(*arguments),), repeats=instance.repeats)
    if kind == "loglikelihood_rolling":
        return Request(pairs=tuple(encoding.windows(*arguments)), repeats=instance.repeats)
    if kind != "generate_until":
        raise BadInput(f"{PREFIX}{name} asks for {kind}, which the kit cannot answer; leave it out")
    context, options = arguments
    sampling = sampling_of(options, encoding.max_length, wanted.max_tokens)
    repeats = (wanted.samples or instance.repeats) if sampling.temperature else 1
    prompt = tuple(encoding.prompt(context, sampling.max_tokens))
    return Request(prompt=prompt, sampling=sampling, repeats=repeats)


def own_limit(options: dict[str, Any]) -> int | None:
    """The longest answer that a task's YAML allows, in tokens; None where it says nothing."""
    return next((int(options[name]) for name in LENGTHS if options.get(name) is not None), None)


def sampling_of(options: dict[str, Any], max_length: int, max_tokens: int | None) -> Sampling:
    """How lm-eval's generation options draw an answer; `max_tokens` is the command line's limit."""
    until = options.get("until") or []
    stops = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    temperature = float(options.get("temperature") or 0.0)
    draws = options.get("do_sample", temperature > 0)
    longest = min(own_limit(options) or MAX_TOKENS, max_tokens or max_length, max(1, max_length // 2))
    if not draws:
        return Sampling(longest, 0.0, 1.0, stops)
    return Sampling(longest, temperature or 1.0, float(options.get("top_p") or 1.0), stops)
