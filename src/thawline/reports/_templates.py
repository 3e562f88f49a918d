"""The pages' templates: self-contained pages, in which whatever comes from outside is text."""

from importlib.resources import files
from typing import TYPE_CHECKING

from thawline.data import printable
from thawline.reports._formats import data_uri, percent

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["template"]


def template(name: str) -> "Template":
    """One of the templates beside this module; a name that it uses and is not given is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files("thawline.reports")
    environment = Environment(
        loader=FunctionLoader(lambda file: folder.joinpath(file).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"picture": data_uri, "percent": percent, "plain": printable}
    return environment.get_template(name)
