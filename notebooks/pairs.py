"""The same picture twice, before and after a knob was turned, on one scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

SIZE = (8.0, 5.6)  # inches: 800 px at 100 dpi


def before_after(
    draw: Callable[..., Axes],
    before: DataFrame,
    after: DataFrame,
    *words: str,
    share: Literal["x", "y"] = "y",
    **options: Any,
) -> None:
    """Draw two frames under each other on the same scale.

    Args:
        draw: a function of `mcpdiag.samples.plot`.
        before, after: what it draws.
        words: what was set before, and after.
        share: the axis that has one scale.
        options: for `draw`.
    """
    _, pair = plt.subplots(2, 1, figsize=SIZE, layout="constrained")
    for ax, frame, word in zip(pair, (before, after), words, strict=True):
        draw(frame, ax=ax, **options)
        legend = ax.get_legend()
        if legend is not None:
            legend.set_title(f"{legend.get_title().get_text()}: {word}")
        else:
            ax.set_title(f"{ax.get_title(loc='left')}: {word}", loc="left", fontsize=10)
    limits = [getattr(ax, f"get_{share}lim")() for ax in pair]
    for ax in pair:
        getattr(ax, f"set_{share}lim")(min(low for low, _ in limits), max(high for _, high in limits))
    plt.show()
