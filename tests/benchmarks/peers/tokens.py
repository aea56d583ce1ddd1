"""The measured processes of bench_tokens.py: `python tokens.py METHOD ARGUMENTS...`; each imports what it needs."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SEQ_LEN = 4096
BATCH = 4


def texts(path: str) -> Iterator[str]:
    """Yields the texts of a .jsonl file."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def bare_tiktoken(path: str, tokenizer: str) -> None:
    """Encodes and throws the ids away."""
    import tiktoken
    from llama_models.llama3.tokenizer import Tokenizer
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(tokenizer)
    encoding = tiktoken.Encoding("x", pat_str=Tokenizer.pat_str, mergeable_ranks=ranks, special_tokens={})
    for text in texts(path):
        encoding.encode_ordinary(text)


def bare_tokenizers(path: str, tokenizer: str) -> None:
    """Encodes one text at a time, without offsets, and throws the ids away."""
    import tokenizers

    encoding = tokenizers.Tokenizer.from_file(tokenizer)
    for text in texts(path):
        encoding.encode_batch_fast([text], add_special_tokens=False)


def datatrove(path: str, tokenizer: str, out: str) -> None:
    """Runs the library's reader and its DocumentTokenizer, without the shuffle, in this process."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    steps = [
        JsonlReader(str(Path(path).parent), glob_pattern=Path(path).name),
        DocumentTokenizer(
            f"{out}/tokens", tokenizer_name_or_path=tokenizer, eos_token="<|end_of_text|>", shuffle_documents=False
        ),
    ]
    LocalPipelineExecutor(pipeline=steps, tasks=1, workers=1, logging_dir=f"{out}/logs").run()


def torchtune(path: str, tokenizer: str) -> None:
    """Builds the packed dataset and takes a batch from it."""
    import torch
    from torchtune.datasets import text_completion_dataset
    from torchtune.models.llama3 import llama3_tokenizer

    before, begin = private_bytes(), time.perf_counter()
    data = text_completion_dataset(
        llama3_tokenizer(tokenizer, max_seq_len=SEQ_LEN), source="json", data_files=path, packed=True
    )
    batch = torch.stack([data[number]["tokens"] for number in range(BATCH)])
    seconds = time.perf_counter() - begin
    num_tokens = sum(int(pack["seq_lens"].sum()) for pack in data.packs)
    report(seconds, private_bytes() - before, num_tokens, batch.shape)


def kotune(folder: str) -> None:
    """Opens the shards and takes a batch from the stream."""
    import torch

    from data_prep.tokens.shards import Shards
    from recipes.training.data.packing import TokenStream

    before, begin = private_bytes(), time.perf_counter()
    shards = Shards.open(Path(folder))
    stream = TokenStream(shards, SEQ_LEN, seed=0)
    batch = torch.stack([torch.from_numpy(stream.sample(number).tokens) for number in range(BATCH)])
    seconds = time.perf_counter() - begin
    report(seconds, private_bytes() - before, shards.num_tokens, batch.shape)


def private_bytes() -> int:
    """Returns this process's memory that is its own: without pages of files, which all processes share."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def report(seconds: float, num_bytes: int, num_tokens: int, shape: object) -> None:
    """Prints the measures of a first batch as one line of JSON."""
    print(json.dumps({"seconds": seconds, "bytes": num_bytes, "tokens": num_tokens, "batch": list(shape)}))  # type: ignore[call-overload]


METHODS = {function.__name__: function for function in (bare_tiktoken, bare_tokenizers, datatrove, torchtune, kotune)}

if __name__ == "__main__":
    if os.environ.get("PYTHONPATH"):
        sys.path.insert(0, os.environ["PYTHONPATH"])
    METHODS[sys.argv[1]](*sys.argv[2:])
