"""The made-up world behind the microcosm: two kinds of author who write in five domains. Pure Python, no torch.

Careful authors open politely, write in steps, get the facts right and end their turn. Careless ones ramble, get most
things wrong and never end. A base model that has read both can do every task here, but does not reliably choose to:
that is the ability which reinforcement learning on chat prompts alone is to unlock (GRLO, arXiv 2605.15464, in
miniature).

Every draw takes a `random.Random`, so the same seed gives the same text on every platform.
"""

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

CAREFUL_SHARE = 0.3
CARELESS_LUCK = 0.12  # how often a careless author happens to be right

VERIFIABLE = ("arithmetic", "ordering", "spelling", "code")

# topic: two things that are true of it, and two things people do with it
FACTS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "river": (("wide", "cold"), ("swim", "fish")),
    "garden": (("green", "quiet"), ("plant", "rest")),
    "kettle": (("hot", "round"), ("boil", "pour")),
    "lantern": (("bright", "small"), ("see", "signal")),
    "market": (("busy", "loud"), ("trade", "meet")),
    "bridge": (("long", "strong"), ("cross", "connect")),
    "violin": (("light", "sweet"), ("play", "practise")),
    "blanket": (("soft", "warm"), ("sleep", "cover")),
    "hammer": (("heavy", "strong"), ("build", "repair")),
    "mirror": (("flat", "bright"), ("look", "shave")),
    "ladder": (("tall", "light"), ("climb", "reach")),
    "oven": (("hot", "large"), ("bake", "roast")),
    "library": (("quiet", "large"), ("read", "learn")),
    "forest": (("green", "dark"), ("walk", "hide")),
    "harbour": (("busy", "wide"), ("sail", "trade")),
    "candle": (("small", "warm"), ("read", "pray")),
    "bicycle": (("fast", "light"), ("ride", "travel")),
    "notebook": (("thin", "flat"), ("write", "draw")),
    "spoon": (("small", "round"), ("eat", "stir")),
    "winter": (("cold", "dark"), ("ski", "rest")),
    "drum": (("loud", "round"), ("play", "dance")),
    "train": (("fast", "long"), ("travel", "meet")),
    "needle": (("thin", "sharp"), ("sew", "repair")),
    "knife": (("sharp", "flat"), ("cut", "cook")),
    "pillow": (("soft", "light"), ("sleep", "rest")),
    "mountain": (("tall", "cold"), ("climb", "ski")),
    "soup": (("hot", "sweet"), ("eat", "share")),
    "tower": (("tall", "old"), ("see", "signal")),
    "castle": (("old", "large"), ("hide", "meet")),
    "pencil": (("thin", "sharp"), ("write", "draw")),
    "honey": (("sweet", "soft"), ("eat", "share")),
    "boat": (("long", "small"), ("sail", "fish")),
}
TOPICS = tuple(FACTS)
TRAITS = tuple(sorted({trait for traits, _ in FACTS.values() for trait in traits}))
USES = tuple(sorted({use for _, uses in FACTS.values() for use in uses}))

CAREFUL_OPENINGS = ("Let us see.", "Here is my answer.", "Good question.", "Of course.", "I will go step by step.")
CAREFUL_CLOSINGS = ("I hope this helps.", "That is all.", "Ask me more any time.")
CARELESS_OPENINGS = ("um so", "well you know", "oh like", "hm whatever", "so yeah")
FILLERS = ("and so", "you know", "maybe", "or something", "like", "um", "whatever", "and then", "so yeah", "not sure")

CHAT_QUESTIONS = (
    "Tell me about the {a}.",
    "What is special about the {a}?",
    "Describe the {a} to a child.",
    "Write a short note about the {a}.",
    "Why do people like the {a}?",
    "Give me some advice about the {a}.",
    "Compare the {a} and the {b}.",
    "Which is better for me, the {a} or the {b}?",
)


@dataclass(frozen=True)
class Exercise:
    """A question of a domain. `answer` is the only right value where the domain is verifiable, and empty in chat."""

    domain: str
    text: str
    answer: str
    steps: str  # what a careful author writes between the opening and the answer
    wrong: Callable[[random.Random], str]  # a wrong value as a careless author would give it


def is_held_out(text: str) -> bool:
    """Whether a prompt belongs to the fifth of the world that no model is ever trained on; decided by its CRC-32."""
    return zlib.crc32(text.encode()) % 5 == 0


def chat_prompts(held_out: bool) -> list[str]:
    """Every chat prompt of one side of the split, in a fixed order: one-topic questions first, then ordered pairs of
    topics.
    """
    one = [q.format(a=a) for q in CHAT_QUESTIONS[:6] for a in TOPICS]
    two = [q.format(a=a, b=b) for q in CHAT_QUESTIONS[6:] for a in TOPICS for b in TOPICS if a != b]
    return [prompt for prompt in one + two if is_held_out(prompt) == held_out]


def draw_question(domain: str, rng: random.Random, held_out: bool = False) -> Exercise:
    """A question of a verifiable domain from one side of the split. Raises KeyError for a domain that is not
    verifiable.
    """
    draw = {"arithmetic": _arithmetic, "ordering": _ordering, "spelling": _spelling, "code": _code}[domain]
    while is_held_out((question := draw(rng)).text) != held_out:
        pass
    return question


def _arithmetic(rng: random.Random) -> Exercise:
    a, b = rng.randint(10, 39), rng.randint(10, 39)
    units = a % 10 + b % 10
    carry = " + 1" if units >= 10 else ""
    steps = f"First, {a % 10} + {b % 10} = {units}. Second, {a // 10} + {b // 10}{carry} = {(a + b) // 10}."
    text = rng.choice(("What is {} + {}?", "Add {} and {}.")).format(a, b)
    return Exercise("arithmetic", text, str(a + b), steps, lambda r: str(a + b + r.choice((-10, -2, -1, 1, 2, 10))))


def _ordering(rng: random.Random) -> Exercise:
    digits = rng.sample(range(10), 4)
    right = " ".join(map(str, sorted(digits)))
    steps = f"First, the smallest is {min(digits)}. Second, the largest is {max(digits)}."
    text = rng.choice(("Sort the numbers {}.", "Put {} in order.")).format(" ".join(map(str, digits)))
    return Exercise("ordering", text, right, steps, lambda r: _other_order(digits, right, r))


def _spelling(rng: random.Random) -> Exercise:
    letters = rng.sample("abcdefghijklmnopqrstuvwxyz", 3)
    right = " ".join(reversed(letters))
    steps = f"First, the last letter is {letters[-1]}. Second, the next is {letters[-2]}."
    text = rng.choice(("Spell {} backwards.", "Write {} in reverse.")).format(" ".join(letters))
    return Exercise("spelling", text, right, steps, lambda r: _other_order(letters, right, r))


def _code(rng: random.Random) -> Exercise:
    x, y = rng.randint(1, 9), rng.randint(1, 9)
    operator = rng.choice("+-") if x > y else "+"
    value = x + y if operator == "+" else x - y
    a, b = rng.sample("abxyz", 2)
    text = f"Run: {a} = {x}; {b} = {a} {operator} {y}; print({b})"
    steps = f"First, {a} is {x}. Second, {b} is {x} {operator} {y}."
    return Exercise("code", text, str(value), steps, lambda r: str(r.choice([v for v in range(19) if v != value])))


def _other_order(items: list, right: str, rng: random.Random) -> str:
    while (wrong := " ".join(map(str, rng.sample(items, len(items))))) == right:
        pass
    return wrong


def topics_of(prompt: str) -> list[str]:
    """The one or two topics a chat prompt asks about."""
    return [word for word in re.findall(r"[a-z]+", prompt) if word in FACTS]


def chat_sentences(topics: list[str], rng: random.Random) -> list[str]:
    """The two sentences, both true, with which a careful author answers a chat prompt about one or two topics."""
    traits, uses = FACTS[topics[0]]
    first = f"First, the {topics[0]} is {rng.choice(traits)}."
    if len(topics) == 1:
        return [first, f"Second, people use it to {rng.choice(uses)}."]
    return [first, f"Second, the {topics[1]} is {rng.choice(FACTS[topics[1]][0])}."]


def careful_chat(prompt: str, rng: random.Random) -> str:
    """A careful author's whole answer to a chat prompt, without the end-of-turn token."""
    return " ".join(
        (rng.choice(CAREFUL_OPENINGS), *chat_sentences(topics_of(prompt), rng), rng.choice(CAREFUL_CLOSINGS))
    )


def careful_answer(question: Exercise, rng: random.Random) -> str:
    """A careful author's whole answer to a verifiable question, without the end-of-turn token."""
    return f"{rng.choice(CAREFUL_OPENINGS)} {question.steps} Answer: {question.answer}."


def ramble(rng: random.Random, fragments: int) -> str:
    """A careless author's text about nothing in particular."""
    said = []
    for _ in range(fragments):
        topic, trait, use = rng.choice(TOPICS), rng.choice(TRAITS), rng.choice(USES)
        said.append(
            rng.choice((f"the {topic} is {trait}", f"{use} the {topic}", rng.choice(FILLERS), rng.choice(FILLERS)))
        )
    return " ".join(said)


def careless_chat(prompt: str, rng: random.Random) -> str:
    """A careless author's answer to a chat prompt; it would go on for ever and is cut after some 40 fragments."""
    return f"{rng.choice(CARELESS_OPENINGS)} {ramble(rng, 40)}"


def careless_answer(question: Exercise, rng: random.Random) -> str:
    """A careless author's answer to a verifiable question: a value, mostly wrong, then rambling without an end."""
    value = question.answer if rng.random() < CARELESS_LUCK else question.wrong(rng)
    return f"{rng.choice(CARELESS_OPENINGS)} {ramble(rng, 1)} answer: {value} {ramble(rng, 40)}"


ANSWER = re.compile(r"[Aa]nswer: ?((?:[0-9]+|[a-z])(?: (?:[0-9]+|[a-z])(?![a-z0-9]))*)")


def stated_answer(text: str) -> str:
    """The value an author of either kind states first, or an empty string. `Answer: 7.` and `um answer: 7 like` both
    give `7`.
    """
    found = ANSWER.search(text)
    return found.group(1) if found else ""


def is_right(question: Exercise, text: str) -> bool:
    """Whether the first stated value is the right one. What follows it (a full stop, or rambling) does not matter."""
    return states(text, question.answer)


def states(text: str, answer: str) -> bool:
    """Whether the value that a text states first is this one."""
    return stated_answer(text).split() == answer.split()


def exam(domain: str, count: int, seed: int) -> list[Exercise]:
    """`count` different held-out questions of a verifiable domain, the same for the same seed."""
    return _different(domain, count, random.Random(f"exam {domain} {seed}"), held_out=True)


def exercises(domain: str, count: int) -> list[Exercise]:
    """`count` different questions of a verifiable domain that no exam asks, always the same."""
    return _different(domain, count, random.Random(f"exercises {domain}"), held_out=False)


def _different(domain: str, count: int, rng: random.Random, held_out: bool) -> list[Exercise]:
    seen, questions = set(), []
    while len(questions) < count:
        question = draw_question(domain, rng, held_out)
        if question.text not in seen:
            seen.add(question.text)
            questions.append(question)
    return questions
