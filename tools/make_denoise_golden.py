"""Writes examples/denoise/testdata: a speech enhancer like the published one but small, with seeded weights, a noisy
recording, and what PyTorch makes of it in float64.

    python tools/make_denoise_golden.py --out examples/denoise/testdata
    python tools/make_denoise_golden.py --check DIR      # DIR: weights.safetensors, noisy_samples/, denoised_samples/

weights.safetensors has the published names in smaller shapes; noisy.wav is 16-bit; clean.safetensors holds `clean`
(t) f64. --check runs the same code on the published weights and clips (exit 1 above 1e-5).
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

CHANNELS, RATES, MODES, SAMPLES, SEED = (1, 6, 10, 5), (4, 3, 2), 20, 1999, 11


def wav(path):
    """Samples of a mono WAV of 16-bit integers or 32-bit floats, float64."""
    data, at, kind = path.read_bytes(), 12, None
    while at < len(data):
        name, size = data[at:at + 4], int.from_bytes(data[at + 4:at + 8], "little")
        if name == b"fmt ":
            kind = int.from_bytes(data[at + 8:at + 10], "little")
        if name == b"data":
            body = bytearray(data[at + 8:at + 8 + size])
            if kind == 1:
                return torch.frombuffer(body, dtype=torch.int16).double() / 32768
            return torch.frombuffer(body, dtype=torch.float32).double()
        at += 8 + size + size % 2
    raise ValueError(f"{path}: no data chunk")


def ssm(w, name, x):
    """x (c, t): every mode's kernel, the convolutions by FFT."""
    dt = w[name + ".log_dt"].exp()
    decay, turn = -dt * F.softplus(w[name + ".A"][:, 0]), dt * w[name + ".A"][:, 1]
    t = x.shape[1]
    steps = torch.arange(t, dtype=torch.float64)
    u = (w[name + ".B"] * dt[:, None]) @ x
    v = torch.empty_like(u)
    for i in range(0, len(dt), 16):  # few modes at a time: kernels are as long as the recording
        kernel = (decay[i:i + 16, None] * steps).exp() * (turn[i:i + 16, None] * steps).cos()
        product = torch.fft.rfft(kernel, 2 * t) * torch.fft.rfft(u[i:i + 16], 2 * t)
        v[i:i + 16] = torch.fft.irfft(product, 2 * t)[:, :t]
    return w[name + ".C"] @ v


def block(w, name, x, silu=True):
    c = x.shape[0]
    if c > 1:
        x = F.conv1d(x[None], w[name + ".0.weight"], w[name + ".0.bias"], padding=1, groups=c)[0]
    x = ssm(w, name + (".1" if c > 1 else ".0"), x)
    if c > 1:
        norm = name + ".2.layer_norm"
        x = F.layer_norm(x.T, (c,), w[norm + ".weight"], w[norm + ".bias"], 1e-5).T
    return F.silu(x) if silu else x


def enhance(w, x):
    levels = 0
    rates = []
    while f"down_ssms.{levels}.1.weight" in w:
        rates.append(w[f"down_ssms.{levels}.1.weight"].shape[2])
        levels += 1
    frame, samples = math.prod(rates), len(x)
    x = F.pad(x, (0, frame - samples % frame))[None]
    around = []
    for i in range(levels):
        around.append(x)
        x = block(w, f"down_ssms.{i}.0", x)
        x = torch.einsum("cdj,ctj->dt", w[f"down_ssms.{i}.1.weight"], x.unflatten(1, (-1, rates[i])))
    for i in range(2):
        x = block(w, f"hid_ssms.{i}", x)
    for i in reversed(range(levels)):
        x = torch.einsum("cdj,ct->dtj", w[f"up_ssms.{i}.0.weight"], x).flatten(1)
        x = block(w, f"up_ssms.{i}.1", x + around[i])
    return block(w, "last_ssms.1", block(w, "last_ssms.0", x), silu=False)[0, :samples]


def make_weights(seed):
    g = torch.Generator().manual_seed(seed)
    w = {}

    def normal(*shape, scale=1.0):
        return torch.randn(*shape, generator=g) * scale

    def add_block(name, c):
        if c > 1:
            w[name + ".0.weight"], w[name + ".0.bias"] = normal(c, 1, 3, scale=0.5), normal(c, scale=0.2)
            w[name + ".2.layer_norm.weight"] = 1 + normal(c, scale=0.2)
            w[name + ".2.layer_norm.bias"] = normal(c, scale=0.2)
        s = name + (".1" if c > 1 else ".0")
        w[s + ".log_dt"] = torch.rand(MODES, generator=g) * 5 - 5
        w[s + ".A"] = torch.stack([normal(MODES), torch.arange(MODES) * 0.4 + normal(MODES, scale=0.1)], 1)
        w[s + ".B"], w[s + ".C"] = normal(MODES, c), normal(c, MODES, scale=MODES ** -0.5)

    for i, r in enumerate(RATES):
        c, d = CHANNELS[i:i + 2]
        add_block(f"down_ssms.{i}.0", c)
        w[f"down_ssms.{i}.1.weight"] = normal(c, d, r, scale=(c * r) ** -0.5)
        w[f"up_ssms.{i}.0.weight"] = normal(d, c, r, scale=d ** -0.5)
        add_block(f"up_ssms.{i}.1", c)
    for i in range(2):
        add_block(f"hid_ssms.{i}", CHANNELS[-1])
        add_block(f"last_ssms.{i}", 1)
    w["last_ssms.1.0.C"] *= 30  # outputs of size 1
    return w


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", type=Path)
    args = parser.parse_args()
    if args.check:
        w = {name: t.double() for name, t in load_file(args.check / "weights.safetensors").items()}
        worst = 0.0
        for noisy in sorted((args.check / "noisy_samples").glob("*.wav")):
            with torch.no_grad():
                error = (enhance(w, wav(noisy)) - wav(args.check / "denoised_samples" / noisy.name)).abs().max().item()
            print(f"{noisy.name}: {error:.3g}")
            worst = max(worst, error)
        sys.exit(worst > 1e-5)
    if not args.out:
        parser.error("--out or --check")
    args.out.mkdir(parents=True, exist_ok=True)
    w = make_weights(SEED)
    g = torch.Generator().manual_seed(SEED + 1)
    time = torch.arange(SAMPLES, dtype=torch.float64)
    samples = 0.3 * torch.sin(0.05 * time) + 0.1 * torch.randn(SAMPLES, generator=g).double()
    samples = (samples * 32768).round().clamp(-32768, 32767).to(torch.int16)
    body = samples.numpy().tobytes()
    header = (b"RIFF" + (36 + len(body)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
              + (1).to_bytes(2, "little") + (1).to_bytes(2, "little") + (16000).to_bytes(4, "little")
              + (32000).to_bytes(4, "little") + (2).to_bytes(2, "little") + (16).to_bytes(2, "little")
              + b"data" + len(body).to_bytes(4, "little"))
    (args.out / "noisy.wav").write_bytes(header + body)
    clean = enhance({name: t.double() for name, t in w.items()}, wav(args.out / "noisy.wav"))
    made = {"command": "python tools/make_denoise_golden.py --out examples/denoise/testdata",
            "torch": torch.__version__.split("+")[0], "seed": str(SEED)}
    save_file({name: t.contiguous() for name, t in w.items()}, args.out / "weights.safetensors", made)
    save_file({"clean": clean.contiguous()}, args.out / "clean.safetensors", made)
    print(f"{SAMPLES} samples, largest {clean.abs().max():.3f}")


if __name__ == "__main__":
    main()
