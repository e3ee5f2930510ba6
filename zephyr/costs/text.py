"""A prediction becomes the lines that `zephyr plan` prints."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypedDict

from zephyr.config import QUIRK
from zephyr.costs.advice import Remedy
from zephyr.costs.layouts import USABLE_HOST_FRACTION, USABLE_MEMORY_FRACTION, Layout
from zephyr.costs.times import COMPONENTS

ENDS_TO_PAY = 0.8  # of a step's time: twice the ranks save less than a fifth of it
# Columns of the tables; the JSON has more.
COLUMNS = (
    "ranks",
    "checkpointing",
    "fused",
    "gradients",
    "MB/token",
    "tokens",
    "micro",
    "critical",
    "peak GB",
    "fits",
    "compute",
    "comm",
    "optimiser",
    "step s",
    "of ideal",
    "mfu",
    "hours",
)
VALIDATION_NOTE = (
    "Checked against measurements: memory and ratios of times on 1 and 2 CPU ranks; five steps at "
    "7B on one H200,\nwhose times were predicted 1 to 5 % too short and whose memory within 1 %. "
    "Never checked: other GPUs, more GPUs than one,\nfused kernels, elementwise, offload, adapters."
)
# All that the command prints, with the fields of the `Device`.
Report = TypedDict(
    "Report",
    {
        "model": str,
        "parameters": int,
        "ranks": int,
        "device": str,
        "memory": float,
        "peak": float,
        "efficiency": float,
        "memory_rate": float,
        "node": float,
        "across": float,
        "host": float,
        "host_memory": float | None,
        "examples": int,
        "mean_tokens": float,
        "longest": int,
        "steps": int,
        "plan": str,
        "quirks": list[str],
        "reference hours": float,
        "config": Layout,
        "policies": list[Layout],
        "advice": Layout | None,
        "advice keys": str | None,
        "fastest": Layout | None,
        "fastest keys": str | None,
        "remedies": list[Remedy],
        "tables": dict[str, list[Layout]],
        "collectives": list[dict[str, float]],
    },
)


def format_prediction(report: Report) -> Iterator[str]:
    """The report as lines for a terminal."""
    units = choose_units(report["config"])
    yield from format_config(report, units)
    yield from format_host(report)
    yield from format_parts(report)
    yield from format_advice(report, units)
    for title, layouts in report["tables"].items():
        yield f"\nScaling, {title}"
        yield format_table(with_units(layouts, units))
    if report["collectives"]:
        yield "\nWhat a rank sends for each micro-batch, an empty one too, and how long it takes"
        yield format_table(report["collectives"])
    if strong := report["tables"].get("strong"):
        yield "\n" + scaling_limit(strong)
    yield f"\n{VALIDATION_NOTE}"


def format_config(report: Report, units: Mapping[str, "Unit"]) -> Iterator[str]:
    """Lines about the run, and the config as it is."""
    own, gb = report["config"], 1e9
    reference = report["reference hours"] * units["hours"].factor
    yield (
        f"{report['model']} of {format_parameters(report['parameters'])} on {report['ranks']} x "
        f"{report['device']} with {report['memory'] / gb:.1f} GB"
    )
    yield (
        f"{report['examples']:,} examples of {report['mean_tokens']:,.0f} tokens in the mean, "
        f"{report['longest']:,} in the longest"
    )
    yield report["plan"]
    if report["quirks"]:
        yield f"{', '.join(report['quirks'])}: {QUIRK}"
    yield summary(report)
    yield (
        "\nThe config as it is. gradients: dtype of their sum over micro-batches; tokens: of a "
        "micro-batch; micro: micro-batches a step;\ncritical: the most loaded rank's work against "
        f"the mean; step {units['step s'].name}: time of a step, without the parts of comm that "
        "compute hides (same\nunit); of ideal: the share of the step that compute alone would take "
        "with the work divided evenly over the ranks; mfu: useful work\nas a share of the GPU's "
        f"peak; {units['hours'].name}: training, without evaluation and saving"
        + (f"; the reference pass takes {reference:.2f} more" if reference else "")
    )
    yield format_table(with_units([own], units))
    memory = units["peak GB"]
    yield (
        f"{memory.name} of a rank. save, save_host: gathered on the device, and in the machine's "
        "memory, while the model is saved;\nhost: of the machine's memory for what the ranks of a "
        "node offload"
    )
    yield format_table([{name: size / gb * memory.factor for name, size in own["memory"].items()}])


def summary(report: Report) -> str:
    """Steps, memory and time in one line."""
    own = report["config"]
    verdict = "fits" if own["fits"] == "yes" else "does not fit"
    return (
        f"in short: {report['steps']:,} steps of {format_seconds(own['step s'])}, "
        f"{format_hours(own['hours'] + report['reference hours'])} in all; "
        f"{own['peak GB']:.1f} GB of the {report['memory'] / 1e9:.1f} GB of each, which {verdict}"
    )


def format_host(report: Report) -> Iterator[str]:
    """A line about the machine's memory, where anything is offloaded to it."""
    wanted, there = report["config"]["host GB"], report["host_memory"]
    if not wanted:
        return
    if there is None:
        yield (
            f"The machine needs {wanted:.1f} GB of memory for what is offloaded: compare, or give "
            "--host-memory GB"
        )
        return
    usable = USABLE_HOST_FRACTION * there / 1e9
    verdict = "fits in" if wanted <= usable else "does not fit in"
    yield (
        f"What is offloaded takes {wanted:.1f} GB of the machine's memory: {verdict} "
        f"{USABLE_HOST_FRACTION:.0%} of its {there / 1e9:.1f} GB"
    )


def format_parts(report: Report) -> Iterator[str]:
    """The step table: milliseconds by component, of the config and of the fastest layout."""
    rows = [{"": "as it is"} | milliseconds(report["config"])]
    if best := report["fastest"]:
        rows.append({"": "the fastest that fits"} | milliseconds(best))
    yield (
        "\nMilliseconds of a step by component. products: matrix products of the layers; copies: "
        "of gradients and gathered weights in ZeRO-3;\nupdate ratio: where a record is written; "
        "host: the device waits for Python; communication: what computation does not hide"
        + (
            "\nthe fastest that fits: of all layouts advised below; like them, predicted from a "
            "sample of the run's steps"
            if report["fastest"]
            else ""
        )
    )
    yield format_table(rows)


def milliseconds(one: Layout) -> dict[str, object]:
    """A row of the step table."""
    parts = {name: f"{1e3 * one['parts'][name]:.1f}" for name in COMPONENTS}
    return {**parts, "step": f"{1e3 * one['step s']:.1f}"}


def format_advice(report: Report, units: Mapping[str, "Unit"]) -> Iterator[str]:
    """What fits, which is fastest, and what to change."""
    yield (
        "\nEach activation checkpointing with its largest micro-batch (at most a rank's step) that "
        f"fits in {USABLE_MEMORY_FRACTION:.0%} of the memory"
    )
    if report["advice"]:
        yield format_table(with_units(report["policies"], units))
        yield (
            "Advice, the fastest of these (of equals, the one that recomputes least): "
            f"{report['advice keys']}"
        )
    else:
        yield "None fits. What would, from cheap to dear:"
        yield from (format_remedy(remedy) for remedy in report["remedies"])
        if not report["remedies"]:
            yield "  nothing that was tried"
    if report["fastest"] and report["fastest keys"] != report["advice keys"]:
        yield (
            f"With fused kernels (liger or triton, where they serve the model) or bfloat16 sums of "
            f"gradients:\n{report['fastest keys']}, "
            f"{format_seconds(report['fastest']['step s'])} a step"
        )


def format_remedy(remedy: Remedy) -> str:
    """A line about a change under which the config fits."""
    one = remedy["layout"]
    return (
        f"  {remedy['change']} ({remedy['note']}): {one['peak GB']:.1f} GB, "
        f"{format_seconds(one['step s'])} a step, with "
        f"hardware.tokens_per_micro_batch={one['tokens']} "
        f"hardware.activation_checkpointing={one['checkpointing']}"
    )


def format_parameters(count: int) -> str:
    """A number of parameters with a power of 1000 that leaves digits before the point."""
    for power in (9, 6, 3):
        if count >= 10**power:
            return f"{count / 10**power:.2f}e{power} parameters"
    return f"{count} parameters"


def format_hours(hours: float) -> str:
    """A duration in hours, minutes or seconds."""
    if hours >= 0.1:
        return f"{hours:.2f} h"
    return f"{hours * 60:.2f} min" if hours * 60 >= 0.1 else f"{hours * 3600:.2f} s"


def format_seconds(seconds: float) -> str:
    """A duration of a step."""
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.2f} ms"


class Unit(NamedTuple):
    """A unit of the page, and by what values in seconds, hours or GB are multiplied for it."""

    name: str
    factor: float


def choose_units(own: Layout) -> dict[str, Unit]:
    """Column of a `Layout` -> a unit in which the config's own value has digits to show."""
    step, memory = Unit("s", 1.0), Unit("GB", 1.0)
    if own["step s"] < 0.1:
        step = Unit("ms", 1e3)
    if own["peak GB"] < 0.1:
        memory = Unit("MB", 1e3)
    total = Unit("hours", 1.0)
    if own["hours"] < 0.1:
        total = Unit("minutes", 60.0)
    if own["hours"] * 60 < 0.1:
        total = Unit("seconds", 3600.0)
    return {
        "compute": step,
        "comm": step,
        "optimiser": step,
        "step s": step,
        "peak GB": memory,
        "hours": total,
    }


def with_units(rows: Sequence[Layout], units: Mapping[str, Unit]) -> list[dict[str, object]]:
    """The layouts for the page: COLUMNS in these units, named after them."""
    names = {
        "step s": f"step {units['step s'].name}",
        "peak GB": f"peak {units['peak GB'].name}",
        "hours": units["hours"].name,
    }
    converted = []
    for row in rows:
        cells: dict[str, object] = {}
        for name in COLUMNS:
            value = row.get(name)
            if value is None:
                continue
            if name in units and isinstance(value, float):
                value = value * units[name].factor
            cells[names.get(name, name)] = value
        converted.append(cells)
    return converted


def scaling_limit(strong: Sequence[Layout]) -> str:
    """Where strong scaling ends: from there twice the ranks save less than a fifth of a step."""
    doublings = pairwise(strong)
    end = next((a for a, b in doublings if b["step s"] > ENDS_TO_PAY * a["step s"]), strong[-1])
    return (
        f"Strong scaling ends at {end['ranks']} ranks: twice as many save less than a fifth of a "
        f"step. 1,024 ranks are better used for {1024 // end['ranks']} runs of {end['ranks']}, "
        f"all in {format_hours(end['hours'])}"
    )


def format_table(rows: Sequence[Mapping[str, object]]) -> str:
    """A header and a line for each row, columns aligned to the right."""
    from pandas import DataFrame

    text: str = DataFrame(rows).to_string(index=False, float_format="{:.3f}".format)
    return text
