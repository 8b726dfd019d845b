"""Writes tests/golden_hf: tiny checkpoints that transformers made and saved, in odd shapes, with what it computes from
them; and checks a build of ssm against transformers.

    python tools/make_hf_golden.py --out tests/golden_hf
    python tools/make_hf_golden.py --check build/cpu/ssm             # what ssm convert writes, opened by transformers
    python tools/make_hf_golden.py --check build/cpu/ssm --large     # shapes of 130 million parameters, random weights

NAME/ is a checkpoint as save_pretrained leaves it (one is sharded, one is of pickled shards, as older versions wrote).
NAME/golden.safetensors holds, all computed by transformers in f32:
    ids            (150) i64        a text; its beginnings are texts too
    logits         (150, vocab) f32 of it
    greedy.short   (40) i64         what generate() writes after the first 11 tokens; with its cache, except for a Mamba-2
                                    with a time_step_limit: the cached step of transformers leaves the limit out
    greedy.long    (40) i64         after all 150
    logits.bf16    (20, vocab) f32  of the first 20 tokens, with every weight rounded to bf16
    logits.f16     (20, vocab) f32  with every weight rounded to f16
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from transformers import (AutoModelForCausalLM, FalconMambaConfig, FalconMambaForCausalLM, Mamba2Config,
                          Mamba2ForCausalLM, MambaConfig, MambaForCausalLM)

from make_golden import save_file

TOKENS, SHORT, GREEDY, HALF = 150, 11, 40, 20

# name: (model, seed, how it is saved)
MODELS = {
    # No two sizes alike, biases everywhere, a rank that is not the width's.
    "mamba": (lambda: MambaForCausalLM(MambaConfig(
        vocab_size=67, hidden_size=20, num_hidden_layers=2, state_size=8, conv_kernel=3, expand=3, time_step_rank=5,
        use_bias=True, use_conv_bias=True, layer_norm_epsilon=1e-4, eos_token_id=[3, 5])), 1, "one file"),
    "mamba_untied": (lambda: MambaForCausalLM(MambaConfig(
        vocab_size=61, hidden_size=18, num_hidden_layers=3, state_size=4, use_conv_bias=False,
        tie_word_embeddings=False, residual_in_fp32=False)), 12, "shards"),
    # The inner width is not expand times the model's, as in falcon-mamba-7b.
    "falcon_mamba": (lambda: FalconMambaForCausalLM(FalconMambaConfig(
        vocab_size=70, hidden_size=24, num_hidden_layers=2, state_size=5, expand=16, intermediate_size=40,
        time_step_rank=7, mixer_rms_eps=1e-3, tie_word_embeddings=False)), 3, "pickled shards"),
    "mamba2": (lambda: Mamba2ForCausalLM(Mamba2Config(
        vocab_size=64, hidden_size=36, num_hidden_layers=2, state_size=4, num_heads=3, head_dim=24, n_groups=1,
        conv_kernel=3, use_bias=True, chunk_size=32, time_step_limit=(0.05, 0.6), tie_word_embeddings=False)), 4,
        "one file"),
    "mamba2_groups": (lambda: Mamba2ForCausalLM(Mamba2Config(
        vocab_size=62, hidden_size=32, num_hidden_layers=2, state_size=8, expand=3, num_heads=4, head_dim=24, n_groups=4,
        use_conv_bias=False, chunk_size=32, layer_norm_epsilon=1e-4, tie_word_embeddings=True)), 25, "one file"),
}


@torch.no_grad()
def randomize(model):
    """Every parameter away from its initial value, so that leaving one out or mixing two up shows in the logits."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        if name.endswith(("norm.weight", "norm_f.weight", "mixer.D")):
            parameter.copy_(1 + 0.3 * noise)
        elif name.endswith("A_log"):
            parameter.copy_(parameter + 0.4 * noise)
        elif name.endswith(("dt_proj.bias", "dt_bias")):
            parameter.copy_(-1.5 + noise)
            parameter[0] = 25.0  # where softplus is the identity
        elif name.endswith("embeddings.weight"):
            parameter.copy_(0.4 * noise)
        elif name.endswith("out_proj.weight"):  # large against the embedding, or a tied head would repeat its input
            parameter.copy_(2.5 * noise / math.sqrt(parameter.shape[1]))
        else:  # matrices, convolutions and their biases, by the number of inputs of each output
            parameter.copy_(noise / math.sqrt(parameter[0].numel() if parameter.ndim > 1 else 16))


@torch.no_grad()
def logits_of(model, ids):
    return model(ids[None].long(), use_cache=False).logits[0].float()


@torch.no_grad()
def greedy_of(model, ids):
    """generate(), and that it nowhere chose between near equals."""
    limited = math.isfinite(getattr(model.config, "time_step_limit", (0, math.inf))[1])
    out = model.generate(ids[None], attention_mask=torch.ones_like(ids[None]), do_sample=False, max_new_tokens=GREEDY,
                         eos_token_id=None, pad_token_id=0, use_cache=not limited)[0]
    best = logits_of(model, out[:-1])[len(ids) - 1:].topk(2).values
    margin = (best[:, 0] - best[:, 1]).min().item()
    if margin < 1e-3:
        raise SystemExit(f"greedy tokens are within {margin:.1e} of a tie: take another seed")
    return out[len(ids):]


@torch.no_grad()
def rounded(model, dtype):
    copy = type(model)(model.config).eval()
    copy.load_state_dict({name: value.to(dtype).float() for name, value in model.state_dict().items()})
    return copy


def save(model, folder, how):
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size="16KB" if how == "shards" else "50GB")
    if how == "pickled shards":
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(state)
        parts = {f"pytorch_model-{i + 1:05}-of-00002.bin": names[i::2] for i in range(2)}
        for file, held in parts.items():
            torch.save({name: state[name] for name in held}, folder / file)
        index = {"metadata": {"total_size": sum(value.nbytes for value in state.values())},
                 "weight_map": {name: file for file, held in parts.items() for name in held}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write(folder, name):
    make, seed, how = MODELS[name]
    torch.manual_seed(seed)
    model = make().eval()
    randomize(model)
    save(model, folder, how)
    ids = torch.randint(model.config.vocab_size, (TOKENS,))
    golden = {"ids": ids, "logits": logits_of(model, ids), "greedy.short": greedy_of(model, ids[:SHORT]),
              "greedy.long": greedy_of(model, ids),
              "logits.bf16": logits_of(rounded(model, torch.bfloat16), ids[:HALF]),
              "logits.f16": logits_of(rounded(model, torch.float16), ids[:HALF])}
    # A token where large numbers cancel shows rounding a thousand times enlarged, on either side: not a test of anything.
    for half, most in (("bf16", 0.2), ("f16", 0.03)):
        moved = (golden[f"logits.{half}"] - golden["logits"][:HALF]).abs().max() / golden["logits"].abs().max()
        if moved > most:
            raise SystemExit(f"rounding to {half} moves the logits by {moved:.2f}, ill-conditioned: take another seed")
    about = {"command": "python tools/make_hf_golden.py --out tests/golden_hf", "seed": str(seed),
             "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
             "python": sys.version.split()[0]}
    save_file({key: value.contiguous() for key, value in golden.items()}, folder / "golden.safetensors", about)
    size = sum(file.stat().st_size for file in folder.iterdir())
    distinct = [len(golden[f"greedy.{which}"].unique()) for which in ("short", "long")]
    print(f"{name}: largest logit {golden['logits'].abs().max():.2f}, distinct greedy tokens {distinct}, "
          f"{size / 1000:.0f} kB")


def ssm_logits(ssm, model, ids, *flags):
    with tempfile.TemporaryDirectory() as scratch:
        np.save(f"{scratch}/ids.npy", ids.numpy())
        subprocess.run([ssm, "logits", "--model", str(model), "--ids", f"{scratch}/ids.npy", "--out",
                        f"{scratch}/out.npy", "--quiet", *flags], check=True)
        return torch.from_numpy(np.load(f"{scratch}/out.npy"))


def compare(what, found, expected, bound):
    worst = ((found - expected).abs().max() / expected.abs().max()).item()
    print(f"{what}: {worst:.1e} of the largest logit")
    return worst <= bound


def opened(folder):
    """As transformers opens it, complaining of every tensor that is missing or strange; arithmetic in f32."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = [report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[kind]]
    if wrong:
        raise SystemExit(f"transformers on {folder}: {wrong}")
    return model.eval()


def check(ssm, golden):
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        for folder in sorted(path for path in golden.iterdir() if path.is_dir()):
            ids = load_file(folder / "golden.safetensors")["ids"]
            expected = logits_of(opened(folder), ids)
            good &= compare(f"{folder.name}: ssm logits", ssm_logits(ssm, folder, ids), expected, 3e-5)
            convert = lambda source, to, *flags: subprocess.run(
                [ssm, "convert", str(source), "--out", f"{scratch}/{folder.name}-{to}", "--quiet", *flags], check=True)
            at = lambda to: Path(f"{scratch}/{folder.name}-{to}")
            convert(folder, "ss", "--naming", "state-spaces")
            convert(at("ss"), "hf", "--naming", "huggingface", "--max-shard-size", "20KB")
            good &= compare(f"{folder.name}: transformers on what was converted twice", logits_of(opened(at("hf")), ids),
                            expected, 0)
            for dtype in ("bf16", "f16"):
                convert(folder, dtype, "--dtype", dtype)
                good &= compare(f"{folder.name}: ssm and transformers on the {dtype} conversion",
                                ssm_logits(ssm, at(dtype), ids), logits_of(opened(at(dtype)), ids), 3e-5)
    return good


def check_large(ssm):
    """Published shapes with the published initial weights, made by ssm convert. (The initial weights of transformers,
    matrices of deviation 0.1, enlarge rounding: there it is as far from a computation in f64 as ssm is, 3e-4.)"""
    good = True
    for preset in ("mamba-130m", "mamba2-130m"):
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run([ssm, "convert", "--preset", preset, "--out", f"{scratch}/model", "--naming", "huggingface",
                            "--seed", "9", "--quiet"], check=True)
            ids = torch.randint(50000, (300,), generator=torch.Generator().manual_seed(9))
            expected = logits_of(opened(f"{scratch}/model"), ids)
            for chunk in ("512", "64"):
                good &= compare(f"{preset}, chunks of {chunk}",
                                ssm_logits(ssm, f"{scratch}/model", ids, "--chunk", chunk), expected, 3e-5)
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="write the goldens of transformers, or check a build against it")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", metavar="SSM")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1 if options.out else 2)  # for goldens: sums in one order
    if options.out:
        for model_name in options.only:
            write(options.out / model_name, model_name)
    if options.check:
        passed = check(options.check, Path(__file__).parent.parent / "tests" / "golden_hf")
        if options.large:
            passed &= check_large(options.check)
        sys.exit(0 if passed else 1)
