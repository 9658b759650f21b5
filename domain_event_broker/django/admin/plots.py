"""Plots as SVG inside the page: no script, no style attribute and no other host is needed for them.

Colours come from the style sheet by class, so that they follow the theme. A browser that reads the
page aloud says what the plot shows in one sentence; the page has the figures in a table beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

#: The drawing in units of its own; it is as wide as the page lets it be.
WIDTH, HEIGHT = 600, 120
#: Space between two bars.
GAP = 2.0
#: Height of a bar that stands for anything at all.
LEAST = 2.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, with what it says under the mouse."""

    value: int
    label: str


def bars(bars: Sequence[Bar], title: str, description: str, name: str) -> SafeString:
    """Return a plot of bars side by side.

    :param title: what is plotted.
    :param description: what there is to be seen, in a sentence.
    :param name: unique on the page, of letters and hyphens.
    """
    highest = max((each.value for each in bars), default=0)
    step = WIDTH / max(1, len(bars))
    drawn = format_html_join(
        "",
        '<g><title>{}</title><rect class="deb-plot-space" x="{}" y="0" width="{}" height="{}"/>'
        '<rect class="deb-plot-bar" x="{}" y="{}" width="{}" height="{}"/></g>',
        (_drawn(bar, number * step, step, highest) for number, bar in enumerate(bars)),
    )
    return format_html(
        '<svg class="deb-plot" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" '
        'aria-labelledby="{}-title {}-text"><title id="{}-title">{}</title><desc id="{}-text">{}</desc>'
        '<line class="deb-plot-line" x1="0" y1="{}" x2="{}" y2="{}"/>{}</svg>',
        *(WIDTH, HEIGHT, name, name, name, title, name, description),
        *(HEIGHT, WIDTH, HEIGHT, drawn),
    )


def _drawn(bar: Bar, x: float, step: float, highest: int) -> tuple[str, ...]:
    """Return the label and the places of a bar, as text that no locale writes with a comma."""
    height = max(LEAST, HEIGHT * bar.value / highest) if bar.value else 0.0
    space = (f"{x:.2f}", f"{step:.2f}", str(HEIGHT))
    place = (x + GAP / 2, HEIGHT - height, step - GAP, height)
    return bar.label, *space, *(f"{number:.2f}" for number in place)
