"""Templates of self-contained pages, with all external values escaped."""

from importlib.resources import files
from typing import TYPE_CHECKING

from thawline.data import printable
from thawline.reports._formats import data_uri, percent

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["template"]


def template(name: str) -> "Template":
    """Load a template from this package; an undefined variable in it is an error."""
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
