"""What a step reads, document by document; and the file that keeps it of a step that was skipped."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.lineage import whole_file
from recipes.training.data.plan import DataPlan, tokenizer_of


def step_contents(plan: DataPlan, step: int, weights: str | None) -> Iterator[dict[str, Any]]:
    """Yields one mapping per document of a step's global batch, in the order of its sequences.

    Args:
        plan: what the run reads.
        step: counted from 0.
        weights: model directory whose tokenizer decodes the text.

    Yields:
        source, sequence (its index within the source), document, num_tokens of it in the sequence, and `text`, or
        `token_ids` where no tokenizer is at hand.
    """
    tokenizers = [tokenizer_of(source, weights) for source in plan.sources]
    for number, index in plan.order.step(step):
        source, tokenizer = plan.sources[number], tokenizers[number]
        sample = source.sample(index)
        for place, document in enumerate(source.documents(index)):
            ids = sample.tokens[sample.documents == place].tolist()
            content = {"token_ids": ids} if tokenizer is None else {"text": tokenizer.decode(ids, skip_special=False)}
            name = plan.mixture.sources[number].name
            yield {"source": name, "sequence": index, "document": document, "num_tokens": len(ids), **content}


def write_skipped_step(folder: Path, plan: DataPlan, weights: str | None, facts: dict[str, Any]) -> Path:
    """Writes `skipped/step-00000042.jsonl`: the facts on the first line, then a document a line.

    Args:
        folder: the run folder.
        plan: what the run reads.
        weights: model directory whose tokenizer decodes the text.
        facts: why the step was skipped, with `step` counted from 1 as in metrics.jsonl.

    Returns:
        The file.
    """
    path = folder / "skipped" / f"step-{facts['step']:08d}.jsonl"
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in (facts, *step_contents(plan, facts["step"] - 1, weights)):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path
