"""What pictures have in common: colours, type, and a file that is whole or not there.

Colours are those of Okabe and Ito, which the colour-blind can tell apart. matplotlib is used without pyplot and without a display,
and is imported where something is drawn.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#8C8C8C",
)  # fmt: skip
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#D9D9D9", "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": 8.5, "figure.dpi": 150, "savefig.dpi": 150,
}  # fmt: skip


@contextlib.contextmanager
def picture(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """Give a figure to draw on, and write it as PNG, aside and then renamed.

    Args:
        path: of the picture.
        size: width and height in inches.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # What a user's own matplotlibrc says is for the user's own pictures.
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=size, layout="constrained")
        canvas: Any = FigureCanvasAgg(figure)
        yield figure
        image = io.BytesIO()
        canvas.print_png(image)
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        aside.write_bytes(image.getvalue())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def patch(colour: str, hatch: str, label: str) -> Any:  # noqa: ANN401 - an artist of matplotlib
    """Return what stands in a legend for a bar."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=label)
