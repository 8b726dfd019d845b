"""Mamba-2 language model in plain PyTorch, in float32 or float64: the yardstick of the golden files and of training.

The matrix form of the state space dual (Dao and Gu 2024, section 6 and listing 1), a chunk of tokens at a time:
    Y = (L o C B^T) X + exp(s) C S_before,    L_ij = exp(sum of a over j < k <= i),
with sums of a segment taken over the segment, not as differences. Parameters carry the names of the state-spaces
checkpoints and start as there. Shares all but the mixer with reference_mamba.py; leaves out speed, MLP, attention.

    python tools/reference_mamba2.py                     # compares it with transformers on random weights
    python tools/reference_mamba2.py --init DIR CONFIG   # writes a model with initial weights for a config.json
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from reference_mamba import Config, Mamba

DEFAULTS = {
    "layer": "Mamba2", "d_state": 128, "d_conv": 4, "conv_init": None, "expand": 2, "headdim": 64, "d_ssm": None,
    "ngroups": 1, "A_init_range": [1, 16], "D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False,
    "norm_epsilon": 1e-5, "dt_min": 0.001, "dt_max": 0.1, "dt_init_floor": 1e-4, "dt_limit": [0.0, math.inf],
    "bias": False, "conv_bias": True, "chunk_size": 256}


@dataclass
class Config2(Config):
    def ssm(self, name):
        value = self.ssm_cfg.get(name)
        return DEFAULTS[name] if value is None else value

    def mixer(self):
        return Mixer2(self)


class GatedNorm(nn.Module):
    def __init__(self, config, e):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(e))
        self.groups, self.epsilon = config.ssm("ngroups"), config.ssm("norm_epsilon")
        self.gate_last = config.ssm("norm_before_gate")

    def forward(self, y, z):  # (s, t, e) each
        v = y if self.gate_last else y * F.silu(z)
        grouped = v.unflatten(-1, (self.groups, -1))
        scaled = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.epsilon)
        normed = scaled.flatten(-2) * self.weight
        return normed * F.silu(z) if self.gate_last else normed


def segment_sums(a):
    """a (..., t) -> (..., i, j): the sum of a_k over j < k <= i; minus infinity for j > i."""
    t = a.shape[-1]
    ones = torch.ones(t, t, dtype=torch.bool, device=a.device)
    sums = a[..., None].expand(*a.shape, t).masked_fill(~ones.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~ones.tril(), -math.inf)


def ssd(x, a, B, C, S):
    """One chunk. x (s, t, m, p), already times the step; a (s, t, m), its logarithmic decays; B, C (s, t, m, n); the
    state before, S (s, m, p, n). Returns y and the state after."""
    L = torch.exp(segment_sums(a.transpose(1, 2)))  # (s, m, i, j)
    from_start = torch.exp(a.cumsum(1))  # (s, t, m)
    y = torch.einsum("simn,sjmn,smij,sjmp->simp", C, B, L, x)
    y = y + torch.einsum("simn,smpn,sim->simp", C, S, from_start)
    after = torch.einsum("sjmn,smj,sjmp->smpn", B, L[:, :, -1], x)
    return y, after + S * from_start[:, -1, :, None, None]


class Mixer2(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, inner = config.d_model, config.ssm("expand") * config.d_model
        self.e = config.ssm("d_ssm") or inner
        self.rest, self.p, self.g = inner - self.e, config.ssm("headdim"), config.ssm("ngroups")
        self.n, self.w, self.chunk = config.ssm("d_state"), config.ssm("d_conv"), config.ssm("chunk_size")
        self.m, self.limit = self.e // self.p, config.ssm("dt_limit")
        xBC = self.e + 2 * self.g * self.n
        self.in_proj = nn.Linear(d, 2 * self.rest + self.e + xBC + self.m, bias=config.ssm("bias"))
        self.conv1d = nn.Conv1d(xBC, xBC, self.w, groups=xBC, bias=config.ssm("conv_bias"))
        if config.ssm("conv_init") is not None:
            nn.init.uniform_(self.conv1d.weight, -config.ssm("conv_init"), config.ssm("conv_init"))
        low, high = math.log(config.ssm("dt_min")), math.log(config.ssm("dt_max"))
        dt = torch.exp(low + (high - low) * torch.rand(self.m)).clamp(min=config.ssm("dt_init_floor"))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.log(torch.empty(self.m).uniform_(*config.ssm("A_init_range"))))
        self.D = nn.Parameter(torch.ones(self.e if config.ssm("D_has_hdim") else self.m))
        self.norm = GatedNorm(config, self.e) if config.ssm("rmsnorm") else None
        self.out_proj = nn.Linear(inner, d, bias=config.ssm("bias"))
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(config.n_layer)
            for linear in (self.in_proj, self.out_proj):
                if linear.bias is not None:
                    linear.bias.zero_()

    def zero_state(self, s):
        return (self.D.new_zeros(s, self.e + 2 * self.g * self.n, self.w),
                self.D.new_zeros(s, self.m, self.p, self.n))

    def forward(self, inputs, state):
        """inputs (s, t, d); state: the last w inputs of the convolution, newest last, and S (s, m, p, n)."""
        conv, S = state
        widths = [self.rest, self.rest, self.e, conv.shape[1], self.m]
        z0, x0, z, xBC, dt = self.in_proj(inputs).split(widths, dim=-1)
        window = torch.cat([conv[..., 1:], xBC.transpose(1, 2)], dim=-1)
        conv = torch.cat([conv, xBC.transpose(1, 2)], dim=-1)[..., -self.w :]
        xBC = F.silu(self.conv1d(window)).transpose(1, 2)
        x, B, C = xBC.split([self.e, self.g * self.n, self.g * self.n], dim=-1)
        x = x.unflatten(-1, (self.m, self.p))  # (s, t, m, p)
        heads = [v.unflatten(-1, (self.g, self.n)).repeat_interleave(self.m // self.g, dim=2) for v in (B, C)]
        dt = F.softplus(dt + self.dt_bias).clamp(*self.limit)  # (s, t, m); softplus is the identity above 20
        parts = []
        for chunk in zip(*(v.split(self.chunk, dim=1) for v in (x * dt[..., None], -dt * self.A_log.exp(), *heads))):
            y, S = ssd(*chunk, S)
            parts.append(y)
        D = self.D.view(self.m, -1)  # (m, p), or (m, 1) for all of a head
        y = (torch.cat(parts, dim=1) + D * x).flatten(-2)
        y = self.norm(y, z) if self.norm else y * F.silu(z)
        return self.out_proj(torch.cat([F.silu(z0) * x0, y], dim=-1)), (conv, S)


def initial_model(config):
    """The model with the initial weights of a training run."""
    model = Mamba(config)
    nn.init.normal_(model.backbone.embedding.weight, std=0.02)
    return model


def save(model, folder):
    """A checkpoint directory: config.json and model.safetensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save(folder / "config.json")
    held = {name: tensor.contiguous() for name, tensor in model.state_dict().items()
            if name != "lm_head.weight" or not model.config.tie_embeddings}
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def load(folder):
    folder = Path(folder)
    if (folder / "model.safetensors").exists():
        tensors = load_file(folder / "model.safetensors")
    else:
        tensors = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return Mamba(Config2.load(folder / "config.json")).load(tensors)


def compare_with_transformers():
    """One group; tests/golden_hf/mamba2_groups has several."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    worst = 0.0
    odd = {"layer": "Mamba2", "d_state": 8, "d_conv": 3, "expand": 3, "headdim": 24, "bias": True, "conv_bias": False,
           "chunk_size": 16, "dt_limit": [0.02, 0.5]}
    for ssm_cfg, tied in (({"layer": "Mamba2", "d_state": 16, "headdim": 8, "chunk_size": 32}, True), (odd, False)):
        torch.manual_seed(0)
        config = Config2(d_model=32, n_layer=3, vocab_size=40, ssm_cfg=ssm_cfg, tie_embeddings=tied)
        ours, ssm = Mamba(config), config.ssm
        theirs = Mamba2ForCausalLM(Mamba2Config(
            hidden_size=32, num_hidden_layers=3, vocab_size=40, tie_word_embeddings=tied, expand=ssm("expand"),
            num_heads=32 * ssm("expand") // ssm("headdim"), head_dim=ssm("headdim"), n_groups=1,
            state_size=ssm("d_state"), conv_kernel=ssm("d_conv"), use_bias=ssm("bias"), use_conv_bias=ssm("conv_bias"),
            chunk_size=ssm("chunk_size"), time_step_limit=tuple(ssm("dt_limit")))).eval()
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        theirs.load_state_dict({n.replace("embedding.", "embeddings."): v for n, v in ours.state_dict().items()})
        ids = torch.randint(40, (2, 67))
        with torch.no_grad():
            logits = ours(ids)[0]
            difference = (logits - theirs(ids).logits).abs().max().item()
        largest = logits.abs().max().item()
        print(f"transformers, {'tied' if tied else 'untied, odd sizes'}: logits differ by {difference:.2e}, "
              f"the largest being {largest:.1f}")
        worst = max(worst, difference / largest)
    return worst <= 2e-6  # of the largest logit: about 16 roundings of a float


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="compare the reference model with transformers, or write a model")
    parser.add_argument("--init", nargs=2, metavar=("DIR", "CONFIG"), type=Path, help="write initial weights to DIR")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.init:
        torch.manual_seed(options.seed)
        save(initial_model(Config2.load(options.init[1])), options.init[0])
    else:
        sys.exit(0 if compare_with_transformers() else 1)
