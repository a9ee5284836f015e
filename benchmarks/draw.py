"""The tables and drawings of the docs, from the numbers beside them. Needs no host.

    python benchmarks/draw.py

docs/benchmarks.json (written by `bench -- --summary`) becomes the table in docs/benchmarks.md and docs/benchmarks.svg;
the tables of docs/results.md that say presence and leakage become docs/quality.json and docs/quality.svg.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
COSTS, QUALITY = DOCS / "benchmarks.json", DOCS / "quality.json"
BEGIN, END = "<!-- summary, drawn by benchmarks/draw.py -->", "<!-- end of the summary -->"
NOT_MEASURED, LOOP, REFUSED = "not measured", "=", "–"

# In both schemes of a page; lines and marks are distinct by their form, too.
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 14px; }
.faint { fill: #59636e; }
.small { font-size: 11px; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.one { stroke: #59636e; stroke-width: 1; }
.bar { fill: #2f81c7; }
.base { fill: #8b949e; }
.c0 { fill: #1f2328; } .c1 { fill: #0969da; } .c2 { fill: #bc4c00; } .c3 { fill: #1a7f37; } .c4 { fill: #8250df; }
.c5 { fill: #bf3989; } .c6 { fill: #7d4e00; } .c7 { fill: #cf222e; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .faint { fill: #9198a1; }
  .grid { stroke: #3d444d; }
  .one { stroke: #9198a1; }
  .bar { fill: #58a6ff; }
  .c0 { fill: #f0f6fc; } .c1 { fill: #58a6ff; } .c2 { fill: #f0883e; } .c3 { fill: #3fb950; } .c4 { fill: #bc8cff; }
  .c5 { fill: #f778ba; } .c6 { fill: #d29922; } .c7 { fill: #ff7b72; }
}
"""


@dataclass
class Canvas:
    """An SVG in the making."""

    width: int
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        at = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
        self.parts.append(f"<text {at}{_class(kind)}>{escape(words)}</text>")

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.parts.append(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"{_class(kind)}/>')

    def bar(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{_class(kind)}/>')

    def mark(self, x: float, y: float, number: int, note: str) -> None:
        """One of eight marks of 9 units, with a note that appears under the pointer."""
        dots = _MARKS[number % len(_MARKS)]
        d = " ".join(f"{'M' if n == 0 else 'L'}{x + a:g} {y + b:g}" for n, (a, b) in enumerate(dots)) + " Z"
        self.parts.append(f'<path d="{d}" class="c{number % 8}"><title>{escape(note)}</title></path>')

    def done(self, height: float, label: str) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {height:g}" role="img"'
        body = "\n".join(self.parts)
        return f'{head} aria-label="{escape(label)}">\n<style>{_STYLE}</style>\n{body}\n</svg>\n'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    found = []
    for n in range(2 * points):
        reach, turn = (5.0 if n % 2 == 0 else inner), math.pi * n / points
        found.append((round(reach * math.sin(turn), 2), round(-reach * math.cos(turn), 2)))
    return found


_MARKS = (
    _star(6, 4.4),  # nearly a circle
    [(-4, -4), (4, -4), (4, 4), (-4, 4)],
    [(0, -5), (5, 4), (-5, 4)],
    [(0, -5), (5, 0), (0, 5), (-5, 0)],
    [(-5, -4), (5, -4), (0, 5)],
    _star(5, 2.2),
    _star(4, 1.6),
    [(-5, -2), (5, -2), (5, 2), (-5, 2)],
)


# --- what methods cost ---


def cost_table(found: dict[str, Any]) -> str:
    """The summary in markdown, with its footnotes."""
    columns, notes = found["columns"], {}
    lines = [
        f"| method | calls | rows | with a way back | {' | '.join(about['title'] for about in columns.values())} |",
        f"|{'---|' * (4 + len(columns))}",
    ]
    for name, row in found["rows"].items():
        count = row.get("evaluations")
        counts = [str(count[key]) for key in ("calls", "rows", "with_gradient")] if count else [NOT_MEASURED] * 3
        cells = [_cell(row, column, notes) for column in columns]
        lines.append(f"| {name} | {' | '.join([*counts, *cells])} |")
    lines += ["", *(f"{number}. {words}" for words, number in notes.items())]
    return "\n".join(lines).rstrip()


def _cell(row: dict[str, Any], column: str, notes: dict[str, int]) -> str:
    cell = row["cells"].get(column)
    if row["loop"]:
        return LOOP
    if cell is None:
        return NOT_MEASURED
    words = cell.get("refused") or cell.get("failed")
    if words is None:
        return f"{cell['step'][0]:.2f} / {cell['peak']:.2f}"
    return f"{REFUSED if 'refused' in cell else 'failed'} ({notes.setdefault(words, len(notes) + 1)})"


def machines(found: dict[str, Any]) -> str:
    """What each column was measured on, one line each."""
    lines = []
    for about in found["columns"].values():
        lines.append(f"- **{about['title']}**: {about['of']}. {about.get('machine', NOT_MEASURED.capitalize() + '.')}")
    return "\n".join(lines)


def draw_costs(found: dict[str, Any]) -> str:
    """Time and peak memory of a step of every method, on every shape; and evaluations."""
    columns = [name for name in found["columns"] if any(name in row["cells"] for row in found["rows"].values())]
    canvas, top, step = Canvas(1100), 74, 20
    left, middle, right, wide = 250, 600, 950, 310
    canvas.text(10, 20, "What a step costs with a method, divided by the same step without it", "title")
    x = 10
    for number, name in enumerate(columns):
        canvas.mark(x + 5, 36, number, found["columns"][name]["title"])
        canvas.text(x + 15, 40, found["columns"][name]["title"], "small")
        x += 30 + 6.4 * len(found["columns"][name]["title"])
    rows = found["rows"]
    bottom = top + step * len(rows)
    for start, title in ((left, "time of a step"), (middle, "peak memory")):
        canvas.text(start, 60, title, "faint")
        for tick in (0.5, 1, 2, 4, 8, 16, 32):
            at = start + _log(tick, wide)
            canvas.line(at, top - 8, at, bottom, "one" if tick == 1 else "grid")
            canvas.text(at, bottom + 14, f"{tick:g}×", "faint small", "middle")
    canvas.text(right, 60, "calls (rows) of 20 steps", "faint small")
    for number, (name, row) in enumerate(rows.items()):
        y = top + step * number + 6
        canvas.text(left - 12, y + 4, name, "small", "end")
        for mark, column in enumerate(columns):
            cell = row["cells"].get(column, {})
            if "step" in cell:
                title = f"{name}, {found['columns'][column]['title']}"
                values = (left, cell["step"][0], "time"), (middle, cell["peak"], "peak memory")
                for start, value, what in values:
                    canvas.mark(start + _log(value, wide), y, mark, f"{title}: {what} {value:.2f}")
        if row["loop"]:
            canvas.text(left + _log(1, wide) + 8, y + 4, "its calls alone count", "faint small")
        if count := row.get("evaluations"):
            back = f", {count['with_gradient']} back" * bool(count["with_gradient"])
            canvas.text(right, y + 4, f"{count['calls']} ({count['rows']}){back}", "small")
    return canvas.done(bottom + 24, "Time and peak memory of a step by method and model")


def _log(value: float, wide: float) -> float:
    """How far right a ratio stands on a scale from 0.4 to 60; one outside is refused, not drawn at its end."""
    if not 0.4 <= value <= 60:
        raise ValueError(f"the drawing's scale goes from 0.4 to 60, and a ratio is {value}: widen it")
    low, high = math.log(0.4), math.log(60.0)
    return round(wide * (math.log(value) - low) / (high - low), 1)


# --- what methods do ---

MEASURES = {"presence": "presence", "iou": "IoU with the box", "attributes": "attributes", "leakage": "leakage"}


def read_quality(text: str) -> dict[str, Any]:
    """The tables of docs/results.md that say presence and leakage, each with the command that repeats it."""
    general, found = "", []
    for section in re.split(r"^## ", text, flags=re.M):
        title, _, body = section.partition("\n")
        commands = re.findall(r"^ {4}(\S.*workbench\.py test .*)$", body, flags=re.M)
        general = general or (commands[0] if commands else "")
        for about, header, rows in _tables(body):
            if "presence" not in header or "leakage" not in header:
                continue
            names = [_measure(name) for name in header]
            kept = [
                {"method": _plain(row[0])}
                | {name: value for name, cell in zip(names, row) if name and (value := _number(cell)) is not None}
                for row in rows
            ]
            title_here = title if not header[0] else f"{title}: {header[0]}"
            found.append({"title": title_here, "about": about, "command": (commands or [general])[0], "rows": kept})
    return {"measured": "docs/results.md", "tables": found}


def _tables(body: str) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(the paragraph before it, header, rows) of each table."""
    before = ""
    for part in (part.strip("\n") for part in re.split(r"\n\s*\n", body)):
        lines = part.splitlines()
        if not part.startswith("|"):
            before = part
        if len(lines) > 2 and lines[0].startswith("|") and set(lines[1]) <= set("|-: "):
            cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
            if lines[0].startswith("| |"):
                cells[0] = ["", *[cell.strip() for cell in lines[0].strip()[3:].strip("|").split("|")]]
            yield " ".join(before.split()), cells[0], cells[2:]


def _measure(name: str) -> str | None:
    for key, starts in (("presence", "presence"), ("iou", "IoU"), ("leakage", "leakage"), ("ap50", "AP50")):
        if name.startswith(starts):
            return key
    return {"attributes right where filled": "attributes", "colour bound": "bound", "boxes filled": "filled"}.get(name)


def _plain(words: str) -> str:
    return words.replace("*", "").replace("`", "")


def _number(cell: str) -> float | None:
    match = re.match(r"\d*\.\d+", _plain(cell))
    return float(match[0]) if match else None


def draw_quality(found: dict[str, Any]) -> str:
    """Presence, IoU, attributes and leakage of every row, as bars from 0 to 1."""
    canvas, y = Canvas(1060), 26
    left, wide, apart = 330, 130, 180
    canvas.text(10, y, "What methods do, on the toy model", "title")
    for table in found["tables"]:
        y += 30
        canvas.text(10, y, table["title"], "title")
        about = _plain(table["about"])
        canvas.text(10, y + 16, about if len(about) <= 170 else f"{about[:168].rstrip()} …", "faint small")
        y += 34
        for number, (key, title) in enumerate(MEASURES.items()):
            bound = key == "attributes" and not any("attributes" in row for row in table["rows"])
            canvas.text(left + apart * number, y, "colour bound" if bound else title, "faint")
        for row in table["rows"]:
            y += 18
            canvas.text(left - 12, y + 4, _shortened(row["method"]), "small", "end")
            kind = "base" if row["method"].startswith("unpatched") else "bar"
            for number, key in enumerate(MEASURES):
                value = row.get(key, row.get("bound") if key == "attributes" else None)
                x = left + apart * number
                canvas.line(x, y - 8, x, y + 10, "grid")
                if value is None:
                    canvas.text(x + 4, y + 4, REFUSED, "faint small")
                else:
                    canvas.bar(x, y - 5, wide * value, 11, kind)
                    canvas.text(x + wide * value + 5, y + 4, f"{value:.3f}".lstrip("0") or "0", "small")
    return canvas.done(y + 24, "Presence, IoU, attributes and leakage by method")


def _shortened(words: str) -> str:
    return words if len(words) <= 52 else f"{words[:50].rstrip()} …"


def between(text: str, words: str) -> str:
    """The text with these words between the markers."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f'docs/benchmarks.md has no "{BEGIN}" and "{END}"; put both where the summary belongs')
    return f"{before}{BEGIN}\n{words}\n{END}{after}"


def summary_of(found: dict[str, Any]) -> str:
    """What stands between the markers."""
    return f"{cost_table(found)}\n\n{machines(found)}"


def main() -> None:
    """Draw everything again."""
    found = json.loads(COSTS.read_text(encoding="utf-8"))
    page = DOCS / "benchmarks.md"
    page.write_text(between(page.read_text(encoding="utf-8"), summary_of(found)), encoding="utf-8")
    (DOCS / "benchmarks.svg").write_text(draw_costs(found), encoding="utf-8")
    quality = read_quality((DOCS / "results.md").read_text(encoding="utf-8"))
    QUALITY.write_text(json.dumps(quality, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (DOCS / "quality.svg").write_text(draw_quality(quality), encoding="utf-8")


if __name__ == "__main__":
    main()
