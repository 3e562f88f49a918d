"""The labels that the features contradict."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from thawline.data import printable
from thawline.data.contract import NAMED
from thawline.labels import LabelCheck

__all__ = ["label_report"]


def label_report(found: LabelCheck) -> RenderableType:
    """The number of suspects, and a table of the first."""
    unjudged = f"{', '.join(found.unjudged[:NAMED])}{', …' if len(found.unjudged) > NAMED else ''}"
    notes = [Text(printable(f"Too few examples to judge: {unjudged}"))] if found.unjudged else []
    if found.is_doubtful:
        told = f"The features predict only {found.accuracy:.0%} of the labels: most of these may be right"
        notes.append(Text(told, "yellow"))
    heading = Text(f"\nLabels that the features of {found.network} contradict: {len(found.suspects):,}", "bold")
    counts = f"of {found.examples:,}; an estimated {found.noise:.1%} of all labels are wrong, listed or not"
    if not found.suspects:
        return Group(heading, Text(counts), *notes)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("path", overflow="fold")
    for title in ("label", "suggested"):
        table.add_column(title, overflow="fold")
    table.add_column("split")
    for each in found.suspects[:NAMED]:
        label, suggested = (
            f"{printable(name)} ({share:.1%})"
            for name, share in ((each.label, each.label_probability), (each.suggested, each.suggested_probability))
        )
        table.add_row(Text(printable(each.path)), Text(label), Text(suggested), each.split)
    more = [Text(f"and {len(found.suspects) - NAMED:,} more")] if len(found.suspects) > NAMED else []
    return Group(heading, Text(counts), *notes, Text(), table, *more)
