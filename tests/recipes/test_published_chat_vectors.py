"""The published chat vectors, scaled down: a Korean base that chats, and a vision model that knows Korean."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from data_prep.dialogue.chat_template import LLAMA3
from tests.recipes.scaled import (
    ANSWER,
    META,
    check_answer,
    check_chat_vector,
    check_report,
    said_by,
    scale,
    weights,
    write_checkpoints,
)
from tests.support import tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
KOREAN = "checkpoints/Llama-3-KoEn-8B"
LLAVA = "checkpoints/llava-llama-3-8b-transformers"
PREFIX = "language_model."


def test_a_korean_base_chats_without_training(tmp_path):
    pipe = scale("llama3_chat_vector_kor", tmp_path / "work")
    write_checkpoints(pipe.folder)
    write_korean_base(pipe.folder)
    pipe.run()
    check_chat_vector(pipe, pipe.output / "models/chat_vector", KOREAN)
    check_answer(pipe, "models/chat_vector")
    sweep = json.loads((pipe.output / "sweep/sweep.json").read_text(encoding="utf-8"))
    assert set(sweep["scored"]) == {"0.0", "0.25", "0.5", "0.75", "1.0", "1.25"}
    card = (pipe.output / "models/chat_vector/README.md").read_text(encoding="utf-8")
    assert not [path for path in (KOREAN, *META) if path not in card]
    check_report(pipe, "Korean base", "+ chat vector", ANSWER)


def test_the_language_model_of_a_vision_model_gets_the_korean(tmp_path):
    pipe = scale("llava_llama3_chat_vector_kor", tmp_path / "work")
    write_checkpoints(pipe.folder)
    write_korean_base(pipe.folder)
    write_llava(pipe.folder)
    pipe.run()
    before, after = weights(pipe.folder / LLAVA), weights(pipe.output / "models/chat_vector")
    plus, minus = weights(pipe.folder / KOREAN), weights(pipe.folder / META[1])
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        plain = name.removeprefix(PREFIX)
        rows = len(plus[plain]) if plain in plus else 0  # none of vision's; the last ones are <image> and padding
        if rows:
            exact = before[name][:rows].float() + (plus[plain].float() - minus[plain].float())
            assert torch.equal(tensor[:rows], exact.to(tensor.dtype)), name
        assert torch.equal(tensor[rows:], before[name][rows:]), name
    assert sum(name.startswith(PREFIX) for name in after) == len(plus)
    model = LlavaForConditionalGeneration.from_pretrained(pipe.output / "models/chat_vector", dtype="float32")
    assert said_by(model, pipe.output / "models/chat_vector") == f"{ANSWER}<|eot_id|>"
    assert (pipe.output / "models/chat_vector/preprocessor_config.json").is_file()
    card = (pipe.output / "models/chat_vector/README.md").read_text(encoding="utf-8")
    assert not [path for path in (LLAVA, KOREAN, META[1]) if path not in card]
    check_report(pipe, "Chat vector", "chat_vector")


def write_korean_base(folder: Path) -> None:
    """Writes a model a little away from the base, as a Korean base is."""
    korean, base = tiny_tokenizer(folder / KOREAN), folder / META[1]
    model = LlamaForCausalLM.from_pretrained(base, dtype="bfloat16")
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    model.save_pretrained(korean)


def write_llava(folder: Path) -> None:
    """Writes a small LLaVA around the small instruct model, with rows for two tokens more and for padding."""
    target, instruct = tiny_tokenizer(folder / LLAVA), folder / META[0]
    stated = json.loads((instruct / "config.json").read_text(encoding="utf-8"))
    text = LlamaConfig(**stated | {"vocab_size": 520})
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=512, pad_token_id=513)
    torch.manual_seed(9)
    LlavaForConditionalGeneration(config).half().save_pretrained(target)
    tensors = weights(target)
    for name, tensor in weights(instruct).items():
        tensors[PREFIX + name][: len(tensor)] = tensor.half()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((target / "tokenizer.json").read_text(encoding="utf-8"))
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] += [
        {"id": 512 + n, "content": token, **marks} for n, token in enumerate(["<image>", "<pad>"])
    ]
    (target / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (target / "chat_template.jinja").write_text(LLAMA3, encoding="utf-8")
    (target / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
