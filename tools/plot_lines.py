#!/usr/bin/env python3
"""Charts of lines as SVG. Python's standard library alone:

    python tools/plot_lines.py lengths bench/results/FILE.csv --out docs/charts/lengths-cpu.svg
    python tools/plot_lines.py task none=none/result.json dtBC=dtBC/result.json --out selection.svg

`lengths`: what `ssm bench --only lengths --csv FILE` measured, both axes logarithmic. `task`: held-back answers that were
right during runs of `ssm task --out` or `--json`, over steps.
"""
import argparse
import csv
import json
import math
import pathlib
import textwrap
from xml.sax.saxutils import escape

COLOURS = {"mamba": "#1f6f5c", "mamba2": "#5fb49c", "attention": "#c0392b", "lstm": "#d68910", "conv": "#8e8a80",
           "s4d": "#5b7fb5", "s4": "#2c3e70"}
OTHERS = ["#1f6f5c", "#c0392b", "#5b7fb5", "#d68910", "#8e8a80", "#2c3e70", "#5fb49c"]
INK, QUIET, GRID = "#22252a", "#777", "#e4e1da"
WIDTH, HEIGHT, LEFT, TOP, GAP, FOOT = 400, 250, 62, 74, 66, 62
SHORT = {9: "G", 6: "M", 3: "k", 0: ""}


def label(value):
    if value >= 1e3:
        power = max(p for p in SHORT if value >= 10**p)
        return f"{value / 10**power:g}{SHORT[power]}"
    return f"{value:g}"


class Axis:
    """Values to pixels. A logarithmic one has its ticks at powers of `base`."""

    def __init__(self, values, size, base=0):
        self.size, self.base = size, base
        if base:
            self.low = math.floor(math.log(min(values), base) + 1e-9)
            self.high = max(math.ceil(math.log(max(values), base) - 1e-9), self.low + 1)
            step = 1 if self.high - self.low <= 10 else 2
            self.ticks = [base**power for power in range(self.low, self.high + 1, step)]
        else:
            self.low, self.high = 0, max(values)
            step = 10 ** math.floor(math.log10(self.high))
            step = next(step * f for f in (0.1, 0.2, 0.5, 1, 2) if self.high / (step * f) <= 6)
            self.ticks = [step * i for i in range(int(self.high / step + 1e-9) + 1)]

    def at(self, value):
        position = math.log(value, self.base) if self.base else value
        return self.size * (position - self.low) / (self.high - self.low)


def panel(title, lines, colours, x_name, x_base, y_base, left, top):
    x = Axis([point[0] for line in lines.values() for point in line], WIDTH, x_base)
    y = Axis([point[1] for line in lines.values() for point in line], HEIGHT, y_base)
    out = [f'<g transform="translate({left} {top})">',
           f'<text x="0" y="-12" font-weight="bold">{escape(title)}</text>']
    for tick in y.ticks:
        at = HEIGHT - y.at(tick)
        out.append(f'<path d="M0 {at:.1f}H{WIDTH}" stroke="{GRID}"/>')
        out.append(f'<text x="-6" y="{at + 4:.1f}" text-anchor="end">{label(tick)}</text>')
    for tick in x.ticks:
        name = f'2<tspan dy="-5" font-size="9">{round(math.log2(tick))}</tspan>' if x_base == 2 else f"{tick:,g}"
        out.append(f'<text x="{x.at(tick):.1f}" y="{HEIGHT + 17}" text-anchor="middle">{name}</text>')
    out.append(f'<text x="{WIDTH}" y="{HEIGHT + 33}" text-anchor="end" fill="{QUIET}">{escape(x_name)}</text>')
    for name, line in lines.items():
        points = [(x.at(a), HEIGHT - y.at(b)) for a, b in line]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        out.append(f'<path d="M{path}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{colours[name]}"/>' for a, b in points]
    return out + ["</g>"]


def svg(title, remark, panels, names, colours):
    """panels: (title, {name: [(x, y)]}, name of x, bases of x and y), two in a row."""
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = columns * (WIDTH + LEFT) + 30
    height = TOP + 30 + rows * (HEIGHT + GAP) + FOOT - 30
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
           f'font-family="sans-serif" font-size="12" fill="{INK}">',
           f'<rect width="{width}" height="{height}" fill="white"/>',
           f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>']
    at = 12
    for name in names:
        out.append(f'<rect x="{at}" y="35" width="12" height="12" fill="{colours[name]}"/>')
        out.append(f'<text x="{at + 17}" y="45">{escape(name)}</text>')
        at += 34 + 7.5 * len(name)
    for index, (name, lines, x_name, x_base, y_base) in enumerate(panels):
        column, row = index % columns, index // columns
        out += panel(name, lines, colours, x_name, x_base, y_base, LEFT + column * (WIDTH + LEFT),
                     TOP + 24 + row * (HEIGHT + GAP))
    for index, line in enumerate(textwrap.wrap(remark, 75 * columns)[:2]):
        out.append(f'<text x="12" y="{height - 22 + 13 * index}" font-size="10" fill="{QUIET}">{escape(line)}</text>')
    return "\n".join(out + ["</svg>", ""])


def lengths(path):
    with open(path, encoding="utf-8") as lines:
        remark = next(lines).lstrip("# ").strip()
        rows = [row for row in csv.DictReader(lines) if row["group"] == "lengths" and float(row["rate"]) > 0]
    series, names = {}, []
    for row in rows:
        mixer, what = row["what"].split(";")[0].split(": ", 1)
        names += [mixer] if mixer not in names else []
        value = float(row["rate"])
        value = 1e6 / value if what == "writing" else value
        series.setdefault(what, {}).setdefault(mixer, []).append((int(row["shape"]), value))
    titles = (("training", "training, tokens a second"), ("training memory", "memory of a step, bytes a token"),
              ("writing", "writing a token, microseconds"), ("state", "state of a sequence, bytes"))
    panels = [(title, series[what], "tokens of a sequence", 2, 10) for what, title in titles if what in series]
    return svg("Training, memory and writing against length", remark, panels, names, COLOURS)


def task(runs):
    lines, title = {}, ""
    for run in runs:
        name, path = run.split("=", 1)
        result = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        title = f"{result['task']}: held-back answers that are right, %"
        lines[name] = [(one["step"], 100 * one["token_accuracy"]) for one in result["evaluations"]]
    colours = dict(zip(lines, OTHERS))
    return svg(title, "ssm task", [("", lines, "steps", 0, 0)], list(lines), colours)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("lengths", "task"))
    parser.add_argument("files", nargs="+", help="lengths: one CSV; task: NAME=FILE for each run")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    drawn = lengths(arguments.files[0]) if arguments.kind == "lengths" else task(arguments.files)
    arguments.out.write_text(drawn, encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
