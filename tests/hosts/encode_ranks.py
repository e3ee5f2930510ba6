"""What a rank of `test_node_caches.py` does: encode rows as a run does, and say what it did.

Arguments: the folder; whether the nodes share a cache; how many seconds encoding takes more. Two
ranks are a node, with its own `rows.jsonl`.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

import pyarrow as pa
from tiny import tiny_tokenizer

from zephyr.config import BadInput, Data, Hardware
from zephyr.data import encode
from zephyr.data.encode import encoding_resources, load_pairs, load_splits
from zephyr.data.store import content_digest
from zephyr.data.tokenizer import prepare_tokenizer
from zephyr.training import heartbeat
from zephyr.training.engine import Engine

folder, shared, seconds = Path(sys.argv[1]), sys.argv[2] == "shared", float(sys.argv[3])
node = int(os.environ["RANK"]) // 2
os.environ["GROUP_RANK"] = str(node)
os.environ["ZEPHYR_CACHE"] = str(folder / ("cache" if shared else f"cache-{node}"))
socket.gethostname = lambda: f"node-{node}"
heartbeat.BEAT_SECONDS, heartbeat.MARGIN_SECONDS = 0.2, 0.5
hardware = Hardware(deepspeed="configs/deepspeed/cpu.json", collective_timeout_seconds=2)
engine = Engine(hardware, 0)
said = {"encoded": 0, "error": ""}
encoded_chunks = encode.encoded_chunks


def slowly(*arguments: object) -> object:
    said["encoded"] += 1
    time.sleep(seconds)
    return encoded_chunks(*arguments)


encode.encoded_chunks = slowly
tokenizer = prepare_tokenizer(tiny_tokenizer(), "zephyr")
own = 0 if shared else node  # a path is part of the key of an entry
rows = str(folder / f"node-{own}" / "rows.jsonl")
try:
    found, _ = load_splits(
        engine,
        Data((rows,), ()),
        lambda sources: load_pairs(sources, tokenizer, **encoding_resources()),
    )
    pairs = found["train"]
    said |= {"digest": content_digest(pairs), "entry": str(pairs.entry), "pairs": len(pairs)}
    said["copied"] = pa.total_allocated_bytes() >= pairs.table.nbytes
except BadInput as error:
    said["error"] = str(error)
(folder / f"rank-{engine.rank}.json").write_text(json.dumps(said))
engine.close()
