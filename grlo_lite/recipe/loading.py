"""A recipe file and command-line overrides, read into a `Recipe`; a recipe written out again."""

import difflib
import os.path
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from grlo_lite.errors import BadInput
from grlo_lite.recipe.refusals import explained
from grlo_lite.recipe.schema import Recipe
from grlo_lite.wording import cut, shortened


def shipped() -> dict[str, Path]:
    """The recipes that come with the project, by name.

    `grlo_lite/recipe/shipped` is a link to the checkout's `recipes/`, and a copy of it in an installed package; where a
    checkout has no links, `recipes/` is read itself.
    """
    room = Path(__file__).parent
    folder = next((f for f in (room / "shipped", room.parents[1] / "recipes") if f.is_dir()), room)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def short_name(name: str) -> str:
    """What a recipe is called: a shipped one's name, or a file's without its suffix."""
    return name if name in shipped() else Path(name).stem


def load(name: str, overrides: list[str]) -> Recipe:
    """The recipe `name` (a shipped one, or a path to a YAML file) with `section.key=value` overrides applied in order.

    Raises BadInput, naming the file or override, the key, the value and the mend.
    """
    path = _locate(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not a YAML file: {' '.join(str(error).split())[:300]}") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds no recipe: expected sections such as 'model:', found {type(content).__name__}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise BadInput(
                f"the override {shortened(override)} has no '='; write it as section.key=value, for instance seed=1"
            )
        _set(content, key.strip(), text, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        where = f"recipe {path.stem}" + (" with overrides" if overrides else "")
        raise BadInput(f"{where}: {explained(error.errors())}") from None


def changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with other values, by their keys `section.key`, as they are."""
    for key, value in changes.items():
        section, name = key.split(".")
        recipe = recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={name: value})})
    return recipe


def dumped(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included; `load` reads it back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _locate(name: str) -> Path:
    known = shipped()
    if name in known:
        return known[name]
    path = Path(name)
    if os.path.isfile(name):  # Path.is_file() raises where a name is longer than the file system takes
        return path
    if os.path.isdir(name):
        raise BadInput(f"the recipe {name!r} is a directory; to go on with a run, use --run-dir {name} --resume")
    nearest = difflib.get_close_matches(name[:80], known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"the shipped recipes are {', '.join(known)}"
    raise BadInput(f"there is no recipe {shortened(name)}, neither shipped nor as a file; {hint}")


def _set(content: dict, key: str, text: str, override: str) -> None:
    """Sets a dotted key of a nested dict in place; the value is read as YAML."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # a date of a 13th month, a number of thousands of digits
        raise BadInput(f"the value of the override {shortened(override)} is no YAML; put it in quotes") from None
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if content is None or not isinstance(content, dict):
            raise BadInput(
                f"the override {shortened(override)} goes below {cut(section)!r}, which is a value and not a section"
            )
    if isinstance(content.get(last), dict) and not isinstance(value, dict):
        raise BadInput(
            f"the override {shortened(override)} would replace the section {cut(key)!r}; "
            f"name one of its keys: {cut(key)}.<key>=…"
        )
    content[last] = value
