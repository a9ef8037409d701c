"""How does it all become one page that a person wants to read?"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from scripts.files import write_table, write_text, written_whole
from scripts.report.layout import Table
from scripts.report.summary import Card

DPI, SCAN_DPI = 140, 110
PALETTE = Image.Quantize.MAXCOVERAGE  # keeps the colour of thin lines, unlike the median cut


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its data, what it shows in words, and what stands above it, if anything."""

    source: str
    alt: str
    label: str = ""


@dataclass
class Gallery:
    """Pictures beside each other, as far as the screen is wide enough.

    Attributes:
        pictures: of one kind.
        title: above them, if any.
        subtitle: under the title, if any.
        caption: below them, if any.
        scans: whether they are narrow and black.
        table: that stands at their right, if there is room.
    """

    pictures: list[Picture]
    title: str = ""
    subtitle: str = ""
    caption: str = ""
    scans: bool = False
    table: Table | None = None


@dataclass
class Section:
    """A part of the page under a heading."""

    title: str
    text: list[str] = field(default_factory=list)
    blocks: list[Table | Gallery] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """How links name it."""
        return slug(self.title)


def slug(name: str) -> str:
    """Return a name for files and links: lower-case letters, digits and dashes."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split()) or "run"


def save_figure(figure: Figure, output_dir: Path, name: str, alt: str, label: str = "", scan: bool = False) -> Picture:
    """Write a figure as PNG of 256 colours (half the size or less, no difference to be seen); return it for the page.

    Unless it shows a scan it is written as SVG too.
    """
    background = figure.get_facecolor()
    drawn, png = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=SCAN_DPI if scan else DPI, facecolor=background)
    Image.open(drawn).convert("RGB").quantize(256, PALETTE).save(png, format="png", optimize=True)
    with written_whole(output_dir / f"{name}.png") as temporary:
        temporary.write_bytes(png.getvalue())
    if not scan:
        with written_whole(output_dir / f"{name}.svg") as temporary, rc_context({"svg.hashsalt": name}):
            figure.savefig(temporary, format="svg", facecolor=background, metadata={"Date": None})
    return Picture(f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}", alt, label)


def write_page(
    path: Path, title: str, headline: Sequence[str], cards: Sequence[Card], sections: Sequence[Section]
) -> None:
    """Write one HTML file that needs nothing else."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("page.html.j2").render(
        title=title, headline=headline, cards=cards, sections=sections
    )
    write_text(path, html)


def write_csv(output_dir: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table's rows as they are, if there are any; without, there is none, nor that of an earlier report."""
    path = output_dir / f"{name}.csv"
    if rows:
        write_table(path, rows)
    else:
        path.unlink(missing_ok=True)
