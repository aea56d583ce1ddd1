"""What is launched: `tune run --nproc_per_node N recipes/cpt.py --config FILE key=value`.

torchtune's wheel brings a top-level package of the same name whose `__init__` raises. This file makes
ours a regular package, so that it wins whenever the repository root is first on `sys.path`.
"""
