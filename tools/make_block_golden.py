"""Makes src/mixers/s4_block/testdata/blocks.safetensors: blocks around S4, S4D and S6 from their published definitions.

    python tools/make_block_golden.py src/mixers/s4_block/testdata

Tensors, f64 but for the parameters, which are f32 numbers: CASE.u (129, 4) is the input of one sequence, CASE.y the block's output,
CASE.K (129, e), where the inner layer is time-invariant, its kernel, and CASE.PARAMETER the parameters, named as in the
mixer. The kernel of S4 comes from its generating function on the roots of unity, with C tuned to the length and
Woodbury's formula; the script checks it against the recurrence with the dense matrix. That of S4D is the Vandermonde
product. Outputs are Fourier convolutions, those of S6 a loop over tokens. Needs torch and safetensors.
"""
import math
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

SEED, LENGTH, WIDTH = 20211, 129, 4  # an odd length has no root of unity at -1
torch.set_default_dtype(torch.float64)
torch.manual_seed(SEED)


def drawn(*shape, scale=1.0):
    """Multiples of 2^-12, so that sums of two are numbers of f32 as well."""
    return torch.round(4096 * scale * torch.randn(*shape)) / 4096


def complex_of(pairs):
    return torch.view_as_complex(pairs.contiguous())


def lti_parameters(e, modes, real=False, low_rank=False):
    """Of e channels: their own A and B; decays about 1/2 to 2, frequencies up to 20, steps 0.01 to 0.1."""
    parts = 1 if real else 2
    p = {
        "D": drawn(1, e),
        "kernel.C": drawn(1, e, modes, parts, scale=math.sqrt(1 / parts)),
        "kernel.inv_dt": torch.log(0.01 * 10 ** torch.rand(e, 1)).float().double(),
        "kernel.A_real": drawn(e, modes, scale=0.5),
        "kernel.B": drawn(1, e, modes, parts),
    }
    if not real:
        p["kernel.A_imag"] = (20 * torch.rand(e, modes)).float().double()
    if low_rank:
        p["kernel.P"] = drawn(1, e, modes, 2)
    return p


def vandermonde_kernel(p, length, bilinear, real):
    """S4D, (e, length): 2 Re sum of C B-bar A-bar^l, or the sum itself where A is real."""
    dt = torch.exp(p["kernel.inv_dt"])
    if real:
        A, B, C = -torch.exp(p["kernel.A_real"]), p["kernel.B"][0, :, :, 0], p["kernel.C"][0, :, :, 0]
    else:
        A = torch.complex(-torch.exp(p["kernel.A_real"]), -p["kernel.A_imag"])
        B, C = complex_of(p["kernel.B"])[0], complex_of(p["kernel.C"])[0]
    if bilinear:
        A_bar, B_bar = (1 + dt * A / 2) / (1 - dt * A / 2), dt * B / (1 - dt * A / 2)
    else:
        A_bar, B_bar = torch.exp(dt * A), B * (torch.exp(dt * A) - 1) / A
    K = torch.einsum("en,enl->el", C * B_bar, A_bar[..., None] ** torch.arange(length))
    return K if real else 2 * K.real


def cauchy_kernel(p, length):
    """S4, (e, length): the generating function of the kernel, cut off at its length, and an inverse transform."""
    dt = torch.exp(p["kernel.inv_dt"])
    half = torch.complex(-torch.exp(p["kernel.A_real"]), -p["kernel.A_imag"])
    both = lambda x: torch.cat([x, x.conj()], -1)  # the other mode of each pair
    a, B, C, P = both(half), *(both(complex_of(p["kernel." + name])[0]) for name in "BCP")
    n = a.shape[-1]
    A = torch.diag_embed(a) - P[:, :, None] * P.conj()[:, None, :]
    ahead, back = torch.eye(n) + dt[..., None] / 2 * A, torch.eye(n) - dt[..., None] / 2 * A
    A_bar = torch.linalg.solve(back, ahead)
    B_bar = torch.linalg.solve(back, (dt * B)[..., None])[..., 0]
    C_tuned = torch.einsum("en,enm->em", C, torch.eye(n) - torch.linalg.matrix_power(A_bar, length))
    omega = torch.exp(-2j * torch.pi * torch.arange(length // 2 + 1) / length)
    z = 2 * (1 - omega) / (1 + omega)
    over = 1 / (z[None, None, :] - (dt * a)[..., None])  # (e, n, nodes)
    pair = lambda c, b: torch.einsum("en,enk->ek", dt * c * b, over)
    hat = pair(C_tuned, B) - pair(C_tuned, P) * pair(P.conj(), B) / (1 + pair(P.conj(), P))
    K = torch.fft.irfft(hat * 2 / (1 + omega), n=length)
    state, dense = B_bar, []
    for _ in range(length):
        dense.append((C * state).sum(-1).real)
        state = torch.einsum("enm,em->en", A_bar, state)
    assert (K - torch.stack(dense, -1)).abs().max() < 1e-10 * K.abs().max()
    return K


def convolution(x, K, D):
    """x (t, e), K (e, t)."""
    n = 2 * x.shape[0]
    return torch.fft.irfft(torch.fft.rfft(x.T, n=n) * torch.fft.rfft(K, n=n), n=n)[:, : x.shape[0]].T + D * x


def s6_parameters(e, n, r):
    return {
        "x_proj.weight": drawn(r + 2 * n, e, scale=0.5),
        "dt_proj.weight": drawn(e, r, scale=0.5),
        "dt_proj.bias": drawn(e) - 2,
        "A_log": drawn(e, n),
        "D": drawn(e),
    }


def selective_scan(x, p):
    n, r = p["A_log"].shape[1], p["dt_proj.weight"].shape[1]
    low, B, C = torch.split(x @ p["x_proj.weight"].T, [r, n, n], -1)
    dt = F.softplus(low @ p["dt_proj.weight"].T + p["dt_proj.bias"])
    A = -torch.exp(p["A_log"])
    h, rows = torch.zeros_like(A), []
    for t in range(x.shape[0]):
        h = torch.exp(dt[t][:, None] * A) * h + (dt[t] * x[t])[:, None] * B[t]
        rows.append(h @ C[t] + p["D"] * x[t])
    return torch.stack(rows)


class Case:
    """Draws the parameters of one inner layer, and runs it."""

    def __init__(self, name, e):
        self.kind = name.split("-", 1)[1] if name.startswith(("h3", "mamba")) else name
        self.real = self.kind.endswith("real")
        if self.kind == "s6":
            self.parameters = s6_parameters(e, 5, 3)
        else:
            self.parameters = lti_parameters(e, 7 if self.real else 4, self.real, self.kind == "s4")
        self.K = None

    def run(self, x):
        if self.kind == "s6":
            return selective_scan(x, self.parameters)
        bilinear = self.kind.endswith("bilinear")
        p = self.parameters
        self.K = cauchy_kernel(p, LENGTH) if self.kind == "s4" else vandermonde_kernel(p, LENGTH, bilinear, self.real)
        return convolution(x, self.K, p["D"][0])


def no_gate(inner, u):
    weight, bias = drawn(2 * WIDTH, WIDTH), drawn(2 * WIDTH)
    y = F.glu(F.gelu(inner.run(u)) @ weight.T + bias)
    outer = {"output_linear.0.weight": weight, "output_linear.0.bias": bias}
    return y, {**{"layer." + name: value for name, value in inner.parameters.items()}, **outer}


def h3(inner, u, taps=6):
    p = {}
    for name in ("q_proj", "k_proj", "v_proj", "output_linear"):
        p[name + ".weight"], p[name + ".bias"] = drawn(WIDTH, WIDTH), drawn(WIDTH)
    of = lambda name, x: x @ p[name + ".weight"].T + p[name + ".bias"]
    # The shift has B = e_0 and a state of the last inputs, so its kernel is C; D beside it.
    C, D = drawn(WIDTH, taps), drawn(WIDTH)
    k = convolution(of("k_proj", u), F.pad(C, (0, LENGTH - taps)), D)
    shift = C.flip(-1).clone()
    shift[:, -1] += D
    p["shift.weight"] = shift[:, None, :]
    y = of("output_linear", of("q_proj", u) * inner.run(k * of("v_proj", u)))
    return y, {**p, **inner.parameters}


def mamba(inner, u, taps=4):
    e = 2 * WIDTH
    p = {
        "in_proj.weight": drawn(2 * e, WIDTH),
        "conv1d.weight": drawn(e, 1, taps),
        "conv1d.bias": drawn(e),
        "out_proj.weight": drawn(WIDTH, e),
    }
    x, z = (u @ p["in_proj.weight"].T).chunk(2, -1)
    x = F.silu(F.conv1d(F.pad(x.T, (taps - 1, 0)), p["conv1d.weight"], p["conv1d.bias"], groups=e).T)
    y = (inner.run(x) * F.silu(z)) @ p["out_proj.weight"].T
    return y, {**p, **inner.parameters}


def main(folder):
    tensors = {}
    for name in ("s4", "s4d", "s4d-bilinear", "s4d-real", "s6", "h3-s4", "h3-s4d", "h3-s6", "mamba-s4", "mamba-s4d"):
        block = h3 if name.startswith("h3") else mamba if name.startswith("mamba") else no_gate
        inner, u = Case(name, 2 * WIDTH if block is mamba else WIDTH), drawn(LENGTH, WIDTH)
        y, parameters = block(inner, u)
        tensors.update({f"{name}.{key}": value.float() for key, value in parameters.items()})
        tensors[name + ".u"], tensors[name + ".y"] = u.float(), y.contiguous()
        if inner.K is not None and block is no_gate:
            tensors[name + ".K"] = inner.K.T.contiguous()
    made_by = f"tools/make_block_golden.py, torch {torch.__version__}, seed {SEED}"
    save_file(tensors, folder + "/blocks.safetensors", metadata={"made_by": made_by})


if __name__ == "__main__":
    main(sys.argv[1])
