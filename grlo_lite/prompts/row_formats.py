"""The shapes rows come in, each made the same list of messages: verl, TRL, ShareGPT, Alpaca, OpenAI, MT-Bench, a bare
column; and the right answer that stands beside a prompt.
"""

from collections.abc import Iterable
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.grading.extraction import last_boxed
from grlo_lite.models.chat_template import Messages

CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")


TEXT_COLUMNS = ("prompt", "instruction", "question", "problem", "text")


TURNS_COLUMN = "turns"  # MT-Bench's: what the user says, turn by turn; the answers between are the model's own


# What may be left out of a row, as it is said of a source's rows
ANSWERED = "ended with an assistant's turn, which is left out"
LATER_TURNS = "hold several turns of the user, of which only the first is asked: the others answer what is not there"


ALPACA_ANSWERS = ("output", "response")


ALPACA_INPUTS = ("input", "context")


ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}


def prompt_column(row: Any, where: str) -> str | None:
    """The column that holds a row's prompt, or None where the row is a text itself. Raises BadInput, with the columns
    listed, where there is none or more than one.
    """
    if isinstance(row, str):
        return None
    columns = list(_columns(row, where))
    found = [column for column in (*CONVERSATION_COLUMNS, *TEXT_COLUMNS) if column in columns]
    if "instruction" in found and any(answer in columns for answer in ALPACA_ANSWERS):
        return "instruction"  # Alpaca's own `text` column is the whole example, answer included
    found = found or [column for column in columns if column == TURNS_COLUMN]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(columns)
    if not found:
        raise BadInput(f"{where} has no key 'prompt' (found: {listed}); name the column in prompts.column")
    raise BadInput(
        f"{where}: the prompt could be any of {', '.join(found)}; say which in prompts.column (found: {listed})"
    )


def messages_of(row: Any, column: str | None, where: str) -> tuple[Messages, str]:
    """The row's prompt as messages that end with the user's, and what was left out of it: nothing (an empty text),
    ANSWERED or LATER_TURNS.

    Raises BadInput naming the place, the column and what is wrong with it. An empty text is no mistake here.
    """
    if column is None:
        if not isinstance(row, str):
            raise BadInput(f"{where} is {kind(row)}, but the rows before it are bare texts; write them all alike")
        return [{"role": "user", "content": _text(row, where)}], ""
    if column not in _columns(row, where):
        raise BadInput(f"{where} has no key {column!r} (found: {', '.join(row)}); every row needs it")
    value = row[column]
    if isinstance(value, str) and column not in CONVERSATION_COLUMNS:
        text = _text(value, f"{where}: {column!r}")
        extra = next((row[key] for key in ALPACA_INPUTS if row.get(key)), "") if column == "instruction" else ""
        if extra:
            text = f"{text}\n\n{_text(extra, f'{where}: the input')}"
        return [{"role": "user", "content": text}], ""
    if (first := first_turn(value)) is not None:
        text = _text(first, f"{where}: {column!r}, turn 1")
        return [{"role": "user", "content": text}], LATER_TURNS if len(value) > 1 else ""
    if isinstance(value, list) and value:
        return _conversation(value, f"{where}: {column!r}")
    raise BadInput(
        f"{where}: {column!r} is neither a text nor a list of messages, but {kind(value)}; mend or remove that row"
    )


def answer_of(row: Any, column: str | None, where: str) -> str | None:
    """The right answer that a row holds, None where it has none: in the column that is named, else verl's
    `reward_model.ground_truth`, `answer` (GSM8K's behind its ####), or the last box of MATH's `solution`.

    Raises BadInput where the named column is not there.
    """
    if not isinstance(row, dict):
        return None
    if column is not None and column not in row:
        raise BadInput(f"{where} has no key {column!r} (found: {', '.join(row)}), which prompts.answer names")
    graded = row.get("reward_model")
    verls = graded.get("ground_truth") if isinstance(graded, dict) else None
    solution = row.get("solution")
    boxed = last_boxed(solution) if isinstance(solution, str) else None
    found = [row[column]] if column is not None else [verls, row.get("answer"), boxed]
    texts = [str(value) for value in found if isinstance(value, str | int | float) and str(value).strip()]
    if not texts:
        return None
    _, hashes, number = texts[0].rpartition("####")
    return number.strip().replace(",", "") if hashes else texts[0].strip()


def first_turn(value: Any) -> str | None:
    """The first of a list of texts, which is what the user begins with; None where the value is no such list."""
    turns = value if isinstance(value, list) else []
    return turns[0] if turns and all(isinstance(turn, str) for turn in turns) else None


def _columns(row: Any, where: str) -> Iterable[str]:
    if not isinstance(row, dict):
        raise BadInput(f"{where} has no key 'prompt' (found: {type(row).__name__}); a row is an object or a text")
    return row.keys()


def kind(value: Any) -> str:
    """What a value is and how it begins, for messages: null, an empty list, int '7'."""
    if value is None:
        return "null"
    if isinstance(value, list) and not value:
        return "an empty list"
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _conversation(turns: list[Any], where: str) -> tuple[Messages, str]:
    """Messages of turns of either vocabulary, `role`/`content` or `from`/`value`; and ANSWERED where an answer ended
    them.
    """
    messages = [_message(turn, f"{where}, message {number}") for number, turn in enumerate(turns, 1)]
    answered = messages[-1]["role"] == "assistant"
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] != "user":
        last = messages[-1]["role"] if messages else "assistant"
        raise BadInput(f"{where}: the last message before the answer is by {last!r}; it must be by 'user'")
    return messages, ANSWERED if answered else ""


def _message(turn: Any, where: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise BadInput(f"{where} is {kind(turn)}; a message is an object with 'role' and 'content'")
    role_key, text_key = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    for key in (role_key, text_key):
        if key not in turn:
            raise BadInput(f"{where} has no {key!r} (found: {', '.join(turn)}); a message has 'role' and 'content'")
    role, content = turn[role_key], turn[text_key]
    if not isinstance(role, str) or role not in ROLES:
        raise BadInput(f"{where}: the {role_key} {role!r} is unknown; use one of {', '.join(sorted(set(ROLES)))}")
    if isinstance(content, list):  # OpenAI's parts; an image or a sound cannot be asked here
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise BadInput(f"{where}: {text_key!r} has parts that are no text; only text can be asked")
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadInput(f"{where}: {text_key!r} is neither a text nor a list of text parts, but {kind(content)}")
    return {"role": ROLES[role], "content": _text(content, where)}


def _text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise BadInput(f"{where} is no text, but {kind(text)}; mend or remove that row")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise BadInput(f"{where} holds half a surrogate pair, which is no character; save the text as valid UTF-8")
    return text
