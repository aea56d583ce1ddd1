"""The measured processes of train_step.py and gpu.py: `python train.py SETTINGS.json` trains and writes its steps.

Every method trains the same weights on the same packed tokens, and none saves. Where a peer cannot do as asked it is
patched here, at run time, and the patch is named beside it.
"""

import gc
import importlib.util
import itertools
import json
import os
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
IGNORE = -100
Settings = dict[str, Any]


class Clock:
    """What each step took, in seconds of the wall and of the process's cores, and its loss."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.marks: list[tuple[float, float]] = []
        self.losses: list[float] = []

    def start(self) -> None:
        """Begins the first step, if that has not begun yet."""
        if not self.marks:
            self.mark()

    def mark(self) -> None:
        """Ends a step."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    def report(self, warm_up: int) -> Settings:
        """Returns the figures of the steps behind the first `warm_up`."""
        import torch

        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(self.marks)][warm_up:]
        facts: Settings = {"seconds": [wall for wall, _ in steps], "core_seconds": [core for _, core in steps]}
        facts |= {"losses": self.losses, "peak_rss": _peak_rss(), "threads": torch.get_num_threads()}
        if self.device == "cuda":
            facts |= {"peak_cuda": torch.cuda.max_memory_allocated(), "gpu": torch.cuda.get_device_name()}
        return facts


def ours(settings: Settings, clock: Clock) -> None:
    """Runs recipes/cpt.py as a user does, without writing the last checkpoint."""
    sys.path.insert(0, str(ROOT))
    import recipes.training.loop as loop
    from recipes.cpt import main

    step = loop.train_step

    def timed(*args: Any, **kwargs: Any) -> Any:
        clock.start()
        result = step(*args, **kwargs)
        clock.mark()
        clock.losses.append(result.metrics["train/loss"])
        return result

    loop.train_step = timed  # type: ignore[assignment]
    loop.CheckpointStore.save = lambda *args: None  # type: ignore[assignment, method-assign]
    if settings["random_weights"]:
        loop.weights.initialise = lambda model, seed: _draw(model.named_parameters())  # type: ignore[assignment]
    sys.argv = ["cpt", "--config", settings["config"], *settings["overrides"]]
    _run(main)


def stock(settings: Settings, clock: Clock) -> None:
    """Runs torchtune 0.6.1's full_finetune_distributed recipe on packs that are made already."""
    import torchtune
    from omegaconf import OmegaConf
    from torchtune import training

    sys.modules["train_parts"] = sys.modules[__name__]  # where the configuration finds the parts below
    _TorchtuneParts.clock, _TorchtuneParts.settings = clock, settings
    path = Path(torchtune.__file__).parent.parent / "recipes" / "full_finetune_distributed.py"
    spec = importlib.util.spec_from_file_location("stock_recipe", path)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    if settings["device"] == "cpu":
        # the two patches without which "Training on CPU is not supported": torch.cpu has no cache and no such figures
        training.cleanup_before_training = gc.collect
        training.get_memory_stats, training.log_memory_stats = (lambda device: {}), (lambda stats: None)
    client = recipe.CheckpointClient
    client.save_checkpoint = lambda *args, **kwargs: None
    if settings["random_weights"]:
        client.load_base_checkpoint = lambda self: {training.MODEL_KEY: _random_state(settings)}
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=settings["port"])
    run = recipe.FullFinetuneRecipeDistributed(cfg := OmegaConf.create(_stock_config(settings)))
    run.setup(cfg)
    clock.start()
    run.train()
    run.cleanup()


def hugging_face(settings: Settings, clock: Clock) -> None:
    """Runs transformers' Trainer; it tells documents apart by their positions."""
    import torch
    import transformers

    on_gpu, shape = settings["device"] == "cuda", settings["shape"]
    if settings["random_weights"]:
        # weights in bf16 beside a bf16 optimizer: fp32 ones of 8B do not fit one GPU
        with torch.device(settings["device"]):
            torch.set_default_dtype(torch.bfloat16)
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, attn_implementation="sdpa"))
            torch.set_default_dtype(torch.float32)
    else:
        model = transformers.LlamaForCausalLM.from_pretrained(settings["weights"], attn_implementation="sdpa")
    liger = settings["liger"] and importlib.util.find_spec("liger_kernel") is not None
    rows = _rows(settings)
    items = [
        {"input_ids": row["tokens"], "labels": row["labels"]}
        | ({"position_ids": row["input_pos"]} if settings["packed"] else {})
        for row in rows
    ]

    class Log(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.mark()

        def on_log(self, args: Any, state: Any, control: Any, logs: Settings, **kwargs: Any) -> None:
            if "loss" in logs:
                clock.losses.append(float(logs["loss"]))

    arguments = transformers.TrainingArguments(
        output_dir=settings["folder"], use_cpu=not on_gpu, max_steps=settings["steps"],
        bf16=settings["dtype"] == "bf16",
        per_device_train_batch_size=settings["micro_batch"], gradient_accumulation_steps=settings["accumulate"],
        learning_rate=settings["lr"], lr_scheduler_type="constant", weight_decay=0.1, adam_beta2=0.95,
        max_grad_norm=1.0, optim="adamw_torch_fused", logging_steps=1, save_strategy="no", report_to=[],
        gradient_checkpointing=settings["activation_checkpointing"], use_liger_kernel=bool(liger), disable_tqdm=True,
        remove_unused_columns=False, torch_compile=settings["compile"], dataloader_pin_memory=on_gpu,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=items, callbacks=[Log()])
    sampler = torch.utils.data.SequentialSampler
    trainer._get_train_sampler = lambda *args: sampler(items)  # it would shuffle
    trainer.train()


class _TorchtuneParts:
    clock: Clock
    settings: Settings


class StepLog:
    """Stands for a metric logger of torchtune."""

    def log_config(self, config: object) -> None:
        """Ignores it."""

    def log_dict(self, payload: Settings, step: int) -> None:
        """Ends a step."""
        _TorchtuneParts.clock.mark()
        _TorchtuneParts.clock.losses.append(float(payload["loss"]))

    def close(self) -> None:
        """Does nothing."""


class NoTokenizer:
    """Stands for a tokenizer of torchtune: the tokens are made already."""

    pad_id = 0


def packs(tokenizer: NoTokenizer, packed: bool) -> list[Settings]:
    """Stands for a dataset of torchtune."""
    return _rows(_TorchtuneParts.settings)


def _stock_config(settings: Settings) -> Settings:
    shape, folder = settings["shape"], settings["folder"]
    model = {
        "_component_": "torchtune.models.llama3.llama3", "vocab_size": shape["vocab_size"],
        "num_layers": shape["num_hidden_layers"], "num_heads": shape["num_attention_heads"],
        "num_kv_heads": shape["num_key_value_heads"], "embed_dim": shape["hidden_size"],
        "intermediate_dim": shape["intermediate_size"], "max_seq_len": shape["max_position_embeddings"],
        "rope_base": int(shape["rope_theta"]), "norm_eps": shape["rms_norm_eps"],
    }  # fmt: skip
    checkpointer = {
        "_component_": "torchtune.training.FullModelHFCheckpointer", "checkpoint_dir": settings["weights"],
        "checkpoint_files": ["model.safetensors"], "output_dir": folder, "model_type": "LLAMA3",
    }  # fmt: skip
    # what its configs/llama3/8B_full.yaml says, but for the data, and a gradient norm as the others have it
    return {
        "output_dir": folder, "model": model, "checkpointer": checkpointer, "device": settings["device"],
        "dtype": settings["dtype"], "seed": 0, "shuffle": False, "epochs": 1, "resume_from_checkpoint": False,
        "tokenizer": {"_component_": "train_parts.NoTokenizer"},
        "dataset": {"_component_": "train_parts.packs", "packed": True},
        "batch_size": settings["micro_batch"], "gradient_accumulation_steps": settings["accumulate"],
        "max_steps_per_epoch": settings["steps"], "clip_grad_norm": 1.0, "compile": settings["compile"],
        "optimizer": {
            "_component_": "torch.optim.AdamW", "lr": settings["lr"], "fused": True, "betas": [0.9, 0.95],
            "weight_decay": 0.1,
        },
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "enable_activation_checkpointing": settings["activation_checkpointing"],
        "enable_activation_offloading": False, "custom_sharded_layers": ["tok_embeddings", "output"],
        "metric_logger": {"_component_": "train_parts.StepLog"}, "log_every_n_steps": 1,
    }  # fmt: skip


def _rows(settings: Settings) -> list[Settings]:
    """Returns packed sequences in the order of the steps, in torchtune's terms."""
    import numpy as np
    import torch

    stored = np.load(settings["rows"])
    rows = []
    for tokens, documents in zip(stored["tokens"], stored["documents"], strict=True):
        is_start = np.concatenate([[True], documents[1:] != documents[:-1]])
        starts = np.flatnonzero(is_start)
        lengths = np.diff([*starts.tolist(), len(tokens)])
        row = {
            "tokens": tokens,
            "labels": np.where(is_start, IGNORE, tokens),  # no target across documents; they shift by themselves
            "input_pos": np.arange(len(tokens)) - np.repeat(starts, lengths),
            "seq_lens": lengths,
        }
        rows.append({name: torch.from_numpy(values) for name, values in row.items()})
    return rows


def _random_state(settings: Settings) -> Settings:
    import torch
    from omegaconf import OmegaConf
    from torchtune import config

    with torch.device("meta"):
        model = config.instantiate(OmegaConf.create(_stock_config(settings)["model"]))
    dtype = torch.bfloat16 if settings["dtype"] == "bf16" else torch.float32
    state = {name: torch.empty(p.shape, dtype=dtype, device=settings["device"]) for name, p in model.named_parameters()}
    _draw(state.items())
    return state


def _draw(parameters: Any) -> None:
    """Fills parameters on their device: a CPU draws 8 billion normal numbers in a minute, a GPU in none.

    A parameter's values follow from its name, so that ours and torchtune's models are the same.
    """
    import torch

    with torch.no_grad():
        for name, parameter in parameters:
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            plain = name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")
            generator = torch.Generator(local.device).manual_seed(zlib.crc32(plain.encode()))
            if local.dim() == 1:
                local.fill_(1.0)
            else:  # in bf16 for all, a part at a time
                for part in local.split(8192):
                    part.copy_(torch.randn(part.shape, generator=generator, device=local.device).bfloat16() * 0.02)


def _peak_rss() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def _run(main: Callable[[], object]) -> None:
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise


def measure(settings: Settings) -> None:
    """Trains, and writes the figures to `out`."""
    clock = Clock(settings["device"])
    METHODS[settings["method"]](settings, clock)
    partial = Path(settings["out"] + ".tmp")
    partial.write_text(json.dumps(clock.report(settings["warm_up"])))
    partial.replace(settings["out"])


METHODS: dict[str, Callable[[Settings, Clock], None]] = {"ours": ours, "stock": stock, "hugging_face": hugging_face}

if __name__ == "__main__":
    measure(json.loads(Path(sys.argv[1]).read_text()))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the group
