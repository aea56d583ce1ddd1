"""The model card of a merge: what was added to what, from which files, under which licence."""

import json
from pathlib import Path
from typing import Any

from data_prep.model_card import built_with, header, licence_of, licence_text, read_header
from recipes.merging.norms import largest_table
from recipes.merging.plan import MergePlan
from recipes.merging.settings import VectorConfig

SOURCES = """- chat vector: Huang et al., [arXiv 2310.04799](https://arxiv.org/abs/2310.04799)
- task arithmetic: Ilharco et al., [arXiv 2212.04089](https://arxiv.org/abs/2212.04089)"""
TIES = "- TIES: Yadav et al., [arXiv 2306.01708](https://arxiv.org/abs/2306.01708)"
DARE = "- DARE: Yu et al., [arXiv 2311.03099](https://arxiv.org/abs/2311.03099)"


def merge_licence(plan: MergePlan) -> str | None:
    """Returns the licence that the target's card names, else that of the language model's shape; None if unknown."""
    return licence_of(plan.target.model.path, plan.vectors[0][1].config)


def model_card(plan: MergePlan, licence: str | None, inputs: dict[str, dict[str, Any]], norms: dict[str, Any]) -> str:
    """Returns README.md of the merged model.

    Args:
        plan: of the merge.
        licence: of the result, None if unknown.
        inputs: of `input_hashes`.
        norms: of `tensor_norms`.
    """
    settings = plan.settings
    told = read_header(plan.target.model.path)
    facts = {
        "license": licence,
        "base_model": told.get("base_model"),
        "language": told.get("language"),
        "library_name": "transformers",
        "pipeline_tag": told.get("pipeline_tag"),
        "tags": ["merge", "chat-vector"],
    }
    words = built_with(licence)
    roles = "\n".join(f"| {role} | `{one['path']}` | `{one['sha256'][:16]}` |" for role, one in inputs.items())
    vectors = "\n".join(_vector_line(number, vector) for number, vector in enumerate(settings.vectors(), start=1))
    vocabulary = plan.vocabulary_facts()
    sources = [SOURCES, *([TIES] if _uses(settings.vectors(), "density", 1.0) or settings.combine == "ties" else [])]
    sources += [DARE] if _uses(settings.vectors(), "drop_rate", 0.0) else []
    total = norms["all"]
    parts = [
        header(facts),
        f"# {Path(settings.target).name} with a chat vector",
        *([words] if words else []),
        "No training: weights of existing models, added in float32 (wider ones in float64) and rounded once.",
        "$$\\theta = \\theta_{target} + \\sum_i \\alpha_i (\\theta_{plus,i} - \\theta_{minus,i})$$",
        "## Models\n\n| role | directory | SHA-256 of its files' hashes |\n|---|---|---|\n" + roles,
        f"The hash of every file is in `manifest.json`.\n\n## Scales\n\n{vectors}",
        f"Vectors are combined by `{settings.combine}`. Rule for the vocabulary: `{vocabulary['rule']}`"
        + _rows_text(vocabulary)
        + f" Chat template, end tokens and generation settings are those of `{settings.chat_from}`; architecture and "
        "everything else are the target's.",
        f"## Norms\n\nAll tensors: added {total['change']:.4g} to {total['target']:.4g}. The tensors that change most "
        f"(all of them, and the rows of special tokens, in `norms.json`):\n\n{largest_table(norms)}",
        "## Data\n\nNone was used by the merge; see the models above for what they were trained on.",
        "## Licence\n\nThe licences of all models above hold together; their files lie beside this one where the "
        f"models came with them.{f' Of the target: {licence_text(licence)}' if licence else ''}",
        "## Sources\n\n" + "\n".join(sources),
    ]
    return "\n\n".join(parts) + "\n"


def _uses(vectors: list[VectorConfig], key: str, default: float) -> bool:
    return any(getattr(vector, key) != default for vector in vectors)


def _vector_line(number: int, vector: VectorConfig) -> str:
    facts = {key: value for key, value in vars(vector).items() if key.endswith("scale") and value is not None}
    facts |= {"density": vector.density} if vector.density != 1 else {}
    facts |= {"drop_rate": vector.drop_rate} if vector.drop_rate else {}
    facts |= {"layers": [vars(one) for one in vector.layers]} if vector.layers else {}
    return f"- vector {number}: " + ", ".join(f"`{key}` {json.dumps(value)}" for key, value in facts.items())


def _rows_text(vocabulary: dict[str, Any]) -> str:
    if vocabulary["rule"] not in ("keep_target_rows", "by_token"):
        return "."
    return f", so that of {vocabulary['rows']} rows {vocabulary['rows_kept'][0]} stay the target's."
