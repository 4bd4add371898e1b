"""Base and tuned answers to one question, from one loaded 4-bit model, in one batch, as they are generated.

Knows of no page and no network: `app` shows it, and a script may use it as it is.
"""

import hashlib
import queue
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from grlo_lite.app.comparison.streaming import Request, Rows
from grlo_lite.app.comparison.values import Adapter, Progress, Refused, Reply, Settings, Turn
from grlo_lite.app.comparison.waiting_line import Line
from grlo_lite.errors import BadInput
from grlo_lite.evaluation.results import ARMS
from grlo_lite.generation import decoders
from grlo_lite.generation.answers import prompts_of
from grlo_lite.generation.decoders import Decoder
from grlo_lite.generation.decoding import Answers
from grlo_lite.generation.engine_table import VLLM_BLOCK
from grlo_lite.generation.request import Sampling
from grlo_lite.generation.sampling import seeded
from grlo_lite.models import chat_template
from grlo_lite.models.chat_template import Messages
from grlo_lite.models.reward_model import RewardError

MOST_CHARACTERS = 16_000  # of a question and its system prompt
LONGEST_LINE = 32  # requests that wait
LONGEST_ANSWER = 4096  # tokens
HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")  # of a surrogate pair, which tokenizers refuse
CHARACTERS_A_TOKEN = 8  # a conversation with more of them for every token of the context is not even counted


class Comparison:
    """A base model and its adapters, which answer together.

    Any number of threads may ask: one request at a time has the model, in the order in which they came, since a
    second forward beside it would be answered by the wrong arm. `load_judge` gives the reward model; it is called
    when a score is first wanted. `engine` is of engine_table.ANSWERING.
    """

    def __init__(
        self,
        policy: Any,
        adapters: list[Adapter],
        load_judge: Callable[[], Any] | None = None,
        scored: Collection[str] | None = None,
        engine: str = "kit",
    ):
        self.model, self.tokenizer = policy.model.eval(), policy.tokenizer
        self.adapters = {adapter.label: adapter for adapter in adapters}
        self.line = Line(LONGEST_LINE)
        self.can_score = load_judge is not None
        self._load_judge, self._judge = load_judge, None
        self._model_lock = threading.Lock()
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.context: int = limit or 1_000_000
        self.longest_answer = min(LONGEST_ANSWER, max(self.context // 2, 1))
        self.scored = frozenset(self.adapters if scored is None else scored)
        self._engine, self._held, self._decoding = ExitStack(), ExitStack(), None
        tokens = 2 * self.context + VLLM_BLOCK
        self._decodes = self._engine.enter_context(decoders.decoding(engine, self.model, tokens))
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
        request = Request(
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
            if not isinstance(text, str) or HALF_A_CHARACTER.search(text):
                raise Refused("a question or an earlier turn is no text")
        if not question.strip():
            raise Refused("the question is empty; type one")
        characters = len(question) + len(settings.system)
        if characters > MOST_CHARACTERS:
            raise Refused(
                f"the question has {characters:,} characters with its system prompt; "
                f"at most {MOST_CHARACTERS:,} are taken, so shorten it"
            )
        if sum(map(len, texts)) > MOST_CHARACTERS + CHARACTERS_A_TOKEN * self.context:
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
        if not any(thread.is_alive() for thread in serving):
            self._held.close()
            self._engine.close()

    def _serve(self, ticket: object, request: Request) -> None:
        """Waits for the model, answers, and leaves the line, whatever becomes of the reader."""
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

    def _generated(self, request: Request) -> dict[str, Reply]:
        settings, tokenizer = request.settings, self.tokenizer
        texts = [self._text(request, arm) for arm in request.arms]
        share = [0.0 if arm == "base" else 1.0 for arm in request.arms]
        prompts = prompts_of(self.model, tokenizer, texts, share)
        length = prompts.ids_BP.shape[1]
        if length + settings.max_tokens > self.context:
            raise Refused(
                f"the conversation has {length:,} tokens, with {settings.max_tokens:,} for the answer more than the "
                f"model's {self.context:,}; clear it, or ask for a shorter answer"
            )
        rows = Rows(tokenizer, prompts.ends, settings.max_tokens, request)
        # the question belongs to the draw: one seed would otherwise begin every answer with the same random number
        drawn_by = hashlib.sha256(f"{settings.seed} {request.question}".encode()).digest()[:4]
        with seeded(self.model, int.from_bytes(drawn_by, "big")):
            answers = Answers(prompts, Sampling(settings.max_tokens, settings.temperature, settings.top_p))
            rows.begin()
            self._decoder(request.adapter)(prompts, answers, len(texts), rows.watch)
        return rows.replies()

    def _decoder(self, adapter: str) -> Decoder:
        """What decodes with one adapter beside the base; that of the last request, where it had the same adapter."""
        if self._decoding is None or self._decoding[0] != adapter:
            self._held.close()
            self._decoding = None  # two dense copies at once may be more than there is room for
            self._decoding = adapter, self._held.enter_context(self._decodes(self.model, beside=adapter))
        return self._decoding[1]

    def _text(self, request: Request, arm: str) -> str:
        """What an arm goes on from: the conversation with that arm's own answers."""
        settings = request.settings
        messages = _messages(request.turns, request.question, arm, settings.system)
        if arm == "base" and settings.plain_base:
            return "\n\n".join(message["content"] for message in messages) + "\n"
        return chat_template.formatted(self.tokenizer, messages)

    def _scored(self, request: Request, replies: dict[str, Reply]) -> tuple[dict[str, Reply], str]:
        """The replies with the reward model's scores, or as they were and why there are none."""
        if request.stop.is_set():
            return replies, "no score: stopped"
        if self._load_judge is None or request.label not in self.scored:
            return replies, "no score: the reward model that is at hand is not the one of this adapter's run"
        try:
            self._judge = self._judge or self._load_judge()
            asked = [_messages(request.turns, request.question, arm, request.settings.system) for arm in replies]
            said = [reply.text for reply in replies.values()]
            scores = self._judge.score(chat_template.with_answers(asked, said))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return replies, "no score: the reward model does not fit into the memory beside the policy"
        except (BadInput, RewardError) as error:
            return replies, f"no score: {error}"
        return {arm: replace(reply, score=s) for (arm, reply), s in zip(replies.items(), scores, strict=True)}, ""


def _messages(turns: Sequence[Turn], question: str, arm: str, system: str) -> Messages:
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answers[arm]})
    return [*messages, {"role": "user", "content": question}]
