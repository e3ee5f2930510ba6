"""The YAML of the rounds is checked as strictly as that of a training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import WriteRounds

from zephyr.cli.asking import Asking
from zephyr.config import BadInput, ConfigError, DPOConfig, describe_keys, keys
from zephyr.rounds.config import (
    README_MARK,
    RoundsConfig,
    Scoring,
    keys_as_markdown,
    load_rounds,
    load_training,
)
from zephyr.rounds.folder import RoundsFolder
from zephyr.rounds.loop import describe, run_rounds
from zephyr.rounds.processes import Job, launcher
from zephyr.rounds.stages import Rounds, compare_with_start, open_judge, training_keys

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "configs" / "tiny" / "rounds.yaml"


def test_the_shipped_config_writes_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a key is missing or unknown, or its training config cannot be loaded."""
    monkeypatch.chdir(ROOT)
    config = load_rounds(str(SHIPPED))
    tree = yaml.safe_load(SHIPPED.read_text())
    leaves = {
        f"{key}.{leaf}" if isinstance(value, dict) else key
        for key, value in tree.items()
        for leaf in (value if isinstance(value, dict) else [""])
    }
    assert leaves == set(keys(RoundsConfig, ""))
    assert load_training(config).optim.epochs == 1


@pytest.mark.parametrize(
    "overrides",
    re.findall(r"^#   [a-z].*?   +(\w+[.=].*)$", SHIPPED.read_text(), re.MULTILINE),
)
def test_the_recipes_of_its_comments_load(overrides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejection sampling, self-rewarding, the control, a fixed reference."""
    monkeypatch.chdir(ROOT)
    config = load_rounds(str(SHIPPED), overrides.split())
    assert config != load_rounds(str(SHIPPED))
    load_training(config)


def test_every_key_is_documented() -> None:
    """Fails where a field has no text, or the README's table was not written again
    (`python -m zephyr.rounds.config zephyr/rounds/README.md`)."""
    for key in describe_keys(RoundsConfig):
        assert len(key.meaning.split()) >= 3 and key.meaning.endswith("."), key
    readme = (ROOT / "zephyr" / "rounds" / "README.md").read_text()
    assert readme.endswith(README_MARK + "\n" + keys_as_markdown())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sampling.sample=3", "sampling.sample: unknown key; the nearest valid key is sampling.s"),
        ("sampling.samples=1", "sampling.samples: expected 2 <= integer"),
        ("sampling.temperature=0", "sampling.temperature: expected a number > 0"),
        ("pairs.choose=best", "pairs.choose: expected one of best_worst"),
        ("pairs.choose=margin", "pairs.margin: choose: margin needs a number > 0"),
        ("prompts.per_round=0", "prompts.per_round: expected null or 1"),
        ("prompts.sources=[]", "prompts.sources: expected a list of at least one"),
        ("server.command=vllm", "server.command: expected {model} and {port}"),
        ("train.overrides=[model=x]", "train.overrides: expected key.sub=value of a key that"),
        (
            "train.overrides=['run={dir: x}']",
            "train.overrides: expected key.sub=value of a key that",
        ),
        ("eval.prompts=[]", "eval.judge: expected eval.prompts"),
        ("scoring.tries=0", "scoring.tries: expected 1 <= integer"),
        ("scoring.key_variable=sk-1", "scoring.key_variable: expected a name of letters"),
        ("scoring.scorer=null", "scoring.scorer: expected a string"),
        ("scoring.scorer=openai:m@http://u:p@h/v1", "scoring.scorer: .* a user or password"),
    ],
)
def test_bad_settings_are_named(override: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=said):
        load_rounds(str(SHIPPED), [override])


def test_settings_that_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """SFT has no reference and no rejected answers."""
    monkeypatch.chdir(ROOT)
    for changes in (["reference=first"], ["pairs.choose=random"], ["pairs.margin=1"]):
        with pytest.raises(ConfigError, match="method: sft"):
            load_rounds(str(SHIPPED), ["method=sft", *changes])


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("loss=simp", "loss must be one of"),
        ("loss={name: simpo, gama: 1}", "loss.gama: loss 'simpo' has no such setting"),
        ("loss=exo_pair", "label_smoothing is 0"),
        ("loss=orpo", "loss orpo has no reference: expected reference: round, got first"),
    ],
)
def test_a_loss_is_checked_before_answers_are_paid_for(
    loss: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where the training of a round refuses its loss only after the round's answers were
    sampled and scored, or a fixed reference only in the second round."""
    monkeypatch.chdir(ROOT)
    changes = ["reference=first", f"train.overrides=['{loss}']"]
    with pytest.raises(ConfigError, match=f"train.config .*{said}"):
        load_training(load_rounds(str(SHIPPED), changes))


def test_the_dtype_of_the_trainings_stays(tmp_path: Path) -> None:
    """Fails where a run is continued in another dtype, whose weights are others, or may not be
    continued with another kernel."""
    folder = RoundsFolder(tmp_path)
    (tmp_path / "train.yaml").write_text("hardware: {dtype: float32, attention: sdpa}\n")
    folder.compare(
        "train.yaml", {"hardware.dtype": "float32", "hardware.attention": "torch_varlen"}
    )
    with pytest.raises(BadInput, match="hardware.dtype was 'float32', it is 'bfloat16'"):
        folder.compare("train.yaml", {"hardware.dtype": "bfloat16", "hardware.attention": "sdpa"})


def test_who_samples_stays(tmp_path: Path) -> None:
    """Fails where a run of its own sampling is continued by a server, or the other way round. The
    command, and all else of a server, may change."""
    folder = RoundsFolder(tmp_path)
    own = {"server.command": None, "server.concurrency": 64}
    served = {"server.command": "serve {model} {port}", "server.concurrency": 8}
    for was, now in ((own, served), (served, own)):
        held = {"server": {name.partition(".")[2]: value for name, value in was.items()}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(held))
        with pytest.raises(BadInput, match=r"server\.command was .*, it is "):
            folder.compare("config.yaml", now)
        other = now["server.command"] and "other {model} {port}"
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"server": {"command": other}}))
        folder.compare("config.yaml", now)


def test_a_judge_behind_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a key of `scoring` does not reach the endpoint: its bad key is found in the
    variable that the config names."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JUDGE_KEY", "not a key")
    config = load_rounds(str(SHIPPED), ["scoring.key_variable=JUDGE_KEY", "scoring.tries=1"])
    with pytest.raises(BadInput, match="JUDGE_KEY: expected a key of printable"):
        open_judge("openai:m@http://127.0.0.1:9/v1", config.scoring)
    monkeypatch.setenv("JUDGE_KEY", "key")
    given: dict[str, object] = {}
    monkeypatch.setattr("zephyr.rounds.stages.open_teacher", lambda _, **of: given.update(of))
    open_judge("openai:m@http://127.0.0.1:9/v1", config.scoring)
    assert given == {
        "concurrency": 16,
        "timeout_seconds": 120,
        "retries": 0,
        "key_variable": "JUDGE_KEY",
    }


def test_defaults_are_those_of_feedback() -> None:
    """A request is given up after as long, and as many tries, as that of `zephyr feedback`."""
    ours, theirs = Scoring("world:judge"), Asking()
    for name in ("concurrency", "timeout_seconds", "tries", "key_variable"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_the_reference_is_not_that_of_the_training_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Fails where `reference.model` of the YAML stays in place of the policy of each round."""
    monkeypatch.chdir(ROOT)
    path = tmp_path / "dpo.yaml"
    tree = yaml.safe_load((ROOT / "configs" / "tiny" / "dpo.yaml").read_text())
    tree["reference"] = {**tree["reference"], "model": "another"}
    path.write_text(yaml.safe_dump(tree))
    training = load_training(load_rounds(str(SHIPPED), [f"train.config={path}"]))
    assert isinstance(training, DPOConfig) and training.reference.model is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("hardware.attention=flash_attn", "hardware.attention: flash_attn"),
        ("data.eval=[nowhere.jsonl]", "data.eval: 'nowhere.jsonl' does not exist"),
        ("samples.prompts=[nowhere.jsonl]", "samples.prompts: 'nowhere.jsonl' does not exist"),
        ("hardware.deepspeed=none.json", "hardware.deepspeed: no such file: none.json"),
    ],
)
def test_what_a_training_refuses_is_refused_before_answers(
    override: str, said: str, write_rounds: WriteRounds, tmp_path: Path
) -> None:
    """Fails where the first round's answers and scores are paid for, and its training then says
    that it cannot start."""
    config = load_rounds(str(write_rounds(train__overrides=[override])))
    with pytest.raises(BadInput, match=f"^train.config .*: {said}"):
        run_rounds(config, lambda job: pytest.fail(f"{job} is started"))
    assert not (tmp_path / "rounds").exists()
    if "attention" not in override:
        with pytest.raises(BadInput, match=said):
            describe(config)


def test_a_limit_of_pairs_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where `data.limit`, which counts from the first source, leaves out the pairs of the
    round itself."""
    monkeypatch.chdir(ROOT)
    config = load_rounds(str(SHIPPED), ["pairs.use=all"])
    rounds = Rounds(config, RoundsFolder(tmp_path), [], [], launcher(None))
    sources = training_keys(rounds, 3)["data.train"]
    assert sources == [str(tmp_path / f"round-{number}" / "pairs.jsonl") for number in (3, 2, 1)]


def test_a_judge_that_is_a_model_is_asked_by_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where the judge of the held-out answers is loaded in the process that goes on to start
    the next training, beside which its memory would stay."""
    monkeypatch.chdir(ROOT)
    config = load_rounds(str(SHIPPED), ["eval.judge=hf:nowhere/model"])
    jobs: list[Job] = []
    (tmp_path / "round-1").mkdir()
    rounds = Rounds(config, RoundsFolder(tmp_path), [], [], lambda job: jobs.append(job) or 0)
    compare_with_start(rounds, 1)
    (job,) = jobs
    assert job.processes == 2 and list(job.arguments)[:3] == ["compare", str(tmp_path), "1"]
