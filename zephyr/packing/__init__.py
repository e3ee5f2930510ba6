"""Lengths become a plan of integers; the examples of a micro-batch become one packed row."""

from zephyr.packing.collate import Layout, PackedBatch, collate_pairs, collate_texts
from zephyr.packing.plan import Plan, Step, best_fit, plan_epochs, plan_pass
from zephyr.packing.share import SequenceGroup, share_of_row

__all__ = [
    "Layout",
    "PackedBatch",
    "Plan",
    "SequenceGroup",
    "Step",
    "best_fit",
    "collate_pairs",
    "collate_texts",
    "plan_epochs",
    "plan_pass",
    "share_of_row",
]
