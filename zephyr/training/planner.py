"""Token counts against the budget, and the plan as one line of the log."""

from collections.abc import Sequence

from zephyr.config import ConfigError
from zephyr.packing import Plan


def require_budget(tokens: Sequence[int], ids: Sequence[str], budget_tokens: int) -> None:
    """Raises: ConfigError naming the longest example where a micro-batch can't hold it."""
    longest = max(range(len(tokens)), key=lambda i: tokens[i])
    if tokens[longest] > budget_tokens:
        raise ConfigError(
            f"hardware.tokens_per_micro_batch: at least {tokens[longest]} is wanted, which the longest example "
            f"({ids[longest]}) takes, got {budget_tokens}"
        )


def describe_plan(plan: Plan, ranks: int) -> str:
    """The plan as one line for the log."""
    micro_batches = sum(len(step.ranks[0]) for step in plan.steps)
    examples = len(plan.steps[0].examples())
    return (
        f"plan: {len(plan.steps)} steps, {examples} examples in the first, {plan.tokens} tokens in all; {ranks} ranks, "
        f"{micro_batches / len(plan.steps):.1f} micro-batches a step {plan.fill_ratio:.1%} full; "
        f"the most loaded rank has {plan.imbalance:.3f} x the mean work"
    )
