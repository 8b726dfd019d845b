"""Trains the same model twice, from the same initial weights on the same batches: by the plain PyTorch of
reference_mamba2.py in f32, and by `ssm train`. Prints the largest differences of losses, gradient norms and of the
gradients at step 0; exit 1 above 1e-3 (losses) or 1e-4 (gradients, of each parameter's largest).

    python tools/compare_training.py --ssm build/cpu/ssm [--text FILE] [--steps 40]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from reference_mamba import next_token_loss, train
from reference_mamba2 import Config2, initial_model, load, save

SIZES = {"d_model": 128, "n_layer": 4, "vocab_size": 256,
         "ssm_cfg": {"layer": "Mamba2", "d_state": 64, "headdim": 32, "ngroups": 2, "chunk_size": 64}}


def bytes_as_batches(text, steps, sequences, length):
    """Windows that begin anywhere: (steps, s, t + 1) ids."""
    data = np.frombuffer(Path(text).read_bytes(), dtype=np.uint8)
    starts = np.random.default_rng(0).integers(0, len(data) - length - 1, size=(steps, sequences))
    return np.stack([[data[i : i + length + 1] for i in row] for row in starts]).astype(np.int64)


def run(*command):
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


def compare(ssm, text, steps):
    batches = bytes_as_batches(text, steps, sequences=4, length=192)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.manual_seed(0)
        save(initial_model(Config2(**SIZES)), folder / "init")
        np.save(folder / "batches.npy", batches)
        np.save(folder / "first.npy", batches[0])

        model = load(folder / "init")
        next_token_loss(model, torch.tensor(batches[0])).backward()
        theirs = {name: parameter.grad for name, parameter in model.named_parameters()}
        run(ssm, "gradients", "--model", folder / "init", "--ids", folder / "first.npy", "--out", folder / "g.safetensors")
        ours = load_file(folder / "g.safetensors")
        worst, where = max(((ours[name] - gradient).abs().max().item() / gradient.abs().max().item(), name)
                           for name, gradient in theirs.items() if name in ours)
        print(f"gradients at step 0, {len(ours)} parameters: {worst:.1e} of the largest of {where}")

        expected = list(train(load(folder / "init"), torch.tensor(batches), warmup=10))
        run(ssm, "train", "--init", folder / "init", "--batches", folder / "batches.npy", "--steps", steps, "--lr", 1e-3,
            "--warmup", 10, "--schedule", "constant", "--out", folder / "run", "--save-every", 0, "--quiet")
        log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
        losses = max(abs(line["loss"] - loss) for line, (loss, _, _) in zip(log, expected, strict=True))
        norms = max(abs(line["grad_norm"] / norm - 1) for line, (_, norm, _) in zip(log, expected, strict=True))
        print(f"{steps} steps, loss {expected[0][0]:.4f} to {expected[-1][0]:.4f}: losses differ by {losses:.1e}, "
              f"gradient norms by {norms:.1e} of themselves")
    return losses <= 1e-3 and worst <= 1e-4 and len(ours) == len(theirs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ssm", type=Path, required=True)
    parser.add_argument("--text", default="data/tinyshakespeare/input.txt")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    sys.exit(0 if compare(options.ssm.resolve(), options.text, options.steps) else 1)
