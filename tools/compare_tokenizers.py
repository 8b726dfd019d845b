#!/usr/bin/env python3
"""Compares `ssm tokenize` with the Python package `tokenizers`: ids and decoded text of every text under every tokenizer.

    pip install tokenizers==0.23.3
    python tools/compare_tokenizers.py --ssm build/cpu/ssm --tokenizer gpt-neox/tokenizer.json --text books/*.txt

Texts are those given and 5 MB that the script makes from a seed: sentences in 24 scripts, code, emoji, control and
private-use characters, combining marks, white space, random Unicode with unassigned code points. Tokenizers are those
given and about 60 small ones that the script trains, which go through every normalizer, pre-tokenizer, flag of an added
token, decoder and post-processor. Every difference is printed and makes the exit status 1. --golden DIR writes small
tokenizers with what they must give, for the tests; --time compares speed on one core.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import tokenizers  # noqa: E402
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,  # noqa: E402
                        processors, trainers)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
          r"|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

SENTENCES = """The quick brown fox jumps over the lazy dog; it's 1,234.56 o'clock, we'll see THEY'RE here.
Der Straßenbauübergrößenträger kostet 99,50 € — „Größe“ ist ﬁnal. Ça coûte très cher à Noël, n'est-ce pas ?
Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy. İstanbul'da ığdır IŞIK.
Съешь же ещё этих мягких французских булок, да выпей чаю. Їжак, ґанок, Ђорђе.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία· ΟΔΥΣΣΕΥΣ ΰ ᾳ ἀρχή.
ხვალ მოვა ქართული ენა ᲥᲐᲠᲗᲣᲚᲘ. Հայերեն լեզու և գիր։
דג סקרן שט בים מאוכזב ולפתע מצא חברה. שָׁלוֹם עֲלֵיכֶם
نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ومغلف بجلد أزرق ١٢٣٤٥ ۴۵۶ ﷺ ﻻ
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश १२३। क्षेत्र
আমার সোনার বাংলা, আমি তোমায় ভালোবাসি। ৪৫৬ ਪੰਜਾਬੀ ગુજરાતી ଓଡ଼ିଆ
யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது ೧೨೩ ಕನ್ನಡ తెలుగు మలയാളം සිංහල
เป็นมนุษย์สุดประเสริฐเลิศคุณค่า ๑๒๓ ພາສາລາວ ភាសាខ្មែរ ျမန်မာ བོད་སྐད་
いろはにほへと ちりぬるを。ガギグ ｶﾞｷﾞ ㌔㍿ ㋿ 漢字かな交じり文 １２３ ゛が゙
天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。“中文”測試 𠀀𠮷 㐀 豈 更
키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. 한글 ㄱㄴㄷ
ᚠᛇᚻ᛫ᛒᛦᚦ ᏣᎳᎩ ꮳꮃꭹ ᐃᓄᒃᑎᑐᑦ ᠮᠣᠩᠭᠣᠯ ⴰⵎⴰⵣⵉⵖ 𐌰𐌱𐌲 𓀀𓀁 አማርኛ ߒߞߏ
👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ☎️ 1️⃣ ❤️‍🔥 🫨 🪿 🧑🏿‍🚀 e\u0301\u0323 a\u0308\u0304 ﷽ ½ ² ① Ⅷ ʰ ª 𝔘𝔫𝔦 ﬃ ẛ̣ Å Ω
\u200b\u200c\u200d\ufeff\u00ad\u2060 \u00a0\u2009\u3000\u1680\u180e\u2028\u2029\u0085 \x00\x01\x07\x1b\x1c\x1f\x7f\u009f
\ue000\uf8ff\U000f0000\U0010fffd \ufdd0\uffff\U0001ffff \ufffd \U000e0001\U000e0041 \u0378\U0002fffe
\tfor (int i = 0; i < n; ++i) {\n\t\tx[i] += y[i] * 0x1F;  // "don't" 'S 'LL\n\t}\r\n\r\n    return  x ;\n\n\n        \t  \n
def f(x: int) -> str:\n    return f"{x!r:>10}" + '\\\\n' if x else None  # TODO: we've, I'd, you're, 'tis\n
<|endoftext|><s> </s>[MASK]  <mask>  <unk>▁▁a▁b <0x0A><0xff> ##ing Ġhello Ċ hello</w> [INST] yesterday Yesterday YESTERDAY
<div class="x">&amp;&#x27;</div> https://example.com/a?b=c&d=%20#e {"k": [1, 2.5e-3, null]}
   leading,   inner      and trailing                          spaces                        \n\n \n  \n""".split("\n")


def made_texts(size):
    """Texts of about `size` bytes in all, the same on every run."""
    rng = random.Random(20240501)
    lines = [line.replace("\\n", "\n").encode().decode("utf-8") for line in SENTENCES]
    lines = [line.replace("\\t", "\t").replace("\\r", "\r").replace("\\x00", "\x00") for line in lines]

    def random_point():
        high = rng.choice([0x80, 0x250, 0x800, 0x3400, 0x10000, 0x12000, 0x1F000, 0x20000, 0x32000, 0x110000])
        point = rng.randrange(high)
        return chr(point) if not 0xD800 <= point < 0xE000 else " "

    marks = [chr(c) for c in (0x300, 0x301, 0x323, 0x327, 0x345, 0x5B0, 0x93C, 0x3099, 0x309A, 0xE38, 0x1DC0, 0x20D0,
                              0x11938, 0x1E8D0, 0x10D24, 0x1ABF, 0x89A, 0xF71, 0xF72, 0x1161, 0x11A8)]
    makers = [
        lambda: "\n".join(rng.choice(lines) for _ in range(40)),
        lambda: " ".join(w for line in rng.sample(lines, 10) for w in rng.sample(line.split(" "), len(line.split(" ")))),
        lambda: "".join(random_point() for _ in range(3000)),
        lambda: "".join(chr(rng.randrange(0x250)) for _ in range(4000)),
        lambda: "".join(rng.choice("aeoucAEO가각ㄱかはक漢Ω ") + "".join(rng.choices(marks, k=rng.randrange(4)))
                        for _ in range(2000)),
        lambda: "".join(rng.choice([" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "a", "'", "'s", "'Re", "1", "١",
                                    "!", "é", "_", "-", "<s>", "</s>", "[MASK]", "▁", "<|endoftext|>", "yesterday"])
                        for _ in range(4000)),
        lambda: "".join(rng.choice([rng.choice(lines), random_point(), str(rng.randrange(10 ** 9)), " "])
                        for _ in range(200)),
    ]
    texts = ["".join(chr(c) for c in range(start, min(start + 0x2000, 0x110000)) if not 0xD800 <= c < 0xE000)
             for start in range(0, 0x110000, 0x2000)]
    texts += [" ".join(chr(c) + "a" + chr(c) for c in range(start, start + 0x1000) if not 0xD800 <= c < 0xE000)
              for start in range(0, 0x33000, 0x1000)]
    made = 0
    while made < size:
        text = makers[len(texts) % len(makers)]()
        made += len(text.encode())
        texts.append(text)
    return texts


def trained(corpus, size=600, model=None, normalizer=None, pre_tokenizer=None, decoder=None, post=None, added=(),
            specials=(), alphabet=(), **trainer):
    tokenizer = Tokenizer(model or models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(specials), initial_alphabet=list(alphabet), show_progress=False, **trainer))
    if decoder:
        tokenizer.decoder = decoder
    if post:
        tokenizer.post_processor = post
    if added:
        tokenizer.add_tokens([t for t in added if not t.special])
        tokenizer.add_special_tokens([t for t in added if t.special])
    return tokenizer


def edited(tokenizer, edit):
    data = json.loads(tokenizer.to_str())
    edit(data)
    return Tokenizer.from_str(json.dumps(data))


def small_tokenizers(corpus, size=600):
    """name -> tokenizer."""
    N, P, D = normalizers, pre_tokenizers, decoders
    bytes_alphabet = P.ByteLevel.alphabet()
    byte_level = dict(alphabet=bytes_alphabet, decoder=D.ByteLevel())
    result = {}

    def add(name, **settings):
        result[name] = trained(corpus, **{"size": size, **settings})

    for form in "NFC NFD NFKC NFKD Lowercase StripAccents Nmt".split():
        add(f"byte-level-{form}", normalizer=getattr(N, form)(), pre_tokenizer=P.ByteLevel(add_prefix_space=False),
            **byte_level)
    add("strip-accents", normalizer=N.Sequence([N.NFD(), N.StripAccents(), N.Lowercase(), N.NFC()]),
        pre_tokenizer=P.ByteLevel(), **byte_level)
    for left in (False, True):
        add(f"strip-{left}", normalizer=N.Strip(left=left, right=not left), pre_tokenizer=P.ByteLevel(), **byte_level)
    add("strip-both", normalizer=N.Strip(), pre_tokenizer=P.Metaspace(prepend_scheme="first"), limit_alphabet=80,
        decoder=D.Metaspace())
    add("normalizer-byte-level", normalizer=N.ByteLevel(), alphabet=bytes_alphabet, decoder=D.ByteLevel(),
        pre_tokenizer=P.Split(Regex("Ġ"), "merged_with_next"))
    for prefix in (False, True):
        for regex in (False, True):
            add(f"byte-level-{prefix}-{regex}", pre_tokenizer=P.ByteLevel(add_prefix_space=prefix, use_regex=regex),
                post=processors.ByteLevel(), max_token_length=12, **byte_level)
    for name, pattern in dict(gpt2=GPT2, llama3=LLAMA3, qwen2=LLAMA3.replace("{1,3}", ""), cl100k=CL100K,
                              o200k=O200K).items():
        add(f"pattern-{name}", pre_tokenizer=P.Sequence([
            P.Split(Regex(pattern), "isolated"), P.ByteLevel(add_prefix_space=False, use_regex=False)]), **byte_level)
        add(f"pattern-removed-{name}", pre_tokenizer=P.Sequence([
            P.Split(Regex(pattern), "removed", invert=True), P.ByteLevel(add_prefix_space=False, use_regex=False)]),
            **byte_level)
    for behavior in "removed isolated merged_with_previous merged_with_next contiguous".split():
        for invert in (False, True):
            add(f"split-{behavior}-{invert}", pre_tokenizer=P.Sequence([
                P.Split(Regex(r"\s+|[aeiou]|\d"), behavior, invert=invert),
                P.ByteLevel(add_prefix_space=False, use_regex=False)]), **byte_level)
        add(f"split-string-{behavior}", pre_tokenizer=P.Sequence([
            P.Split("e", behavior), P.ByteLevel(add_prefix_space=False, use_regex=False)]), **byte_level)
        add(f"punctuation-{behavior}", pre_tokenizer=P.Sequence([
            P.Punctuation(behavior), P.ByteLevel(add_prefix_space=False)]), **byte_level)
        add(f"empty-matches-{behavior}", pre_tokenizer=P.Sequence([
            P.Split(Regex(r"x*|(?=\p{Lu})|\bt"), behavior), P.ByteLevel(add_prefix_space=False, use_regex=False)]),
            **byte_level)
    for number, pattern in enumerate([
            r"\w+|[^\w\s]+", r"[^\S\n]+|\n", r"\b\w{2,4}\b", r"(?<=\s)\S+(?=\s)", r"[\p{Lu}&&\p{Latin}]\p{Ll}*",
            r" ?[^(\s|[.,!?…。，、।۔،])]+", r"a(?i)b|c|THE", r"^.|.$", r"\p{Han}+|\p{Hiragana}+|[\u30a0-ヿ]+",
            r"[!-/:-~！-／：-～‘-‟　-。]+", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+", r"\p{N}{2}+|\d{,3}x", r"[\P{L}&&\S]+",
            r"\p{M}+|\p{P}+|\p{S}+|\p{Nd}|\p{No}", r"(?m:a.b)|\h+", r"[[a-c][x-z]]|[^[a-m]\s]", r"\R|\p{Zs}+", r"\W|\D+",
            r"\p{Cyrillic}+|\p{Greek}+|\p{Arabic}+|\p{Thai}+|\p{Common}"]):
        add(f"regex-{number}", pre_tokenizer=P.Sequence([
            P.Split(Regex(pattern), "isolated"), P.ByteLevel(add_prefix_space=False, use_regex=False)]), **byte_level)
    for individual in (False, True):
        add(f"digits-{individual}", pre_tokenizer=P.Sequence([
            P.Digits(individual_digits=individual), P.ByteLevel(add_prefix_space=False)]), **byte_level)
    unknown = dict(model=models.BPE(unk_token="<unk>"), specials=["<unk>", "<s>", "</s>"])
    for pre in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer"):
        add(f"plain-{pre}", pre_tokenizer=getattr(P, pre)(), limit_alphabet=80, **unknown)
    add("char-delimiter", pre_tokenizer=P.CharDelimiterSplit("e"), limit_alphabet=80, **unknown)
    add("fixed-length", pre_tokenizer=P.FixedLength(4), limit_alphabet=80, **unknown)
    add("fused-unknown", pre_tokenizer=P.WhitespaceSplit(), limit_alphabet=60,
        model=models.BPE(unk_token="<unk>", fuse_unk=True), specials=["<unk>"])
    add("no-unknown", limit_alphabet=60, pre_tokenizer=P.Whitespace(), decoder=D.Fuse())
    add("word-ends", model=models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"), specials=["<unk>"],
        pre_tokenizer=P.Whitespace(), limit_alphabet=90, end_of_word_suffix="</w>", decoder=D.BPEDecoder())
    add("subword-prefix", model=models.BPE(unk_token="<unk>", continuing_subword_prefix="##"), specials=["<unk>"],
        pre_tokenizer=P.Whitespace(), limit_alphabet=90, continuing_subword_prefix="##")
    fallback = [f"<0x{b:02X}>" for b in range(256)]
    llama_decoder = D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)])
    for fuse in (False, True):
        tokenizer = trained(corpus, size=size + 300, model=models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=fuse),
                            normalizer=N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]),
                            specials=["<unk>", "<s>", "</s>", *fallback], limit_alphabet=90, max_token_length=12, decoder=llama_decoder,
                            post=processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A <s> $B",
                                                               special_tokens=[("<s>", 1), ("</s>", 2)]))
        # The bytes are words of the vocabulary, but not added tokens.
        result[f"llama-{fuse}"] = edited(tokenizer, lambda data: data.update(
            added_tokens=[t for t in data["added_tokens"] if not t["content"].startswith("<0x")]))
    for scheme in ("always", "first", "never"):
        for split in (False, True):
            add(f"metaspace-{scheme}-{split}", pre_tokenizer=P.Metaspace(prepend_scheme=scheme, split=split),
                decoder=D.Metaspace(prepend_scheme=scheme), limit_alphabet=90, max_token_length=10,
                model=models.BPE(unk_token="<unk>", fuse_unk=True), specials=["<unk>", "<s>"],
                added=[AddedToken("[MASK]", lstrip=True, special=True)])
    add("metaspace-sequence", pre_tokenizer=P.Sequence([P.WhitespaceSplit(), P.Metaspace("_", "first")]),
        decoder=D.Metaspace("_", "first"), limit_alphabet=90, **unknown)
    add("replace-regex", normalizer=N.Sequence([N.Replace(Regex(r"\s{2,}"), " "), N.Replace(Regex("^ +"), ""),
                                                N.Replace("``", '"')]),
        pre_tokenizer=P.Metaspace(prepend_scheme="first"), decoder=D.Metaspace(), limit_alphabet=90, **unknown)
    contents = ["<s>", "</s>", "[MASK]", "yesterday", "  ", "é", "ing", "<|endoftext|>"]
    for flags in range(16):
        single, left, right, normal = (bool(flags >> i & 1) for i in range(4))
        tokens = [AddedToken(c, single_word=single, lstrip=left, rstrip=right, normalized=normal, special=i % 2 == 0)
                  for i, c in enumerate(contents)]
        add(f"added-{flags}", normalizer=N.Sequence([N.NFD(), N.Lowercase()]) if normal else N.NFC(),
            pre_tokenizer=P.ByteLevel(add_prefix_space=bool(flags & 1)), added=tokens, **byte_level)
    mixed = [AddedToken("[MASK]", lstrip=True, normalized=False), AddedToken("[MASK]]", normalized=False),
             AddedToken("MASK", single_word=True), AddedToken("   ", rstrip=True),
             AddedToken(" a", lstrip=True), AddedToken("<s>", special=True), AddedToken("<s", special=False)]
    add("added-mixed", normalizer=N.Lowercase(), pre_tokenizer=P.ByteLevel(), added=mixed, **byte_level)
    add("ignore-merges", model=models.BPE(ignore_merges=True), pre_tokenizer=P.ByteLevel(), **byte_level)
    # Words that no merge makes are found all the same.
    result["ignore-merges"] = edited(result["ignore-merges"], lambda data: data["model"].update(
        vocab={**data["model"]["vocab"], "Ġyesterday": len(data["model"]["vocab"])}))
    result["old-merges"] = edited(result["byte-level-NFC"], lambda data: data["model"].update(
        merges=[" ".join(pair) for pair in data["model"]["merges"]]))
    add("roberta", pre_tokenizer=P.ByteLevel(), specials=["<s>", "</s>"],
        post=processors.RobertaProcessing(("</s>", 1), ("<s>", 0)), **byte_level)
    add("llama3-like", pre_tokenizer=P.Sequence([P.Split(Regex(LLAMA3), "isolated"),
                                                 P.ByteLevel(add_prefix_space=False, use_regex=False)]),
        specials=["<s>", "</s>"], model=models.BPE(ignore_merges=True),
        post=processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])]), **byte_level)
    level = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "a": 2, ".": 3, "hello": 4}, unk_token="<unk>"))
    level.pre_tokenizer = P.Whitespace()
    result["word-level"] = level
    return result


class Program:
    def __init__(self, path, folder):
        self.path, self.folder = path, Path(folder)

    def run(self, *arguments):
        done = subprocess.run([self.path, "tokenize", "--quiet", *arguments], capture_output=True, timeout=600)
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace").strip())
        return done.stdout

    def encode(self, tokenizer, text, *flags):
        source, ids = self.folder / "text", self.folder / "ids.npy"
        source.write_bytes(text.encode())
        self.run("--tokenizer", tokenizer, "--file", str(source), "--out", str(ids), *flags)
        return np.load(ids).tolist()

    def decode(self, tokenizer, ids):
        source = self.folder / "decode.npy"
        np.save(source, np.array(ids, dtype=np.int64))
        return self.run("--tokenizer", tokenizer, "--decode", str(source)).decode(errors="replace")


def show_difference(name, what, theirs, ours, text):
    at = next((i for i, (a, b) in enumerate(zip(theirs, ours)) if a != b), min(len(theirs), len(ours)))
    print(f"{name}: {what} differ at {at}: {theirs[max(0, at - 3):at + 6]!r} here {ours[max(0, at - 3):at + 6]!r}"
          f" in a text that begins {text[:20]!r}", flush=True)


def compare(program, name, path, texts, joiner):
    """Documents are joined, because each run of the program opens the file anew. Returns the number of differences."""
    reference = Tokenizer.from_file(str(path))
    reference.no_truncation()
    wrong = 0
    for start in range(0, len(texts), joiner):
        text = "\n".join(texts[start : start + joiner])
        for flags, specials in ((), True), (("--no-specials",), False):
            theirs = reference.encode(text, add_special_tokens=specials).ids
            if not theirs:
                continue
            try:
                ours = program.encode(path, text, *flags)
                if ours != theirs:
                    wrong += 1
                    a, b = ([reference.id_to_token(i) or "" for i in ids] for ids in (theirs, ours))
                    show_difference(name, "ids", a, b, text)
                elif specials:
                    back, here = reference.decode(theirs, skip_special_tokens=False), program.decode(path, theirs)
                    if back != here:
                        wrong += 1
                        show_difference(name, "decoded texts", back, here, text)
            except RuntimeError as problem:
                wrong += 1
                print(f"{name}: {problem}", flush=True)
                return wrong
    return wrong


def speed(program, path, text):
    """Seconds to encode `text`: (theirs, ours), each the best of five, opening the file not counted."""
    reference = Tokenizer.from_file(str(path))
    tiny = Path(program.folder / "tiny")
    whole = Path(program.folder / "whole")
    tiny.write_text("a")
    whole.write_text(text)

    def best(job):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            job()
            times.append(time.perf_counter() - start)
        return min(times)

    out = str(program.folder / "speed.npy")
    ours = best(lambda: program.run("--threads", "1", "--tokenizer", path, "--file", str(whole), "--out", out))
    opening = best(lambda: program.run("--threads", "1", "--tokenizer", path, "--file", str(tiny), "--out", out))
    # The package keeps an offset for each character; cut to documents it does not have to hold them all.
    pieces = [text[i : i + 100_000] for i in range(0, len(text), 100_000)]
    theirs = best(lambda: [reference.encode(piece) for piece in pieces])
    fast = best(lambda: reference.encode_batch_fast(pieces))
    return theirs, fast, ours - opening, opening


GOLDEN = """byte-level-NFC byte-level-NFKC byte-level-NFKD byte-level-Lowercase strip-accents strip-both
normalizer-byte-level byte-level-True-False pattern-llama3 pattern-qwen2 pattern-o200k split-removed-True
split-merged_with_previous-False split-merged_with_next-False split-contiguous-True split-string-isolated
punctuation-contiguous empty-matches-merged_with_next regex-2 regex-5 regex-11 digits-False digits-True plain-Whitespace
plain-BertPreTokenizer fused-unknown no-unknown word-ends subword-prefix llama-True metaspace-always-True
metaspace-first-True metaspace-never-False replace-regex added-1 added-6 added-15 added-mixed ignore-merges old-merges
roberta llama3-like word-level""".split()
GOLDEN_TEXTS = [
    "", " ", "Hello world, it's 1,234 o'clock: we'LL see THEY'RE  here.\n\n  \tif x:\r\n\r\n    return  y\n ",
    "<s> </s><s>Yesterday[MASK] [MASK]] yesterdays YESTERDAY   <|endoftext|>   ing é  \n",
    "Stra\u00dfe \u0130I \ufb01nal e\u0301\u0323 \u212b \u3164 \uff11\uff12 \u2460\u00bd \u0661\u0662 \u00aa",
    "\u6f22\u5b57\u304b\u306a \ud55c\uae00 \u1112\u1161\u11ab \u30ac\u30ab\u3099 \u0928\u093f \u0e2d\u0e33",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea 1\ufe0f\u20e3 \u200b\ufeff\x00\x01\x1f\x85\u00a0\u3000",
    "\ue000\U0010ffff\u0378\ufffd \U00010d69 \U0001e4ec\u0301 \U0002ebf0 \U00010940 \U00011938 \U0001ccf0 \u1c89",
    "a_b\u203fc \u24b6\u200dx $x+y=z\u20ac \u00ab\u201equoted\u201c\u00bb \u3001 \u060c <0x0A> \u2581\u2581a \u0120b ##c d</w>",
    "            twelve                             spaces", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]


def write_golden(folder, corpus):
    small = small_tokenizers(corpus, size=330)
    cases = []
    for name in GOLDEN:
        tokenizer = small[name]
        expected = []
        for text in GOLDEN_TEXTS:
            ids = tokenizer.encode(text).ids
            expected.append({"ids": ids, "plain": tokenizer.encode(text, add_special_tokens=False).ids,
                             "text": tokenizer.decode(ids, skip_special_tokens=False)})
        cases.append({"name": name, "tokenizer": json.loads(tokenizer.to_str()), "expected": expected})
    cases[GOLDEN.index("old-merges")]["tokenizer"]["model"]["merges"] = [
        " ".join(pair) for pair in cases[GOLDEN.index("old-merges")]["tokenizer"]["model"]["merges"]]
    content = {"made_by": f"tools/compare_tokenizers.py --golden src/tokenizers/testdata, tokenizers {tokenizers.__version__}",
               "texts": GOLDEN_TEXTS, "cases": cases}
    Path(folder, "small_tokenizers.json").write_text(
        json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ssm", default="build/cpu/ssm")
    parser.add_argument("--tokenizer", nargs="*", default=[], help="tokenizer.json files to compare besides the small ones")
    parser.add_argument("--text", nargs="*", default=[], help="text files besides the made ones")
    parser.add_argument("--bytes", type=int, default=5_000_000, help="size of the made texts")
    parser.add_argument("--only", default="", help="part of a name: only these tokenizers")
    parser.add_argument("--golden", help="write the tests' file to this folder")
    parser.add_argument("--time", action="store_true", help="compare speed on the first text")
    arguments = parser.parse_args()

    made = made_texts(arguments.bytes)
    corpus = made[-60:]
    if arguments.golden:
        write_golden(arguments.golden, corpus)
        return
    given = [Path(name).read_text() for name in arguments.text]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        program = Program(arguments.ssm, folder)
        small = small_tokenizers(corpus)
        paths = {Path(name).parent.name or name: name for name in arguments.tokenizer}
        for name, tokenizer in small.items():
            paths[name] = str(Path(folder) / f"{name}.json")
            tokenizer.save(paths[name])
        total = sum(len(t.encode()) for t in made + given)
        for name, path in paths.items():
            if arguments.only not in name:
                continue
            whole = name not in small
            # Every text under the tokenizers given; a rotating eighth of the made ones under each small one.
            texts = made + given if whole else made[hash_of(name) % 8 :: 8]
            found = compare(program, name, path, texts, 20)
            wrong += found
            print(f"{name:28} {sum(len(t.encode()) for t in texts) / 1e6:6.1f} MB  {found} differences", flush=True)
        if arguments.time and given:
            for name in arguments.tokenizer:
                theirs, fast, ours, opening = speed(program, name, given[0])
                size = len(given[0].encode()) / 1e6
                print(f"{name}, {size:.1f} MB on one core: ssm {size / ours:.1f} MB/s, tokenizers {size / theirs:.1f} MB/s "
                      f"(encode), {size / fast:.1f} MB/s (encode_batch_fast); ssm opens in {opening * 1e3:.0f} ms")
    print(f"{len(paths)} tokenizers, {total / 1e6:.1f} MB of text, {wrong} differences, tokenizers {tokenizers.__version__}")
    sys.exit(wrong > 0)


def hash_of(name):
    return sum(name.encode())


if __name__ == "__main__":
    main()
