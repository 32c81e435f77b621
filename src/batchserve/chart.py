"""An evaluation as pictures: what was predicted against what was true, errors, confusion. SVG by hand.

Two dozen shapes a picture: a library that draws them would be larger than all that batchserve needs.
"""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchserve.errors import redacted
from batchserve.scorecard import number

Facts = Mapping[str, Any]
_WIDTH, _HEIGHT = 440, 340
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 40, 16, 48
_BLUE, _GREY, _LIGHT = "#2563a8", "#8a8f98", "#e3e6ea"
_DASHED = f"stroke='{_GREY}' stroke-dasharray='5 4'"
_TICKS = 5
_CLASSES_SHOWN = 20
_NAME_CHARACTERS = 12


def page(facts: Facts, text: str) -> str:
    """Return an HTML page of its own: the pictures, and the numbers as text.

    Args:
        facts: What `Evaluation.facts` gives.
        text: The same in words.
    """
    title = html.escape(redacted(f"{facts['path']}: {facts['prediction']} against {facts['label']}"))
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{title}</title></head>\n"
        f"<body style='margin:24px;background:#fff;color:#1c1f23'>\n{fragment(facts, text)}\n</body></html>\n"
    )


def fragment(facts: Facts, text: str) -> str:
    """Return the pictures and the numbers as a piece of HTML."""
    style = "font:13px/1.5 ui-monospace,monospace;overflow-x:auto"
    return f"{svg(facts)}\n<pre style='{style}'>{html.escape(redacted(text))}</pre>"


def svg(facts: Facts) -> str:
    """Return the pictures side by side, as SVG."""
    drawn = list(_pictures(facts)) or [_empty()]
    width = _WIDTH * len(drawn)
    shifted = "\n".join(
        f"<g transform='translate({i * _WIDTH} 0)'>\n{each}\n</g>" for i, each in enumerate(drawn)
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {_HEIGHT}' width='{width}' "
        f"height='{_HEIGHT}' font-family='system-ui,sans-serif' font-size='12' fill='#1c1f23'>\n"
        f"<rect width='{width}' height='{_HEIGHT}' fill='#fff'/>\n{shifted}\n</svg>\n"
    )


def _pictures(facts: Facts) -> Iterator[str]:
    if facts["calibration"]:
        yield _calibration(facts)
    if facts.get("errors", {}).get("bars"):
        yield _errors(facts["errors"])
    if facts["task"] != "regression" and facts["calibration"]:
        yield _scores(facts["calibration"])
    if facts["task"] == "multiclass" and 0 < len(facts["classes"]) <= _CLASSES_SHOWN:
        yield _confusion(facts)


def _empty() -> str:
    return _label(_WIDTH / 2, _HEIGHT / 2, "nothing to draw")


# -- pictures ---------------------------------------------------------------------------------


def _calibration(facts: Facts) -> str:
    """Draw mean prediction against mean label, bin by bin; where they agree they lie on the line."""
    table = facts["calibration"]
    points = [(each["mean_prediction"], each["mean_label"]) for each in table]
    values = [value for point in points for value in point]
    low, high = (min(values), max(values)) if facts["task"] == "regression" else (0.0, 1.0)
    axes = _Axes(*_span(low, high), *_span(low, high))
    places = [(axes.x(x), axes.y(y)) for x, y in points]
    track = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{_BLUE}'><title>{each['rows']:,} rows: predicted "
        f"{number(each['mean_prediction'])}, true {number(each['mean_label'])}</title></circle>"
        for (x, y), each in zip(places, table, strict=True)
    )
    line = (
        f"<line x1='{axes.x(axes.left):.1f}' y1='{axes.y(axes.bottom):.1f}' x2='{axes.x(axes.right):.1f}' "
        f"y2='{axes.y(axes.top):.1f}' {_DASHED}/>"
    )
    names = ("largest probability", "share right") if facts["task"] == "multiclass" else ("predicted", "true")
    track = f"<polyline points='{track}' fill='none' stroke='{_BLUE}' stroke-width='1.5'/>"
    return axes.drawn("calibration: mean of each bin", *names) + line + track + dots


def _errors(histogram: Facts) -> str:
    """Draw how many rows have which error."""
    bars = histogram["bars"]
    axes = _Axes(bars[0]["from"], bars[-1]["to"], 0.0, max(each["rows"] for each in bars) or 1)
    beyond = histogram["below"] + histogram["above"]
    title = "errors: prediction less label" + (f" ({beyond:,} rows lie outside)" if beyond else "")
    zero = ""
    if axes.left < 0 < axes.right:
        x = f"{axes.x(0.0):.1f}"
        zero = f"<line x1='{x}' x2='{x}' y1='{_TOP}' y2='{_HEIGHT - _BOTTOM}' {_DASHED}/>"
    return axes.drawn(title, "error", "rows") + "".join(_bars(axes, bars)) + zero


def _scores(table: Sequence[Facts]) -> str:
    """Draw how many rows have which probability."""
    axes = _Axes(0.0, 1.0, 0.0, max(each["rows"] for each in table))
    return axes.drawn("rows by probability", "probability", "rows") + "".join(_bars(axes, table))


def _bars(axes: "_Axes", bars: Sequence[Facts]) -> Iterator[str]:
    for each in bars:
        left, right, top = axes.x(each["from"]), axes.x(each["to"]), axes.y(each["rows"])
        told = f"{number(each['from'])} to {number(each['to'])}: {each['rows']:,} rows"
        yield (
            f"<rect x='{left + 0.5:.1f}' y='{top:.1f}' width='{max(0.5, right - left - 1):.1f}' "
            f"height='{axes.y(0.0) - top:.1f}' fill='{_BLUE}'><title>{told}</title></rect>"
        )


def _confusion(facts: Facts) -> str:
    """Draw which class was predicted for which, darker for a larger share of the label's rows."""
    names, counts = facts["classes"], facts["confusion"]
    side = min((_WIDTH - 110 - _RIGHT), (_HEIGHT - 90)) / len(names)
    pieces = [_label(_WIDTH / 2, 22, "label (down) and predicted (across)", bold=True)]
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        pieces.append(_label(104, 44 + side * (i + 0.5) + 4, _short(name), anchor="end"))
        middle = 110 + side * (i + 0.5)
        pieces.append(_label(middle, 58 + side * len(names), _short(name), turned=len(names) > _TICKS))
        for j, rows in enumerate(row):
            pieces.append(_cell(110 + side * j, 44 + side * i, side, rows, rows / max(1, sum(row))))
    return "\n".join(pieces)


def _cell(x: float, y: float, side: float, rows: int, share: float) -> str:
    paint = f"fill='{_BLUE}' fill-opacity='{share:.3f}' stroke='{_LIGHT}'"
    box = f"<rect x='{x:.1f}' y='{y:.1f}' width='{side:.1f}' height='{side:.1f}' {paint}/>"
    if side < 30:  # noqa: PLR2004  no digits fit
        return box
    colour = "#fff" if share > 0.5 else "#1c1f23"  # noqa: PLR2004  on dark, on light
    return f"{box}<g fill='{colour}'>{_label(x + side / 2, y + side / 2 + 4, f'{rows:,}')}</g>"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 1]}…"


# -- axes -------------------------------------------------------------------------------------


def _span(low: float, high: float) -> tuple[float, float]:
    """Return limits that lie apart."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


@dataclass(frozen=True)
class _Axes:
    """Values to places of a picture."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        """Return where a value is across."""
        share = (value - self.left) / (self.right - self.left)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Return where a value is from the top."""
        share = (value - self.bottom) / (self.top - self.bottom)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def drawn(self, title: str, across: str, up: str) -> str:
        """Return the axes with ticks and names."""
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        pieces = [_label(middle, 22, title, bold=True), _label(middle, _HEIGHT - 10, across)]
        pieces.append(
            f"<text transform='translate(14 {_HEIGHT / 2}) rotate(-90)' text-anchor='middle'>{up}</text>"
        )
        pieces += [
            _label(self.x(value), _HEIGHT - _BOTTOM + 18, _tick(value))
            for value in _ticks(self.left, self.right)
        ]
        for value in _ticks(self.bottom, self.top):
            y = self.y(value)
            pieces.append(_label(_LEFT - 6, y + 4, _tick(value), anchor="end"))
            pieces.append(
                f"<line x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='{_LIGHT}'/>"
            )
        return "\n".join(pieces)


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two, about five.

    Example:
        >>> _ticks(-20.9, 104.0)
        [-20.0, 0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    least = (high - low) / _TICKS / 1.5
    unit = 10.0 ** math.floor(math.log10(least))
    step = next(each * unit for each in (1, 2, 5, 10) if each * unit >= least)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _tick(value: float) -> str:
    """Return a number in few characters.

    Example:
        >>> _tick(0.3), _tick(12500.0), _tick(2.5e6), _tick(0.0)
        ('0.3', '12.5k', '2.5M', '0')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.3g}"


def _label(
    x: float, y: float, text: str, *, anchor: str = "middle", bold: bool = False, turned: bool = False
) -> str:
    style = " font-weight='600'" if bold else ""
    turn = f" transform='rotate(-40 {x:.1f} {y:.1f})'" if turned else ""
    anchor = "end" if turned else anchor
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'{style}{turn}>{html.escape(text)}</text>"
