"""Shipped recipes: complete, commented examples. The first line of each is the command that runs it."""

import difflib
import shutil
from dataclasses import dataclass
from pathlib import Path

from thawline.exceptions import ConfigError

__all__ = ["SCHEMA", "Recipe", "copy", "find_recipe", "recipe_path", "shipped_recipes"]

SCHEMA = "recipe.schema.json"
"""Name of the JSON schema of recipes."""
_FOLDER = Path(__file__).parent
_FORMER = {"quick": "fast", "thorough": "best", "backbones": "best", "texts": "balanced-texts"}
"""Former names of recipes, and those that replaced them."""


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe."""

    name: str
    command: str
    """The command that runs it."""
    purpose: str
    """One sentence: when to use it."""


def shipped_recipes() -> list[Recipe]:
    """All shipped recipes, sorted by name; command and purpose are the first two comment lines of the file."""
    recipes = []
    for path in sorted(_FOLDER.glob("*.yaml")):
        command, purpose = (
            line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines()[:2]
        )
        recipes.append(Recipe(path.stem, command, purpose))
    return recipes


def recipe_path(name: str) -> Path:
    """File of a shipped recipe.

    Raises:
        ConfigError: if there is no such recipe.
    """
    names = [recipe.name for recipe in shipped_recipes()]
    if name in _FORMER:
        raise ConfigError(f"The recipe {name!r} is now {_FORMER[name]!r}: `thawline recipes copy {_FORMER[name]}`.")
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Shipped recipes: {', '.join(names)}."
        raise ConfigError(f"Unknown recipe {name!r}. {hint}")
    return _FOLDER / f"{name}.yaml"


def find_recipe(given: Path) -> Path:
    """Resolve a file, or the name of a shipped recipe: without folder and extension, and not an existing file.

    Raises:
        ConfigError: if it is a name, but not of a shipped recipe.
    """
    is_name = given.name == str(given) and not given.suffix
    return recipe_path(given.name) if is_name and not given.is_file() else given


def copy(name: str, to: Path) -> Path:
    """Copy a recipe into a folder, or to a file that does not exist yet; returns the file written.

    The schema that its comment names is written next to it, for validation in editors; an existing schema is
    overwritten.

    Raises:
        ConfigError: if there is no such recipe, or the file already exists.
    """
    source = recipe_path(name)
    target = to / source.name if to.is_dir() else to
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
        shutil.copyfile(_FOLDER / SCHEMA, target.with_name(SCHEMA))
    except FileExistsError:
        raise ConfigError(f"{target} already exists and is not overwritten. Choose another place with --to.") from None
    except OSError as error:
        raise ConfigError(f"Cannot write {target}: {error.strerror}.") from None
    return target
