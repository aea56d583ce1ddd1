"""What is launched: `tune run --nproc_per_node N recipes/cpt.py --config FILE key=value`.

torchtune's wheel brings a top-level package of the same name whose `__init__` raises. This file makes
ours a regular package, so that it wins whenever the repository root is first on `sys.path`.
"""

import logging

# torchao says at each import that its C++ kernels are not for this torch; nothing here uses them. It has to be
# quieted before torchtune brings it in, hence here.
logging.getLogger("torchao").setLevel(logging.ERROR)
