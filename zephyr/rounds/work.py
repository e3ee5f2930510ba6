"""What the processes of a round do that load models: sample answers, score or compare them.

    python -m zephyr.rounds.work sample PARTS MODEL RESULT
    python -m zephyr.rounds.work score FOLDER ROUND RESULT
    python -m zephyr.rounds.work compare FOLDER ROUND RESULT

under torchrun where there are several. RESULT gets the exit code and a message, as `status.json` of
a training does, because torchrun hides the code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from zephyr.config import BAD_INPUT, BadInput, print_bad_input
from zephyr.rounds.processes import STOPPED
from zephyr.teacher import BudgetSpent
from zephyr.training.files import write_atomic
from zephyr.training.folder import json_bytes


def main(arguments: Sequence[str]) -> int:
    """Do the work, and write how it ended. Returns: the exit code."""
    task, *words, result = arguments
    code, message = 0, "finished"
    try:
        if task == "sample":
            from zephyr.rounds.answers import make_parts

            make_parts(Path(words[0]), words[1])
        else:
            ask_models(task, Path(words[0]), int(words[1]))
    except BadInput as error:
        print_bad_input(error)
        code, message = BAD_INPUT, str(error)
    except BudgetSpent as error:
        code, message = STOPPED, str(error)
    if code or os.environ.get("RANK", "0") == "0":
        write_atomic(Path(result), json_bytes({"code": code, "message": message}))
    return code


def ask_models(task: str, path: Path, number: int) -> None:
    """Score the answers of a round, or compare its policy with the first, with the settings that
    the folder of the rounds holds."""
    from zephyr.rounds.loop import open_rounds
    from zephyr.rounds.stages import write_scores, write_win_rate

    work = write_scores if task == "score" else write_win_rate
    work(open_rounds(path), number)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads would abort the interpreter's own shutdown now and then
