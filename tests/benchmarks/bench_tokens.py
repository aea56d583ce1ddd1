"""Encoding and reading tokens against the peers: core-seconds a token, memory a token, time to the first batch.

    python tests/benchmarks/bench_tokens.py [--documents DIR] [--copies 4] [--rounds 5] [--peers-python FILE]

Without --documents the text is 14 MB of Korean Wikipedia from the shared data. All methods run interleaved, as whole
processes; from each method's core-seconds (user and system, all threads) those of the same process over one document
are taken off, so that imports and the loading of the tokenizer do not count. The bare tokenizers only parse JSON lines
and throw the ids away; ours and datatrove's write them. The peers live in an environment of their own.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data_prep.document import Document, as_row, read_documents, write_jsonl  # noqa: E402
from data_prep.tokens.tokenizer_formats import LLAMA3_SPLIT, llama3_special_tokens  # noqa: E402

WORK = ROOT / "out" / "bench" / "tokens"
PEERS = ROOT / "out" / "bench" / "peers-tokens"
SCRIPT = ROOT / "tests" / "benchmarks" / "peers" / "tokens.py"
PACKAGES = ["datatrove[processing,io]==0.10.0", "torchtune==0.6.1", "torchao>=0.14,<0.16", "llama-models>=0.1"]
PAGE = re.compile(r'<doc id="([^"]*)"[^>]*title="([^"]*)"[^>]*>\n(.*?)</doc>', re.DOTALL)


def peers_python() -> Path:
    """Returns the peers' interpreter, installing them at the first call."""
    if not (PEERS / "complete").is_file():
        venv.create(PEERS, with_pip=True, clear=True)
        pip = [PEERS / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "torch>=2.11,<2.14"], check=True)  # alone and first: a CPU wheel at hand is taken
        subprocess.run([*pip, *PACKAGES], check=True)
        (PEERS / "complete").touch()
    return PEERS / "bin" / "python"


def prepare(folder: Path | None, copies: int) -> int:
    """Writes the text for all methods, whole and as one document, and the tokenizer.json; returns the bytes of text."""
    shutil.rmtree(WORK, ignore_errors=True)
    documents = list(read_documents(folder)) if folder else list(_shared_documents())
    repeated = [Document(f"{one.id}-{n}", one.text, one.source, one.lang) for n in range(copies) for one in documents]
    for name, some in (("whole", repeated), ("one", repeated[:1])):
        write_jsonl(WORK / name / "documents-00000.jsonl.zst", map(as_row, some))
        write_jsonl(WORK / name / "text.jsonl", ({"id": one.id, "text": one.text} for one in some))
    _write_tokenizer_json(WORK / "tokenizer")
    return sum(len(one.text.encode()) for one in repeated)


def core_seconds(command: Sequence[str | Path]) -> tuple[float, str]:
    """Runs a process and returns its user and system time, children included, and its last line of output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(WORK / "hf")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{result.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = result.stdout.strip().splitlines()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, lines[-1] if lines else ""


def encoders(peers: Path, tokenizer_model: Path) -> dict[str, list[list[str | Path]]]:
    """Returns for each method its command over one document and over all."""
    tokenizer_json = WORK / "tokenizer" / "tokenizer.json"
    found: dict[str, list[list[str | Path]]] = {}
    for name in ("one", "whole"):
        text, out = WORK / name / "text.jsonl", WORK / "out"
        ours = [sys.executable, "-m", "data_prep", "tokens", "--documents", WORK / name, "--workers", "1", "--out"]
        commands: dict[str, list[str | Path]] = {
            "kotune, tiktoken": [*ours, out, "--tokenizer", tokenizer_model],
            "bare tiktoken": [sys.executable, SCRIPT, "bare_tiktoken", text, tokenizer_model],
            "kotune, tokenizer.json": [*ours, out, "--tokenizer", tokenizer_json],
            "bare tokenizers": [sys.executable, SCRIPT, "bare_tokenizers", text, tokenizer_json],
            "datatrove 0.10": [peers, SCRIPT, "datatrove", text, tokenizer_json, out],
        }
        for method, command in commands.items():
            found.setdefault(method, []).append(command)
    return found


def measure_encoding(peers: Path, tokenizer_model: Path, num_bytes: int, rounds: int) -> None:
    """Prints megabytes and tokens a core-second of each method, and its ratio to bare tiktoken in the same round."""
    methods = encoders(peers, tokenizer_model)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds):
        for method, (one, whole) in methods.items():
            shutil.rmtree(WORK / "out", ignore_errors=True)
            idle, _ = core_seconds(one)
            shutil.rmtree(WORK / "out", ignore_errors=True)
            busy, _ = core_seconds(whole)
            seconds[method].append(busy - idle)
            if method == "kotune, tiktoken":
                num_tokens = json.loads((WORK / "out" / "manifest.json").read_text())["num_tokens"]
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    print(f"\n{num_bytes / 1e6:.1f} MB, {num_tokens:,} tokens; core-seconds without start-up, median of {rounds}")
    print(f"{'method':<24}{'MB/s':>8}{'tokens/s':>12}   x bare tiktoken (least .. most)")
    for method, values in seconds.items():
        ratios = [base / value for base, value in zip(seconds["bare tiktoken"], values, strict=True)]
        middle = statistics.median(values)
        told = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
        print(f"{method:<24}{num_bytes / 1e6 / middle:>8.1f}{num_tokens / middle:>12,.0f}   {told}")


def measure_first_batch(peers: Path, tokenizer_model: Path, rounds: int) -> None:
    """Prints bytes a token and the seconds to a first batch, from the second launch on."""
    shutil.rmtree(WORK / "shards", ignore_errors=True)
    ours = ["-m", "data_prep", "tokens", "--documents", WORK / "whole", "--tokenizer", tokenizer_model]
    core_seconds([sys.executable, *ours, "--out", WORK / "shards"])
    methods: dict[str, list[str | Path]] = {
        "kotune": [sys.executable, SCRIPT, "kotune", WORK / "shards"],
        "torchtune 0.6.1": [peers, SCRIPT, "torchtune", WORK / "whole" / "text.jsonl", tokenizer_model],
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for number in range(rounds + 1):  # the first launch fills the peer's cache, and is not counted
        for method, command in methods.items():
            facts = json.loads(core_seconds(command)[1])
            if number:
                found[method].append(facts)
    print("\nfirst batch of 4 x 4096 on a later launch, imports not counted; memory is the process's own")
    print("tokens: those it holds; torchtune cuts each document at 4096, and packs all of them anew at every launch")
    print(f"{'method':<24}{'seconds':>10}  {'least .. most':<20}{'bytes/token':>12}{'tokens':>14}")
    for method, rows in found.items():
        times = [row["seconds"] for row in rows]
        size = statistics.median(row["bytes"] / row["tokens"] for row in rows)
        spread = f"{min(times):.3f} .. {max(times):.3f}"
        print(f"{method:<24}{statistics.median(times):>10.3f}  {spread:<20}{size:>12.3f}{int(rows[0]['tokens']):>14,}")


def _shared_documents() -> list[Document]:
    paths = sorted((ROOT.parent / "shared" / "data" / "kowiki-text-2022").glob("*wiki_*"))
    pages = [match for path in paths for match in PAGE.findall(path.read_text(encoding="utf-8"))]
    if not pages:
        raise SystemExit("the shared data is not there; give --documents, the output of `data_prep clean`")
    return [Document(id_, text.strip(), "kowiki", "ko") for id_, title, text in pages if len(text) > len(title) + 50]


def _write_tokenizer_json(folder: Path) -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    folder.mkdir(parents=True)
    converter = TikTokenConverter(
        str(llama3_file()), pattern=LLAMA3_SPLIT, extra_special_tokens=llama3_special_tokens()
    )
    converter.converted().save(str(folder / "tokenizer.json"))


def llama3_file() -> Path:
    """Returns Meta's tokenizer.model out of the extra `llama3-tokenizer`."""
    import llama_models

    return Path(llama_models.__path__[0]) / "llama3" / "tokenizer.model"


def main() -> None:
    """Runs both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, help="folder with documents-*.jsonl.zst")
    parser.add_argument("--copies", type=int, default=4, help="of the text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers-python", type=Path, help="interpreter with the peers; default: one is made")
    args = parser.parse_args()
    peers = args.peers_python or peers_python()
    num_bytes = prepare(args.documents, args.copies)
    measure_encoding(peers, llama3_file(), num_bytes, args.rounds)
    measure_first_batch(peers, llama3_file(), args.rounds)


if __name__ == "__main__":
    main()
