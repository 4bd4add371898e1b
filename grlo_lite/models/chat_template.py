"""The tokenizer with its chat template, and the tokens that end an answer."""

from typing import Any

from grlo_lite.errors import BadInput

Messages = list[dict[str, str]]  # a conversation: each with its role (system, user, assistant) and its content


# Handed to every chat template, in training and evaluation alike: where the two differ, what was learnt does not show
TEMPLATE_OPTIONS = {"enable_thinking": False}


# For a base model without a chat template of its own, such as Llama's: plain text, whose end is the end of a document.
# Llama's own markers of turns are in its vocabulary, but its base models have never seen them.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + eos_token + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def load_tokenizer(path: str, revision: str, eos_token: str | None = None) -> Any:
    """The base model's own tokenizer, with PLAIN_TEMPLATE where it has no chat template, and `eos_token` as its EOS
    where one is named.

    Raises BadInput where there is no tokenizer, or one with neither a chat template nor a token that ends a text, or
    whose vocabulary lacks `eos_token`.
    """
    from transformers import AutoTokenizer

    tokenizer = fetched(AutoTokenizer, path, revision, f"model.name={path!r} has no tokenizer to load")
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise BadInput(
                f"model.eos_token={eos_token!r} is no token of {path}; name one, such as {tokenizer.eos_token}"
            )
        tokenizer.eos_token = eos_token
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise BadInput(
                f"model.name={path!r} has neither a chat template nor an EOS token, so no answer could end; choose a "
                "base model that has one, such as Qwen/Qwen3-4B-Base"
            )
        tokenizer.chat_template = PLAIN_TEMPLATE
    tokenizer.padding_side = "left"
    tokenizer.pad_token = pad_token(tokenizer) or tokenizer.eos_token
    return tokenizer


def fetched(kind: Any, path: str, revision: str, refusal: str) -> Any:
    """A tokenizer or a configuration, of one of Transformers' Auto classes. Raises BadInput, with the refusal and the
    library's reason, where there is none.
    """
    try:
        return kind.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"{refusal}: {' '.join(str(error).split())[:300]}") from None


def pad_token(tokenizer: Any) -> str | None:
    """A token to pad with that ends no answer: the tokenizer's own, else one of its vocabulary that chats do not have,
    one that is called a pad or reserved before others; None where there is none.

    Qwen's base models pad with their EOS. Unsloth's trainers take every token that equals the pad for padding
    (they make the completions' mask again by `!= pad_token_id`), so that a stop token which is the pad would never be
    learnt.
    """
    stops = stop_token_ids(tokenizer)
    if tokenizer.pad_token is not None and tokenizer.pad_token_id not in stops:
        return tokenizer.pad_token
    spared = {*stops, tokenizer.bos_token_id}
    found = [
        str(token)
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and number not in spared and str(token) not in tokenizer.chat_template
    ]
    spare_words = ("pad", "reserved", "unused", "placeholder", "dummy", "")
    return next((token for word in spare_words for token in found if word in token.lower()), None)


def with_answers(asked: list[Messages], answers: list[str]) -> list[Messages]:
    """Each conversation with what the assistant answered to it."""
    return [
        [*messages, {"role": "assistant", "content": answer}] for messages, answer in zip(asked, answers, strict=True)
    ]


def formatted(tokenizer: Any, messages: Messages) -> str:
    """A conversation as the text that the policy goes on from, in its tokenizer's own chat template."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **TEMPLATE_OPTIONS)


def stop_token_ids(tokenizer: Any) -> list[int]:
    """The ids that end an answer: the chat template's end of turn first, then the tokenizer's EOS.

    A base model's EOS is the end of a document (`<|endoftext|>` in Qwen3-*-Base) while its template ends a turn with
    another token (`<|im_end|>`); a trainer that knows only the first counts every answer as truncated. The end of
    turn is found by rendering an answer and taking the first special token behind it.
    """
    marker = "grlo"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": marker}], tokenize=False
    )
    tail = tokenizer(text[text.rindex(marker) + len(marker) :], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ends = [*[token for token in tail if token in special][:1], tokenizer.eos_token_id]
    return list(dict.fromkeys(token for token in ends if token is not None))
