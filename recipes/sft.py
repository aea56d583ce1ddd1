"""Instruction tuning on chat examples with loss on the assistant's turns, in the loop of CPT.

    tune run --nproc_per_node 8 recipes/sft.py --config configs/sft/llama3_8b_ko.yaml

`data` may mix token shards in, to hold what pretraining taught; `--plan` prints what the run would
need and read.
"""

from dataclasses import dataclass

from omegaconf import DictConfig

from configs.loader import one_of, parse
from recipes.training.data.plan import show_plan
from recipes.training.data.sources import open_data
from recipes.training.loop import run_training
from recipes.training.settings import TrainSettings, check_settings


@dataclass
class SftConfig(TrainSettings):
    """Full fine-tuning; `data` names chat examples and, if wanted, token shards."""

    chat_template: str = "weights"
    """`weights`: the one in the weights' tokenizer_config.json; `llama3`: Llama-3-Instruct's."""
    over_long: str = "error"
    """An example of more than seq_len tokens: `error`, or `drop` it."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    problems = check_settings(cfg) + one_of(cfg, "chat_template", ["weights", "llama3"])
    problems += one_of(cfg, "over_long", ["error", "drop"])
    if cfg.weights is None:
        problems.append("weights: no value; SFT starts from a Hugging Face directory with its tokenizer")
    return problems


@parse(SftConfig, check)
def main(cfg: DictConfig) -> int:
    """Fine-tunes on chat examples."""
    if cfg.plan:
        return show_plan(cfg, lambda: open_data(cfg))
    return run_training(cfg, "sft", open_data(cfg))


if __name__ == "__main__":
    main()
