"""Pydantic's errors in the project's words: the dotted key, its value, what is expected."""

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from grlo_lite.recipe.schema import Recipe
from grlo_lite.wording import cut, shortened

# What a value must be, by pydantic's type of error; the names in braces are of the error's context
EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    "int_parsing_size": "a whole number of fewer digits",
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text",
    "string_pattern_mismatch": "a text of the form {pattern}",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt:.10g}",
    "greater_than_equal": "at least {ge:.10g}",
    "less_than": "less than {lt:.10g}",
    "less_than_equal": "at most {le:.10g}",
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
}


def keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted key that a recipe may hold; the keys of a list's items stand behind its first item's number."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from keys(annotation, f"{prefix}{name}.")
            continue
        yield prefix + name
        for item in _sections_inside(annotation):
            yield from keys(item, f"{prefix}{name}.0.")


def _sections_inside(annotation: Any) -> Iterator[type[BaseModel]]:
    for argument in get_args(annotation):
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            yield argument
        else:
            yield from _sections_inside(argument)


def explained(errors: list[ErrorDetails]) -> str:
    """Pydantic's errors in the project's words: the dotted key, the value, what is expected; a key is named once."""
    said: dict[str, str] = {}
    for error in errors:
        parts = [str(part) for part in error["loc"] if part in _KEY_PARTS or isinstance(part, int)]
        key = ".".join(parts) or "the recipe"
        if error["type"] == "extra_forbidden":
            key = ".".join([*(parts if error["loc"][-1] not in _KEY_PARTS else parts[:-1]), str(error["loc"][-1])])
            said[key] = _unknown(cut(key))
        elif error["type"] == "missing":
            said[key] = f"{key} is missing; add it to the recipe or give {key}=…"
        elif error["type"] == "value_error":
            said[key] = str(error.get("ctx", {})["error"])
        elif key in said:  # another alternative of the same key
            said[key] += f", or {_expected(error, key)}"
        else:
            said[key] = f"{key}={shortened(error['input'])} is refused: it must be {_expected(error, key)}"
    return "; ".join(said.values())


def _expected(error: ErrorDetails, key: str) -> str:
    """What a value must be, such as `a whole number`; in pydantic's own words where EXPECTED has none."""
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"a section, with keys such as {next((k for k in keys() if k.startswith(f'{key}.')), 'name')}"
    if error["type"] in EXPECTED:
        return EXPECTED[error["type"]].format(**error.get("ctx", {}))
    return f"otherwise ({error['msg'][0].lower()}{error['msg'][1:]})"


def _unknown(key: str) -> str:
    """What is said of a key that no recipe has: the nearest key, or the keys that its section has."""
    item = next((part for part in key.split(".") if part.isdigit()), "0")
    known = [known.replace(".0.", f".{item}.") for known in keys()]
    sections = sorted({known.split(".")[0] for known in keys()})
    section, dot, last = key.rpartition(".")
    same_name = sorted((k for k in known if k.split(".")[-1] == last), key=lambda k: k.count("."))
    nearest = difflib.get_close_matches(key, known if dot else sections, n=1, cutoff=0.6) or same_name
    if nearest:
        return f"{key} is not a key; did you mean {nearest[0]}?"
    inside = [k for k in known if k.startswith(f"{section}.")] if dot else []
    return f"{key} is not a key; known here: {', '.join(inside or sections)}"


# Pydantic puts the alternatives of a union into an error's location; only what is a key of a recipe is shown
_KEY_PARTS = frozenset(part for key in keys() for part in key.split("."))
