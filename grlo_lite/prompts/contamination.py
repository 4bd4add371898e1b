"""Decontamination: which prompts ask what a benchmark asks, by shared words in a row and by likeness of letters."""

import os.path
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.models.chat_template import Messages
from grlo_lite.prompts import sources
from grlo_lite.prompts.cleaning import Step, text_of
from grlo_lite.prompts.row_formats import CONVERSATION_COLUMNS, TEXT_COLUMNS, TURNS_COLUMN, first_turn, kind
from grlo_lite.prompts.similarity import BATCH, bands, similarity, words
from grlo_lite.recipe.schema import DataSet
from grlo_lite.wording import aligned

SuiteSets = Mapping[str, tuple[str, ...]]  # an evaluation set's name, and the parts of names by which it is known
ID_COLUMNS = ("unique_id", "task_id", "question_id", "uid", "id", "index", "key")
SHOWN = 5
FEWEST_WORDS = 4  # of a question that is looked for inside prompts: "write a poem" is nobody's
FEWEST_LETTERS, SMALLEST_PIECE = 8, 0.4  # of a short prompt that is looked for inside questions, and its share of one


@dataclass(frozen=True)
class BenchmarkQuestion:
    """One question of an evaluation set, as it stands there."""

    set: str
    id: str
    text: str
    whole: bool = True  # False where the user goes on in later turns, which are not looked at


@dataclass(frozen=True)
class QuestionSet:
    """An evaluation set's questions, or why there are none to check against."""

    name: str
    questions: tuple[BenchmarkQuestion, ...]
    unchecked: str = ""


def question_sets(against: Iterable[str | DataSet], suite_sets: SuiteSets, missing: bool = True) -> list[QuestionSet]:
    """The named sets with their questions; then, with `missing`, as unchecked each of the suites' sets that was not
    among them.

    A folder stands for those of its files that are named after one of the suites' sets. A Hub data set that cannot be
    reached is unchecked, too. Raises BadInput where a file is missing or cannot be read, or a folder has no such file:
    what was named has to be checked.
    """
    found = []
    for named in against:
        place = DataSet(source=named) if isinstance(named, str) else named
        path = Path(os.path.expanduser(place.source))
        if os.path.isdir(path):
            files = sorted(file for file in path.iterdir() if _is_of_a_suite(file, suite_sets))
            if not files:
                raise BadInput(
                    f"prompts.decontaminate.against={place.source!r} has no file named after one of "
                    f"{', '.join(sorted(suite_sets))}; name the files themselves"
                )
            found += [_question_set(DataSet(source=str(file), column=place.column), file.name) for file in files]
        else:
            found.append(_question_set(place, path.name if os.path.exists(path) else place.source))
    checked = [found_set.name for found_set in found if found_set.questions]
    why = "its questions are not at hand; name a file or a data set in prompts.decontaminate.against"
    absent = [name for name, known in suite_sets.items() if not any(_is_named(one, known) for one in checked)]
    return found + [QuestionSet(name, (), why) for name in sorted(absent) if missing]


def question_set(name: str, texts: list[str]) -> QuestionSet:
    """A set whose questions are at hand as texts, numbered from 1."""
    return QuestionSet(name, tuple(BenchmarkQuestion(name, str(number), text) for number, text in enumerate(texts, 1)))


def _is_of_a_suite(file: Path, suite_sets: SuiteSets) -> bool:
    holds_rows = any(file.name.lower().endswith((suffix, f"{suffix}.gz")) for suffix in sources.SUFFIXES)
    return holds_rows and any(_is_named(file.name, known) for known in suite_sets.values())


def _is_named(name: str, known: tuple[str, ...]) -> bool:
    return any(_squeezed(part) in _squeezed(name) for part in known)


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _question_set(place: DataSet, name: str) -> QuestionSet:
    key = "prompts.decontaminate.against"
    try:
        return QuestionSet(name, tuple(_questions(sources.rows(place, "test", key), place.column, name)))
    except sources.Unreachable as error:
        return QuestionSet(name, (), str(error))


def _questions(rows: Iterator[sources.Located], column: str | None, name: str) -> Iterator[BenchmarkQuestion]:
    """Every text of a row that may be its question, under the row's id. Raises BadInput where a row has none."""
    for where, row in rows:
        if isinstance(row, str):
            yield BenchmarkQuestion(name, where, row)
            continue
        if column and isinstance(row, dict) and column in row and not _said(row[column]):
            raise BadInput(f"{where}: {column!r} holds no question, but {kind(row[column])}; name another column")
        known = (column,) if column else (*CONVERSATION_COLUMNS, *TEXT_COLUMNS, TURNS_COLUMN)
        texts = {_said(row[key]) for key in known if key in row} - {""} if isinstance(row, dict) else set()
        if not texts:
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise BadInput(
                f"{where} has no question (found: {found}); name its column: prompts.decontaminate.against="
                "[{source: …, column: …}]"
            )
        identity = next((str(row[key]) for key in ID_COLUMNS if row.get(key) is not None), where)
        whole = not any(first_turn(row.get(key)) is not None and len(row[key]) > 1 for key in known)
        for text in sorted(texts):
            yield BenchmarkQuestion(name, identity, text, whole)


def _said(value: Any) -> str:
    if (first := first_turn(value)) is not None:  # a later turn, such as "Now make it shorter.", is nobody's question
        return first
    if isinstance(value, list):
        turns = [turn.get("content") or turn.get("value") for turn in value if isinstance(turn, dict)]
        return "\n".join(turn for turn in turns if isinstance(turn, str))
    return value if isinstance(value, str) else ""


def decontaminated(
    rows: list[Messages], sets: list[QuestionSet], ngram: int, threshold: float
) -> tuple[list[Messages], Step, dict[str, Any]]:
    """The rows that ask no set's question, the step, and the content of contamination.json.

    A prompt is a hit if it shares `ngram` words in a row with a question; if a shorter question (of four words or
    more) stands in it whole; if it is no longer than `ngram` words, stands in a question and is two fifths of it, as
    its second half would be; or if the letters of both are as alike as `threshold` (Jaccard). Case and punctuation
    never matter. Raises BadInput where nothing is left.
    """
    questions = [question for found in sets for question in found.questions]
    texts = [text_of(row) for row in rows]
    hits = sorted(_hits(texts, questions, ngram, threshold)) if questions else []
    contaminated = {prompt for prompt, _, _ in hits}
    listed = [_listed(texts[prompt], questions[question], alike) for prompt, question, alike in hits]
    kept = [row for number, row in enumerate(rows) if number not in contaminated]
    if not kept:
        by_set = ", ".join(sorted({hit["set"] for hit in listed}))
        raise BadInput(f"none of the {len(rows)} prompts is left: each asks what an evaluation set asks ({by_set})")
    example = f"{' '.join(listed[0]['prompt'].split())[:40]}… ({listed[0]['set']})" if listed else ""
    checked = [found for found in sets if not found.unchecked]
    report = {
        "prompts": len(rows),
        "dropped": len(contaminated),
        "ngram": ngram,
        "similarity": threshold,
        "checked": [
            {
                "set": found.name,
                "questions": len({question.id for question in found.questions}),
                "hits": sum(hit["set"] == found.name for hit in listed),
                **_first_turns(found.questions),
            }
            for found in checked
        ],
        "unchecked": [{"set": found.name, "why": found.unchecked} for found in sets if found.unchecked],
        "hits": listed,
    }
    return kept, Step("contaminated", len(contaminated), len(kept), example), report


def _first_turns(questions: tuple[BenchmarkQuestion, ...]) -> dict[str, int]:
    """The number of questions of which the user's first turn alone was looked at, by its key in the report; empty where
    there are none.
    """
    cut_short = len({question.id for question in questions if not question.whole})
    return {"first_turns_only": cut_short} if cut_short else {}


def unchecked_report(why: str, names: Iterable[str]) -> dict[str, Any]:
    """The content of contamination.json where nothing was checked."""
    return {"checked": [], "unchecked": [{"set": name, "why": why} for name in names], "hits": []}


def verdict(report: dict[str, Any]) -> str:
    """The checked sets with their hits, the first hits, and what was not checked: that never counts as clean."""
    lines = []
    if report["checked"]:
        rows = [("contamination", "questions", "hits", "")]
        for one in report["checked"]:
            cut = f"(of {one['first_turns_only']:,} the first turn alone)" if "first_turns_only" in one else ""
            rows.append((one["set"], f"{one['questions']:,}", str(one["hits"]), cut))
        lines += aligned(rows, left=(0, 3))
    for hit in report["hits"][:SHOWN]:
        prompt = " ".join(hit["prompt"][:60].split())
        lines.append(f"  {hit['set']} {hit['question_id']}: {prompt!r} shares {hit['shared_words'][:80]!r}")
    if len(report["hits"]) > SHOWN:
        lines.append(f"  and {len(report['hits']) - SHOWN:,} more, all in contamination.json")
    if report["unchecked"]:
        lines.append(
            f"not checked against {', '.join(one['set'] for one in report['unchecked'])}: see contamination.json"
        )
    return "\n".join(lines)


def _hits(
    texts: list[str], questions: list[BenchmarkQuestion], ngram: int, threshold: float
) -> Iterator[tuple[int, int, str]]:
    """(prompt, question, how) for the likest question of each set that a prompt hits."""
    index = _Index([words(question.text) for question in questions], ngram)
    alike = _likenesses(texts, [question.text for question in questions], threshold)
    for number, text in enumerate(texts):
        shared = index.sharing(words(text))
        shared.update(dict.fromkeys(alike.get(number, ()), 10**6))
        best: dict[str, int] = {}
        for question, _ in shared.most_common():
            best.setdefault(questions[question].set, question)
        for question in best.values():
            yield number, question, "near duplicate" if question in alike.get(number, ()) else "shared words"


class _Index:
    """Looks up which questions share words in a row with a prompt."""

    def __init__(self, questions: list[list[str]], ngram: int):
        self.ngram = ngram
        self.letters = ["".join(question) for question in questions]
        self.runs: dict[str, tuple[int, ...]] = {}  # every run of `ngram` words; shorter questions whole
        self.starts: dict[str, tuple[int, ...]] = {}  # every place where a piece of a question could begin
        for number, question in enumerate(questions):
            if len(question) >= FEWEST_WORDS:
                for run in set(_runs(question, min(ngram, len(question)))):
                    self.runs[run] = (*self.runs.get(run, ()), number)
            letters = self.letters[number]
            if len(question) <= ngram / SMALLEST_PIECE:
                for start in {letters[i : i + FEWEST_LETTERS] for i in range(len(letters) - FEWEST_LETTERS + 1)}:
                    self.starts[start] = (*self.starts.get(start, ()), number)
        self.lengths = sorted({min(ngram, len(question)) for question in questions if len(question) >= FEWEST_WORDS})

    def sharing(self, prompt: list[str]) -> Counter[int]:
        """How many runs of words the prompt shares with each question that it shares any with."""
        shared: Counter[int] = Counter()
        for length in self.lengths:
            for run in _runs(prompt, length):
                if run in self.runs:
                    shared.update(self.runs[run])
        if len(prompt) <= self.ngram:
            letters = "".join(prompt)
            for number in self.starts.get(letters[:FEWEST_LETTERS], ()):
                if letters in self.letters[number] and len(letters) >= SMALLEST_PIECE * len(self.letters[number]):
                    shared[number] += 1
        return shared


def _runs(of: list[str], length: int) -> list[str]:
    return [" ".join(of[i : i + length]) for i in range(len(of) - length + 1)]


def _likenesses(texts: list[str], questions: list[str], threshold: float) -> dict[int, set[int]]:
    """Prompt → the questions whose letters are as alike as the threshold."""
    import numpy

    folded = bands(questions)
    by_band: dict[tuple[int, int], list[int]] = {}
    for question, hashes in enumerate(folded.tolist()):
        for band, value in enumerate(hashes):
            by_band.setdefault((band, value), []).append(question)
    alike: dict[int, set[int]] = {}
    for start in range(0, len(texts), BATCH):
        hashes = bands(texts[start : start + BATCH])
        for row, band in numpy.argwhere(numpy.isin(hashes, folded)).tolist():
            for question in by_band.get((band, int(hashes[row, band])), ()):
                known = alike.get(start + row, set())
                if question not in known and similarity(texts[start + row], questions[question]) >= threshold:
                    alike.setdefault(start + row, set()).add(question)
    return alike


def _listed(prompt: str, question: BenchmarkQuestion, how: str) -> dict[str, Any]:
    """A hit as a person can judge it: both texts, the longest run of words they share, and how alike they are."""
    asked, given = words(prompt), words(question.text)
    run = SequenceMatcher(None, asked, given, autojunk=False).find_longest_match()
    return {
        "prompt": prompt,
        "set": question.set,
        "question_id": question.id,
        "question": question.text,
        "found_by": how,
        "shared_words": " ".join(asked[run.a : run.a + run.size]),
        "similarity": round(similarity(prompt, question.text), 3),
    }
