"""How each command of the READMEs is run by tests/recipes/test_readme_commands.py, and why some are not."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Run:
    """How a command is run, and what must come of it."""

    makes: str = ""
    """File or folder that it must write."""
    says: str = ""
    """Words that it must print."""
    add: str = ""
    """Words behind the command: smaller numbers, addresses of this machine."""
    instead: dict[str, str] = field(default_factory=dict)
    """Words of the command that are replaced."""


TRAINS = "device=cpu precision=fp32"
WIDE = "weights=checkpoints/Wide-Llama model.intermediate_dim=192"  # NF4 quantises in blocks of 64
CHAT = "python -m recipes.chat --config configs/chat.yaml"
CPT_8B = "tune run --nproc_per_node 8 recipes/cpt.py --config configs/cpt/llama3_8b_ko.yaml"
SFT_8B = "tune run --nproc_per_node 8 recipes/sft.py --config configs/sft/llama3_8b_ko.yaml"
OWN_SFT = "data=dialogues.jsonl weights=checkpoints/Meta-Llama-3-8B-Instruct"
LLAMA3_TOKENIZER = "checkpoints/Meta-Llama-3-8B/original/tokenizer.model"
LLAMS = "--pipeline configs/pipelines/llama3_llams_8b.yaml"
WAKTAVERSE = "configs/sft/waktaverse_llama3_8b_qlora.yaml"

RUNS: dict[str, dict[str, Run]] = {
    "corpus": {
        "python -m data_prep download --wiki kowiki --date 20240520 --out out/corpus/dumps/kowiki": Run(
            "out/corpus/dumps/kowiki/kowiki-20240520-pages-articles-multistream.xml.bz2"
        ),
        "python -m data_prep clean --dump kowiki.xml.bz2 --out out/corpus/documents-ko": Run(
            "out/corpus/documents-ko/manifest.json"
        ),
        "python -m data_prep clean --documents corpus.jsonl.zst --lang ko --out out/corpus/documents-web": Run(
            "out/corpus/documents-web/report.html"
        ),
        "python -m data_prep dedup --documents out/corpus/documents-web --out out/corpus/dedup-web": Run(
            "out/corpus/dedup-web/manifest.json"
        ),
        f"python -m data_prep tokens --documents out/corpus/dedup-web --tokenizer {LLAMA3_TOKENIZER} "
        "--out out/corpus/tokens-web": Run("out/corpus/tokens-web/manifest.json"),
        "python -m data_prep inspect out/corpus/tokens-web --doc 0": Run(says="<|begin_of_text|>"),
        "python -m data_prep dedup --documents out/corpus/documents-ko out/corpus/documents-web "
        "--out out/corpus/dedup-ko": Run("out/corpus/dedup-ko/clusters.jsonl.zst"),
        f"python -m data_prep tokens --documents out/corpus/dedup-ko --tokenizer {LLAMA3_TOKENIZER} "
        "--out out/corpus/tokens-ko": Run("out/corpus/tokens-ko/manifest.json"),
        "python -m data_prep stats out/corpus/tokens-ko": Run(says="kowiki"),
        "python -m data_prep stats out/corpus/tokens-ko --plot out/corpus/lengths.png": Run("out/corpus/lengths.png"),
        "python -m data_prep inspect out/corpus/tokens-ko --doc 0 --tokens 0:100": Run(says="<|begin_of_text|>"),
        "python -m data_prep extend-vocab --tokenizer checkpoints/Llama-2-7b-hf --documents out/corpus/dedup-ko "
        "--num-pieces 14336 --out out/tokenizer": Run("out/tokenizer/extension.json", instead={"14336": "64"}),
        "python -m data_prep download --wiki kowiki --date 20240520 --out dumps": Run(
            "dumps/kowiki-20240520-pages-articles-multistream.xml.bz2"
        ),
        "python -m data_prep clean --dump dumps/kowiki-20240520-pages-articles-multistream.xml.bz2 "
        "--out out/corpus/documents-ko": Run(
            "out/again/manifest.json", instead={"out/corpus/documents-ko": "out/again"}
        ),
        "bzcat dump.bz2 | python -m data_prep clean --dump - --lang ko --out DIR": Run("DIR/manifest.json"),
        "python -m data_prep clean --documents folder/of/parquet --text-field content "
        "--out out/corpus/documents-books": Run("out/corpus/documents-books/manifest.json"),
        "python -m data_prep cluster --config configs/data/cluster_kowiki.yaml --executor slurm": Run(
            "out/cluster/kowiki/tokens", instead={"slurm": "local"}
        ),
    },
    "road": {
        "python -m recipes.pipeline --config configs/pipelines/kowiki_corpus.yaml": Run("out/corpus/lengths.png"),
        "python -m recipes.cpt --config configs/cpt/llama3_8b_ko.yaml --plan": Run(says="fits in 80"),
        CPT_8B: Run("out/llama3_8b_ko/cpt/finished.json", add=TRAINS),
        "tune run --nproc_per_node 1 recipes/export.py --config configs/export/llama3_8b_ko.yaml": Run(
            "out/llama3_8b_ko/models/base/model.safetensors"
        ),
        "tune run --nproc_per_node 1 recipes/chat_vector.py --config configs/chat_vector/llama3_8b_ko.yaml": Run(
            "out/llama3_8b_ko/models/chat_vector/README.md"
        ),
        "python -m data_prep dialogue generate --config configs/data/dialogue_topics.yaml model=NAME "
        "output_dir=out/dialogues": Run("out/dialogues/pairs.jsonl", add="base_url=$ENDPOINT dialogues=4"),
        "python -m data_prep dialogue augment --pairs out/dialogues/pairs.jsonl --out out/corpus/dialogues.jsonl": Run(
            "out/corpus/dialogues.jsonl"
        ),
        SFT_8B: Run("out/llama3_8b_ko/sft/finished.json", add=TRAINS),
    },
    "own data": {
        f"{CPT_8B} data=out/corpus/tokens-web output_dir=out/mine/cpt": Run(
            "out/mine/cpt/finished.json", add=TRAINS, instead={"out/corpus/tokens-web": "out/demo/tokens/ko"}
        ),
        "python -m recipes.cpt --config configs/cpt/llama3_8b_ko.yaml weights=checkpoints/My-Llama model=null "
        "data=out/corpus/tokens-web --plan": Run(
            says="epochs", instead={"out/corpus/tokens-web": "out/demo/tokens/ko"}
        ),
        f"python -m recipes.sft --config configs/sft/llama3_8b_ko.yaml {OWN_SFT} --show 3": Run(says="learnt"),
        f"{SFT_8B} {OWN_SFT} output_dir=out/mine/sft": Run("out/mine/sft/finished.json", add=TRAINS),
        "tune run --nproc_per_node 1 recipes/export.py --config configs/export/llama3_8b_ko.yaml run=out/mine/sft "
        "output_dir=out/mine/models/sft": Run("out/mine/models/sft/model.safetensors"),
        "touch out/mine/cpt/stop": Run("out/mine/cpt/stop"),
        "torchrun --nproc_per_node 8 -m slurm.preflight --config configs/cpt/llama3_8b_ko.yaml": Run(
            says="preflight", instead={"8": "2"}, add="data=out/demo/tokens/ko device=cpu"
        ),
    },
    "demo": {
        f'{CHAT} model=out/demo/models/sft prompt="안녕하세요?"': Run(says="Seoul."),
        "tune run --nproc_per_node 1 recipes/evaluate.py --config configs/evaluate/demo.yaml": Run(
            "out/demo/report.json"
        ),
        "python -m recipes.training.which_documents --run out/demo/runs/cpt --step 10": Run(
            says="<|begin_of_text|>", instead={"10": "3"}
        ),
        "python -m recipes.evaluation.report --out report.html --markdown report.md out/demo/report.json "
        "out/demo/runs/cpt": Run("report.html"),
        "python -m recipes.evaluate_run --config configs/evaluate_run/demo.yaml --watch": Run(
            "out/demo/runs/cpt/retention.md"
        ),
        "python -m recipes.export --config configs/export/demo.yaml run=out/demo/runs/cpt checkpoint=best "
        "output_dir=out/demo/models/best": Run("out/demo/models/best/model.safetensors"),
        "python -m recipes.chat --config configs/chat/compare.yaml models.before=out/demo/models/chat_vector "
        "models.after=out/demo/models/sft output_dir=out/compared": Run(
            "out/compared/comparison.md", add="max_new_tokens=12"
        ),
        f'{CHAT} model=out/demo/models/sft prompt="안녕하세요?" temperature=0.6 top_p=0.9': Run(),
        "python -m recipes.sweep --config configs/sweep/demo.yaml": Run(
            "out/demo/sweep/sweep.png", add="scales=[0.5,1.0]"
        ),
    },
    "adapters": {
        f"python -m recipes.sft --config {WAKTAVERSE} --plan": Run(
            says="fits in 16", add=f"data=dialogues.jsonl {WIDE}"
        ),
        f"tune run --nproc_per_node 1 recipes/sft.py --config {WAKTAVERSE}": Run(
            "out/waktaverse_llama3_8b_qlora/sft/finished.json", add=f"data=dialogues.jsonl {WIDE} {TRAINS}"
        ),
        "python -m recipes.export --config configs/export/waktaverse_llama3_8b_qlora.yaml": Run(
            "out/waktaverse_llama3_8b_qlora/models/instruct/model.safetensors"
        ),
        "python -m recipes.export --config configs/export/waktaverse_llama3_8b_qlora.yaml adapter=keep "
        "output_dir=out/adapters": Run("out/adapters/adapter_model.safetensors"),
    },
    "the real vocabulary": {
        'TOKENIZER=$(python -c "import llama_models, pathlib; '
        "print(pathlib.Path(llama_models.__path__[0]) / 'llama3/tokenizer.model')\")": Run(),
        "python -m data_prep clean --dump kowiki-pages-articles-multistream.xml.bz2 --out out/real/documents": Run(
            "out/real/documents/manifest.json", instead={"kowiki-pages-articles-multistream.xml.bz2": "dump.bz2"}
        ),
        "python -m data_prep tokens --documents out/real/documents --tokenizer $TOKENIZER --out out/real/tokens": Run(
            "out/real/tokens/manifest.json"
        ),
        "tune run --nproc_per_node 2 recipes/cpt.py --config configs/cpt/tiny_llama3_vocabulary.yaml "
        "data=out/real/tokens": Run(
            "out/real/cpt/finished.json",
            add="model.vocab_size=128256 seq_len=128 global_batch_tokens=256 steps=2",
        ),
    },
    "cluster": {
        "cp configs/slurm/default.yaml cluster.yaml": Run("cluster.yaml"),
        'python -m recipes.cpt --config configs/cpt/llama3_llams_8b.yaml --plan "estimate.world_sizes=[8,16]"': Run(
            says="fits in 80", add="data=out/demo/tokens/ko"
        ),
        f"python -m slurm.submit {LLAMS} --cluster cluster.yaml --dry-run": Run(says="sbatch --parsable"),
        f"python -m slurm.submit {LLAMS} --dry-run": Run(says="--dependency=afterok"),
    },
}
"""The commands by what they need of one another, each group in an order in which they can run."""

SLURM = "needs a running Slurm; tests/slurm/ and tests/unit/slurm/ run it"
CI = "run by .ci/run"
FIGURES = "measures for minutes; the table beside it holds what it printed"
MODELS = "downloads a model whose licence a person has to accept"
SERVED = "asks a server that runs; tests/unit/evaluation/test_serving.py asks one"
PLANNED = "tests/unit/test_readme.py compares what it prints with the table"
NOT_RUN = {
    "make demo": CI,
    "make test": CI,
    "make install": CI,
    "make lint": CI,
    "make test-slow": CI,
    "make PYTHON=/path/to/python3.11 demo": CI,
    "source .venv/bin/activate && export PYTHONPATH=$PWD": "the tests' environment is that already",
    "export PYTHONPATH=$PWD": "the tests' environment is that already",
    "export GEMINI_API_KEY=...": "sets a variable",
    "hf download meta-llama/Meta-Llama-3-8B --local-dir checkpoints/Meta-Llama-3-8B": MODELS,
    "hf download meta-llama/Meta-Llama-3-8B-Instruct --local-dir checkpoints/Meta-Llama-3-8B-Instruct": MODELS,
    f"python -m slurm.submit {LLAMS} --cluster cluster.yaml": SLURM,
    f"python -m slurm.submit {LLAMS} --cluster mine.yaml [vars.date=20240520]": SLURM,
    f"python -m slurm.status {LLAMS}": SLURM,
    f"python -m slurm.cancel {LLAMS}": SLURM,
    "sbatch --nodes 2 --gpus-per-node 8 slurm/cpt.sbatch --config configs/cpt/llama3_8b_ko.yaml": SLURM,
    "sbatch --gpus-per-node 1 slurm/evaluate_run.sbatch --config configs/evaluate_run/llama3_8b_ko.yaml --watch": SLURM,
    "python -m slurm.checkpoint_jobs --config configs/evaluate_run/llama3_8b_ko.yaml --cluster mine.yaml": SLURM,
    "pytest tests/slurm -m slow": CI,
    f'{CHAT} model=out/llama3_llams_8b/models/instruct prompt="안녕하세요?"': "the demo's chat with another model",
    "python -m recipes.pipeline --config configs/pipelines/llama3_llams_8b.yaml": (
        "tests/recipes/test_published_models.py runs it"
    ),
    "python -m recipes.harness --config configs/harness/korean.yaml models.mine=out/llama3_8b_ko/models/sft": (
        "downloads its tasks; tests/recipes/test_harness.py runs it over local ones"
    ),
    "python -m recipes.chat --config configs/chat.yaml model=out/demo/models/sft --serve": (
        "a server that does not end; tests/unit/evaluation/test_serving.py runs one"
    ),
    "python -m recipes.cpt --config configs/cpt/llama3_70b_ko.yaml --plan": PLANNED,
    "python -m recipes.cpt --config configs/cpt/llama3_2_3b_ko.yaml --plan": PLANNED,
    "python -m recipes.cpt --config configs/cpt/llama3_2_1b_ko.yaml --plan": PLANNED,
    "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' "
    """-d '{"messages": [{"role": "user", "content": "안녕하세요?"}]}'""": SERVED,
    "python -m recipes.harness --config configs/harness/korean.yaml backend=endpoint "
    'base_url=http://127.0.0.1:8000/v1/completions tokenizer=out/demo/models/sft "models={sft: sft}"': SERVED,
    'pip install "lm-eval[api]"': "installs",
    "python -m recipes.extend --config configs/extend/llama2_ko_7b.yaml": "tests/recipes/test_extend.py runs it",
    "python -m recipes.cpt --config configs/cpt/llama2_ko_7b_warm_up.yaml --plan": "a plan as those of the README",
    "python -m recipes.training.verify_resume --config configs/cpt/demo_ko.yaml --ranks 2 --other-ranks 1 --kills 3": (
        "takes a minute; tests/recipes/test_verify_resume.py runs it on a smaller configuration"
    ),
    "tensorboard --logdir out/mine/cpt/tensorboard": "a server that does not end",
    "sbatch --export=ALL,NAME=VALUE": "a form",
    "touch RUN/stop": "a form; touch out/mine/cpt/stop is run",
    "python -m data_prep clean --documents wikimedia/wikipedia --subset 20231101.ko --split train "
    "--out out/corpus/documents-hub": "downloads; tests/unit/data_prep/readers/ reads such a data set from a folder",
    "python tests/benchmarks/bench_extraction.py --copies 8 --rounds 3": FIGURES,
    'pip install -e ".[cluster]"': "installs",
}
