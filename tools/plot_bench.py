#!/usr/bin/env python3
"""Charts of what `ssm bench --device cuda --csv FILE` measured, as SVG, beside what the published implementation was
recorded at and the machine's limit. Python's standard library alone:

    python tools/plot_bench.py bench/results/FILE.csv... --out docs/charts

writes scan.svg (time an element), training.svg and writing.svg (tokens/s). Rows without a rival are left out.
"""
import argparse
import csv
import math
import pathlib
import textwrap
from xml.sax.saxutils import escape

OURS, RIVAL, LIMIT, INK, GRID = "#1f6f5c", "#b9b4a7", "#c0392b", "#22252a", "#e4e1da"
LABELS, PLOT, VALUES = 250, 470, 80  # widths, left to right
BAR, GAP, HEAD, FOOT = 13, 11, 64, 58  # heights


def read(path):
    """The first line, which names machine and commit, and the rows."""
    with open(path, encoding="utf-8") as lines:
        remark = next(lines).lstrip("# ").strip()
        return remark, list(csv.DictReader(lines))


def chart(title, remark, unit, bars, log):
    """bars: (label, ours, rival, limit), all in `unit`."""
    everything = [value for bar in bars for value in bar[1:] if value]
    low = 10 ** math.floor(math.log10(min(everything))) if log else 0
    high = 10 ** math.ceil(math.log10(max(everything))) if log else max(everything) * 1.02
    width = LABELS + PLOT + VALUES
    step = 2 * BAR + GAP
    height = HEAD + len(bars) * step + FOOT

    def at(value):
        share = math.log(value / low) / math.log(high / low) if log else value / high
        return LABELS + PLOT * share

    if log:
        ticks = [10**k for k in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    else:
        size = 10 ** math.floor(math.log10(high))
        tick = next(size * f for f in (0.1, 0.2, 0.5, 1) if high / (size * f) <= 8)
        ticks = [tick * i for i in range(int(high / tick) + 1)]

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for index, (colour, name) in enumerate(((OURS, "ssm.cpp"), (RIVAL, "mamba 2.3.2, recorded"), (LIMIT, "limit"))):
        x = 12 + [0, 90, 260][index]
        out.append(f'<rect x="{x}" y="35" width="12" height="12" fill="{colour}"/>')
        out.append(f'<text x="{x + 17}" y="45">{name}</text>')
    bottom = HEAD + len(bars) * step
    for value in ticks:
        out.append(f'<path d="M{at(value):.1f} {HEAD - 6}V{bottom}" stroke="{GRID}"/>')
        out.append(f'<text x="{at(value):.1f}" y="{bottom + 14}" text-anchor="middle">{value:,.10g}</text>')
    out.append(f'<text x="{LABELS + PLOT + 12}" y="{bottom + 14}">{escape(unit)}</text>')
    for index, line in enumerate(textwrap.wrap(remark, 140)[:2]):
        out.append(f'<text x="12" y="{height - 22 + 13 * index}" font-size="10" fill="#777">{escape(line)}</text>')
    for index, (label, ours, rival, limit) in enumerate(bars):
        y = HEAD + index * step
        out.append(f'<text x="{LABELS - 8}" y="{y + BAR + 4}" text-anchor="end">{escape(label)}</text>')
        for value, colour, top in ((ours, OURS, y), (rival, RIVAL, y + BAR)):
            out.append(f'<rect x="{LABELS}" y="{top}" width="{at(value) - LABELS:.1f}" height="{BAR - 1}" fill="{colour}"/>')
            out.append(f'<text x="{at(value) + 5:.1f}" y="{top + BAR - 3}" font-size="11">{number(value)}</text>')
        if limit:
            out.append(f'<path d="M{at(limit):.1f} {y - 2}V{y + 2 * BAR}" stroke="{LIMIT}" stroke-width="2"/>')
    return "\n".join(out + ["</svg>", ""])


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def scan_bars(rows):
    """Picoseconds an element: the rate's inverse, so rival and limit scale with it."""
    bars = []
    for row in rows:
        if not row["what"].startswith("selective_scan") or not row["ps_an_element"] or float(row["rival"]) <= 0:
            continue
        ours, rate = float(row["ps_an_element"]), float(row["rate"])
        what = row["what"].removeprefix("selective_scan ")
        shape = row["shape"].removesuffix(" n 16")
        bars.append((f"{what}, {shape}", ours, ours * rate / float(row["rival"]), ours * rate / float(row["limit"])))
    return sorted(bars, key=lambda bar: bar[0].split(",")[0] == "backward")


def token_bars(rows, what):
    return [
        (row["shape"], float(row["rate"]), float(row["rival"]), float(row["limit"]))
        for row in rows
        if row["what"].startswith(what) and float(row["rival"]) > 0
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=pathlib.Path, nargs="+", help="the first one's first line stands below the charts")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/charts"))
    arguments = parser.parse_args()
    files = [read(path) for path in arguments.csv]
    remark, rows = files[0][0], [row for _, part in files for row in part]
    charts = (
        ("scan.svg", "Selective scan: time of one (token, channel), less is better", "ps", scan_bars(rows), False),
        ("training.svg", "Training, more is better", "tokens/s", token_bars(rows, "train step"), True),
        ("writing.svg", "Writing: model, sequences together after prompt; more is better", "tokens/s",
         token_bars(rows, "write"), True),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, title, unit, bars, log in charts:
        if not bars:
            print(f"{name}: no rows for it")
            continue
        (arguments.out / name).write_text(chart(title, remark, unit, bars, log), encoding="utf-8")
        print(arguments.out / name)


if __name__ == "__main__":
    main()
