"""A Modelfile for Ollama beside its GGUF: the chat template in Go's language, and both stop tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.exporting import card, gguf, merged
from grlo_lite.exporting.job import Job, growing
from grlo_lite.models.chat_template import TEMPLATE_OPTIONS

MARKS = ("\u2460user\u2460", "\u2461assistant\u2461", "\u2462again\u2462", "\u2463system\u2463")


@dataclass(frozen=True)
class Turns:
    """What a chat template puts around each turn, and `opening` before the first where no system turn is given."""

    opening: str
    system: tuple[str, str] | None  # None where the template knows none
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str

    def text(self, messages: list[dict[str, str]]) -> str:
        """A conversation as the Modelfile's template makes it, for an answer to follow."""
        around = {"system": self.system or ("", ""), "user": self.user, "assistant": self.assistant}
        turns = [around[m["role"]][0] + m["content"] + around[m["role"]][1] for m in messages]
        opening = "" if messages[0]["role"] == "system" else self.opening
        return opening + "".join(turns) + self.generation


def ollama(job: Job) -> Path:
    """The folder with GGUF and Modelfile: `ollama create NAME -f Modelfile`."""
    gguf.require_converter(job)
    text = modelfile(turns(merged.saved_tokenizer(job.subject)), f"./{gguf.file_name(job)}", list(gguf.stops(job)))
    with growing(job.folder, 3 * merged.bytes_of_merge(job.subject)) as folder:
        gguf.write_gguf(job, folder)
        (folder / "Modelfile").write_text(text, encoding="utf-8")
        card.write(folder, job, "gguf")
    return job.folder


def turns(tokenizer: Any) -> Turns:
    """A chat template taken apart by what it makes of marked turns. Raises BadInput where its turns depend on more
    than their role, so that no such table can stand for it.
    """
    user, assistant, again, system = MARKS

    def rendered(*contents: str, generation: bool = False) -> str:
        roles = {user: "user", again: "user", assistant: "assistant", system: "system"}
        messages = [{"role": roles[content], "content": content} for content in contents]
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation, **TEMPLATE_OPTIONS
        )

    one, three = rendered(user), rendered(user, assistant, again)
    two = rendered(user, assistant)
    after_user = one.split(user)[1]
    before_assistant = two.split(user)[1].split(assistant)[0].removeprefix(after_user)
    after_assistant = two.split(assistant)[1]
    before_user = three.split(assistant)[1].split(again)[0].removeprefix(after_assistant)
    found = Turns(
        one.split(user)[0].removesuffix(before_user),
        _system(rendered, before_user),
        (before_user, after_user),
        (before_assistant, after_assistant),
        rendered(user, generation=True).removeprefix(one),
    )
    asked = [user, assistant, again]
    for contents in (asked, *([[system, *asked]] if found.system else [])):
        roles = ["system", "user", "assistant", "user"][-len(contents) :]
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        if found.text(messages) != rendered(*contents, generation=True):
            raise BadInput(
                "the chat template cannot be written as an Ollama template, for its turns depend on more than their "
                "role; export --format gguf, whose file carries the template itself"
            )
    return found


def _system(rendered: Any, before_user: str) -> tuple[str, str] | None:
    from jinja2 import TemplateError

    user, system = MARKS[0], MARKS[3]
    try:
        text = rendered(system, user)
    except TemplateError:
        return None
    if system not in text:
        return None
    before, after = text.split(system)
    return before, after.split(user)[0].removesuffix(before_user)


def modelfile(turns: Turns, file: str, stops: list[str]) -> str:
    """The Modelfile of a GGUF. Ollama adds no token of its own in front: the template has all of them."""
    around = {"system": turns.system, "user": turns.user, "assistant": turns.assistant}
    cases = [
        f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}{{{{ ' for role, (before, after) in
        ((role, pair) for role, pair in around.items() if pair)
    ]  # fmt: skip
    body = "else ".join(cases)
    first = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{turns.opening}{{{{ end }}}}' if turns.opening else ""
    template = f"{first}{{{{ range .Messages }}}}{{{{ {body}end }}}}{{{{ end }}}}{turns.generation}"
    parameters = "".join(f'PARAMETER stop "{stop}"\n' for stop in stops)
    return f'FROM {file}\nTEMPLATE """{template}"""\n{parameters}PARAMETER temperature 1\n'
