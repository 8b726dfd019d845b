"""A model's recorded outputs beside what `ssm` computes on a device: logits, greedy text, gradients, a training trace.
The recording is that of reference_mamba.py's --against: golden.npz, grad0.npz, trace.npz and init/ beside the model.
NumPy is all it needs. In f32 it compares with the recording; in bf16 or f16, whose weights are rounded, it compares
every position of the trace's texts with `ssm` in f32, and losses with the recording.

    python tools/compare_recording.py --ssm build/cuda/ssm --against DIR --device cuda --dtype f32
    python tools/compare_recording.py --ssm build/cuda/ssm --against DIR --device cuda --dtype bf16

Exit 1 where a bound, printed beside each figure, is passed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

failures = 0


def bounded(what, value, bound, at_least=False):
    global failures
    good = value >= bound if at_least else value <= bound
    failures += not good
    print(f"{what}: {value:.6g} ({'at least' if at_least else 'at most'} {bound:g}){'' if good else '  FAILED'}")


def losses_of(logits, ids):
    """-log p(next id) of each position but the last: (s, t, v), (s, t) -> (s, t - 1)."""
    shifted = logits[:, :-1].astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    chosen = np.take_along_axis(shifted, ids[:, 1:, None], -1)[..., 0]
    return np.log(np.exp(shifted).sum(-1)) - chosen


class Ssm:
    def __init__(self, program, device, folder):
        self.program, self.device, self.folder = program, device, folder

    def run(self, *words, dtype):
        command = [self.program, *words, "--device", self.device, "--dtype", dtype, "--quiet"]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)

    def logits(self, model, ids, dtype):
        np.save(self.folder / "ids.npy", ids.astype(np.int64))
        out = self.folder / "logits.npy"
        self.run("logits", "--model", model, "--ids", self.folder / "ids.npy", "--out", out, dtype=dtype)
        return np.load(out)

    def greedy(self, model, prompt, count, dtype):
        np.save(self.folder / "prompt.npy", prompt.astype(np.int64))
        out = self.folder / "greedy.npy"
        self.run("generate", "--model", model, "--ids", self.folder / "prompt.npy", "--max-tokens", count,
                 "--temperature", 0, "--ignore-eos", "--ids-out", out, dtype=dtype)
        return np.load(out).reshape(-1)

    def gradient_norms(self, model, ids):
        np.save(self.folder / "first.npy", ids.astype(np.int64))
        out = self.folder / "gradients.safetensors"
        self.run("gradients", "--model", model, "--ids", self.folder / "first.npy", "--out", out, dtype="f32")
        data = out.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        norms = {}
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                values = np.frombuffer(data[8 + size + begin : 8 + size + end], dtype="<f4").astype(np.float64)
                norms[name.removeprefix("backbone.")] = np.sqrt((values**2).sum())
        return norms

    def trace(self, model, batches, dtype):
        np.save(self.folder / "batches.npy", batches.astype(np.int64))
        out = self.folder / f"run-{dtype}"
        self.run("train", "--init", model, "--batches", self.folder / "batches.npy", "--steps", len(batches), "--lr", 1e-3,
                 "--warmup", 10, "--schedule", "constant", "--out", out, "--save-every", 0, dtype=dtype)
        return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def compare_exactly(ssm, folder, golden, trace):
    worst = 0.0
    for i in range(5):
        want = golden[f"logits{i}"]
        worst = max(worst, np.abs(ssm.logits(folder, golden[f"ids{i}"], "f32")[-len(want) :] - want).max())
    bounded("logits, largest difference of five texts", worst, 2e-4)
    prompt, greedy = golden["prompt"], golden["greedy"]
    written = ssm.greedy(folder, prompt, len(greedy) - len(prompt), "f32")[-(len(greedy) - len(prompt)) :]
    bounded("greedy tokens that differ", int((written != greedy[len(prompt) :]).sum()), 0)
    norms, recorded = ssm.gradient_norms(folder / "init", trace["batches"][0]), np.load(folder / "grad0.npz")
    bounded("gradient norms at step 0, worst ratio - 1", max(abs(norms[n] / recorded[n] - 1) for n in recorded.files), 1e-4)
    log, want = ssm.trace(folder / "init", trace["batches"], "f32"), trace["loss_gradnorm_lr"]
    bounded(f"losses of {len(want)} steps, largest difference",
            max(abs(line["loss"] - row[0]) for line, row in zip(log, want, strict=True)), 2e-3)


def compare_rounded(ssm, folder, dtype, trace):
    ids = np.concatenate(trace["batches"][:8])[:, :-1].astype(np.int64)
    exact, rounded = ssm.logits(folder, ids, "f32"), ssm.logits(folder, ids, dtype)
    bounded(f"top-1 equal to f32's, share of {ids.size} positions", (exact.argmax(-1) == rounded.argmax(-1)).mean(), 0.99,
            at_least=True)
    bounded("mean |difference| of a position's loss", np.abs(losses_of(exact, ids) - losses_of(rounded, ids)).mean(), 5e-3)
    if ssm.device == "cpu":
        return  # trains in f32 alone
    log, want = ssm.trace(folder / "init", trace["batches"], dtype), trace["loss_gradnorm_lr"]
    bounded(f"loss of step {len(want)}, difference", abs(log[-1]["loss"] - want[-1][0]), 0.02)
    bounded("losses of all steps, largest difference",
            max(abs(line["loss"] - row[0]) for line, row in zip(log, want, strict=True)), 0.05)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ssm", required=True, help="the program")
    parser.add_argument("--against", required=True, type=Path, help="a model with its recording")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16", "f16"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        program = Ssm(options.ssm, options.device, Path(scratch))
        recorded = np.load(options.against / "trace.npz")
        if options.dtype == "f32":
            compare_exactly(program, options.against, np.load(options.against / "golden.npz"), recorded)
        else:
            compare_rounded(program, options.against, options.dtype, recorded)
    sys.exit(1 if failures else 0)
