#!/usr/bin/env python3
"""Writes src/tokenizers/unicode_tables.cpp: what the Python package `tokenizers` takes for a letter, a number, a space.

The package mixes several Unicode versions (its regular expressions, its normal forms and its character classes each
bring their own), so its behaviour is asked for every code point rather than computed from one version's data files:

    pip install tokenizers==0.23.3
    python tools/make_unicode_tables.py > src/tokenizers/unicode_tables.cpp
    clang-format -i src/tokenizers/unicode_tables.cpp
"""
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Cf".split()
SCRIPTS = """Arabic Armenian Bengali Bopomofo Common Cyrillic Devanagari Ethiopic Georgian Greek Gujarati Gurmukhi Han
Hangul Hebrew Hiragana Inherited Kannada Katakana Khmer Lao Latin Malayalam Mongolian Myanmar Oriya Sinhala Tamil Telugu
Thaana Thai Tibetan""".split()


def remaining(pre_tokenizer):
    """The code points that a pre-tokenizer keeps."""
    kept = set()
    for start in range(0, len(POINTS), 4096):
        text = "".join(map(chr, POINTS[start : start + 4096]))
        for piece, _ in pre_tokenizer.pre_tokenize_str(text):
            kept.update(map(ord, piece))
    return kept


def matching(pattern):
    return remaining(pre_tokenizers.Split(Regex(pattern), "removed", invert=True))


def ranges(points):
    result = []
    for point in sorted(points):
        if result and result[-1][1] == point - 1:
            result[-1][1] = point
        else:
            result.append([point, point])
    return result


def combining(points):
    strip = normalizers.StripAccents()
    return {c for c in points if strip.normalize_str(chr(c)) == ""}


def word():
    # Whitespace keeps \w+ and [^\w\s]+ apart: between two letters a word character does not split.
    split = pre_tokenizers.Whitespace()
    return {c for c in POINTS if len(split.pre_tokenize_str("a" + chr(c) + "a")) == 1}


def numeric():
    split = pre_tokenizers.Digits(individual_digits=True)
    return {c for c in POINTS if len(split.pre_tokenize_str("a" + chr(c))) == 2}


def inert():
    """Code points that no normal form changes, moves or joins with a neighbour, in the Unicode version that the package
    normalises by: whatever stands around one can be normalised apart."""
    nfc, nfd, nfkd = (getattr(normalizers, name)().normalize_str for name in ("NFC", "NFD", "NFKD"))
    active = set(range(0x1100, 0x1200)) | set(range(0xAC00, 0xD7A4))  # Hangul is composed by arithmetic
    for point in POINTS:
        c = chr(point)
        parts = nfd(c)
        if len(parts) > 1:  # a composition: its two halves may be joined
            active |= {ord(nfc(parts[:-1])[-1]), ord(parts[-1])}
        if nfkd(c) != c:
            active |= {point, *map(ord, nfkd(c))}
        # A combining class is not 0 when it makes a character change places with one of class 230 or 1.
        if nfd("\u0301" + c) != "\u0301" + parts or nfd(c + "\u0334") != parts + "\u0334":
            active.add(point)
    return set(POINTS) - active


def lower_runs():
    """(first, last, step, delta): every step-th code point of [first, last] plus delta is its lower case."""
    lower = normalizers.Lowercase()
    pairs = {c: lower.normalize_str(chr(c)) for c in POINTS}
    pairs = {c: s for c, s in pairs.items() if s != chr(c)}
    long = {c for c, s in pairs.items() if len(s) > 1}
    assert long == {0x130} and pairs[0x130] == "i\u0307", "one letter has a lower case of two code points"
    runs = []
    for c in sorted(pairs.keys() - long):
        delta = ord(pairs[c]) - c
        if runs and runs[-1][3] == delta:
            first, last, step, _ = runs[-1]
            if (first == last and c - last <= 2) or (first != last and c - last == step):
                runs[-1] = [first, c, c - last, delta]
                continue
        runs.append([c, c, 1, delta])
    return runs


def main():
    bits = {
        "kLetter": matching(r"\p{L}"),
        "kNumber": matching(r"\p{N}"),
        "kSpace": matching(r"\s"),
        "kWord": word(),
        "kWhitespace": set(POINTS) - remaining(pre_tokenizers.WhitespaceSplit()),
        "kNumeric": numeric(),
        "kPunctuation": set(POINTS) - remaining(pre_tokenizers.Punctuation("removed")),
        "kCombining": combining(POINTS),
        "kInert": inert(),
    }
    runs = []
    for c in range(0x110000):
        flags = sum(1 << i for i, points in enumerate(bits.values()) if c in points)
        if not runs or runs[-1][1] != flags:
            runs.append((c, flags))

    # The regex library of Debian 12 knows Unicode 14, as this Python does.
    assert unicodedata.unidata_version == "14.0.0", "run with a Python that has Unicode 14 (3.11)"
    new = {c for c in POINTS if unicodedata.category(chr(c)) == "Cn"}
    added = []
    for name in CATEGORIES:
        points = matching(r"\p{%s}" % name)
        changed = points - new ^ {c for c in POINTS if unicodedata.category(chr(c)) == name}
        if changed:
            print("category of", name, "changed:", sorted(map(hex, changed)), file=sys.stderr)
        added += [(name, *r) for r in ranges(points & new)]
    for name in SCRIPTS:
        added += [(name, *r) for r in ranges(matching(r"\p{%s}" % name) & new)]

    names = " ".join(bits)
    print(f"""// Made by tools/make_unicode_tables.py with tokenizers {tokenizers.__version__}: character classes as that package sees them.
// Bits of kUnicodeRuns, from the lowest: {names}.
#include "tokenizers/unicode_tables.h"

namespace ssm {{

const uint32_t kUnicodeRuns[] = {{""")
    ends = [c for c, _ in runs[1:]] + [0x110000]
    print(", ".join(str((end - c) << 9 | flags) for (c, flags), end in zip(runs, ends)))
    print(f"""}};
const size_t kUnicodeRunCount = {len(runs)};

const LowerRun kLowerRuns[] = {{""")
    low = lower_runs()
    print(", ".join(f"{{{a:#x}, {b:#x}, {step}, {delta}}}" for a, b, step, delta in low))
    print(f"""}};
const size_t kLowerRunCount = {len(low)};

const AddedRange kAddedRanges[] = {{""")
    print(", ".join(f'{{"{name}", {a:#x}, {b:#x}}}' for name, a, b in added))
    print(f"""}};
const size_t kAddedRangeCount = {len(added)};

}}  // namespace ssm""")


main()
