"""Whether two answers are the same mathematics."""

import re


def same_value(said: str, reference: str) -> bool:
    r"""Whether two answers are the same mathematics: as text without their dressing, as numbers (so `\boxed{073}` is
    73), or by math_verify.
    """
    said, reference = undressed(said), undressed(reference)
    if not said:
        return False
    if said == reference:
        return True
    one, other = number(said), number(reference)
    if one is not None and other is not None:
        return one == other
    return _verified(said, reference)


def undressed(expression: str) -> str:
    """An answer without what does not matter: dollars, spacing, a unit or a full stop behind it."""
    expression = re.sub(r"\\[,;:! ]|(?:\\left|\\right|\\displaystyle|\\limits)(?![a-z])", "", expression.strip())
    expression = (
        expression.replace("\\$", "").replace("$", "").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    )
    expression = expression.replace("−", "-").replace("{,}", ",").rstrip(". ")
    expression = re.sub(r"\\(?:text|textbf|mathbf|mathrm|bm|boldsymbol)\{([^{}]*)\}", r"\1", expression)
    expression = re.sub(r"^\(([-+\d.,]+)\)$", r"\1", expression.strip())
    return re.sub(r"\s+", " ", expression).strip()


def number(text: str) -> float | None:
    """The number that a text is, perhaps with thousands separators, a percent sign, degrees or a unit behind it."""
    match = re.fullmatch(
        r"([-+]?\s?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)\s*(?:\\?%|\^?\{?\\circ\}?|\\(?:text|mathrm|mbox)\{[^{}]*\}.*|[a-z]+(?:\s[a-z]+)*\^?\d?)?",
        text,
    )
    if match is None or not any(c.isdigit() for c in match.group(1)):
        return None
    return float(match.group(1).replace(",", "").replace(" ", ""))


def _verified(said: str, reference: str) -> bool:
    from math_verify import parse, verify

    gold = parse(f"${reference}$")
    return bool(verify(gold, parse(f"\\boxed{{{said}}}")) or verify(gold, parse(f"${said}$")))
