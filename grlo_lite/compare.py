"""Base and tuned answers to one question, from one loaded 4-bit model, in one batch, as they are generated.

Knows of no page and no network: `app` shows it, and a script may use it as it is.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from grlo_lite import policy as policies
from grlo_lite import rundir, subject
from grlo_lite.errors import BadInput
from grlo_lite.generation import Sampling, generation_config, seeded
from grlo_lite.subject import Subject

Messages = list[dict[str, str]]

ARMS = ("base", "tuned")
CHARACTERS_A_TOKEN = 8  # a conversation with more of them for every token of the context is not even counted
SHOWN_EVERY = 0.05  # seconds between two states of a stream; a reader sees no more, and decoding costs time


class Refused(Exception):
    """A request that cannot be answered; the message says why and what to change."""


@dataclass(frozen=True)
class Adapter:
    """One run's adapter: what it is called here, its name in the loaded model, and the hash of its weights."""

    label: str
    peft_name: str
    sha256: str


@dataclass(frozen=True)
class Settings:
    """How both arms answer. Temperature 0 is greedy; `plain_base` gives the base arm the text without the template."""

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    system: str = ""
    plain_base: bool = False
    score: bool = False

    def check(self) -> None:
        """Raises Refused where a value is of another kind or outside its range; not a number is outside of all."""
        kinds = {"max_tokens": int, "temperature": (int, float), "top_p": (int, float), "seed": int, "system": str}
        kinds |= {"plain_base": bool, "score": bool}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
                raise Refused(f"{name} is {value!r}, which is of another kind")
        ranges = {"max_tokens": (1, math.inf), "temperature": (0, 2), "top_p": (1e-6, 1), "seed": (0, 2**32 - 1)}
        for name, (low, high) in ranges.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise Refused(f"{name} is {value}; it must be from {low:g} to {high:g}")


@dataclass(frozen=True)
class Turn:
    """A question and each arm's answer to it."""

    question: str
    answers: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """One arm's answer so far. `ended` is None while it grows, then `end of turn`, `length` or `stopped`."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    ended: str | None = None
    score: float | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Progress:
    """The state of a request: how many are before it, each arm's reply so far, and what there is to say about it."""

    ahead: int
    replies: dict[str, Reply] = field(default_factory=dict)
    note: str = ""


class Line:
    """Those who wait for the model, in the order in which they came; the first of them has it."""

    def __init__(self, longest: int):
        self._tickets: list[object] = []
        self._longest = longest
        self._moved = threading.Condition()

    def join(self) -> object:
        """A place at the end. Raises Refused where `longest` are waiting already."""
        with self._moved:
            if len(self._tickets) > self._longest:
                raise Refused(f"{self._longest} questions are waiting already; ask again in a moment")
            ticket = object()
            self._tickets.append(ticket)
            return ticket

    def ahead(self, ticket: object, seconds: float) -> int:
        """How many are before this one, at once where none are, else after the line moved or `seconds` went by."""
        with self._moved:
            if before := self._tickets.index(ticket):
                self._moved.wait(seconds)
                before = self._tickets.index(ticket)
            return before

    def leave(self, ticket: object) -> None:
        with self._moved:
            self._tickets.remove(ticket)
            self._moved.notify_all()

    def __len__(self) -> int:
        return len(self._tickets)


class Comparison:
    """A base model and its adapters, which answer together.

    Any number of threads may ask: one request at a time has the model, in the order in which they came, since a
    second forward beside it would be answered by the wrong arm. `load_judge` gives the reward model; it is called
    when a score is first wanted.
    """

    def __init__(
        self,
        policy: Any,
        adapters: list[Adapter],
        load_judge: Callable[[], Any] | None = None,
        most_characters: int = 16_000,
        longest_line: int = 32,
        longest_answer: int = 4096,
        scored: Collection[str] | None = None,
    ):
        self.model, self.tokenizer = policy.model.eval(), policy.tokenizer
        self.adapters = {adapter.label: adapter for adapter in adapters}
        self.most_characters = most_characters
        self.line = Line(longest_line)
        self.can_score = load_judge is not None
        self._load_judge, self._judge = load_judge, None
        self._model_lock = threading.Lock()
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.context: int = limit or 1_000_000
        self.longest_answer = min(longest_answer, max(self.context // 2, 1))
        self.scored = frozenset(self.adapters if scored is None else scored)
        self._serving: dict[threading.Thread, threading.Event] = {}
        self._closed = False

    def stream(
        self,
        turns: Sequence[Turn],
        question: str,
        adapter: str,
        settings: Settings,
        stop: threading.Event | None = None,
        arms: Sequence[str] = ARMS,
    ) -> Iterator[Progress]:
        """The states of both replies until both have ended; the last one holds them whole, and their scores.

        Setting `stop` ends both where they are; so does closing the iterator, which frees the model for the next one
        within a token. What was stopped gets no score. Raises Refused, when the first state is asked for, where the
        request is too long, names no adapter, or too many are waiting.
        """
        stop = stop or threading.Event()
        if self._closed:
            raise Refused("the app is closing")
        self._check(turns, question, adapter, settings)
        ticket = self.line.join()
        told: queue.SimpleQueue[Progress | Exception | None] = queue.SimpleQueue()
        request = _Request(
            list(turns), question, adapter, self.adapters[adapter].peft_name, settings, tuple(arms), stop, told
        )
        thread = threading.Thread(target=self._serve, args=(ticket, request), daemon=True)
        self._serving[thread] = stop
        thread.start()
        try:
            while (state := told.get()) is not None:
                while not told.empty() and not isinstance(state, Exception):  # a slow reader gets the newest state
                    newer = told.get()
                    if newer is None:
                        yield state
                        return
                    state = newer
                if isinstance(state, Exception):
                    raise state
                yield state
        finally:
            stop.set()

    def answers(
        self, turns: Sequence[Turn], question: str, adapter: str, settings: Settings, arms: Sequence[str] = ARMS
    ) -> dict[str, Reply]:
        """Both replies, whole. Raises Refused as `stream` does."""
        *_, last = self.stream(turns, question, adapter, settings, arms=arms)
        return last.replies

    def warm_up(self) -> None:
        """Answers a few words, so that the first question does not wait for what libraries do once; on a CPU with as
        many threads as answer them soonest, for a small model can lose more by several threads than it gains.
        """
        import torch

        on_cpu = self.model.device.type == "cpu"
        seconds: dict[int, float] = {}
        for threads in sorted({1, torch.get_num_threads()}) if on_cpu else [torch.get_num_threads()]:
            torch.set_num_threads(threads)
            for _ in range(2):  # the first is slower, whatever the threads
                began = time.monotonic()
                self.answers([], "Hi", next(iter(self.adapters)), Settings(max_tokens=8, temperature=0.0))
                seconds[threads] = time.monotonic() - began
        torch.set_num_threads(min(seconds, key=lambda threads: seconds[threads]))

    def _check(self, turns: Sequence[Turn], question: str, adapter: str, settings: Settings) -> None:
        texts = [question, *(text for turn in turns for text in (turn.question, *turn.answers.values()))]
        if not isinstance(adapter, str) or adapter not in self.adapters:
            raise Refused(f"there is no adapter {adapter!r}; there is {', '.join(self.adapters)}")
        settings.check()
        for text in (*texts, settings.system):
            if not isinstance(text, str) or not _is_unicode(text):
                raise Refused("a question or an earlier turn is no text")
        if not question.strip():
            raise Refused("the question is empty; type one")
        characters = len(question) + len(settings.system)
        if characters > self.most_characters:
            raise Refused(
                f"the question has {characters:,} characters with its system prompt; "
                f"at most {self.most_characters:,} are taken, so shorten it"
            )
        if sum(map(len, texts)) > self.most_characters + CHARACTERS_A_TOKEN * self.context:
            raise Refused(f"the conversation is longer than the model's {self.context:,} tokens; clear it")
        if settings.max_tokens > self.longest_answer:
            raise Refused(f"max_tokens is {settings.max_tokens:,}; at most {self.longest_answer:,} are given")

    def close(self, seconds: float = 5.0) -> None:
        """Stops every answer and refuses further ones; waits so long for the model to let go. A process that ends in
        the middle of a forward aborts.
        """
        self._closed = True
        serving = dict(self._serving)
        for stop in serving.values():
            stop.set()
        deadline = time.monotonic() + seconds
        for thread in serving:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _serve(self, ticket: object, request: "_Request") -> None:
        """Waits for the model, answers, and leaves the line, whatever becomes of the reader."""
        import torch

        try:
            before = None
            while (ahead := self.line.ahead(ticket, 0.1)) and not request.stop.is_set():
                if ahead != before:
                    request.told.put(Progress(ahead))
                before = ahead
            if request.stop.is_set():  # not behind the lock, where it would wait for the one that is being answered
                request.told.put(Progress(0, {arm: Reply(ended="stopped") for arm in request.arms}))
                return
            with self._model_lock:
                replies = self._generated(request)
                note = ""
                if request.settings.score:
                    request.told.put(Progress(0, replies, "" if self._judge else "loading the reward model"))
                    replies, note = self._scored(request, replies)
            request.told.put(Progress(0, replies, note))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            request.told.put(Refused("the GPU has no room for that much; clear the conversation, or ask for less"))
        except Exception as error:  # noqa: BLE001 - it belongs to the reader's thread, where `stream` raises it
            request.told.put(error)
        finally:
            self.line.leave(ticket)
            self._serving.pop(threading.current_thread(), None)
            request.told.put(None)

    def _generated(self, request: "_Request") -> dict[str, Reply]:
        import torch
        from transformers import StoppingCriteriaList

        settings, tokenizer = request.settings, self.tokenizer
        batch = tokenizer(
            [self._text(request, arm) for arm in request.arms],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        length = batch["input_ids"].shape[1]
        if length + settings.max_tokens > self.context:
            raise Refused(
                f"the conversation has {length:,} tokens, with {settings.max_tokens:,} for the answer more than the "
                f"model's {self.context:,}; clear it, or ask for a shorter answer"
            )
        config = generation_config(
            self.model, tokenizer, Sampling(settings.max_tokens, settings.temperature, settings.top_p)
        )
        rows = _Rows(tokenizer, config.eos_token_id, settings.max_tokens, request)
        with seeded(self.model, settings.seed), torch.inference_mode():
            self.model.generate(
                input_ids=batch["input_ids"].to(self.model.device),
                attention_mask=batch["attention_mask"].to(self.model.device),
                generation_config=config,
                adapter_names=["__base__" if arm == "base" else request.adapter for arm in request.arms],
                streamer=rows,
                stopping_criteria=StoppingCriteriaList([rows.stopped]),
            )
        return rows.replies()

    def _text(self, request: "_Request", arm: str) -> str:
        """What an arm goes on from: the conversation with that arm's own answers."""
        settings = request.settings
        messages = _messages(request.turns, request.question, arm, settings.system)
        if arm == "base" and settings.plain_base:
            return "\n\n".join(message["content"] for message in messages) + "\n"
        return policies.formatted(self.tokenizer, messages)

    def _scored(self, request: "_Request", replies: dict[str, Reply]) -> tuple[dict[str, Reply], str]:
        """The replies with the reward model's scores, or as they were and why there are none."""
        import torch

        from grlo_lite.reward import RewardError

        if request.stop.is_set():
            return replies, "no score: stopped"
        if self._load_judge is None or request.label not in self.scored:
            return replies, "no score: the reward model that is at hand is not the one of this adapter's run"
        try:
            self._judge = self._judge or self._load_judge()
            scores = self._judge.score(
                [
                    [
                        *_messages(request.turns, request.question, arm, request.settings.system),
                        {"role": "assistant", "content": reply.text},
                    ]
                    for arm, reply in replies.items()
                ]
            )
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return replies, "no score: the reward model does not fit into the memory beside the policy"
        except (BadInput, RewardError) as error:
            return replies, f"no score: {error}"
        return {arm: replace(reply, score=s) for (arm, reply), s in zip(replies.items(), scores, strict=True)}, ""


@dataclass(frozen=True)
class _Request:
    turns: list[Turn]
    question: str
    label: str
    adapter: str
    settings: Settings
    arms: tuple[str, ...]
    stop: threading.Event
    told: "queue.SimpleQueue[Progress | Exception | None]"


class _Rows:
    """What `generate` hands over, a token a row at a time; Transformers' own streamer takes one row only."""

    def __init__(self, tokenizer: Any, stop_ids: int | list[int], max_tokens: int, request: _Request):
        self.tokenizer, self.max_tokens, self.request = tokenizer, max_tokens, request
        self.stop_ids = set(stop_ids if isinstance(stop_ids, list) else [stop_ids])
        self.ids: dict[str, list[int]] = {arm: [] for arm in request.arms}
        self.ended: dict[str, str] = {}
        self.took: dict[str, float] = {}
        self.began: float | None = None
        self.told_at = 0.0

    def put(self, tokens: Any) -> None:
        if self.began is None:  # the first call brings the prompt
            self.began = time.monotonic()
            return
        now = time.monotonic()
        for arm, token in zip(self.request.arms, tokens.tolist(), strict=True):
            if arm in self.ended:
                continue
            if token in self.stop_ids:
                self.ended[arm] = "end of turn"
            else:
                self.ids[arm].append(token)
                if len(self.ids[arm]) == self.max_tokens:
                    self.ended[arm] = "length"
            self.took[arm] = now - self.began
        if now - self.told_at >= SHOWN_EVERY:
            self.told_at = now
            self.request.told.put(Progress(0, self._so_far()))

    def end(self) -> None:
        """Part of Transformers' streamer interface; `replies` says how it ended."""

    def stopped(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """A stopping criterion: every row is done as soon as the request is stopped. Shape (B,), bool."""
        import torch

        return torch.full((len(input_ids),), self.request.stop.is_set(), device=input_ids.device)

    def replies(self) -> dict[str, Reply]:
        """The replies, ended; what neither stopped by itself nor reached its length was stopped."""
        for arm in self.request.arms:
            self.ended.setdefault(arm, "stopped")
        return self._so_far()

    def _so_far(self) -> dict[str, Reply]:
        return {
            arm: Reply(self._text(arm), len(ids), self.took.get(arm, 0.0), self.ended.get(arm))
            for arm, ids in self.ids.items()
        }

    def _text(self, arm: str) -> str:
        text = self.tokenizer.decode(self.ids[arm], skip_special_tokens=True)
        return text if arm in self.ended else text.rstrip("\ufffd")  # a character of which only some bytes are there


def _messages(turns: Sequence[Turn], question: str, arm: str, system: str) -> Messages:
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answers[arm]})
    return [*messages, {"role": "user", "content": question}]


def load(subjects: list[Subject], load_judge: Callable[[], Any] | None = None, **limits: int) -> Comparison:
    """One model with the adapters of all subjects on it.

    Raises BadInput where they do not belong on the same base, in the same precision and template, or where an adapter
    is of a kind that cannot answer beside its base in one batch.
    """
    first = subjects[0]
    folders = [s.adapter.resolve() for s in subjects]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise BadInput(f"{twice} is named twice; name each adapter once")
    for other in subjects:
        _require_mixable(other.adapter)
        for what in ("base", "revision", "quantization", "template_sha256"):
            # an adapter without its run says neither a template nor, mostly, a revision
            unsaid = other.trained_by is None and what in ("revision", "template_sha256")
            if getattr(other, what) != getattr(first, what) and not unsaid:
                raise BadInput(
                    f"{other.adapter} has another {what} than {first.adapter} ({getattr(other, what)}, not "
                    f"{getattr(first, what)}); give adapters of one base model, or one run"
                )
    policy = subject.load(first)
    names = ["default", *(f"run{i}" for i in range(2, len(subjects) + 1))]
    for name, other in zip(names[1:], subjects[1:], strict=True):
        try:
            policy.model.load_adapter(str(other.adapter), name, is_trainable=False)
        except (OSError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())[:300]
            raise BadInput(f"the adapter {other.adapter} cannot be loaded beside {first.adapter}: {said}") from None
    adapters = [
        Adapter(label, name, rundir.file_sha256(s.adapter / "adapter_model.safetensors"))
        for label, name, s in zip(_labels([s.run.path for s in subjects]), names, subjects, strict=True)
    ]
    scored = [a.label for a, s in zip(adapters, subjects, strict=True) if s.trained_by == first.trained_by]
    return Comparison(policy, adapters, load_judge, scored=scored, **limits)


def _is_unicode(text: str) -> bool:
    """Whether there is no half of a surrogate pair in it, which tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _labels(paths: list[Path]) -> list[str]:
    """A run's directory name, or its whole path where two are called the same."""
    names = [path.resolve().name for path in paths]
    return [str(p) if names.count(n) > 1 else n for p, n in zip(paths, names, strict=True)]


def _require_mixable(adapter: Path) -> None:
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{adapter}/adapter_config.json cannot be read: {' '.join(str(error).split())[:200]}") from None
    kind = getattr(config.peft_type, "value", config.peft_type)
    start = str(getattr(config, "init_lora_weights", True))
    hindrances = {
        f"it is {kind}": kind != "LORA",
        "it is DoRA": getattr(config, "use_dora", False),
        "it trained biases": getattr(config, "bias", "none") != "none",
        "it replaces whole modules": getattr(config, "modules_to_save", None),
        "it repeats layers": getattr(config, "layer_replication", None),
        "it adapts bare parameters": getattr(config, "target_parameters", None),
        # OLoRA and its like change the base's weights when they are loaded: the base arm would not be the base
        f"it starts from {start}": start not in ("True", "False", "gaussian", "eva"),
    }
    if why := next((said for said, found in hindrances.items() if found), None):
        raise BadInput(
            f"{adapter} cannot answer beside its base in one batch: {why}; the app takes plain LoRA adapters"
        )
