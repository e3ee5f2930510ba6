"""The benchmark of learning at toy size: the split, the curves, what is left of a side that is cut,
and a model in parts."""

import argparse
import json
import math
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import bench_learning
import measure
import model_parts

from zephyr.chat import EncodedPair


def toy(folder: Path, *options: str) -> dict[str, object]:
    """The result of a toy run, in a process of its own."""
    script = Path(bench_learning.__file__)
    command = [sys.executable, script, "--toy", "--seconds", "600", "--out", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "learning.json").read_text())["result"]


@pytest.mark.long
def test_toy_learns_and_both_sides_agree(tmp_path: Path) -> None:
    """Both losses start at ln 2 and the model learns; TRL's curve is ours, or is said to be absent.
    Fails where the reference is not the start, an evaluation is left out or made at another step,
    or a side trains on something else."""
    result = toy(tmp_path)
    ours, trl = result["curves"]["zephyr"], result["curves"]["trl"]
    assert ours["status"] == "finished" and len(ours["train_loss"]) == len(ours["grad_norm"]) == 3
    assert [of["step"] for of in ours["evaluations"]] == [0, 1, 2, 3]
    # the rate of the first step is 0, as a warm-up starts
    start = [*ours["train_loss"][:2], *(of["loss"] for of in ours["evaluations"][:2])]
    assert start == pytest.approx([math.log(2)] * 4, abs=1e-6)
    assert ours["evaluations"][-1]["loss"] < math.log(2) - 0.05
    seconds = [of["training_seconds"] for of in ours["evaluations"]]
    assert seconds[0] == 0 and seconds == sorted(set(seconds))
    assert result["data"]["held_out"]["pairs"] == 8 and result["data"]["train"]["pairs"] == 12
    if not find_spec("trl"):
        assert trl["status"] == "trl is not importable here" and "agreement" not in result
        return
    assert trl["status"] == "finished" and result["agreement"]["steps"] == 3
    for name in ("train_loss", "held_out_loss", "held_out_margin"):
        assert result["agreement"][name] < 1e-5


def test_no_prompt_is_on_both_sides() -> None:
    """Six pairs of each of 40 prompts: those of a held-out prompt are not trained on. Fails where
    pairs are split instead of prompts, or the split hangs on the order of the files."""
    prompts = [f"prompt {i % 40}".encode() for i in range(240)]
    pairs = [EncodedPair(f"pair {i}", [i % 40], [1], [2]) for i in range(240)]
    train, held = bench_learning.split(pairs, prompts, held_out=16, seed=0)
    of_train, of_held = ({pair.prompt_ids[0] for pair in side} for side in (train, held))
    assert len(held) == len(of_held) == 16 and len(train) == 6 * 24
    assert of_train.isdisjoint(of_held) and len(of_train | of_held) == 40
    again = bench_learning.split(pairs[::-1], prompts[::-1], held_out=16, seed=0)
    assert again == (train, held)
    other, _ = bench_learning.split(pairs, prompts, held_out=16, seed=1)
    assert {pair.id for pair in other} != {pair.id for pair in train}
    with pytest.raises(ValueError, match="40 prompts .* expected at least 16 prompts and 8 held"):
        bench_learning.split(pairs, prompts, held_out=7, seed=0)


def test_prompts_are_the_same_by_their_first_turn(tmp_path: Path) -> None:
    """Two dialogues that begin alike, in two files, are one prompt. Fails where the later turns, or
    the file, are part of it: half a dialogue would be on both sides."""
    model, _ = bench_learning.write_toy(tmp_path)

    def row(*turns: str) -> str:
        said = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]
        sides = {
            side: [*said, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")
        }
        return json.dumps({"prompt": turns[0], **sides}) + "\n"

    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text(row("Is it so?") + row("Or not?"))
    second.write_text(row("Is it so?", "Yes.", "Are you sure?"))
    pairs, prompts = bench_learning.real_pairs([str(first), str(second)], model, 512)
    assert prompts[0] == prompts[2] != prompts[1] and len(set(prompts)) == 2
    assert len({pair.id for pair in pairs}) == 3


class Process:
    """Stands for a process that has ended."""

    def kill(self) -> None: ...

    def wait(self) -> None: ...


class Slow:
    """A side whose third round never ends, or whose process ends in it."""

    def __init__(self, *_: object, fails: bool = False) -> None:
        self.rounds, self.fails, self.process = 0, fails, Process()

    def ask(self, line: str) -> dict[str, object]:
        return {"loss": 0.5, "accuracy": 1.0, "margin": 0.1, "wall_seconds": 0.0}

    def round(self, steps: int) -> dict[str, object]:
        self.rounds += 1
        if self.rounds == 3 and self.fails:
            raise RuntimeError("out of memory")
        time.sleep(60 if self.rounds == 3 else 0)
        figures = {"losses": [0.6] * steps, "grad_norms": [1.0] * steps, "cpu_seconds": 2.0}
        return {**figures, "wall_seconds": 1.0, "peak_bytes": 1}


@pytest.mark.parametrize("fails", [False, True])
def test_a_side_that_is_cut_keeps_its_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """The file holds all evaluations up to the cut, says why the curve ends, and the next side gets
    its turn. Fails where the curve is saved at the end only, or one side takes the other's time."""
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    figures = {"steps": 10}
    monkeypatch.setattr(bench_learning, "prepare", lambda args, folder: ({}, figures))
    monkeypatch.setattr(bench_learning, "find_spec", lambda name: None)
    monkeypatch.setattr(bench_learning, "Worker", lambda *told: Slow(*told, fails=fails))
    args = argparse.Namespace(device="cpu", seconds=3.0, every=2)
    bench_learning.compare(args, tmp_path)
    curves = json.loads((tmp_path / "learning.json").read_text())["result"]["curves"]
    ours = curves["zephyr"]
    assert ours["status"].startswith("failed after 4 of 10" if fails else "cut after 4 of 10 steps")
    assert [of["step"] for of in ours["evaluations"]] == [0, 2, 4]
    assert [of["training_seconds"] for of in ours["evaluations"]] == [0, 2, 4]
    assert len(ours["train_loss"]) == 4 and "not importable" in curves["trl"]["status"]


def test_model_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven parts become the file again, in the order of their numbers; one damaged or absent part
    is an error. Fails where parts are joined in the order of their names, or unchecked."""
    content = bytes(range(211))
    (tmp_path / "tiny.gguf").write_bytes(content)
    monkeypatch.setattr(model_parts, "PART_BYTES", 20)
    digest = model_parts.hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(model_parts.DIGESTS, "tiny.gguf", digest)
    there, joined = tmp_path / "there", tmp_path / "joined"
    joined.mkdir()
    parts = model_parts.cut(tmp_path / "tiny.gguf", there)
    assert len(parts) == 11 and max(part.stat().st_size for part in parts) <= 20
    for path in (there, there / "tiny.gguf"):
        assert model_parts.join(path, joined).read_bytes() == content
    parts[3].write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match="11 parts of tiny.gguf make .* expected"):
        model_parts.join(there, joined)
    parts[3].unlink()
    with pytest.raises(ValueError, match="10 parts of tiny.gguf make"):
        model_parts.join(there, joined)
    with pytest.raises(FileNotFoundError, match=r"there are no other.gguf.part-\*"):
        model_parts.join(there / "other.gguf", joined)


def test_absent_files_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pairs are never part of the repository. Fails where the first sign of a missing file is a
    traceback, minutes into a run."""
    with pytest.raises(SystemExit) as end:
        bench_learning.main(["--model", str(tmp_path), "--pairs", "absent.jsonl"])
    assert end.value.code == 2 and "absent.jsonl does not exist" in capsys.readouterr().err


def test_plot_of_a_session_that_was_cut(tmp_path: Path) -> None:
    """A side without any evaluation is left out of the drawing. Fails where what is saved of a cut
    session cannot be drawn."""
    pytest.importorskip("matplotlib")
    points = [
        {"step": step, "loss": 0.7 - step / 10, "accuracy": 0.5, "training_seconds": float(step)}
        for step in range(3)
    ]
    ours = {"train_loss": [0.7, 0.6], "evaluations": points}
    curves = {"zephyr": ours, "trl": {"train_loss": [], "evaluations": []}}
    saved = {"machine": {"packages": {}}, "result": {"curves": curves}}
    (tmp_path / "learning.json").write_text(json.dumps(saved))
    drawn = bench_learning.plot(tmp_path / "learning.json").read_text()
    assert ">Zephyr<" in drawn and ">CPU seconds of training<" in drawn and "TRL" not in drawn
