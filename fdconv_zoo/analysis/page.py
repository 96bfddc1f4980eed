"""A page of text, tables and pictures as one HTML file, without other files, scripts or network access."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

_TEMPLATE = Path(__file__).with_name("page_template.html")


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: What it shows.
        columns: Titles.
        rows: Cells; the first of each row is its title.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        png: The file's content.
        alt: Description of the picture, for readers who cannot see it.
        caption: Text below it.
    """

    png: bytes
    alt: str
    caption: str
    kind: str = "picture"

    @property
    def uri(self) -> str:
        """The content as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, as many as fit on the screen."""

    pictures: Sequence[Picture]
    kind: str = "gallery"


@dataclass(frozen=True)
class Details:
    """Parts below a title, which can be opened and closed."""

    title: str
    parts: Sequence[Text | Table | Gallery]
    is_open: bool = False
    kind: str = "details"


@dataclass(frozen=True)
class Section:
    """A section of the page, listed in the table of contents.

    Attributes:
        title: Title of the section.
        parts: Contents of the section.
    """

    title: str
    parts: Sequence[Text | Table | Gallery | Details] = field(default_factory=list)


def drawn(figure: Figure, alt: str, caption: str) -> Picture:
    """Render a figure as a PNG picture."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120, facecolor="white")
    return Picture(content.getvalue(), alt, caption)


def render_page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """Render the page as HTML.

    Args:
        title: Title of the page.
        summary: A paragraph below the title.
        sections: The sections, in order.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(_TEMPLATE.name).render(title=title, summary=summary, sections=sections)
    return html.encode("utf-8", "backslashreplace").decode()  # file names may contain bytes that are not valid text
