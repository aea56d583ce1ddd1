"""Llama-3-8B on one GPU in one call: ours, torchtune, Trainer with Liger, and the parts of a step.

    python tests/benchmarks/gpu.py [--seconds 520] [--only NAME ...] [--wheels DIR]

Sequences of 8192 tokens, random weights, random tokens in documents as long as those of Korean Wikipedia (or one
document a sequence: `dense`). Needs no network and no downloaded model. Every variant is a process with a time limit
of its own; results.json is written anew after each, the table comes last. What no time is left for is listed as such.

A machine without our dependencies gets them as files: `python tests/benchmarks/gpu.py --fetch-wheels DIR` where there
is a network, then --wheels DIR. Tokens a second count micro-batches, four of them to an optimizer step, and the step.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_report import median, table
from gpu_variants import LENGTH_QUANTILES, PARTS, SHAPES, VARIANTS, WHEELS

HERE = Path(__file__).resolve().parent
Settings = dict[str, object]


def fetch_wheels(folder: Path, python: str) -> None:
    """Downloads what a machine with torch and transformers lacks, for its Python on Linux."""
    platforms = ["--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64"]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python, *platforms, "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options, *WHEELS], check=True)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {len(list(folder.iterdir()))} files, {size / 2**20:.1f} MiB")


def install_wheels(wheels: Path, site: Path) -> None:
    """Installs those that this interpreter cannot import, beside it."""
    options = ["--quiet", "--no-index", "--no-deps", "--target", str(site)]
    files = [str(path) for path in sorted(wheels.glob("*.whl"))]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *files], check=True)


def prepare(work: Path, sizes: dict[str, object], shape: dict[str, object]) -> dict[str, dict[str, str]]:
    """Writes the tokens and our configuration, dense and in documents; returns their paths."""
    import numpy as np
    from train_common import write_config, write_rows, write_shards

    seq_len, steps = int(str(sizes["seq_len"])), int(str(sizes["steps"]))
    largest = 2 * int(str(sizes["accumulate"])) * int(str(sizes["micro_batch"]))
    needed = seq_len * (steps * largest + 1)
    random = np.random.default_rng(0)
    drawn = np.interp(random.random(needed // 100), np.linspace(0, 1, len(LENGTH_QUANTILES)), LENGTH_QUANTILES)
    drawn = np.maximum(2, drawn * min(1.0, seq_len / 8192)).astype(int)
    lengths = {"documents": drawn[: int(np.searchsorted(drawn.cumsum(), needed)) + 1].tolist(), "dense": [needed]}
    found = {}
    for kind, counts in lengths.items():
        folder = work / kind
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_shards(folder / "shards", counts, int(str(shape["vocab_size"])))
        write_config(folder / "ours.yaml", folder / "shards", sizes, None, shape)
        write_rows(folder / "rows.npz", folder / "ours.yaml", steps)
        found[kind] = {"config": str(folder / "ours.yaml"), "rows": str(folder / "rows.npz")}
    return found


def run_part(work: Path, name: str, shared: dict[str, object], limit: float) -> dict[str, object]:
    """Runs a micro-benchmark in a process of its own."""
    out = work / f"micro-{name}.json"
    out.unlink(missing_ok=True)
    settings = work / f"micro-{name}-settings.json"
    settings.write_text(json.dumps(shared | {"out": str(out)}))
    try:
        command = [sys.executable, str(HERE / "gpu_micro.py"), name, str(settings)]
        done = subprocess.run(command, timeout=limit, capture_output=True, text=True, env=dict(os.environ))
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {limit:.0f} s"}
    if out.is_file():
        return dict(json.loads(out.read_text()))
    return {"error": f"{done.returncode}: {' '.join(done.stderr.strip().splitlines()[-1:])[:300]}"}


def run_all(args: argparse.Namespace, work: Path, began: float) -> dict[str, object]:
    """Runs what is asked for in the order of the plan, as long as there is time."""
    from train_common import write_json

    probe = run_part(work, "probe", {"device": args.device}, 60)
    model = args.model or next(name for name, gib in MODELS if float(str(probe.get("memory_gib", 0))) >= gib)
    shape, on_gpu = SHAPES[model], args.device == "cuda"
    sizes: dict[str, object] = {
        "seq_len": 8192 if on_gpu else 64, "micro_batch": 1, "accumulate": 4 if on_gpu else 2, "lr": 1e-5,
        "steps": args.steps + args.warm_up, "warm_up": args.warm_up, "device": args.device, "dtype": "bf16",
    }  # fmt: skip
    paths = prepare(work, sizes, shape)
    results: dict[str, object] = {"probe": probe, "model": model, "sizes": sizes, "date": str(datetime.date.today())}
    parts: dict[str, object] = {}
    variants: dict[str, object] = {}
    results |= {"parts": parts, "variants": variants}
    micro = {"device": args.device, "shape": shape, "rows": sizes["seq_len"], "num_parameters": _parameters(shape)}
    plan: list[tuple[str, dict[str, object], float, Callable[[float], dict[str, object]]]] = []
    for name, limit in PARTS.items():
        plan.append((name, parts, limit, lambda left, name=name: run_part(work, name, micro, left)))
    for name, variant in VARIANTS.items():
        plan.append(
            (name, variants, variant["limit"], lambda left, name=name: _train(work, name, sizes, shape, paths, left))
        )
    for name, where, limit, action in plan:
        if args.only and name not in args.only:
            continue
        left = args.seconds - (time.monotonic() - began)
        limit = limit if on_gpu else left  # the limits are a GPU's
        where[name] = action(min(limit, left)) if left > 15 else {"error": "no time was left"}
        figure = median(where[name]["seconds"]) if "seconds" in where[name] else where[name].get("error", "done")
        print(f"{time.monotonic() - began:5.0f} s  {name}: {figure}", file=sys.stderr, flush=True)
        write_json(work / "results.json", results)
    return results


def _train(
    work: Path, name: str, sizes: dict[str, object], shape: dict[str, object], paths: dict[str, dict[str, str]],
    limit: float,
) -> dict[str, object]:  # fmt: skip
    from train_common import run_child

    variant = VARIANTS[name]
    on_gpu = sizes["device"] == "cuda"
    if variant.get("needs_gpu") and not on_gpu:
        return {"error": "needs a GPU"}
    folder = work / name.replace(" ", "-").replace(",", "")
    own = sizes | paths[variant["tokens"]] | {"shape": shape, "folder": str(folder), "weights": None, "packed": True}
    own |= {"liger": True, "activation_checkpointing": False, "compile": False, "method": variant["method"]}
    own["random_weights"] = True
    own |= variant.get("settings", {})
    own["compile"] = own["compile"] and on_gpu
    batch = int(str(sizes["seq_len"])) * int(str(sizes["accumulate"])) * int(str(own["micro_batch"]))
    overrides = variant.get("overrides", []) + ([] if on_gpu else ["compile=false", "activation_checkpointing=none"])
    own["overrides"] = [
        *overrides, f"output_dir={folder}/run", f"micro_batch={own['micro_batch']}", f"global_batch_tokens={batch}",
    ]  # fmt: skip
    return run_child(sys.executable, own, limit) | {"tokens_per_step": batch}


def _parameters(shape: dict[str, object]) -> int:
    from train_common import our_shape

    from recipes.training.model.decoder import Architecture
    from recipes.training.planning.footprint import parameter_counts

    return sum(parameter_counts(Architecture(**our_shape(shape))).values())


MODELS = (("8b", 120.0), ("3b", 60.0), ("tiny", 0.0))
"""Each with the GiB of GPU memory from which on it is taken."""


def main() -> int:
    """Runs the plan and prints the table."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: tiny shapes, to try the script")
    parser.add_argument("--model", choices=sorted(SHAPES), help="default: the largest that fits the GPU")
    parser.add_argument("--seconds", type=float, default=520, help="for everything")
    parser.add_argument("--warm-up", type=int, default=3, help="steps that do not count")
    parser.add_argument("--steps", type=int, default=6, help="steps that do")
    parser.add_argument("--only", nargs="*", choices=[*PARTS, *VARIANTS], default=[], help="default: all")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out/bench/gpu")))
    parser.add_argument("--wheels", type=Path, help="folder of --fetch-wheels, installed before all else")
    parser.add_argument("--fetch-wheels", type=Path, metavar="DIR", help="only download what the GPU machine lacks")
    parser.add_argument("--python", default="3.12", help="version of the GPU machine's Python, for --fetch-wheels")
    args = parser.parse_args()
    if args.fetch_wheels:
        fetch_wheels(args.fetch_wheels, args.python)
        return 0
    work = args.out.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if args.wheels:
        install_wheels(args.wheels, work / "site")
        sys.path.append(str(work / "site"))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(work / "site")]))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "inductor")  # what one variant compiled, the next finds
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    results = run_all(args, work, began)
    text = "\n".join(table(results))
    (work / "table.txt").write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
