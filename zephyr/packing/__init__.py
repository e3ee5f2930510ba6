"""Lengths become a plan of integers; chosen examples become one packed row of tensors."""

from zephyr.packing.collate import Layout, PackedBatch, collate_pairs, collate_texts  # noqa: F401
from zephyr.packing.plan import Plan, Step, best_fit, plan_epochs, plan_pass  # noqa: F401
