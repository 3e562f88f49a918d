"""Write the configuration's reference page, and the schema for editors, from its fields.

python tools/reference.py            # write both
python tools/reference.py --check    # exit code 1 if one of them is out of date
"""

import json
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from thawline.cli.studies import OF_RETRAIN, OF_SEARCH
from thawline.config import SearchConfig
from thawline.config.fields import SECTIONS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
SCHEMA = ROOT / "src" / "thawline" / "recipes" / "recipe.schema.json"
_HEAD = """# Configuration

<!-- Written by `make reference` from the fields in src/thawline/config/. -->

Every key of a recipe. A recipe is a YAML file with these sections; every key is optional:

```yaml
# yaml-language-server: $schema=recipe.schema.json
train:
  epochs: 4
study:
  trials: 8
```

Later ones win: the defaults below, the preset (`--preset`), the recipe (`--recipe`), options such as `--epochs`, `--set
train.epochs=3`. All mistakes are reported at once, each with its key. `thawline recipes copy NAME` puts
`recipe.schema.json` beside the recipe, with which editors that have a YAML language server complete and check its keys.

A preset is one of the shipped recipes, adapted to the data and to this machine; the search reports what it chose:

- `--preset fast`: a first answer within minutes on a laptop, after 7 trials or 5 minutes. It uses the first small
  network with cached weights, else the first with downloadable weights, else the starter weights that Thawline ships.
- `--preset balanced`: the defaults of a search, 20 trials (12 for texts) of ResNet-18, or of the first of three other
  networks whose weights are cached if ResNet-18's are not.
- `--preset best`: the best single model within hours, after 40 trials or 4 hours. Of several networks with available
  weights, the two best by a linear probe are fine-tuned, and the best trials are averaged if that is better.

For texts they are the recipes `fast-texts`, `balanced-texts` and `best-texts`. `--timeout` or `--trials` overrides a
preset's budget, and `--backbone` its networks.
"""
_COLUMNS = "| key | value | default | |\n|---|---|---|---|\n"
_NUMBERS = {int: "whole number", float: "number"}
_NAMES = {str: "text", Path: "path", Any: "any value"}


def page() -> str:
    """The reference as Markdown: a table for each section."""
    options = {setting.key: setting.option for setting in (*OF_SEARCH, *OF_RETRAIN)}
    parts = [_HEAD]
    for section, model in SECTIONS.items():
        parts.append(f"\n## `{section}`\n\n{_markdown(model.__doc__)}\n\n{_COLUMNS}")
        parts += [_row(name, field, options.get(f"{section}.{name}")) for name, field in model.model_fields.items()]
    return "".join(parts)


def schema() -> str:
    """The JSON schema of a recipe, in which everything is optional."""
    whole = SearchConfig.model_json_schema()
    whole["title"] = "A recipe of Thawline"
    for model in (whole, *whole["$defs"].values()):
        model.pop("required", None)
        for field in model["properties"].values():
            field.pop("title", None)
    described = _each_description({"$schema": "https://json-schema.org/draft/2020-12/schema", **whole})
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write both files or, with ``--check``, list outdated ones; returns the exit code."""
    stale = [path for path, text in ((PAGE, page()), (SCHEMA, schema())) if not _is(path, text)]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run `make reference`")
        return 1 if stale else 0
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
    return 0


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def _row(name: str, field: FieldInfo, option: str | None) -> str:
    key = f"`{name}`" + (f"<br>`{option}`" if option else "")
    # Pydantic stores the rules of the outermost type separately.
    allowed = _values(field.annotation, tuple(field.metadata))
    if type(None) in get_args(field.annotation) and field.default is not None:
        allowed += ", or `null`"
    cells = (key, allowed, _default(field), _markdown(field.description))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _values(annotation: Any, rules: tuple[Any, ...] = ()) -> str:
    """Allowed values of a setting except ``null``, in words, with those of list and mapping items in brackets."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(inner[0], (*inner[1:], *rules))
    if origin in (Union, types.UnionType):
        return ", or ".join(_values(member, rules) for member in inner if member is not type(None))
    if origin is Literal:
        return ", ".join(f"`{_yaml(choice)}`" for choice in inner)
    if origin is tuple:
        return f"list ({_values(inner[0])})" if inner[-1] is ... else f"`[low, high]` ({_values(inner[0])})"
    if origin is dict:
        return f"mapping ({_values(inner[1])})"
    if annotation in _NUMBERS:
        return " ".join([_NUMBERS[annotation], ", ".join(_bounds(rules))]).strip()
    if annotation is bool:
        return "`true`, `false`"
    return _NAMES[annotation]


def _bounds(rules: tuple[Any, ...]) -> list[str]:
    words = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
    return [
        f"{word} {getattr(rule, name)}" for rule in rules for kind, (word, name) in words.items() if type(rule) is kind
    ]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "given on the command line"
    return f"`{_yaml(field.get_default(call_default_factory=True))}`"


def _yaml(value: Any) -> str:
    """A value in a recipe's YAML."""
    if isinstance(value, str):
        return value
    return json.dumps(value.model_dump() if isinstance(value, BaseModel) else value)


def _markdown(docstring: str | None) -> str:
    return " ".join((docstring or "").split()).replace("``", "`")


def _each_description(part: Any) -> Any:
    """The same with descriptions as one-line Markdown."""
    if isinstance(part, dict):
        return {
            key: _markdown(value) if key == "description" and isinstance(value, str) else _each_description(value)
            for key, value in part.items()
        }
    return [_each_description(each) for each in part] if isinstance(part, list) else part


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
