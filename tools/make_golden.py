"""Writes the golden files of tests/golden: tiny Mamba and Mamba-2 models in odd shapes with everything a correct program
must reproduce, computed in float64 by reference_mamba.py and reference_mamba2.py from the float32 weights stored
beside it.

    python tools/make_golden.py --out tests/golden [NAME ...]

NAME/config.json and NAME/model.safetensors (or pytorch_model.bin) are a model as it would be published.
NAME/golden.safetensors holds, for two sequences i = 0, 1 of different lengths:
    ids.i            (t) i64                the tokens
    logits.i         (t, vocab rows) f64    padding rows included
    loss.i           (1) f64                mean nats of the tokens after the first
    conv.i           (layers, e, w) f64     state after the last token: the convolution's last w inputs, newest last
    ssm.i            (layers, e, n) f64     state after the last token: h; of Mamba-2 (layers, m, p, n)
    greedy.i         (30) i64               the 30 tokens that follow by argmax over vocab_size rows
    loss             (1) f64                mean over the predicted tokens of both sequences together
    gradient.PARAM   f32                    of that loss, computed in f64
and of a short training from the stored weights (the recipe is `train` in reference_mamba.py, warmup 4):
    train.ids        (steps, s, t + 1) i64  batches, first t tokens in, last t out
    train.trace      (steps, 3) f64         loss, gradient norm before clipping, learning rate
    trained_norm.PARAM  (1) f64             2-norm of each parameter after the last step
"""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch.nn import functional as F

from reference_mamba import Config, Mamba, norm_of, train
from reference_mamba2 import Config2

GREEDY_TOKENS, TRAIN_STEPS, WARMUP = 30, 8, 4

# name: (config, lengths of the two sequences, weights file, seed)
MODELS = {
    # No two sizes alike, nothing a power of two, all options the other way round from the defaults.
    "odd": (
        Config(d_model=20, n_layer=2, vocab_size=37, tie_embeddings=False,
               ssm_cfg={"layer": "Mamba1", "d_state": 5, "d_conv": 3, "expand": 3, "dt_rank": 3,
                        "bias": True, "conv_bias": False}),
        (37, 11), "model.safetensors", 4),
    # What published checkpoints look like, small: defaults left out of the config, weights as torch.save writes them.
    "plain": (Config(d_model=16, n_layer=3, vocab_size=64), (29, 13), "pytorch_model.bin", 1),
    # The smallest state, two taps, a rank from "auto" that is rounded up, one token against many.
    "narrow": (
        Config(d_model=18, n_layer=2, vocab_size=23, pad_vocab_size_multiple=1,
               ssm_cfg={"d_state": 1, "d_conv": 2, "expand": 2, "dt_rank": "auto"}),
        (1, 45), "model.safetensors", 6),
    # Mamba-2 as published, small; the second sequence is longer than a chunk of the program.
    "mamba2-plain": (
        Config2(d_model=16, n_layer=2, vocab_size=61, pad_vocab_size_multiple=16,
                ssm_cfg={"layer": "Mamba2", "d_state": 16, "headdim": 8}),
        (29, 70), "pytorch_model.bin", 8),
    # Channels beside the state space model, groups, no size a power of two, all options the other way round.
    "mamba2-odd": (
        Config2(d_model=20, n_layer=2, vocab_size=37, tie_embeddings=False,
                ssm_cfg={"layer": "Mamba2", "d_state": 6, "d_conv": 3, "expand": 3, "headdim": 24, "d_ssm": 48,
                         "ngroups": 2, "D_has_hdim": True, "norm_before_gate": True, "norm_epsilon": 0.01,
                         "dt_limit": [0.05, 0.6], "bias": True, "conv_bias": False, "chunk_size": 7}),
        (37, 11), "model.safetensors", 3),
    # No norm, a group for every head, few states, one token against many.
    "mamba2-bare": (
        Config2(d_model=12, n_layer=2, vocab_size=23, pad_vocab_size_multiple=1,
                ssm_cfg={"layer": "Mamba2", "d_state": 4, "d_conv": 2, "expand": 2, "headdim": 6, "ngroups": 4,
                         "rmsnorm": False}),
        (1, 45), "model.safetensors", 6),
}


@torch.no_grad()
def randomize(model):
    """Every parameter away from its initial value, so that leaving one out or mixing two up shows in the logits."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if name.endswith(("norm.weight", "norm_f.weight", "mixer.D")):
            parameter.copy_(1 + 0.3 * noise)
        elif name.endswith("A_log"):
            parameter.add_(0.4 * noise)
        elif name.endswith(("dt_proj.bias", "dt_bias")):
            parameter.copy_(-2 + noise)  # steps of about softplus(-2) = 0.13
            parameter[0] = 25.0  # one channel or head where softplus is the identity
        elif name.endswith("embedding.weight"):
            parameter.copy_(0.4 * noise)
        elif name.endswith("out_proj.weight"):  # large against the embedding, or a tied head would repeat its input
            parameter.copy_(2.5 * noise / math.sqrt(parameter.shape[1]))
        else:  # matrices, convolutions and their biases, by the number of inputs of each output
            parameter.copy_(noise / math.sqrt(parameter[0].numel() if parameter.ndim > 1 else 16))


def save_file(tensors, path, metadata):
    """safetensors with the header's keys in order: the library leaves the metadata's order to chance."""
    data = save(tensors, metadata)
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def stack(state, i):
    return torch.stack([layer[i][0] for layer in state])


def golden_of(model, lengths):
    """The tensors of golden.safetensors; `model` is float64 and is trained on the way."""
    out, total, predicted = {}, 0.0, 0
    for i, length in enumerate(lengths):
        ids = torch.randint(model.config.vocab_size, (length,))
        logits, state = model(ids[None])
        loss = F.cross_entropy(logits[0, :-1], ids[1:], reduction="sum")  # of one token: an empty sum, 0
        total, predicted = total + loss, predicted + length - 1
        greedy, margin = model.greedy(ids, GREEDY_TOKENS)
        if margin < 1e-3:
            raise SystemExit(f"greedy tokens of sequence {i} are within {margin:.1e} of a tie: take another seed")
        out |= {f"ids.{i}": ids, f"logits.{i}": logits[0], f"loss.{i}": loss[None] / max(length - 1, 1)}
        out |= {f"conv.{i}": stack(state, 0), f"ssm.{i}": stack(state, 1), f"greedy.{i}": greedy}
    loss = total / predicted
    loss.backward()
    out["loss"] = loss[None]
    for name, parameter in model.named_parameters():
        out[f"gradient.{name}"] = parameter.grad.float()

    out["train.ids"] = torch.randint(model.config.vocab_size, (TRAIN_STEPS, 2, 18))
    out["train.trace"] = torch.tensor(list(train(model, out["train.ids"], WARMUP)), dtype=torch.float64)
    for name, parameter in model.named_parameters():
        out[f"trained_norm.{name}"] = torch.tensor([norm_of(parameter)], dtype=torch.float64)
    return {name: tensor.detach().contiguous() for name, tensor in out.items()}


def write(folder, name):
    config, lengths, weights, seed = MODELS[name]
    about = {"command": "python tools/make_golden.py --out tests/golden", "torch": torch.__version__.split("+")[0],
             "python": sys.version.split()[0], "seed": str(seed)}
    torch.manual_seed(seed)
    model = Mamba(config)
    randomize(model)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config.save(folder / "config.json")
    if weights == "pytorch_model.bin":  # a tied head is in it twice, over one storage
        torch.save(model.state_dict(), folder / weights)
    else:
        held = {key: tensor for key, tensor in model.state_dict().items()
                if key != "lm_head.weight" or not config.tie_embeddings}
        save_file(held, folder / weights, {"format": "pt"} | about)
    golden = golden_of(model.double(), lengths)
    save_file(golden, folder / "golden.safetensors", about)
    trace = golden["train.trace"]
    size = sum(file.stat().st_size for file in folder.iterdir())
    distinct = [len(golden[f"greedy.{i}"].unique()) for i in range(2)]
    print(f"{name}: loss {golden['loss'].item():.4f}, distinct greedy tokens {distinct}, "
          f"training loss {trace[0, 0]:.4f} to {trace[-1, 0]:.4f}, gradient norm "
          f"{trace[:, 1].min():.2f} to {trace[:, 1].max():.2f}, {size / 1000:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="write the golden files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to write; all if left out")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order
    for model_name in options.names or MODELS:
        write(options.out / model_name, model_name)
