"""Faults of the page of runs."""

from __future__ import annotations

from table import Mutant, of

VERDICT = ("tests/report/test_verdict.py",)
PAGE = tuple(
    f"tests/report/test_report.py::{name}"
    for name in (
        "test_what_is_missing_is_a_gap",
        "test_runs_are_drawn_over_each_other",
        "test_nothing_is_taken_for_html",
        "test_samples_alarms_and_what_was_left_out",
        "test_a_run_that_is_not_finished",
        "test_a_finished_run_never_fails_for_its_page",
    )
)
PUBLISH = ("tests/report/test_publish.py",)
MUTANTS: list[Mutant] = [
    *of(
        "zephyr/report/publish.py",
        PUBLISH,
        ("        tensors = tensor_names(path)\n", "        tensors = set(expected)\n"),
        ("if private and not api.model_info(name).private:", "if False:"),
        ("if stale:\n", "if not stale:\n"),
        ('        settings["base_model_name_or_path"] = base\n', ""),
        (
            "CommitOperationDelete(path) for path in stale",
            "CommitOperationDelete(path) for path in []",
        ),
        ('if folder.with_name(f"{wanted}.part").is_dir():', "if False:"),
    ),
    *of(
        "zephyr/report/verdict.py",
        VERDICT,
        ("chosen, rejected = chosen / beta, rejected / beta\n", "pass\n"),
        ("start = logp - chosen\n", "start = logp\n"),
        ("gap, error = train - held,", "gap, error = held - train,"),
        (
            "lost = (last - best) / max(start - best, 1e-9)",
            "lost = (known[0][0] - best) / max(start - best, 1e-9)",
        ),
        (
            "first = np.flatnonzero(visits.visit_V == 0)",
            "first = np.flatnonzero(visits.visit_V >= 0)",
        ),
        (
            "(right, n), (against, m) = by_side if share >= 0.5 else by_side[::-1]",
            "(right, n), (against, m) = by_side[::-1] if share >= 0.5 else by_side",
        ),
        (
            "* (record.step - before)\n        before = record.step\n    return total",
            "\n    return total",
        ),
        ('if status == "good" and gap is not None and gap.grade == "bad":', "if gap is None:"),
        ("few = tally.changed < FEW_CHANGED * tally.answers", "few = False"),
        ("return max(one, other, key=order.index)", "return one"),
        ("if len(before) >= 3:", "if before:"),
        ('if split == "train" or r.step > 0]', "]"),
    ),
    *of(
        "zephyr/report/figures.py",
        PAGE,
        ("(s, e, y if y is not None and y > 0 else None)", "(s, e, y)"),
        ("connectgaps=False", "connectgaps=True"),
    ),
    *of(
        "zephyr/report/samples.py",
        PAGE,
        (
            "return answers.texts[steps[0]], answers.texts[steps[-1]]",
            "return answers.texts[steps[0]], answers.texts[steps[1]]",
        ),
        ('escape("".join(new[k:end]))', '"".join(new[k:end])'),
    ),
    *of(
        "zephyr/report/finish.py",
        PAGE,
        ("    except Exception as error:\n", "    except ValueError as error:\n"),
    ),
]
