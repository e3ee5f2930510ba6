"""Token counts against the budget, and the plan as a line of the log."""

from collections.abc import Sequence

from zephyr.config import ConfigError
from zephyr.packing import Plan


def require_budget(tokens: Sequence[int], ids: Sequence[str], budget_tokens: int) -> None:
    """Check that every example fits in a micro-batch.

    Raises: ConfigError naming the longest example where it does not.
    """
    longest = max(range(len(tokens)), key=lambda i: tokens[i])
    if tokens[longest] > budget_tokens:
        raise ConfigError(
            f"hardware.tokens_per_micro_batch: at least {tokens[longest]} is wanted, the tokens of "
            f"the longest example ({ids[longest]}), got {budget_tokens}"
        )


def describe_plan(plan: Plan, ranks: int) -> str:
    """The plan as a line of the log.

    Args: ranks: all processes; more than the plan's where several compute a row together.
    """
    examples = len(plan.steps[0].examples())
    micro_batches = sum(len(step.ranks[0]) for step in plan.steps)
    per_step = micro_batches / len(plan.steps)
    rank_text = "1 rank" if ranks == 1 else f"{ranks} ranks"
    together = ranks // len(plan.steps[0].ranks)
    if together > 1:
        rank_text += f", {together} of them to a row"
    parts = [
        f"plan: {len(plan.steps)} steps, {examples} examples in the first, "
        f"{plan.tokens:,} tokens in all",
        f"{rank_text}, {per_step:.1f} micro-batches a step on each",
    ]
    # With one micro-batch a step its fill says only how many examples make a step.
    if micro_batches > len(plan.steps):
        used = sum(1 for step in plan.steps for rank in step.ranks for micro in rank if micro)
        parts.append(
            f"a micro-batch holds {plan.tokens / used:,.0f} tokens on average, "
            f"{plan.fill_ratio:.1%} of the budget (the last one of a step holds what is left)"
        )
    if ranks > 1:
        parts.append(f"the most loaded rank has {plan.imbalance:.3f} x the mean work")
    return "; ".join(parts)


def most_micro_batches(plan: Plan) -> int:
    """The micro-batches of a rank in the step that has most of them."""
    return max(len(step.ranks[0]) for step in plan.steps)
