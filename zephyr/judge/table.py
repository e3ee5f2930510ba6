"""Judged answers of several models become one table: scores by family with intervals, and win rates."""

from collections.abc import Mapping, Sequence

from zephyr.judge.rules import ASPECTS, Verdict
from zephyr.judge.statistics import Interval, bootstrap_mean, win_rate

Summary = dict[str, dict[str, dict[str, object]]]


def summarise(families: Sequence[str], verdicts: Mapping[str, Sequence[Verdict]]) -> Summary:
    """`scores`: model -> family (and `all`) -> {prompts, mean, low, high}; `aspects`: model -> aspect -> mean;
    `win_rates`: "B over A" -> {wins, ties, losses, rate, low, high, decided}, each model against every one before it.

    Args: families: the family of each prompt. verdicts: model -> one verdict per prompt, in the same order."""
    scores: dict[str, dict[str, object]] = {}
    for model, given in verdicts.items():
        overall = [verdict.overall for verdict in given]
        by_family = {f: [s for s, family in zip(overall, families) if family == f] for f in sorted(set(families))}
        scores[model] = {f: {"prompts": len(s)} | bootstrap_mean(s)._asdict() for f, s in (by_family | {"all": overall}).items()}
    aspects = {model: {a: sum(v.scores[a] for v in given) / len(given) for a in ASPECTS} for model, given in verdicts.items()}
    rates: dict[str, dict[str, object]] = {}
    models = list(verdicts)
    for n, model in enumerate(models):
        for other in models[:n]:
            won = win_rate([v.overall for v in verdicts[model]], [v.overall for v in verdicts[other]])
            rates[f"{model} over {other}"] = {
                "wins": won.wins, "ties": won.ties, "losses": won.losses,
                "rate": won.rate.mean, "low": won.rate.low, "high": won.rate.high, "decided": won.decided,
            }
    return {"scores": scores, "aspects": aspects, "win_rates": rates}


def format_table(summary: Summary) -> str:
    """The summary as text for a terminal: a row per family, a column per model, then a line per win rate."""
    models = list(summary["scores"])
    families = list(summary["scores"][models[0]])
    head = "judged score (1-5)".ljust(22) + "prompts".rjust(8) + "".join(model.rjust(24) for model in models)
    lines = [head, "-" * len(head)]
    for family in families:
        cells = [summary["scores"][model][family] for model in models]
        intervals = [Interval(cell["mean"], cell["low"], cell["high"]) for cell in cells]
        lines.append(family.ljust(22) + str(cells[0]["prompts"]).rjust(8) + "".join(_cell(i).rjust(24) for i in intervals))
    lines.append("")
    for aspect in ASPECTS:
        means = "".join(f"{summary['aspects'][model][aspect]:.2f}".rjust(24) for model in models)
        lines.append(aspect.ljust(30) + means)
    lines.append("")
    for name, won in summary["win_rates"].items():
        lines.append(f"{name}: win rate {_cell(Interval(won['rate'], won['low'], won['high']))}; {won['wins']} won, "
                     f"{won['ties']} tied, {won['losses']} lost; {won['decided']:.0%} of the decided")
    return "\n".join(lines)


def _cell(interval: Interval) -> str:
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
