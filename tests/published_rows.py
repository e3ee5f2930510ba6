"""Rows in the shapes of the published sets that the shipped configs name: the columns of each set's
card, other words."""

from __future__ import annotations


def said(*words: str, **others: object) -> list[dict[str, object]]:
    """Turns of user and assistant in turn. Args: others: what every turn has beside them."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content, **others} for i, content in enumerate(words)]


ASKED = "What colour is the sky?"
GOOD, BAD = "The sky is blue in the morning.", "I think the answer is four."
MORE = ("And at night?", "The sky is red at night.")
# Turns of Dolci have two keys for tools, which are null where there is none.
NO_TOOLS = {"function_calls": None, "functions": None}
WITH_TOOLS = [
    {"role": "system", "content": "Call.", "function_calls": None, "functions": '[{"name": "f"}]'},
    {"role": "user", "content": "Call f.", **NO_TOOLS},
    {"role": "assistant", "content": None, "function_calls": "f()", "functions": None},
    {"role": "environment", "content": "4", **NO_TOOLS},
    {"role": "assistant", "content": "It is four.", **NO_TOOLS},
]

# hub id -> rows, and how many of them are read
SETS: dict[str, tuple[list[dict[str, object]], int]] = {
    "HuggingFaceH4/ultrachat_200k": (
        [{"prompt": ASKED, "prompt_id": "a", "messages": said(ASKED, GOOD, *MORE)}],
        1,
    ),
    "HuggingFaceH4/no_robots": (
        [
            {"prompt": ASKED, "prompt_id": "a", "messages": said(ASKED, GOOD), "category": "QA"},
            {
                "prompt": ASKED,
                "prompt_id": "b",
                "messages": [{"role": "system", "content": "Be kind."}, *said(ASKED, GOOD, *MORE)],
                "category": "Chat",
            },
        ],
        2,
    ),
    "allenai/tulu-3-sft-mixture": (
        [{"id": "a_1", "messages": said(ASKED, GOOD, *MORE), "source": "ai2-adapt-dev/oasst1"}],
        1,
    ),
    "allenai/Dolci-Instruct-SFT": (
        [
            {
                "id": "a",
                "messages": said(ASKED, GOOD, *MORE, **NO_TOOLS),
                "source_dataset": "Aya",
                "domain": "Chat",
            },
            {"id": "b", "messages": WITH_TOOLS, "source_dataset": "Tools", "domain": "Tool Use"},
        ],
        1,
    ),
    "HuggingFaceH4/ultrafeedback_binarized": (
        [
            {
                "prompt": ASKED,
                "prompt_id": "a",
                "chosen": said(ASKED, GOOD),
                "rejected": said(ASKED, BAD),
                "messages": said(ASKED, GOOD),
                "score_chosen": 8.5,
                "score_rejected": 6.0,
            }
        ],
        1,
    ),
    "argilla/ultrafeedback-binarized-preferences-cleaned": (
        [
            {
                "source": "evol_instruct",
                "prompt": ASKED,
                "chosen": said(ASKED, GOOD),
                "chosen-rating": 5.0,
                "chosen-model": "gpt-4",
                "rejected": said(ASKED, BAD),
                "rejected-rating": 3.25,
                "rejected-model": "alpaca-7b",
            }
        ],
        1,
    ),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": (
        [
            {
                "id": "a",
                "prompt": ASKED,
                "chosen": said(ASKED, GOOD),
                "rejected": said(ASKED, BAD),
                "source": "ai2-adapt-dev/sft_v3.9_used_off_policy",
            },
            {
                "id": "b",
                "prompt": MORE[0],
                "chosen": said(ASKED, GOOD, *MORE),
                "rejected": said(ASKED, GOOD, MORE[0], BAD),
                "source": "ai2-adapt-dev/wildchat_v3.9_used_on_policy_small_8b_ckpt",
            },
        ],
        2,
    ),
    "allenai/Dolci-Instruct-DPO": (
        [
            {
                "chosen": said(ASKED, GOOD),
                "rejected": said(ASKED, BAD),
                "chosen_model": "qwen3-no_reasoning-32b",
                "rejected_model": "qwen3-no_reasoning-0.6b",
                "prompt_id": "a",
                "preference_type": "delta_learning",
            },
            {
                "chosen": said(ASKED, GOOD, *MORE),
                "rejected": said(ASKED, GOOD, MORE[0], BAD),
                "chosen_model": "gpt-4.1-2025-04-14",
                "rejected_model": "gemma3-4b-it",
                "prompt_id": "b",
                "preference_type": "multiturn",
            },
        ],
        2,
    ),
}
