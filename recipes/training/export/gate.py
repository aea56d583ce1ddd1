"""The gate of an export: what transformers or PEFT make of the written directory, beside the model that was trained.

One model is in memory at a time; of the first, the logits are kept.
"""

import gc
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from packaging.version import Version
from safetensors.torch import load_file

from data_prep.dialogue.chat_template import ChatTemplate
from data_prep.hf_directory import ModelDirectory
from data_prep.tokens.tokenizer import Tokenizer, load_tokenizer
from recipes.training.distributed import choose_device
from recipes.training.export.files import Read
from recipes.training.export.tokenizer import ExportError, chat_template, check_tokenizer, tokenizer_source
from recipes.training.model.decoder import Architecture
from recipes.training.model.opening import model_to_fill

GATES = ("transformers", "weights")
READ_BACK = "the weights were read back bit for bit; no other library was asked"
PROMPTS = (
    "대한민국의 수도는 어디인가요?",
    "물은 몇 도에서 끓나요? 짧게 답해 주세요.",
    "What is the capital of France?",
    "Name three colours.",
)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""Largest difference of logits, root mean square, in their standard deviations. Two implementations round to bf16 at
other places: of 32 layers with random weights the logits differ by 0.02."""
LEAD = 6
"""Tolerances by which a likeliest token leads the second where rounding cannot swap the two."""


@dataclass(frozen=True)
class Gate:
    """What the gate compares, and on which device.

    Attributes:
        folder: the written directory.
        tokenizer: that the run was given.
        template: of the chats, None of a base model.
        prompts: of the chats that must end; empty: none is held.
        max_new_tokens: that an answer may have.
        min_ended: share of the answers that must end.
        dtype: of the computation, float32 or bfloat16.
        device: cpu or cuda.
    """

    folder: Path
    tokenizer: Tokenizer
    template: ChatTemplate | None
    prompts: Sequence[str]
    max_new_tokens: int
    min_ended: float
    dtype: torch.dtype
    device: str


def missing_packages(gate: str, adapter: str) -> list[str]:
    """Returns a problem for what the gate needs and is not installed."""
    needed = ["transformers", *(["peft"] if adapter == "keep" else [])] if gate == "transformers" else []
    lacking = " ".join(name for name in needed if importlib.util.find_spec(name) is None)
    return [f"gate: transformers needs {lacking}; `pip install {lacking}`, or set gate=weights"] if lacking else []


def run_gate(cfg: DictConfig, trained: DictConfig, architecture: Architecture, read: Read, folder: Path) -> str:
    """Compares the directory with the trained model as the settings say; returns in words what was found.

    Args:
        cfg: `ExportConfig`.
        trained: configuration of the run.
        architecture: of the model.
        read: returns a parameter of the trained model by its torchtune name.
        folder: the directory, complete but for card and manifest.

    Raises:
        ExportError: as of `check_export`.
    """
    if cfg.gate == "weights":
        return READ_BACK
    base = trained.weights if cfg.adapter == "keep" else None
    precision = trained.precision if base else cfg.dtype
    gate = Gate(
        folder=folder,
        tokenizer=load_tokenizer(tokenizer_source(cfg, trained)),
        template=chat_template(cfg, trained),
        prompts=list(cfg.gate_prompts) if trained.get("chat_template") else [],
        max_new_tokens=cfg.gate_max_new_tokens,
        min_ended=cfg.gate_min_ended,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        device=choose_device(cfg.device),
    )
    return check_export(gate, architecture, read, base)


def check_export(gate: Gate, architecture: Architecture, read: Read, base: str | None = None) -> str:
    """Compares the tokenizer, the logits and the end of answers; returns in words what was found.

    Args:
        gate: of the directory, which is complete but for its manifest.
        architecture: of the model.
        read: returns a parameter of the trained model by its torchtune name.
        base: directory of the model that kept adapters belong to; None: the written directory is a whole model.

    Raises:
        ExportError: one of them differs; the message names the text, the ids and the tolerance.
    """
    texts = [ids[: architecture.max_seq_len] for ids in check_tokenizer(gate.folder, gate.tokenizer, gate.template)]
    if not base:
        _check_config(gate.folder, architecture)
    before = trained_logits(architecture, read, texts, gate)
    model = _open_adapters(gate, base) if base else _load_model(gate, gate.folder)
    difference, agreement = _compare(gate, before, _logits(model, texts, gate.device))
    told = (
        f"{'PEFT' if base else 'transformers'} gives the ids of the training, and logits that at "
        f"{sum(map(len, texts))} positions differ from the trained model's by {difference:.1e} of their standard "
        f"deviation, with the same likeliest token at {agreement:.1%}"
    )
    prompts = [gate.template.prompt([{"role": "user", "content": text}]) for text in gate.prompts if gate.template]
    return told + (f"; {_check_ends(gate, model, prompts, architecture.max_seq_len)}" if prompts else "")


@torch.inference_mode()
def trained_logits(
    architecture: Architecture, read: Read, texts: Sequence[Sequence[int]], gate: Gate
) -> list[torch.Tensor]:
    """Returns the trained model's logits of each text, (tokens, vocab), fp32, on the CPU; the model is let go of.

    Args:
        architecture: of the model.
        read: as of `check_export`.
        texts: token ids.
        gate: says dtype and device.
    """
    model = model_to_fill(architecture, torch.device(gate.device), gate.dtype)
    for name, parameter in model.named_parameters():
        parameter.copy_(read(name).to(gate.dtype))  # norms too: rounded, as the other library has them
    logits = _logits(model, texts, gate.device)
    del model
    gc.collect()
    return logits


@torch.inference_mode()
def _logits(model: Any, texts: Sequence[Sequence[int]], device: str) -> list[torch.Tensor]:
    found = [model(torch.tensor([list(ids)], device=device)) for ids in texts]
    return [(one if isinstance(one, torch.Tensor) else one.logits)[0].float().cpu() for one in found]


def _check_config(folder: Path, trained: Architecture) -> None:
    stated = Architecture.from_hf(ModelDirectory.open(folder).config, folder)
    if stated != trained:
        problem = f"config.json states {stated}; {trained} was trained; report this, with the run's config.yaml"
        raise ExportError(f"{folder}: {problem}")


def _load_model(gate: Gate, folder: Path) -> Any:
    import transformers

    name = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, **{name: gate.dtype}
    )
    model, info = loaded
    told = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys") if info[kind]}
    if told:
        raise ExportError(
            f"{folder}: transformers reports {told}; none are expected; report this, with the directory's config.json"
        )
    return model.to(gate.device).eval()


def _open_adapters(gate: Gate, base: str) -> Any:
    """Returns PEFT's model over the base, with every tensor of the written file in it."""
    from peft import PeftModel, get_peft_model_state_dict

    model = PeftModel.from_pretrained(_load_model(gate, Path(base)), str(gate.folder)).eval()
    written = load_file(gate.folder / "adapter_model.safetensors")
    found = get_peft_model_state_dict(model, save_embedding_layers=False)  # True asks the Hub about the base
    wrong = sorted(written.keys() ^ found.keys())
    wrong += [name for name in written if name in found and not torch.equal(found[name].cpu().float(), written[name])]
    if wrong:
        raise ExportError(
            f"{gate.folder}: PEFT has other values in {len(wrong)} tensors, {wrong[0]} first; those of the file are "
            "expected; use the version of peft that the extra names"
        )
    return model


def _compare(gate: Gate, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Returns the largest difference of a text's logits, and the share of positions with the same likeliest token.

    The difference is a root mean square over positions and vocabulary, in standard deviations of the logits. Where the
    trained model's first token leads by `LEAD` tolerances, the other's must be the same.
    """
    tolerance, largest, same, count = TOLERANCE[gate.dtype], 0.0, 0, 0
    for number, (ours, theirs) in enumerate(zip(before, after, strict=True)):
        spread = ours.std()
        difference = ((theirs - ours).square().mean().sqrt() / spread).item()
        first, second = ours.topk(2).values.T
        is_same = ours.argmax(-1) == theirs.argmax(-1)
        swapped = int(((first - second > LEAD * tolerance * spread) & ~is_same).sum())
        if not difference <= tolerance or swapped:  # NaN is not within it either
            raise ExportError(
                f"{gate.folder}: the logits of text {number} differ by {difference:.2g} standard deviations from the "
                f"trained model's, {swapped} likeliest tokens by more than rounding; {tolerance:g} is the limit in "
                f"{gate.dtype}; report this, with the directory's config.json"
            )
        largest, same, count = max(largest, difference), same + int(is_same.sum()), count + len(is_same)
    return largest, same / count


@torch.inference_mode()
def _check_ends(gate: Gate, model: Any, prompts: Sequence[list[int]], max_seq_len: int) -> str:
    """Continues all prompts at once, greedily; checks that enough of the answers end with an id of the eos list."""
    width = max(map(len, prompts))
    room = max(1, min(gate.max_new_tokens, max_seq_len - width))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts], device=gate.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=gate.device)
    listed = model.generation_config.eos_token_id
    ends = listed if isinstance(listed, list) else [listed]
    greedy: Mapping[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=room, pad_token_id=ends[0], **greedy)[
        :, width:
    ].tolist()
    endless = [number for number, answer in enumerate(out) if not set(answer) & set(ends)]
    told = f"{len(out) - len(endless)} of {len(out)} answers end with one of {ends} within {room} tokens"
    if len(out) - len(endless) < gate.min_ended * len(out):
        shown = "\n".join(f"  {gate.prompts[n]!r}: {gate.tokenizer.decode(out[n])[:120]!r}" for n in endless)
        raise ExportError(
            f"{gate.folder}: {told}; {gate.min_ended:.0%} must; train longer, export with the chat template of the "
            f"training, or allow it by gate_min_ended=0\n{shown}"
        )
    return told
