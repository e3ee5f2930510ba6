"""What a rank of `test_hub_ranks.py` does: train on a model of the hub. Two ranks are a node, with
its own cache; each rank has a hub of its own, so that what it asks can be told apart.

Arguments: the folder; how many ranks a node has; the hubs' addresses with commas between; the
arguments of train_dpo.py.
"""

import os
import runpy
import socket
import sys
from pathlib import Path

from huggingface_hub import constants
from processes import ROOT

folder, size, hubs = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
rank = int(os.environ["RANK"])
node = rank // size
os.environ["GROUP_RANK"], os.environ["LOCAL_RANK"] = str(node), str(rank % size)
os.environ["ZEPHYR_CACHE"] = str(folder / f"rows-{node}")
socket.gethostname = lambda: f"node-{node}"
constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, True
constants.ENDPOINT = hubs[rank]
constants.HUGGINGFACE_CO_URL_TEMPLATE = hubs[rank] + "/{repo_id}/resolve/{revision}/{filename}"
constants.HF_HUB_CACHE = str(folder / f"hub-{node}")
sys.argv = ["train_dpo.py", *sys.argv[4:]]
runpy.run_path(str(ROOT / "train_dpo.py"), run_name="__main__")
