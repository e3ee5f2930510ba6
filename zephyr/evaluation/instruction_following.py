"""IFEval (Zhou et al. 2023, arXiv:2311.07911) and IFBench (Pyatkin et al. 2025, arXiv:2507.02833):
answers become the share of instructions that they follow, checked by code.

The checkers are those of lm-evaluation-harness for IFEval and of the package `ifbench` for IFBench.
All files are in IFEval's formats."""

import contextlib
import io
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.evaluation.answers import (
    OpenTeacher,
    answers_digest,
    collect_answers,
    open_contenders,
)
from zephyr.evaluation.results import Figures, interval
from zephyr.evaluation.statistics import clustered_mean, share_with_interval
from zephyr.teacher.panel import Ask

Row = dict[str, Any]  # of a file in IFEval's format
Checkers = Mapping[str, Any]  # classes by instruction id
FIELDS = ("key", "prompt", "instruction_id_list", "kwargs")
LEVELS = ("strict", "loose")


class Checked(NamedTuple):
    """Which instructions of a prompt an answer follows, as it is, and in the best of eight forms of
    it: without its first line, its last line, both, and its asterisks."""

    strict: list[bool]
    loose: list[bool]


def read_tasks(path: str) -> list[Row]:
    """The prompts of a file, each with its instructions and `prompt_id`, its key.

    Raises: BadInput naming file and line."""
    rows: list[Row] = []
    seen: set[str] = set()
    read: Iterator[tuple[str, Row]] = read_rows([path])
    for place, row in read:
        ids, kwargs = row.get("instruction_id_list"), row.get("kwargs")
        is_task = (
            isinstance(row.get("prompt"), str)
            and isinstance(ids, list)
            and isinstance(kwargs, list)
            and 0 < len(ids) == len(kwargs)
        )
        key = str(row.get("key"))
        if not is_task or "key" not in row or key in seen:
            raise BadInput(
                f"{place}: expected {', '.join(FIELDS)}: each key once, and as many kwargs as "
                f"instructions; got {dict(row)!s:.200}"
            )
        seen.add(key)
        rows.append({**row, "prompt_id": key})
    if not rows:
        raise BadInput(f"{path}: it has no prompts")
    return rows


def load_checkers(tasks: Sequence[Row]) -> tuple[Checkers, str]:
    """The checkers that know every instruction of the tasks, and the package they are from:
    lm_eval's where it knows all, else those of ifbench.

    Raises: BadInput naming the package that is missing, or an instruction that none knows."""
    needed = {name for row in tasks for name in row["instruction_id_list"]}
    missing = ""
    for package, advice in (
        ("lm_eval", "pip install 'zephyr[eval]'"),
        ("ifbench", "pip install ifbench, or put a checkout of allenai/IFBench on PYTHONPATH"),
    ):
        try:
            found = import_checkers(package)
        except ImportError as error:
            missing += f"; {package} can't be imported ({error}): {advice}"
            continue
        if not needed - found.keys():
            return found, package
        missing += f"; {package} does not know {sorted(needed - found.keys())[0]!r}"
    raise BadInput(f"no checkers for all instructions{missing}")


def import_checkers(package: str) -> Checkers:
    """The registry of a package. What the import prints, as about NLTK's data, is dropped. The
    detector of languages gets a seed: its own is random, and so would scores be.

    Raises: ImportError."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if package == "lm_eval":
            from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
        else:
            from ifbench.instructions_registry import INSTRUCTION_DICT
        with contextlib.suppress(ImportError):  # IFBench's own instructions don't need it
            import langdetect

            langdetect.DetectorFactory.seed = 0
    checkers: Checkers = INSTRUCTION_DICT
    return checkers


def check(task: Row, text: str | None, checkers: Checkers) -> Checked:
    """Which instructions the answer follows; no answer and an empty one follow none.

    Some checkers draw what the prompt leaves open, or what they don't support, as IFEval's for the
    frequency of `#`. The draw is seeded by the prompt's key, so that a score can be repeated.

    Raises: BadInput for arguments that an instruction does not take, and where NLTK's data is
    missing."""
    variants = loose_variants(text or "")
    before = random.getstate()
    random.seed(str(task["key"]))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            follows = [
                check_variants(checkers[name](name), kwargs or {}, task, variants)
                for name, kwargs in zip(task["instruction_id_list"], task["kwargs"])
            ]
    finally:
        random.setstate(before)
    return Checked([of[0] for of in follows], [any(of) for of in follows])


def check_variants(
    checker: Any, kwargs: Mapping[str, object], task: Row, variants: Sequence[str]
) -> list[bool]:
    """Whether each form of an answer follows an instruction. Raises: BadInput as `check`."""
    try:
        checker.build_description(**{key: of for key, of in kwargs.items() if of is not None})
        arguments = checker.get_instruction_args()
        if arguments and "prompt" in arguments:
            checker.build_description(prompt=task["prompt"])
        return [bool(text.strip() and checker.check_following(text)) for text in variants]
    except LookupError as error:
        if "nltk" not in str(error):
            raise
        raise BadInput(
            f"key {task['key']}: its instruction needs data of NLTK: python -m nltk.downloader "
            "punkt_tab stopwords averaged_perceptron_tagger_eng"
        ) from None
    except (TypeError, ValueError) as error:
        raise BadInput(f"key {task['key']}: kwargs {dict(kwargs)!s:.200}: {error}") from None


def loose_variants(text: str) -> list[str]:
    """The answer, and the forms of it that the loose score accepts too."""
    lines = text.split("\n")
    cut = ["\n".join(of).strip() for of in (lines[1:], lines[:-1], lines[1:-1])]
    return [of for whole in (text, *cut) for of in (whole, whole.replace("*", ""))]


def evaluate_instructions(
    models: Sequence[str],
    tasks: Sequence[Row],
    *,
    open_teacher: OpenTeacher,
    ask: Ask,
    out: Path | None,
    seed: int = 0,
    max_new_tokens: int = 1280,
    temperature: float = 0.0,
) -> dict[str, dict[str, object]]:
    """Let models answer the prompts, and check their answers.

    Args:
        models: each `[NAME=]` and a model folder, a SPEC or a file of answers.
        out: folder for NAME/responses.jsonl, NAME/eval_results_strict.jsonl and
            NAME/eval_results_loose.jsonl, in IFEval's formats; None: nothing is written.

    Returns: by model, see `summarise`.

    Raises: BadInput as `load_checkers` and `check`, where two models have one name, and where an
    answer is missing."""
    contenders = open_contenders(models, open_teacher)
    checkers, package = load_checkers(tasks)
    results = {}
    for contender in contenders:
        texts = collect_answers(
            contender, tasks, ask, max_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        checked = [check(task, text, checkers) for task, text in zip(tasks, texts)]
        if out is not None:
            write_checked(out / contender.name, tasks, texts, checked)
        results[contender.name] = {
            **summarise(tasks, texts, checked),
            "checkers": package,
            "answers": answers_digest(zip((task["prompt_id"] for task in tasks), texts)),
        }
    return results


def write_checked(
    folder: Path, tasks: Sequence[Row], texts: Sequence[str | None], checked: Sequence[Checked]
) -> None:
    """The answers and what they follow, in the formats of IFEval's files."""
    responses = [
        {"key": task["key"], "prompt": task["prompt"], "response": text or ""}
        | ({"unanswered": True} if text is None else {})
        for task, text in zip(tasks, texts)
    ]
    write_rows(folder / "responses.jsonl", responses)
    for level in LEVELS:
        rows = (
            {
                "follow_all_instructions": all(getattr(of, level)),
                "follow_instruction_list": getattr(of, level),
                "instruction_id_list": task["instruction_id_list"],
                "prompt": task["prompt"],
                "response": text or "",
            }
            for task, text, of in zip(tasks, texts, checked)
        )
        write_rows(folder / f"eval_results_{level}.jsonl", rows)


def summarise(
    tasks: Sequence[Row], texts: Sequence[str | None], checked: Sequence[Checked]
) -> dict[str, object]:
    """Accuracies of a model.

    Returns:
        strict, loose: each with `prompt`, the share of prompts all of whose instructions are
            followed; `instruction`, the share of instructions, whose interval is over prompts; and
            `groups`, the same by the first word of the instruction's id.
        average: mean of both strict accuracies, which some model cards report.
        unanswered: prompts without an answer, which follow nothing."""
    levels: dict[str, dict[str, Any]] = {}
    for level in LEVELS:
        of_group: defaultdict[str, list[tuple[object, float]]] = defaultdict(list)
        for task, of in zip(tasks, checked):
            for name, follows in zip(task["instruction_id_list"], getattr(of, level)):
                of_group[name.partition(":")[0]].append((task["prompt_id"], float(follows)))
        every = [value for values in of_group.values() for value in values]
        levels[level] = {
            "prompt": share_with_interval(
                "accuracy", [float(all(getattr(of, level))) for of in checked]
            ),
            "instruction": clustered_mean("accuracy", every),
            "groups": {
                name: clustered_mean("accuracy", values)
                for name, values in sorted(of_group.items())
            },
        }
    strict = levels["strict"]
    average = (strict["prompt"]["accuracy"] + strict["instruction"]["accuracy"]) / 2
    return {**levels, "average": average, "unanswered": texts.count(None)}


def result_lines(results: Mapping[str, Figures]) -> Iterator[str]:
    """A line for the terminal per model."""
    for name, of in results.items():
        parts = [
            f"{level} {interval(of[level]['prompt'], 'accuracy')} of prompts, "
            f"{interval(of[level]['instruction'], 'accuracy')} of instructions"
            for level in LEVELS
        ]
        prompts, instructions = (of["strict"][key]["n"] for key in ("prompt", "instruction"))
        yield (
            f"{name:24} {'; '.join(parts)}; n {prompts} and {instructions}, "
            f"{of['unanswered']} unanswered"
        )
