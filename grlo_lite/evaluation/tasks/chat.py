"""Open-ended prompts that a judge compares the two arms' answers to."""

from typing import Any

from grlo_lite.evaluation.tasks.task import Question, Task


def arena(rows: list[dict[str, Any]]) -> list[Question]:
    """Arena-Hard's prompts, or any rows with a `prompt` text. This is not Arena-Hard's protocol, only its questions."""
    return [
        Question(str(row.get("uid", i)), row["prompt"], f"Request: {row['prompt']}\nResponse:", "")
        for i, row in enumerate(rows)
    ]


CHAT = Task(
    "chat", "chat", 1, 2048, arena, None, ("arena_hard_v0.1_prompts.jsonl", "arena_hard.jsonl", "chat.jsonl"),
    metric="win_rate", stops=("\nRequest:",), limit=200, size=500,
)  # fmt: skip
