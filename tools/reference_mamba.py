"""Mamba-1 language model in plain PyTorch, in float32 or float64: the yardstick the golden files are made with.

One token after another, as the paper writes the recurrence (Gu and Dao 2023, algorithm 2):
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,    y_t = C_t h_t + D u_t.
Parameters carry the names of the state-spaces checkpoints. Leaves out: speed, dropout, LayerNorm, the MLP blocks.

    python tools/reference_mamba.py                   # compares it with transformers on random weights
    python tools/reference_mamba.py --against DIR     # and with a model's recorded outputs: DIR/golden.npz ...
"""

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Config:
    """config.json as state-spaces writes it."""

    d_model: int = 2560
    n_layer: int = 64
    vocab_size: int = 50277
    ssm_cfg: dict = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True

    @classmethod
    def load(cls, path):
        values = json.loads(Path(path).read_text())
        for key, empty in {"d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": {}}.items():
            if values.pop(key, empty) != empty:
                raise SystemExit(f"{path}: {key} is set; only blocks of one mixer are known here")
        return cls(**values)

    def save(self, path):
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")

    def ssm(self, name):
        defaults = {"layer": "Mamba1", "d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto"}
        value = self.ssm_cfg.get(name, (defaults | {"conv_bias": True, "bias": False})[name])
        return math.ceil(self.d_model / 16) if name == "dt_rank" and value == "auto" else value

    def mixer(self):
        return Mixer(self)

    @property
    def rows(self):  # of the embedding: the vocabulary, padded
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple


class Norm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):  # (s, t, d)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Mixer(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, e = config.d_model, int(config.ssm("expand") * config.d_model)
        self.n, self.w, self.r = config.ssm("d_state"), config.ssm("d_conv"), config.ssm("dt_rank")
        self.in_proj = nn.Linear(d, 2 * e, bias=config.ssm("bias"))
        self.conv1d = nn.Conv1d(e, e, self.w, groups=e, bias=config.ssm("conv_bias"))
        self.x_proj = nn.Linear(e, self.r + 2 * self.n, bias=False)
        self.dt_proj = nn.Linear(self.r, e)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, self.n + 1)).repeat(e, 1))  # (e, n)
        self.D = nn.Parameter(torch.ones(e))
        self.out_proj = nn.Linear(e, d, bias=config.ssm("bias"))

    def zero_state(self, s):
        return self.D.new_zeros(s, len(self.D), self.w), self.D.new_zeros(s, len(self.D), self.n)

    def forward(self, inputs, state):
        """inputs (s, t, d); state: the last w inputs of the convolution (s, e, w), newest last, and h (s, e, n)."""
        conv, h = state
        x, z = self.in_proj(inputs).chunk(2, dim=-1)  # (s, t, e) each
        window = torch.cat([conv[..., 1:], x.transpose(1, 2)], dim=-1)  # (s, e, w - 1 + t)
        conv = torch.cat([conv, x.transpose(1, 2)], dim=-1)[..., -self.w :]
        u = F.silu(self.conv1d(window)).transpose(1, 2)  # (s, t, e)
        dt, B, C = self.x_proj(u).split([self.r, self.n, self.n], dim=-1)  # (s, t, r), (s, t, n), (s, t, n)
        dt = F.softplus(self.dt_proj(dt))  # (s, t, e); the identity above 20
        A = -torch.exp(self.A_log)
        y = []
        for t in range(x.shape[1]):
            decay = torch.exp(dt[:, t, :, None] * A)  # (s, e, n)
            h = decay * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None, :]
            y.append((h * C[:, t, None, :]).sum(-1) + self.D * u[:, t])
        return self.out_proj(torch.stack(y, dim=1) * F.silu(z)), (conv, h)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm, self.mixer = Norm(config.d_model), config.mixer()


class Backbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.rows, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_f = Norm(config.d_model)


class Mamba(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.d_model, config.rows, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def load(self, tensors):
        tensors = dict(tensors)
        if self.config.tie_embeddings:
            tensors.setdefault("lm_head.weight", tensors["backbone.embedding.weight"])
        self.load_state_dict(tensors)
        return self

    def zero_state(self, s):
        return [layer.mixer.zero_state(s) for layer in self.backbone.layers]

    def forward(self, ids, state=None):
        """ids (s, t) -> logits (s, t, rows), and the state after the last token."""
        state = state or self.zero_state(len(ids))
        x, after = self.backbone.embedding(ids), []
        for layer, before in zip(self.backbone.layers, state):
            h, now = layer.mixer(layer.norm(x), before)
            x = x + h
            after.append(now)
        return self.lm_head(self.backbone.norm_f(x)), after

    @torch.no_grad()
    def greedy(self, ids, count):
        """ids (t): the `count` tokens that follow, and how far the nearest decision was from a tie. Rows that only
        pad the vocabulary are no tokens, though their logits are live."""
        logits, state = self(ids[None])
        tokens, margin = [], math.inf
        for _ in range(count):
            best = logits[0, -1, : self.config.vocab_size].topk(2)
            tokens.append(best.indices[0])
            margin = min(margin, (best.values[0] - best.values[1]).item())
            logits, state = self(tokens[-1][None, None], state)
        return torch.stack(tokens), margin


def next_token_loss(model, ids):
    """Mean nats a token of (s, t + 1) ids, each token given those before it."""
    return F.cross_entropy(model(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten())


def norm_of(tensor):
    """In double: PyTorch's float32 norm of half a million small numbers is 1e-4 short on a CPU."""
    return tensor.double().norm().item()


def train(model, batches, warmup, rate=1e-3, clip=1.0):
    """AdamW over batches (steps, s, t + 1); yields loss, gradient norm before clipping and learning rate of each step.
    Weight decay 0.1 on parameters of two or more dimensions except A_log, none on the rest."""
    named = list(model.named_parameters())
    decays = [p for name, p in named if p.ndim >= 2 and not name.endswith("A_log")]
    others = [p for name, p in named if p.ndim < 2 or name.endswith("A_log")]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for step, ids in enumerate(batches):
        now = rate * min(1.0, (step + 1) / warmup)
        for group in optimizer.param_groups:
            group["lr"] = now
        optimizer.zero_grad()
        loss = next_token_loss(model, ids)
        loss.backward()
        norm = math.hypot(*(norm_of(parameter.grad) for _, parameter in named))
        for _, parameter in named:
            parameter.grad *= min(1.0, clip / (norm + 1e-6))  # the 1e-6 is PyTorch's
        yield loss.item(), norm, now
        optimizer.step()


def compare_with_transformers():
    from transformers import MambaConfig, MambaForCausalLM

    worst = 0.0
    odd = {"d_state": 5, "d_conv": 3, "expand": 3, "dt_rank": 3, "bias": True, "conv_bias": False}
    for ssm_cfg, tied in (({}, True), (odd, False)):
        torch.manual_seed(0)
        config = Config(d_model=24, n_layer=3, vocab_size=40, ssm_cfg=ssm_cfg, tie_embeddings=tied)
        ours = Mamba(config)
        theirs = MambaForCausalLM(MambaConfig(
            hidden_size=24, num_hidden_layers=3, vocab_size=40, tie_word_embeddings=tied,
            state_size=config.ssm("d_state"), conv_kernel=config.ssm("d_conv"), expand=config.ssm("expand"),
            time_step_rank=config.ssm("dt_rank"), use_bias=config.ssm("bias"),
            use_conv_bias=config.ssm("conv_bias"))).eval()
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        theirs.load_state_dict({n.replace("embedding.", "embeddings."): v for n, v in ours.state_dict().items()})
        ids = torch.randint(40, (2, 67))
        with torch.no_grad():
            logits = ours(ids)[0]
            difference = (logits - theirs(ids).logits).abs().max().item()
        largest = logits.abs().max().item()
        print(f"transformers, {'tied, defaults' if tied else 'untied, odd sizes'}: logits differ by {difference:.2e}, "
              f"the largest being {largest:.1f}")
        worst = max(worst, difference / largest)
    return worst <= 2e-6  # of the largest logit: about 16 roundings of a float


def compare_with_recording(folder, steps):
    def load(path):
        tensors = torch.load(path / "pytorch_model.bin", map_location="cpu", weights_only=True)
        return Mamba(Config.load(path / "config.json")).load(tensors)

    model, golden, good = load(folder), np.load(folder / "golden.npz"), True
    with torch.no_grad():
        for i in range(5):
            ids = torch.from_numpy(golden[f"ids{i}"]).long()
            want = torch.from_numpy(golden[f"logits{i}"])
            logits = model(ids[None])[0][0]
            difference = (logits[-len(want) :] - want).abs().max().item()
            nll = F.cross_entropy(logits[:-1], ids[1:]).item() if len(ids) > 1 else 0.0
            loss = nll - golden[f"nll{i}"]
            print(f"golden {i}, {len(ids)} tokens: logits differ by {difference:.2e}, loss by {loss:+.1e}")
            good &= difference <= 5e-5
    prompt, greedy = torch.from_numpy(golden["prompt"]).long(), torch.from_numpy(golden["greedy"]).long()
    tokens, margin = model.greedy(prompt, len(greedy) - len(prompt))
    same = torch.equal(tokens, greedy[len(prompt) :])
    print(f"greedy: {len(tokens)} tokens {'agree' if same else 'DIFFER'}; nearest tie {margin:.1e}")

    trace, gradients = np.load(folder / "trace.npz"), np.load(folder / "grad0.npz")
    model, batches = load(folder / "init"), torch.from_numpy(trace["batches"][:steps]).long()
    next_token_loss(model, batches[0]).backward()
    named = {name.removeprefix("backbone."): norm_of(p.grad) for name, p in model.named_parameters()}
    ratio = max(abs(named[name] / gradients[name] - 1) for name in gradients.files)
    print(f"gradients: {len(gradients.files)} norms, the worst off by {ratio:.1e} of itself")
    for step, (got, want) in enumerate(zip(train(model, batches, warmup=10), trace["loss_gradnorm_lr"])):
        loss, norm, rate = got[0] - want[0], got[1] / want[1] - 1, got[2] - want[2]
        print(f"step {step}: loss {loss:+.1e}, gradient norm {norm:+.1e}, lr {rate:+.0e}")
        good &= abs(got[0] - want[0]) <= 1e-3
    return good and same and ratio <= 1e-4


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="compare the reference model with other implementations")
    parser.add_argument("--against", type=Path, help="model with golden.npz, trace.npz, grad0.npz and init/ beside it")
    parser.add_argument("--steps", type=int, default=40, help="steps of trace.npz to repeat")
    options = parser.parse_args()
    ok = compare_with_transformers()
    if options.against:
        ok &= compare_with_recording(options.against, options.steps)
    sys.exit(0 if ok else 1)
