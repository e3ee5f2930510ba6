"""The fields of rows in which a judge compared two answers, and the names of their speakers."""

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "Human": "user",
    "Assistant": "assistant",
}
# shape -> the fields that tell it; a row has the first shape that fits
PAIRWISE = {
    "AlpacaEval preferences": {"completion_a", "completion_b"},
    "AlpacaEval annotations": {"instruction", "output_1", "output_2"},
    "LLMBar": {"input", "output_1", "output_2", "label"},
    "arena": {"conversation_a", "conversation_b", "winner"},
    "ShareGPT": {"conversations", "chosen", "rejected"},
    "hh-rlhf": {"chosen", "rejected"},
}
