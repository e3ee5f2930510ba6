"""Hidden states of a model on preference pairs, for flipped_labels.py: nothing is trained.

    python experiments/flips/real_states.py pairs.jsonl states.npz --model FOLDER [--layers N]

For each pair: the mean hidden state of the chosen response less that of the rejected one, after
the last layer or after N layers and the final norm. The file grows after each batch, so that a
killed pass loses little.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from zephyr.analysis.hidden import kept_hidden, response_sums
from zephyr.data.encode import load_pairs
from zephyr.data.tokenizer import load_tokenizer
from zephyr.model.load import load_policy
from zephyr.packing import collate_pairs

BATCH_PAIRS = 4


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=int)
    options = parser.parse_args()
    pairs, _ = load_pairs(
        [options.pairs],
        load_tokenizer(options.model),
        max_tokens=256,
        max_prompt_tokens=128,
    )
    policy = load_policy(options.model).eval()
    decoder = policy.lm.base_model
    decoder.layers = decoder.layers[: options.layers]
    policy.lm.get_output_embeddings().forward = lambda hidden_TD, targets_T: targets_T  # not needed
    differences: list[np.ndarray] = []
    with kept_hidden(policy) as kept:
        for start in range(0, len(pairs), BATCH_PAIRS):
            batch = collate_pairs(pairs, range(start, min(start + BATCH_PAIRS, len(pairs))))
            policy(batch)
            mean_RD = response_sums(kept.pop(), batch) / batch.response_tokens_R[:, None]
            differences.append((mean_RD[: batch.units] - mean_RD[batch.units :]).numpy())
            np.savez(options.out, difference_PD=np.concatenate(differences))
            print(start + batch.units, flush=True)


if __name__ == "__main__":
    main()
