"""The faults of `zephyr/analysis/`: see table.py."""

from table import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "zephyr/analysis/cards.py",
        ("tests/analysis/test_cards.py",),
        ("indices += [i % rows for i in", "indices += [indices[-1] for i in"),
        (
            "for start in range(0, rows, batch * gpus):",
            "for start in range(0, rows // gpus, batch):",
        ),
        ('order_P = np.argsort(table["row"])', 'order_P = np.arange(len(table["row"]))'),
        ("abs(one.epoch - epoch)", "-one.epoch"),
    ),
    *of(
        "zephyr/analysis/flips.py",
        ("tests/analysis/test_flips.py", "tests/analysis/test_planted.py"),
        (
            "turned_P = share * sigmoid(-scale * z_P)",
            "turned_P = share * sigmoid(scale * z_P)",
        ),
        (
            "/ (len(z_P) + PRIOR_PAIRS)",
            "/ len(z_P)",
        ),
    ),
    *of(
        "zephyr/analysis/hidden.py",
        ("tests/analysis/test_hidden.py",),
        (
            "(chosen_PD * rejected_PD).sum(-1) - chosen_PD.square().sum(-1)",
            "(chosen_PD * rejected_PD).sum(-1) - rejected_PD.square().sum(-1)",
        ),
    ),
    *of(
        "zephyr/analysis/folds.py",
        ("tests/analysis/test_folds.py",),
        ("fit(x_PF[fold_P != fold], ridge)", "fit(x_PF, ridge)"),
    ),
    *of(
        "zephyr/analysis/pairs.py",
        ("tests/analysis/test_pair_texts.py",),
        (
            'id = moved.get(path_now, "") + raw.default_id.removeprefix(path_now)',
            "id = raw.default_id",
        ),
        (
            'if id not in seen and pair.get("weight", 1) != 0:',
            'if pair.get("weight", 1) != 0:',
        ),
        ('if id not in seen and pair.get("weight", 1) != 0:', "if id not in seen:"),
    ),
    *of(
        "zephyr/analysis/select.py",
        ("tests/analysis/test_select.py",),
        ('(-1 if term.kind == "top" else 1)', '(1 if term.kind == "top" else -1)'),
    ),
]
