"""ssm.cpp and transformers on PyTorch, on one CPU, in one run, by turns: prefill, decoding and a training step.

    python tools/compare_transformers.py --ssm build/cpu/ssm --threads 2 --json bench/results/transformers.json

Both get the same random weights of mamba-130m's shape and the same tokens, and must give the same greedy text.
Prefill: one sequence of 512 tokens through all layers, logits of the last position, state kept for what follows.
Decode: greedy tokens one by one after a prompt, the prompt's own time left out.
Training: forward, backward and AdamW of a model of about 10 M parameters on 8 x 256 tokens.
transformers runs as `pip install` gives it, eager and without its CUDA-only kernels; neither torch.compile nor the
package mambapy is tried. Its backward pass costs the square of the length: a step takes a minute or two, so one is
timed a turn.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import MambaConfig, MambaForCausalLM

MAMBA_130M = {"vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 24}
# About 10 M parameters, bytes for tokens: 10 layers of 0.95 M and an embedding of 0.1 M.
TRAINED = {"vocab_size": 256, "hidden_size": 384, "num_hidden_layers": 10}
PREFILL_TOKENS, DECODE_PROMPT, BATCH, LENGTH = 512, 16, 8, 256
RATES = ("prefill", "decode", "train")

# Keeps freed memory in PyTorch's process. Without it each large tensor is mapped anew, and page faults made a backward
# pass of 2 x 256 tokens three times slower (69 s, 22 s): a handicap that says nothing of the programs compared.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 30)}


def build(shape):
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(**shape)).eval()


def save_as_state_spaces(model, folder):
    """The published form: state-spaces names and config.json, the tied head left out."""
    config = model.config
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({
        "d_model": config.hidden_size, "n_layer": config.num_hidden_layers, "vocab_size": config.vocab_size,
        "ssm_cfg": {}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
        "pad_vocab_size_multiple": 8, "tie_embeddings": True}))
    tensors = {name.replace("embeddings.", "embedding."): tensor.contiguous()
               for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors")


def median_seconds(work, repeats):
    work()  # warm-up: first touches of memory, choices made at the first call
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@torch.no_grad()
def greedy(model, ids, count):
    """ids (1, t): the tokens that follow, and the seconds for all but the first, which the prompt's forward gives."""
    out = model(ids, use_cache=True, logits_to_keep=1)
    tokens = [out.logits[:, -1].argmax(-1, keepdim=True)]
    start = time.perf_counter()
    while len(tokens) < count:
        out = model(tokens[-1], cache_params=out.cache_params, use_cache=True)
        tokens.append(out.logits[:, -1].argmax(-1, keepdim=True))
    return torch.cat(tokens, 1)[0].numpy(), time.perf_counter() - start


def torch_prefill(model, ids, repeats):
    with torch.no_grad():
        return PREFILL_TOKENS / median_seconds(lambda: model(ids, use_cache=True, logits_to_keep=1), repeats)


def torch_decode(model, ids, count, repeats):
    greedy(model, ids, 3)
    return count / statistics.median(greedy(model, ids, count + 1)[1] for _ in range(repeats))


def torch_train(model, ids):
    """ids (batch, length + 1)."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)

    def step(ids):
        start = time.perf_counter()
        optimizer.zero_grad()
        logits = model(ids[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        return time.perf_counter() - start

    step(ids[:, :17])  # warm-up, short: it makes the optimiser's state
    return BATCH * LENGTH / step(ids)


def run_ssm(options, *arguments):
    command = [options.ssm, *map(str, arguments), "--threads", str(options.threads), "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def ssm_rates(options, model, train_parameters):
    """Tokens a second of prefill, decode and training, by the program's own clock."""
    inference = json.loads(run_ssm(options, "bench", "--model", model, "--prompt", PREFILL_TOKENS,
                                   "--tokens", options.tokens, "--only", "prefill", "decode", "--json"))
    training = json.loads(run_ssm(options, "bench", "--train-preset", options.train_preset, "--batch", BATCH,
                                  "--length", LENGTH, "--only", "train", "--json"))
    if training["train_parameters"] != train_parameters:
        raise SystemExit(f"preset {options.train_preset} has {training['train_parameters']} parameters, "
                         f"the model trained with PyTorch {train_parameters}: not the same work")
    return {"prefill": inference["prefill_tokens_per_second"], "decode": inference["decode_tokens_per_second"],
            "train": training["train_tokens_per_second"]}


def ssm_greedy(options, model, ids, count, folder):
    np.save(folder / "prompt.npy", ids)
    run_ssm(options, "generate", "--model", model, "--ids", folder / "prompt.npy", "--max-tokens", count,
            "--temperature", 0, "--ids-out", folder / "greedy.npy")
    return np.load(folder / "greedy.npy").ravel()[-count:]  # with or without the prompt before it


def main():
    parser = argparse.ArgumentParser(description="ssm.cpp beside transformers, CPU, float32")
    parser.add_argument("--ssm", help="the program; without it only PyTorch is measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--repeats", type=int, default=3, help="of prefill and decode a turn; the median counts")
    parser.add_argument("--tokens", type=int, default=32, help="tokens decoded")
    parser.add_argument("--train-preset", default="bytes-10m", help="name of the trained shape in ssm")
    parser.add_argument("--bf16", action="store_true", help="also time transformers decoding in bfloat16")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    torch.set_num_threads(options.threads)

    model, trained = build(MAMBA_130M), build(TRAINED)
    train_parameters = sum(parameter.numel() for parameter in trained.parameters())
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(1, 1000, (1, PREFILL_TOKENS), generator=generator)
    short = prompt[:, :DECODE_PROMPT]
    batch = torch.randint(256, (BATCH, LENGTH + 1), generator=generator)
    sides = {side: {name: [] for name in RATES} for side in ("transformers", *(["ssm"] if options.ssm else []))}

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        save_as_state_spaces(model, scratch / "model")
        if options.ssm:
            want = greedy(model, short, 16)[0]
            got = ssm_greedy(options, scratch / "model", short[0].numpy(), 16, scratch)
            if not np.array_equal(got, want):
                raise SystemExit(f"greedy tokens differ: ssm {got.tolist()}, transformers {want.tolist()}")
            print("16 greedy tokens agree")
        for turn in range(options.rounds):
            rates = {"transformers": {
                "prefill": torch_prefill(model, prompt, options.repeats),
                "decode": torch_decode(model, short, options.tokens, options.repeats),
                "train": torch_train(trained, batch)}}
            if options.ssm:
                rates["ssm"] = ssm_rates(options, scratch / "model", train_parameters)
            for side, values in rates.items():
                for name in RATES:
                    sides[side][name].append(values[name])
                shown = ", ".join(f"{name} {values[name]:.1f}" for name in RATES)
                print(f"round {turn + 1}, {side}: {shown}", flush=True)
    bf16 = torch_decode(model.to(torch.bfloat16), short, options.tokens, options.repeats) if options.bf16 else None

    medians = {side: {name: statistics.median(values[name]) for name in RATES} for side, values in sides.items()}
    print(f"\ntokens/s, {options.threads} threads, median of {options.rounds} rounds (least to most)")
    for name in RATES:
        line = f"{name:8}"
        for side in sides:
            values = sides[side][name]
            line += f"  {side} {medians[side][name]:9.1f} ({min(values):.1f} to {max(values):.1f})"
        print(line + (f"  ratio {medians['ssm'][name] / medians['transformers'][name]:.2f}" if options.ssm else ""))
    if bf16:
        print(f"decode    transformers in bf16 {bf16:.1f}")
    if options.json:
        options.json.write_text(json.dumps({
            "command": "python tools/compare_transformers.py", "repeats": options.repeats, "tokens": options.tokens,
            "machine": platform.machine(), "cpus": os.cpu_count(),
            "threads": options.threads, "torch": torch.__version__, "transformers": transformers.__version__,
            "train_parameters": train_parameters, "rounds": sides, "medians": medians,
            "transformers_bf16_decode": bf16}, indent=2) + "\n")


if __name__ == "__main__":
    main()
