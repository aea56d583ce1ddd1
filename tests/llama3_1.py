"""Models of Llama-3.1's and 3.2's kind, small: reserved tokens with names, a dated template, scaled positions."""

import itertools
import json
from pathlib import Path

from transformers import LlamaForCausalLM

from data_prep.tokens.tokenizer import load_tokenizer
from tests.support import tiny_llama, tiny_tokenizer

RENAMED = {  # Source: llama-models `llama3/tokenizer.py`
    "<|reserved_special_token_2|>": "<|finetune_right_pad_id|>",
    "<|reserved_special_token_4|>": "<|eom_id|>",
    "<|reserved_special_token_5|>": "<|python_tag|>",
}
# Like Llama-3.1's and 3.2's own, it opens every dialogue with a system turn that tells the day.
DATED = r"""{{- bos_token }}
{%- set system = messages[0].content | trim if messages[0].role == 'system' else '' %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' ~ strftime_now('%d %b %Y') ~ '\n\n' ~ system }}
{{- '<|eot_id|>' }}
{%- for message in messages if message.role != 'system' %}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' ~ message.content | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""


def scaling(factor: float) -> dict[str, object]:
    """Returns the `rope_scaling` of Llama-3.1's (8) and 3.2's (32) config.json."""
    return {
        "factor": factor,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }


def llama3_1_tokenizer(folder: Path, chat_template: str | None = None) -> Path:
    """Writes tokenizer files and generation_config.json; with a template as an instruct model has them."""
    tiny_tokenizer(folder)
    for file in folder.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        for old, new in RENAMED.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        file.write_text(text, encoding="utf-8")
    ids = load_tokenizer(folder).special_tokens
    names = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"] if chat_template else ["<|end_of_text|>"]
    settings = {"bos_token_id": ids["<|begin_of_text|>"], "eos_token_id": [ids[name] for name in names]}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if chat_template:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    return folder


def saying_llama(folder: Path, answer: str, **changes: object) -> Path:
    """Makes a model that answers every prompt with `answer` and ends its turn, beside the tokenizer in `folder`.

    Its first layer's MLP turns each token into the next one, so that this works with tied embeddings too; no byte of
    `answer` may come twice.
    """
    tokenizer = load_tokenizer(folder)
    chain = [*tokenizer.encode("\n" + answer), tokenizer.special_tokens["<|eot_id|>"]]
    assert len(set(chain)) == len(chain), f"{answer!r} repeats a token"
    tiny_llama(folder, **changes)
    model = LlamaForCausalLM.from_pretrained(folder)
    for name, tensor in model.state_dict().items():
        if not name.endswith("norm.weight"):
            tensor.zero_()
    mlp, embeddings = model.model.layers[0].mlp, model.model.embed_tokens.weight.data
    for place, token in enumerate(chain):
        embeddings[token, place] = 1.0
    for place, following in itertools.pairwise(range(len(chain))):
        mlp.gate_proj.weight.data[place, place] = mlp.up_proj.weight.data[place, place] = 1.0
        mlp.down_proj.weight.data[following, place] = 1.0
    model.lm_head.weight.data.copy_(embeddings.clone())
    model.save_pretrained(folder)
    return folder


def downloaded(folder: Path, answer: str = "", factor: float | None = None, **changes: object) -> Path:
    """Writes a base model, or with an answer an instruct model, with files and config.json as Meta's repositories."""
    llama3_1_tokenizer(folder, DATED if answer else None)
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    changes = {"max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, **settings, **changes}
    if answer:
        saying_llama(folder, answer, **changes)
    else:
        tiny_llama(folder, seed=1, **changes)
    (folder / "original").mkdir()
    (folder / "tokenizer.model").rename(folder / "original/tokenizer.model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["rope_parameters"]  # of transformers 5
    config |= {"rope_theta": 500_000.0, "rope_scaling": scaling(factor) if factor else None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
