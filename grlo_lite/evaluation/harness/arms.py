"""An arm's answers to the requests of lm-eval's tasks: by the engine that is asked, from the store first."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from grlo_lite.evaluation.answer_store import key
from grlo_lite.evaluation.answering import Asking
from grlo_lite.evaluation.harness.requests import Pair, Request
from grlo_lite.generation.request import Answer
from grlo_lite.models.scoring_budget import batches_under_budget

Response = tuple[float, bool] | list[Answer]


class Arm:
    """One arm of a loaded model, in effect while it is asked. Batches depend on what is asked alone, and each is kept
    whole or not at all, so that a killed evaluation goes on with the very batches and random draws.
    """

    def __init__(self, asking: Asking, arm: str, bar: Any):
        self.asking, self.arm, self.bar = asking, arm, bar
        self.facts = asking.arm_facts(arm)

    def responses(self, name: str, requests: list[Request]) -> list[Response]:
        """To each request in order: the log-probability of what is scored, the sum over its pieces, and whether all of
        it was the likeliest; or the answers to a prompt, as many as it repeats.
        """
        scored = self._scores(pair for request in requests for pair in request.pairs)
        self.bar.update(sum(request.sampling is None for request in requests))
        said = self._answers(name, requests)
        found: list[Response] = []
        for number, request in enumerate(requests):
            if request.sampling is None:
                values = [scored[pair] for pair in request.pairs]
                found.append((sum(value for value, _ in values), all(likeliest for _, likeliest in values)))
            else:
                found.append(said[number])
        return found

    def _scores(self, asked: Iterable[Pair]) -> dict[Pair, tuple[float, bool]]:
        """The log-probability of each pair's continuation, and whether each of its tokens was the likeliest. Pairs that
        differ in their last token alone are read once.
        """
        pairs = list(dict.fromkeys(asked))
        keys = {pair: key(**self.facts, scored=pair[1], behind=pair[0]) for pair in pairs}
        known = self.asking.store.known(keys.values())
        rows: dict[tuple[int, ...], list[Pair]] = {}
        for pair in pairs:
            rows.setdefault((*pair[0], *pair[1][:-1]), []).append(pair)
        if any(found not in known for found in keys.values()):
            self._score(rows, keys, known)
        return {pair: tuple(known[keys[pair]]) for pair in pairs}

    def _score(self, rows: dict[tuple[int, ...], list[Pair]], keys: dict[Pair, str], known: dict[str, Any]) -> None:
        from tqdm import tqdm

        from grlo_lite.generation.whole import continuation_log_probs, tokens_in_a_forward, whole

        model = self.asking.policy.model
        batches = batches_under_budget(sorted(rows, key=len), len, tokens_in_a_forward(model, self.asking.budget))
        total = sum(len(row) for row in rows)
        with whole(model) as logits, tqdm(total=total, unit="token", desc="scored", leave=False, delay=5) as bar:
            for batch in batches:
                lacking = [row for row in batch if any(keys[pair] not in known for pair in rows[row])]
                if lacking:
                    wanted = [[list(pair[1]) for pair in rows[row]] for row in lacking]
                    with self.asking.until_memory_runs_out():
                        found = continuation_log_probs(logits, model.device, [list(r) for r in lacking], wanted)
                    fresh = {
                        keys[pair]: list(value)
                        for row, values in zip(lacking, found, strict=True)
                        for pair, value in zip(rows[row], values, strict=True)
                        if keys[pair] not in known
                    }
                    self.asking.store.keep(fresh)
                    known |= fresh
                bar.update(sum(map(len, batch)))

    def _answers(self, name: str, requests: list[Request]) -> dict[int, list[Answer]]:
        """The answers to the prompts among the requests, by their number."""
        rows = [
            (number, k)
            for number in sorted(range(len(requests)), key=lambda n: len(requests[n].prompt))
            if requests[number].sampling is not None
            for k in range(requests[number].repeats)
        ]
        keys = {row: self._key(requests[row[0]], row[1]) for row in rows}
        known = self.asking.store.known(keys.values())
        self.bar.update(sum(found in known for found in keys.values()))
        with ExitStack() as held:
            decoder = None
            for number, batch in enumerate(self._batches(rows, requests)):
                lacking = list({keys[row]: row for row in batch if keys[row] not in known}.values())
                if lacking:
                    decoder = decoder or held.enter_context(self.asking.decoding(self.asking.policy.model))
                    sampling = requests[lacking[0][0]].sampling
                    assert sampling is not None
                    prompts = [list(requests[row[0]].prompt) for row in lacking]
                    said = self.asking.batch(prompts, sampling, f"{self.asking.seed} lm-eval {name} {number}", decoder)
                    fresh = {keys[row]: asdict(answer) for row, answer in zip(lacking, said, strict=True)}
                    self.asking.store.keep(fresh)
                    known |= fresh
                    self.bar.update(len(lacking))
        found: dict[int, list[Answer]] = {}
        for number, k in sorted(rows):
            found.setdefault(number, []).append(Answer(**known[keys[number, k]]))
        return found

    def _batches(self, rows: list[tuple[int, int]], requests: list[Request]) -> list[list[tuple[int, int]]]:
        """Rows that are drawn alike, under the budget."""
        alike: dict[Any, list[tuple[int, int]]] = {}
        for row in rows:
            alike.setdefault(requests[row[0]].sampling, []).append(row)

        def padded(row: tuple[int, int]) -> int:
            sampling = requests[row[0]].sampling
            return len(requests[row[0]].prompt) + (sampling.max_tokens if sampling else 0)

        return [batch for group in alike.values() for batch in batches_under_budget(group, padded, self.asking.budget)]

    def _key(self, request: Request, sample: int) -> str:
        assert request.sampling is not None
        drawn = {"seed": self.asking.seed, "sample": sample} if request.sampling.temperature else {}
        return key(**self.facts, prompt=request.prompt, **asdict(request.sampling), **drawn)
