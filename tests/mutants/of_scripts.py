"""The faults of the training scripts: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "train_dpo.py",
        ("tests/training/test_objective.py",),
        ("loss=config.loss,", 'loss="sigmoid",'),
        ("beta=config.beta,", "beta=0.1,"),
        (
            "label_smoothing=config.label_smoothing,",
            'label_smoothing=1e-3 if config.loss == "exo_pair" else 0.0,',
        ),
        (
            (
                "chosen_tokens_P=batch.response_tokens_R[: batch.units],\n"
                "            rejected_tokens_P=batch.response_tokens_R[batch.units :],"
            ),
            (
                "chosen_tokens_P=batch.response_tokens_R[batch.units :],\n"
                "            rejected_tokens_P=batch.response_tokens_R[: batch.units],"
            ),
        ),
        (
            ("            ref_chosen_P,\n            ref_rejected_P,\n            beta"),
            ("            ref_rejected_P,\n            ref_chosen_P,\n            beta"),
        ),
        (
            "ref_chosen_P, ref_rejected_P = reference(batch)",
            (
                "ref_chosen_P, ref_rejected_P = (\n"
                "            logp_P.detach() for logp_P in response_logprobs(policy, batch)\n"
                "        )"
            ),
        ),
        (
            "return (batch.weight_P * loss_P).sum(), stats",
            "return (batch.weight_P * loss_P).mean(), stats",
        ),
        ("return (batch.weight_P * loss_P).sum(), stats", "return loss_P.sum(), stats"),
        ("sft_weight=config.sft_weight,", "sft_weight=None,"),
        ("loss_P = wpo_weight_P * terms.loss_P", "loss_P = terms.loss_P"),
        (
            (
                '"rewards/chosen": terms.reward_chosen_P,\n'
                '            "rewards/rejected": terms.reward_rejected_P,'
            ),
            (
                '"rewards/chosen": terms.reward_rejected_P,\n'
                '            "rewards/rejected": terms.reward_chosen_P,'
            ),
        ),
        (
            '"rewards/margins": terms.reward_chosen_P - terms.reward_rejected_P,',
            '"rewards/margins": terms.reward_rejected_P - terms.reward_chosen_P,',
        ),
        (
            "chosen_P, rejected_P, ref_chosen_P, ref_rejected_P",
            "rejected_P, chosen_P, ref_rejected_P, ref_chosen_P",
        ),
        (
            (
                '"logps/chosen": chosen_P.detach(),\n'
                '            "logps/rejected": rejected_P.detach(),'
            ),
            (
                '"logps/chosen": rejected_P.detach(),\n'
                '            "logps/rejected": chosen_P.detach(),'
            ),
        ),
    ),
    *of(
        "train_dpo.py",
        (
            (
                "tests/training/test_trace.py::test_dpo_equals_plain_pytorch[robust-float32-f"
                "orked-ranks-256-tokens-checkpointing-False-mistral]"
            ),
        ),
        (
            "    reference = reference_logprobs(",
            (
                "    [p.ds_tensor.data.mul_(1.01) for p in engine.policy.parameters()]\n"
                "    reference = reference_logprobs("
            ),
        ),
        (
            "partial(collate_pairs, pairs, prefix_sharing=hardware.prefix_sharing)",
            "partial(collate_pairs, pairs, prefix_sharing=False)",
        ),
        ("per_step=config.optim.pairs_per_step,", "per_step=config.optim.pairs_per_step + 1,"),
        (
            ("tokenizer=tokenizer,\n        max_tokens=config.data.max_tokens,"),
            ("tokenizer=tokenizer,\n        max_tokens=config.data.max_tokens + 1,"),
        ),
    ),
    *of(
        "train_sft.py",
        (
            (
                "tests/training/test_trace.py::test_sft_equals_plain_pytorch[sigmoid-float32-"
                "1-ranks-96-tokens-checkpointing-False-mistral]"
            ),
        ),
        ("targets=config.data.targets,", 'targets="all",'),
        ("window_tokens=config.data.max_tokens,", "window_tokens=config.data.max_tokens + 9,"),
        ('"target_tokens",', '"pairs",'),
    ),
    *of(
        "train_sft.py",
        ("tests/training/test_objective.py",),
        ("return -policy(batch).sum(), {}", "return -policy(batch).mean(), {}"),
        ("return -policy(batch).sum(), {}", "return policy(batch).sum(), {}"),
    ),
]
