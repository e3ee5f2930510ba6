"""Secrets stay in the environment, and nothing that is read can run code."""
import ast
import json
from pathlib import Path

import pytest

from processes import ROOT, Launch
from runs import records, rows, write_config, write_lines
from zephyr import config as configs
from zephyr.config import ConfigError, DPOConfig

SECRETS = {name: f"planted-{number}-in-the-environment" for number, name in enumerate(
    ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "ANTHROPIC_API_KEY", "AWS_SECRET_ACCESS_KEY"))}


def leaks(*folders: Path) -> list[tuple[str, str]]:
    """Names of secrets whose value is in a file below, with the file."""
    files = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    return [(name, path.name) for path, content in files.items() for name, value in SECRETS.items() if value.encode() in content]


def test_no_secret_is_ever_written(tiny: Path, launch: Launch, tmp_path: Path) -> None:
    """A whole run with wandb, at a rate that freezes bfloat16 weights, so that alarms speak too: logs, configs, checkpoints, caches,
    reports and the model hold none of the keys in its environment. Fails where a library is asked to note the environment."""
    data = write_lines(tmp_path / "pairs.jsonl", rows(12))
    config = write_config(tmp_path, tiny, data, hardware__dtype="bfloat16", optim__lr_peak=1e-9, run__wandb={"mode": "offline"},
                          data__eval=[str(data)])
    done = launch("train_dpo.py", config, ZEPHYR_CACHE=str(tmp_path / "cache"), HOME=str(tmp_path / "home"), **SECRETS)
    assert (tmp_path / "run" / "model").exists() and list(tmp_path.glob("run/wandb/offline-run-*")) and list(tmp_path.glob("cache/*"))
    assert leaks(tmp_path) == [] and not any(value in done.stdout + done.stderr for value in SECRETS.values())
    flagged = [record["step"] for record in records(tmp_path / "run") if "alarms/frozen_weights" in record]
    assert flagged == [1, 2, 3] and done.stderr.count("alarm at step 1: ") == 1 and "alarm at step 2" not in done.stderr
    (tmp_path / "control").write_text(f"key: {SECRETS['HF_TOKEN']}")
    assert leaks(tmp_path) == [("HF_TOKEN", "control")]


@pytest.mark.parametrize("value", ["$WANDB_API_KEY", "a-${HF_TOKEN}-b", "$MY_SECRET/x", "${DB_PASSWORD}"])
def test_a_secret_is_no_config(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolved config is written to the run folder, and to the model card. Fails where a secret is filled in."""
    for name in ("WANDB_API_KEY", "HF_TOKEN", "MY_SECRET", "DB_PASSWORD"):
        monkeypatch.setenv(name, "planted")
    (tmp_path / "config.yaml").write_text(json.dumps({"model": "m", "data": {"train": ["d"]}}))
    with pytest.raises(ConfigError, match="run.wandb.name: a secret stays") as error:
        configs.load(DPOConfig, str(tmp_path / "config.yaml"), [f"run.wandb.name={value}"])
    assert "planted" not in str(error.value)
    monkeypatch.setenv("SCRATCH", "/fast")
    assert configs.load(DPOConfig, str(tmp_path / "config.yaml"), ["run.dir=$SCRATCH/run"]).run.dir == "/fast/run"


def test_a_checkpoint_is_no_pickle(finished: Path) -> None:
    """Every file of a run is text, parquet or safetensors. Fails where something that runs when it is read is written."""
    suffixes = {path.suffix for path in (finished / "run").rglob("*") if path.is_file() and path.name not in ("lock", "latest")}
    assert suffixes <= {".safetensors", ".json", ".jsonl", ".yaml", ".parquet", ".md", ".jinja", ".html"}
    (path,) = (finished / "run" / "checkpoints" / "step-6").glob("rank-0-*")
    header = path.read_bytes()
    assert "__metadata__" in json.loads(header[8:8 + int.from_bytes(header[:8], "little")])


@pytest.mark.parametrize("path", sorted([*(ROOT / "zephyr").rglob("*.py"), *ROOT.glob("train_*.py")]), ids=lambda p: p.name)
def test_no_code_is_loaded(path: Path) -> None:
    """No torch.load, no pickle, no eval, no trust in remote code. Fails for the first of these that is written here."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "marshal", "shelve", "joblib"} & {name.split(".")[0] for name in names}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "eval", "exec", "yaml.load", "yaml.unsafe_load", "np.load", "numpy.load"), called
            trust = [keyword.value for keyword in node.keywords if keyword.arg == "trust_remote_code"]
            assert all(isinstance(value, ast.Constant) and value.value is False for value in trust)
