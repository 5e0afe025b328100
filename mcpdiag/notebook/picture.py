"""The last minute as a PNG: latency above, pool below. Drawn without pyplot, whose state is the user's."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Final

try:
    from matplotlib.figure import Figure
except ImportError:
    raise ImportError("plots need matplotlib; pip install 'mcpdiag[notebook]'") from None

from mcpdiag.samples import plot

if TYPE_CHECKING:
    from mcpdiag.samples.frame import DataFrame

SIZE: Final = (8.0, 4.6)  # inches: 800 px wide at 100 dpi
QUANTILES: Final = (0.5, 0.95)


def picture(requests: DataFrame, pool: DataFrame) -> bytes:
    """A PNG, 800 px wide, on white so that it can be read on a dark page too. Any thread may call it."""
    # Fixed places: a layout engine would draw everything once more to find them.
    figure = Figure(figsize=SIZE, dpi=100, facecolor="white")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    figure.subplots_adjust(left=0.085, right=0.985, top=0.9, bottom=0.105, hspace=0.5)
    plot.latency(requests, quantiles=QUANTILES, ax=above)
    above.set_xlabel("")
    plot.pool(pool, ax=below)
    sink = BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()
