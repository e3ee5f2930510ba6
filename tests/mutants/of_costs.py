"""The faults of `zephyr/costs/`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/costs/published.py",
        ("tests/costs/test_published_steps.py",),
        ("per_epoch = math.ceil(rows / batch)", "per_epoch = rows // batch"),
        (
            "math.ceil(rows / micro_batch) // accumulation",
            "math.ceil(rows / micro_batch / accumulation)",
        ),
        ("if epoch >= whole or", "if"),
        ("warmup = math.ceil(warmup_fraction * schedule_steps)", "warmup = 0"),
    ),
    *of(
        "zephyr/costs/times.py",
        ("tests/costs/test_step_times.py",),
        (
            "part = (item + summed if item != summed else 0) + (2 if first else 3) * summed",
            "part = (item + summed if item != summed else 0) + 2 * summed",
        ),
        ("whole = 2 * item * (3 if scattered else 2)", "whole = 2 * item * 3"),
        (
            "np.maximum(0, host - busy_M - copies_M)",
            "host",
        ),
        (
            "repeated_attention = ATTENTION_BACKWARD + (policy is True)",
            "repeated_attention = ATTENTION_BACKWARD + (policy is False)",
        ),
        (
            "mlp = 6.0 * lm.num_hidden_layers",
            "mlp = 4.0 * lm.num_hidden_layers",
        ),
        (
            "moved = summed * (2 * micro_batches - 1) + 4",
            "moved = summed * micro_batches",
        ),
        (
            "rate = HOST_RATE / min(ranks, RANKS_PER_NODE)",
            "rate = MEMORY_EFFICIENCY * device.memory_rate",
        ),
        (
            "RATIO_BYTES[optimizer] * share / rate / log_every",
            "RATIO_BYTES[optimizer] * share / rate",
        ),
        (
            "slowest_M = seconds_MRC.sum(-1).argmax(1)",
            "slowest_M = seconds_MRC.sum(-1).argmin(1)",
        ),
    ),
    *of(
        "zephyr/costs/memory.py",
        ("tests/costs/test_step_times.py",),
        ("total += state * share + sum", "total += 8 * share + sum"),
        (
            "min(ranks, RANKS_PER_NODE)\n        * host_bytes(",
            "ranks\n        * host_bytes(",
        ),
        (
            "held = (state + SUM_BYTES[gradient_dtype]) if on_device else 0",
            "held = state + SUM_BYTES[gradient_dtype]",
        ),
    ),
    *of(
        "zephyr/costs/collectives.py",
        ("tests/training/test_many_ranks.py",),
        ("group if group > 1 else ranks, calls", "ranks, calls"),
        (
            'gathers = [Collective("gather, forward", whole, ranks',
            'gathers = [Collective("gather, forward", whole, 8',
        ),
    ),
    *of(
        "zephyr/costs/predict.py",
        ("tests/costs/test_dry_runs.py",),
        ("ranks = asked.gpus or engine.world_size", "ranks = engine.world_size"),
        ("for lack in find_lacks(config, dry_run=True)]", "for lack in ()]"),
    ),
    *of(
        "zephyr/costs/predict.py",
        ("tests/costs/test_plan_command.py",),
        ("policies = tried[0]", "policies = tried[-1]"),
    ),
    *of(
        "zephyr/costs/layouts.py",
        ("tests/costs/test_plan_command.py",),
        (
            "return max(most, 1 + (largest > 0.95 * budget * len(plan.steps[0].ranks)))",
            "return most",
        ),
        (
            "fits = fits and host <= USABLE_HOST_FRACTION * case.host_memory",
            "fits = fits and host > 0",
        ),
    ),
    *of(
        "zephyr/costs/advice.py",
        ("tests/costs/test_plan_command.py",),
        ("    yield from smaller_budget(of_case, config, ranks, longest)\n", ""),
        ("            enough = middle\n", "            pass\n            break\n"),
    ),
    *of(
        "zephyr/training/devices.py",
        ("tests/training/test_devices.py", "tests/training/test_planner.py"),
        ("words.issuperset(device.words)", "words.intersection(device.words)"),
        ("989.4e12, 0.755, 4.8e12", "1979e12, 0.755, 4.8e12"),
        (
            "return max(found, key=lambda name: len(DEVICES[name].words), default=None)",
            "return next(iter(found), None)",
        ),
    ),
]
