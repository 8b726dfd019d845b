"""Writes tests/golden_baselines: small models of the state-spaces kind with attention and MLPs, and ones of LSTMs and of
convolutions, with the logits that PyTorch gives for them in float64 from the float32 weights stored beside them.

    python tools/make_baseline_golden.py --out tests/golden_baselines [NAME ...]

The mixers without attention are those of reference_mamba.py and reference_mamba2.py; the softmax is
torch.nn.functional.scaled_dot_product_attention, the LSTM torch.nn.LSTM, the convolution torch.nn.Conv1d; rotary
positions are compared with transformers' before use.
NAME/config.json and NAME/model.safetensors (or pytorch_model.bin) are a model as state-spaces writes it.
NAME/golden.safetensors holds, for two sequences i = 0, 1 of different lengths:
    ids.i            (t) i64                the tokens
    logits.i         (t, vocab rows) f64    padding rows included
and the loss, mean nats over the predicted tokens of both, with its gradient:
    loss             (1) f64
    gradient.PARAM   f32                    computed in f64; every k-th element, k = max(1, elements // 200)
"""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from make_golden import randomize, save_file
from reference_mamba import Config, Norm
from reference_mamba2 import Config2

# name: (config.json, lengths of the two sequences, weights file, seed)
MODELS = {
    # What a published Transformer++ looks like, small: attention and a gated MLP in every layer.
    "transformerpp": (
        dict(d_model=24, d_intermediate=80, n_layer=2, vocab_size=61, ssm_cfg={}, attn_layer_idx=[0, 1],
             attn_cfg={"causal": True, "num_heads": 4, "head_dim": None, "qkv_proj_bias": False,
                       "out_proj_bias": False, "rotary_emb_dim": 6},
             rms_norm=True, residual_in_fp32=True, fused_add_norm=True, pad_vocab_size_multiple=16,
             tie_embeddings=True),
        (70, 33), "pytorch_model.bin", 2),
    # A hybrid as published: Mamba-2 with attention behind a convolution, half of each head turned.
    "mamba2attn": (
        dict(d_model=24, n_layer=3, vocab_size=47, ssm_cfg={"layer": "Mamba2", "d_state": 8, "headdim": 8},
             attn_layer_idx=[1],
             attn_cfg={"causal": True, "d_conv": 4, "head_dim": 8, "num_heads": 5, "qkv_proj_bias": False,
                       "out_proj_bias": False, "rotary_emb_dim": 4}, pad_vocab_size_multiple=16),
        (41, 66), "model.safetensors", 3),
    # Everything the other way round: fewer heads of keys, biases, neighbours turned together, an MLP in the mixer, a
    # scale and a base of its own, Mamba-1 with an MLP beside it.
    "odd": (
        dict(d_model=12, d_intermediate=130, n_layer=2, vocab_size=37,
             ssm_cfg={"layer": "Mamba1", "d_state": 3, "d_conv": 3}, attn_layer_idx=[0],
             attn_cfg={"causal": True, "num_heads": 4, "num_heads_kv": 2, "head_dim": 6, "mlp_dim": 20,
                       "softmax_scale": 0.9, "d_conv": 3, "rotary_emb_dim": 4, "rotary_emb_base": 100.0,
                       "rotary_emb_interleaved": True}, tie_embeddings=False),
        (1, 37), "model.safetensors", 5),
    "lstm": (
        dict(d_model=9, n_layer=2, vocab_size=23, ssm_cfg={"layer": "LSTM", "expand": 2}),
        (45, 7), "model.safetensors", 7),
    "conv": (
        dict(d_model=10, n_layer=3, vocab_size=23, ssm_cfg={"layer": "Conv", "d_conv": 5, "expand": 3, "bias": True}),
        (3, 45), "model.safetensors", 8),
}


def rotate(x, dim, base, interleaved):
    """x (s, heads, t, p): the first dim channels turned in pairs."""
    rates = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * rates  # (t, dim / 2)
    turn = torch.polar(torch.ones_like(angles), angles)
    part = x[..., :dim].double()
    halves = part.unflatten(-1, (-1, 2)) if interleaved else part.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_real(torch.view_as_complex(halves.contiguous()) * turn)
    turned = turned if interleaved else turned.transpose(-1, -2)
    return torch.cat([turned.flatten(-2).to(x.dtype), x[..., dim:]], dim=-1)


def check_rotate():
    x = torch.randn(2, 3, 11, 8, dtype=torch.float64)
    angles = torch.arange(11.0, dtype=torch.float64)[:, None] * 500.0 ** (-torch.arange(0, 8, 2) / 8)
    angles = torch.cat([angles, angles], -1)[None]
    theirs, _ = apply_rotary_pos_emb(x, x, angles.cos(), angles.sin())
    torch.testing.assert_close(rotate(x, 8, 500.0, False), theirs, rtol=1e-6, atol=1e-6)
    pairs = torch.cat([x[..., 0::2], x[..., 1::2]], -1)  # neighbours beside each other are halves in another order
    turned = rotate(pairs, 8, 500.0, False)
    together = torch.stack([turned[..., :4], turned[..., 4:]], -1).flatten(-2)
    torch.testing.assert_close(rotate(x, 8, 500.0, True), together)


class Attention(nn.Module):
    def __init__(self, d, num_heads, num_heads_kv=None, head_dim=None, mlp_dim=0, qkv_proj_bias=True,
                 out_proj_bias=True, softmax_scale=None, causal=False, d_conv=0, rotary_emb_dim=0,
                 rotary_emb_base=10000.0, rotary_emb_interleaved=False):
        super().__init__()
        self.m, self.g, self.p = num_heads, num_heads_kv or num_heads, head_dim or d // num_heads
        self.mlp, self.scale, self.causal = math.ceil(mlp_dim / 256) * 256, softmax_scale, causal
        self.rotary = (rotary_emb_dim, rotary_emb_base, rotary_emb_interleaved)
        self.qkv = (self.m + 2 * self.g) * self.p
        self.in_proj = nn.Linear(d, self.qkv + self.mlp, bias=qkv_proj_bias)
        if d_conv:
            self.conv1d = nn.Conv1d(self.qkv, self.qkv, d_conv, padding=d_conv - 1, groups=self.qkv)
        self.out_proj = nn.Linear(self.m * self.p + self.mlp // 2, d, bias=out_proj_bias)

    def forward(self, x):  # (s, t, d)
        t = x.shape[1]
        qkv, up, gate = self.in_proj(x).split([self.qkv, self.mlp // 2, self.mlp // 2], dim=-1)
        if hasattr(self, "conv1d"):
            qkv = self.conv1d(qkv.transpose(1, 2))[..., :t].transpose(1, 2)
        heads = qkv.unflatten(-1, (-1, self.p)).transpose(1, 2)  # (s, m + 2 g, t, p)
        q, k, v = heads.split([self.m, self.g, self.g], dim=1)
        if self.rotary[0]:
            q, k = rotate(q, *self.rotary), rotate(k, *self.rotary)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale, enable_gqa=True)
        out = out.transpose(1, 2).flatten(-2)
        return self.out_proj(torch.cat([out, up * F.silu(gate)], dim=-1))


class Lstm(nn.Module):
    def __init__(self, d, expand=1, bias=True):
        super().__init__()
        self.lstm = nn.LSTM(d, expand * d, bias=bias, batch_first=True)
        self.out_proj = nn.Linear(expand * d, d, bias=bias)

    def forward(self, x):
        return self.out_proj(self.lstm(x)[0])


class Conv(nn.Module):
    def __init__(self, d, d_conv=16, expand=2, conv_bias=True, bias=False):
        super().__init__()
        e = expand * d
        self.in_proj, self.out_proj = nn.Linear(d, 2 * e, bias=bias), nn.Linear(e, d, bias=bias)
        self.conv1d = nn.Conv1d(e, e, d_conv, padding=d_conv - 1, groups=e, bias=conv_bias)

    def forward(self, x):
        y, z = self.in_proj(x).chunk(2, dim=-1)
        y = self.conv1d(y.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        return self.out_proj(F.silu(y) * F.silu(z))


class Mlp(nn.Module):
    def __init__(self, d, width):
        super().__init__()
        f = math.ceil(width / 128) * 128
        self.fc1, self.fc2 = nn.Linear(d, 2 * f, bias=False), nn.Linear(f, d, bias=False)

    def forward(self, x):
        y, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(y * F.silu(gate))


class Block(nn.Module):
    def __init__(self, config, plain, attends):
        super().__init__()
        d = config["d_model"]
        self.norm = Norm(d)
        settings = {key: value for key, value in config["ssm_cfg"].items() if key != "layer"}
        layer = config["ssm_cfg"].get("layer")
        if attends:
            self.mixer = Attention(d, **config["attn_cfg"])
        elif layer in ("LSTM", "Conv"):
            self.mixer = {"LSTM": Lstm, "Conv": Conv}[layer](d, **settings)
        else:
            self.mixer = plain.mixer()
        if config.get("d_intermediate"):
            self.norm2, self.mlp = Norm(d), Mlp(d, config["d_intermediate"])

    def forward(self, x):
        normed = self.norm(x)
        if isinstance(self.mixer, (Attention, Lstm, Conv)):
            x = x + self.mixer(normed)
        else:
            x = x + self.mixer(normed, self.mixer.zero_state(1))[0]
        return x + self.mlp(self.norm2(x)) if hasattr(self, "mlp") else x


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        known = {key: value for key, value in config.items()
                 if key not in ("attn_layer_idx", "attn_cfg", "d_intermediate")}
        plain = (Config2 if config["ssm_cfg"].get("layer") == "Mamba2" else Config)(**known)
        self.backbone = nn.Module()
        self.backbone.embedding = nn.Embedding(plain.rows, plain.d_model)
        self.backbone.layers = nn.ModuleList(
            Block(config, plain, i in config.get("attn_layer_idx", [])) for i in range(plain.n_layer))
        self.backbone.norm_f = Norm(plain.d_model)
        self.lm_head = nn.Linear(plain.d_model, plain.rows, bias=False)
        if plain.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def forward(self, ids):
        x = self.backbone.embedding(ids)
        for layer in self.backbone.layers:
            x = layer(x)
        return self.lm_head(self.backbone.norm_f(x))


def write(folder, name):
    config, lengths, weights, seed = MODELS[name]
    about = {"command": "python tools/make_baseline_golden.py --out tests/golden_baselines",
             "torch": torch.__version__.split("+")[0], "python": sys.version.split()[0], "seed": str(seed)}
    torch.manual_seed(seed)
    model = Model(config)
    randomize(model)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if weights == "pytorch_model.bin":  # a tied head is in it twice, over one storage
        torch.save(model.state_dict(), folder / weights)
    else:
        tied = config.get("tie_embeddings", True)
        held = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight" or not tied}
        save_file(held, folder / weights, {"format": "pt"} | about)
    model.double()
    golden, total, predicted = {}, 0.0, 0
    for i, length in enumerate(lengths):
        ids = torch.randint(config["vocab_size"], (length,))
        logits = model(ids[None])[0]
        total, predicted = total + F.cross_entropy(logits[:-1], ids[1:], reduction="sum"), predicted + length - 1
        golden |= {f"ids.{i}": ids, f"logits.{i}": logits}
    loss = total / predicted
    loss.backward()
    golden["loss"] = loss[None]
    for key, parameter in model.named_parameters():
        golden[f"gradient.{key}"] = parameter.grad.flatten()[:: max(1, parameter.numel() // 200)].float()
    save_file({key: value.detach().contiguous() for key, value in golden.items()}, folder / "golden.safetensors", about)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: loss {loss.item():.4f}, logits up to {golden['logits.1'].abs().max():.1f}, {size / 1000:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="write the golden files of models with attention and MLPs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to write; all if left out")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order
    check_rotate()
    for model_name in options.names or MODELS:
        write(options.out / model_name, model_name)
