"""Instruction tuning on chat examples with loss on the assistant's turns, in the loop of CPT.

    tune run --nproc_per_node 8 recipes/sft.py --config configs/sft/llama3_8b_ko.yaml

`data` may mix token shards in, to hold what pretraining taught; `--show 3` prints three examples with their loss mask,
what was dropped and why, and lengths; `--plan` prints what the run would need and read.
"""

from dataclasses import dataclass, field
from datetime import date

from omegaconf import DictConfig

from configs.entry import parse
from configs.loader import one_of
from data_prep.dialogue.named_templates import name_problems
from recipes.training.data.chat_examples import POLICIES, TRAIN_ON
from recipes.training.data.plan import show_plan
from recipes.training.data.show import show_examples
from recipes.training.data.sources import open_data
from recipes.training.loop import run_training
from recipes.training.settings import TrainSettings, check_settings


@dataclass
class SftConfig(TrainSettings):
    """Full fine-tuning; `data` names chat examples and, if wanted, token shards."""

    chat_template: str = "weights"
    """`weights`: the one beside the weights, `weights:NAME` of several; llama3, llama2, kullm, alpaca, chatml; or the
    path of a .jinja file."""
    template_date: str = "2024-07-26"
    """Today, YYYY-MM-DD, for templates that write it: a run that goes on tomorrow must read the same."""
    train_on: str = "all"
    """Which answers of a dialogue are learnt: `all`, or the `last`."""
    over_long: str = "error"
    """An example of more than seq_len tokens: `error`, `drop` it, or `split` it between turns."""
    empty_answers: str = "error"
    """An example with an empty answer: `error`, or `drop` it."""
    special_tokens: str = "error"
    """An example whose text holds a special token of the tokenizer: `error`, or `drop` it."""
    invalid: str = "error"
    """An example that is no dialogue for any other reason: `error`, or `drop` it."""
    show: int = field(default=0, metadata={"flag": "N"})
    """Print that many examples of each source, their ledger and lengths, and end; also as --show N. Needs no weights
    but their tokenizer."""
    show_ids: bool = False
    """Whether `show` writes the id behind each piece."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    problems = check_settings(cfg) + [f"chat_template: {problem}" for problem in name_problems(cfg.chat_template)]
    problems += one_of(cfg, "train_on", TRAIN_ON)
    problems += [problem for key, values in POLICIES.items() for problem in one_of(cfg, key, values)]
    if (cfg.over_long, cfg.train_on) == ("split", "last"):
        problems.append("over_long: split with train_on=last; only a dialogue's last part would learn; change one")
    if cfg.show < 0:
        problems.append(f"show: {cfg.show} is negative; set it to 0 or more")
    try:
        date.fromisoformat(cfg.template_date)
    except ValueError as error:
        problems.append(f"template_date: {cfg.template_date!r}: {error}; write it as YYYY-MM-DD")
    if cfg.weights is None:
        problems.append("weights: no value; SFT starts from a Hugging Face directory with its tokenizer")
    return problems


@parse(SftConfig, check)
def main(cfg: DictConfig) -> int:
    """Fine-tunes on chat examples."""
    if cfg.show:
        return show_examples(cfg)
    if cfg.plan:
        return show_plan(cfg, lambda: open_data(cfg))
    return run_training(cfg, "sft", open_data(cfg))


if __name__ == "__main__":
    main()
