"""The command line: options, the YAML file of `--config`, errors in one line, completion, and a
start that imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT

import zephyr
from zephyr.cli import COMMANDS, EVAL_COMMANDS, main
from zephyr.costs import predict
from zephyr.distill import prepare

NAMES = [
    *(function.__name__.replace("_", "-") for function in COMMANDS),
    *(f"eval {function.__name__.replace('_', '-')}" for function in EVAL_COMMANDS),
]
HELP_OF_ALL = """
import contextlib, io, sys
from zephyr.cli import main
for name in sys.argv[1].split(","):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([*name.split(), "--help"])
heavy = {"torch", "transformers", "datasets", "deepspeed"} & set(sys.modules)
assert not heavy, heavy
"""


def zephyr_process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zephyr", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def test_help_imports_no_large_library() -> None:
    """Fails where `--help` of a command imports torch, or another library that takes seconds."""
    names = ",".join(["", *NAMES])
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL, names], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_version_and_module() -> None:
    """`python -m zephyr --version` prints the version. Fails where the package cannot be run as a
    module, or a version is written in a second place."""
    done = zephyr_process("--version")
    assert (done.returncode, done.stdout) == (0, f"zephyr {zephyr.__version__}\n")
    assert "version = attr: zephyr.__version__" in (ROOT / "setup.cfg").read_text()


def test_the_shell_completes_commands_options_and_choices() -> None:
    """What bash asks when a person presses TAB. Fails where completion shows an error, or imports
    what it does not need and is slow."""

    def completed(line: str) -> list[str]:
        words = line.split(" ")
        variables = {
            "_ZEPHYR_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
        return zephyr_process(**variables).stdout.split()

    assert completed("zephyr bin") == ["binarize"]
    assert completed("zephyr eval ac") == ["academic"]
    assert completed("zephyr prepare --near") == ["--near-duplicates"]
    hopper = ["h100", "h100-nvl", "h100-pcie", "h200", "h200-nvl"]
    assert completed("zephyr plan --device h") == hopper
    # without this variable, typer takes the shell from the parent process, which may be none
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    assert "complete_bash" in zephyr_process("--show-completion", "bash", **named).stdout


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "Missing command"),
        ("binarise", "Did you mean 'binarize'?"),
        ("eval", "Missing command"),
        ("binarize", "Missing argument 'SOURCE'"),
        ("binarize rows.jsonl", "Missing option '--out'"),
        ("prepare a --out b --ngra 3", "No such option: --ngra"),
        ("prepare a --out b --ngram 0", "'--ngram': Input should be greater"),
        ("prepare a --out b --ngram many", "'--ngram': Input should be a valid integer"),
        ("prepare a --out b --on-bad-row s", "'s' is not one of 'error', 'skip'"),
        ("feedback p --price gpt", "'gpt' is not MODEL=PROMPT,COMPLETION"),
        ("plan a.yaml b.yaml", "expected one CONFIG and overrides"),
        ("plan beta=0.1", "expected one CONFIG and overrides"),
        ("lineage a b", "Got unexpected extra argument(s) (b)"),
    ],
)
def test_a_wrong_line_is_told_in_one_line(
    line: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 2 and one line on stderr. Fails where there is a traceback, a page of usage, or an
    abbreviation that is taken for an option."""
    assert main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert says in shown.err


def test_overrides_of_a_plan_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where overrides must stand behind the config, or an option between them ends them."""
    seen: list[object] = []

    def page(path: Path, overrides: list[str], **options: object) -> str:
        seen.append((path, overrides, options["gpus"]))
        return ""

    monkeypatch.setattr(predict, "page", page)
    for line in (
        "plan c.yaml --gpus 8 optim.epochs=2 data.limit=4",
        "plan optim.epochs=2 c.yaml --gpus 8 data.limit=4",
        "plan --gpus 8 optim.epochs=2 data.limit=4 c.yaml",
    ):
        assert main(line.split()) == 0
    assert seen == [(Path("c.yaml"), ["optim.epochs=2", "data.limit=4"], 8)] * 3


def test_options_of_a_file_and_of_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line replaces the file; repeated options add up; null is not given; nothing of the file
    is required on the line. Fails where one of these is otherwise."""
    seen: list[tuple[object, object, prepare.PrepareSettings]] = []

    def recorded(sources: list[str], out: Path, settings: prepare.PrepareSettings) -> object:
        seen.append((sources, out, settings))
        return {"removed": {}, "rows_kept": 0, "rows_read": 0}

    monkeypatch.setattr(prepare, "prepare", recorded)
    config = tmp_path / "c.yaml"
    config.write_text(
        "sources: [a.jsonl, -b.jsonl]\nout: out.jsonl\nngram: 5\nlanguage: null\n"
        "no-truecase: true\nkeep-refusals: false\nheld-out: [-x.jsonl, y.jsonl]\n"
        "on-bad-row: skip\nworkers: 3\n"
    )
    assert main(["prepare", "--config", str(config)]) == 0
    sources, out, settings = seen.pop()
    assert (sources, out) == (["a.jsonl", "-b.jsonl"], Path("out.jsonl"))
    assert settings == prepare.PrepareSettings(
        ngram=5,
        truecase=False,
        held_out=("-x.jsonl", "y.jsonl"),
        on_bad_row="skip",
        workers=3,
    )
    line = ["prepare", "c.jsonl", f"--config={config}", "--ngram", "7", "--held-out", "z.jsonl"]
    assert main(line) == 0
    sources, _, settings = seen.pop()
    assert sources == ["c.jsonl"] and settings.ngram == 7 and settings.workers == 3
    assert settings.held_out == ("-x.jsonl", "y.jsonl", "z.jsonl")


def test_a_wrong_file_names_file_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the line replaces the value. Fails where a person cannot find what to mend."""
    config = tmp_path / "c.yaml"
    for text, says in (
        ("ngrams: 3", "ngrams: unknown option; the nearest is ngram"),
        ("ngram: many", "ngram: expected N, got 'many'"),
        ("on-bad-row: drop", "'drop' is not one of 'error', 'skip'"),
        ("no-truecase: 1", "no-truecase: expected true or false, got 1"),
    ):
        config.write_text(text)
        assert main(["prepare", "a", "--out", "b", "--ngram", "3", "--config", str(config)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: config {config}: ") and says in error, error
        assert error.count("\n") == 1
