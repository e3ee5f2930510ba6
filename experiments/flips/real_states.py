"""Hidden states of a model on preference pairs, for flipped_labels.py: nothing is trained.

    python experiments/flips/real_states.py pairs.jsonl states.npz --model FOLDER [--limit N]

For each pair: the mean last-layer hidden state of the chosen response less that of the rejected
one, and both log-probs. The file grows after each batch, so that a killed pass loses little.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from zephyr.analysis.hidden import kept_hidden, response_sums
from zephyr.data.encode import load_pairs
from zephyr.data.tokenizer import load_tokenizer
from zephyr.model.load import load_policy
from zephyr.model.logprobs import sum_by_response
from zephyr.packing import collate_pairs

BATCH_PAIRS = 4


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    pairs, _ = load_pairs(
        [options.pairs],
        load_tokenizer(options.model),
        max_tokens=256,
        max_prompt_tokens=128,
        limit=options.limit,
    )
    policy = load_policy(options.model).eval()
    columns: dict[str, list[np.ndarray]] = {"difference_PD": [], "logp_P2": [], "tokens_P2": []}
    with kept_hidden(policy) as kept:
        for start in range(0, len(pairs), BATCH_PAIRS):
            batch = collate_pairs(pairs, range(start, min(start + BATCH_PAIRS, len(pairs))))
            logp_R = sum_by_response(policy(batch), batch)
            mean_RD = response_sums(kept.pop(), batch) / batch.response_tokens_R[:, None]
            columns["difference_PD"].append(
                (mean_RD[: batch.units] - mean_RD[batch.units :]).numpy()
            )
            columns["logp_P2"].append(logp_R.reshape(2, -1).T.numpy())
            columns["tokens_P2"].append(batch.response_tokens_R.reshape(2, -1).T.numpy())
            found = {name: np.concatenate(parts) for name, parts in columns.items()}
            np.savez(options.out, **found)
            print(len(found["logp_P2"]), flush=True)


if __name__ == "__main__":
    main()
