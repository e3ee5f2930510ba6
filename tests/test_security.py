"""Secrets stay in the environment, and nothing that is read can run code."""

import ast
import json
import os
import re
from pathlib import Path

import pytest
from processes import ROOT, Launch
from runs import records, rows, write_config, write_lines

from zephyr import config as configs
from zephyr.analysis import runs
from zephyr.cli.command import read_options
from zephyr.config import BadInput, ConfigError, DPOConfig
from zephyr.data.jsonl import write_rows
from zephyr.data.sources import open_sources
from zephyr.playground.models import Sampling, open_model
from zephyr.teacher import Ledger, endpoint
from zephyr.teacher.spec import open_teacher
from zephyr.training.files import write_atomic
from zephyr.training.folder import EXPORT, FILES, RunFolder

SECRETS = {
    name: f"planted-{number}-in-the-environment"
    for number, name in enumerate(
        (
            "OPENAI_API_KEY",
            "WANDB_API_KEY",
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "ANTHROPIC_API_KEY",
            "AWS_SECRET_ACCESS_KEY",
        )
    )
}


def leaks(*folders: Path) -> list[tuple[str, str]]:
    """Names of secrets whose value is in a file below, with the file."""
    files = {
        path: path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }
    return [
        (name, path.name)
        for path, content in files.items()
        for name, value in SECRETS.items()
        if value.encode() in content
    ]


def test_no_secret_is_ever_written(tiny: Path, launch: Launch, tmp_path: Path) -> None:
    """A whole run with wandb, at a rate that freezes bfloat16 weights, so that alarms speak too:
    logs, configs, checkpoints, caches, reports and the model hold none of the keys in its
    environment. Fails where a library is asked to note the environment."""
    data = write_lines(tmp_path / "pairs.jsonl", rows(12))
    config = write_config(
        tmp_path,
        tiny,
        data,
        hardware__dtype="bfloat16",
        optim__lr_peak=1e-9,
        run__wandb={"mode": "offline"},
        data__eval=[str(data)],
    )
    done = launch(
        "train_dpo.py",
        config,
        ZEPHYR_CACHE=str(tmp_path / "cache"),
        HOME=str(tmp_path / "home"),
        **SECRETS,
    )
    assert (
        (tmp_path / "run" / "model").exists()
        and list(tmp_path.glob("run/wandb/offline-run-*/files/media/table/pairs/worst*"))
        and list(tmp_path.glob("cache/*"))
    )
    assert leaks(tmp_path) == [] and not any(
        value in done.stdout + done.stderr for value in SECRETS.values()
    )
    flagged = [
        record["step"] for record in records(tmp_path / "run") if "alarms/frozen_weights" in record
    ]
    assert (
        flagged == [1, 2, 3]
        and done.stderr.count("alarm at step 1: ") == 1
        and "alarm at step 2" not in done.stderr
    )
    (tmp_path / "control").write_text(f"key: {SECRETS['HF_TOKEN']}")
    assert leaks(tmp_path) == [("HF_TOKEN", "control")]


def load(tmp_path: Path, *overrides: str) -> DPOConfig:
    (tmp_path / "config.yaml").write_text(json.dumps({"model": "m", "data": {"train": ["d"]}}))
    return configs.load(DPOConfig, str(tmp_path / "config.yaml"), overrides)


@pytest.mark.parametrize(
    "value",
    [
        "$WANDB_API_KEY",
        "a-${HF_TOKEN}-b",
        "$HF_PAT",
        "$openai_key/x",
        "${DB}",
        "$_",
        "${",
        "${NOT SET}",
    ],
)
def test_a_variable_is_a_path(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolved config is written to the run folder, to the model card and to wandb: of the
    environment it gets folders and jobs alone, in keys that are paths. Fails where a secret is
    filled in, whatever the variable's name, or an unset one makes a folder `$X`."""
    for name in ("WANDB_API_KEY", "HF_TOKEN", "HF_PAT", "openai_key", "DB", "_"):
        monkeypatch.setenv(name, "planted")
    for key in ("run.dir", "data.train[0]", "run.wandb.name", "samples.judge"):
        override = f"data.train=['{value}']" if "[" in key else f"{key}='{value}'"
        with pytest.raises(ConfigError, match=r"the variable|variables are filled in") as error:
            load(tmp_path, override)
        assert "planted" not in str(error.value) and str(error.value).startswith(key)
    monkeypatch.setenv("SCRATCH", "/fast")
    assert load(tmp_path, "run.dir=$SCRATCH/${SCRATCH}n").run.dir == "/fast//fastn"
    for wrong in ("run.wandb.name=$SCRATCH", "run.wandb.project=$USER", "loss=$HOME"):
        with pytest.raises(
            ConfigError, match="variables are filled in only where a path is expected"
        ):
            load(tmp_path, wrong)
    monkeypatch.setenv("SCRATCH", "http://me:planted@host")
    with pytest.raises(ConfigError, match="run.dir: expected a string without a secret"):
        load(tmp_path, "run.dir=$SCRATCH/run")
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(ConfigError, match="run.dir: the variable SCRATCH is not set"):
        load(tmp_path, "run.dir=$SCRATCH/run")
    assert load(tmp_path, "run.wandb.name='5 $ and $5'").run.wandb.name == "5 $ and $5"


PASSWORD, HUB_KEY, PATH_KEY = (
    "pw7planted",
    "hf_PLANTEDplantedPLANTED1234567890abcd",
    "plantedPLANTED0123456789ab",
)
SECRET_URLS = [
    f"http://me:{PASSWORD}@host/v1",
    f"https://:{PASSWORD}@host/v1",
    f"http://me:{PASSWORD}/x@host/v1",
    f"https://host/v1?k={PASSWORD}",
    f"https://host/{PATH_KEY}/v1",
    f"https://host/v1#{PASSWORD}",
    f"https://host/v1/k={PASSWORD}",
    f"https://host/{HUB_KEY}",
    f"https://{PASSWORD}%40x@host/v1",
    f"https://host/v1%3Fk={PASSWORD}",
    "https://host/sk%2Dplanted-7f3a91c2e4d05b68",
    "https://host/7f3a91c2e4d05b68/v1",
    "https://host/7f3a91c2-e4d0-5b68-7f3a-91c2e4d05b68/v1",
    f"https://host/token/{PASSWORD}",
    f"https://host/v1%23{PASSWORD}",
]
PLANTED = (PASSWORD, "7f3a91c2-e4d0-5b68-7f3a-91c2e4d05b68", HUB_KEY, PATH_KEY, "7f3a91c2e4d05b68")


@pytest.mark.parametrize("url", SECRET_URLS)
def test_a_url_with_a_secret_is_refused(url: str, tmp_path: Path) -> None:
    """In every place that takes a URL, before anything is written, without a word of it. Fails
    where the resolved config, a ledger or a report would keep it, or the error that refuses it is
    what tells it."""
    for key in ("samples.judge=openai:m@", "model=", "run.wandb.name=", "chat_template="):
        with pytest.raises(
            ConfigError, match=f"{key.split('=')[0]}: expected a string without a secret"
        ) as error:
            load(tmp_path, f"{key}'{url}'")
        assert not any(secret in str(error.value) for secret in PLANTED)
    for open_it in (lambda: endpoint("m", url), lambda: open_teacher(f"openai:m@{url}")):
        with pytest.raises(BadInput, match="a URL") as error:
            open_it()
        assert not any(secret in str(error.value) for secret in PLANTED)


def test_errors_tell_no_secret(tmp_path: Path) -> None:
    """What is wrong in another way than by its secret is shown, the secret struck out. Fails where
    an error shows a value as it came."""
    user, key = f"openai:m@htp://me:{PASSWORD}@host/v1", f"openai:{HUB_KEY}"
    for tell in (
        lambda: open_teacher(user),
        lambda: open_teacher(key),
        lambda: open_model(user, Sampling(1, 0.0, 1.0, 0)),
        lambda: open_sources([user]),
        lambda: load(tmp_path, f"model.x={user}"),
        lambda: load(tmp_path, f"{HUB_KEY}=1"),
        lambda: endpoint(HUB_KEY, "http://host/v1"),
        lambda: load(tmp_path, f"run.resume={HUB_KEY}"),
    ):
        with pytest.raises(BadInput) as error:
            tell()
        assert (
            PASSWORD not in str(error.value)
            and HUB_KEY not in str(error.value)
            and re.search(r"\[(user|key)\]", str(error.value))
        )


def test_what_is_no_secret_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of folders and models, and servers' URLs as they are. Fails where an honest name looks
    like a key."""
    urls = (
        "http://localhost:8000/v1",
        "https://api.openai.com/v1",
        "https://my.openai.azure.com/openai/deployments/gpt-4o-mini-2024-07-18",
        "http://[::1]:8080/v1",
        "https://api.runpod.ai/v2/vllm-k3j4h5g6f7/openai/v1",
        "https://x9y8z7w6v5u4t3s2r1q0p9.endpoints.example/v1",
    )
    for url in urls:
        assert load(
            tmp_path, f"samples.judge=openai:org/model-7B-v0.2@{url}"
        ).samples.judge.endswith(url)
        assert endpoint("org/model-7B-v0.2", url).identity.endswith(url)
    for name in (
        "runs/sk-learn-baseline-2024-number-17",
        "org/hf_model_7b",
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "a@b/c",
        "d:/x y",
        "meta-llama/Meta-Llama-3.1-405B-Instruct-FP8",
        "/data/0123456789abcdef0123456789abcdef/pairs.jsonl",
    ):
        assert load(tmp_path, f"run.dir='{name}'").run.dir == name


def test_a_judge_with_a_password_leaves_no_trace(
    tiny: Path, launch: Launch, tmp_path: Path
) -> None:
    """The script itself, whose run folder is made before its judge is opened. Fails where
    config.yaml or status.json is written first."""
    data = write_lines(tmp_path / "pairs.jsonl", rows(4))
    config = write_config(tmp_path, tiny, data)
    done = launch(
        "train_dpo.py",
        config,
        f"samples.judge=openai:m@http://me:{PASSWORD}@host/v1",
        f"samples.prompts=[{data}]",
        check=False,
    )
    assert (
        done.returncode == 2
        and PASSWORD not in done.stdout + done.stderr
        and "samples.judge" in done.stderr
    )
    assert not (tmp_path / "run").exists()


BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]\n" for n in range(12))
MERGES = "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" if n else "a0: &a0 {x: 1}\n"
    for n in range(12)
)


@pytest.mark.parametrize(
    "text, why",
    [
        (BOMB, "stand for more"),
        (MERGES, "stand for more"),
        ("a: &a [*a]\n", "stand for more"),
        ("&a {b: *a}\n", "stand for more"),
        ("x: " + "y" * 2**20, "over 1048576 bytes"),
        ("[" * 5000, "not YAML"),
    ],
    ids=("lists", "merges", "a list of itself", "a mapping of itself", "long", "deep"),
)
def test_a_yaml_bomb_is_told(text: str, why: str, tmp_path: Path) -> None:
    """Half a kB that stands for 9^12 values, lists that hold themselves, a file without end: one
    line, at once, for the configs of runs and commands, overrides, and what a report reads of
    somebody's run. Fails where the values are counted, shown or merged one by one."""
    path = tmp_path / "config.yaml"
    path.write_text(f"model: m\ndata: {{train: [d]}}\n{text}" if text[0] not in "&[" else text)
    with pytest.raises(ConfigError, match=f"config {path}: .*({why})"):
        configs.load(DPOConfig, str(path))
    with pytest.raises(ConfigError, match=f"config {path}: .*({why})"):
        read_options(path)
    with pytest.raises(BadInput, match=str(path)):
        runs.read_leaves(path)
    path.write_text("a: &a [1, 2]\nb: *a\n")
    assert configs.read_yaml(path) == {"a": [1, 2], "b": [1, 2]}
    if why == "stand for more":
        with pytest.raises(ConfigError, match="the value is not YAML"):
            load(tmp_path, "samples.prompts=&a [*a]")


@pytest.mark.parametrize("name", [*FILES, *EXPORT])
def test_a_run_writes_through_no_link(name: str, tmp_path: Path) -> None:
    """A link among a run folder's files, there or to nothing: the run is refused before anything is
    touched. Fails where the lock truncates, or a log or a record goes to, a file that the link's
    maker could not write, and the user can."""
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    for target in (victim, tmp_path / "nothing"):
        (run / name).symlink_to(target)
        with pytest.raises(BadInput, match=f"run.dir: {run / name} is a link"):
            RunFolder(run).open()
        assert (
            [path.name for path in run.iterdir()] == [name]
            and victim.read_text() == "precious"
            and not (tmp_path / "nothing").exists()
        )
        (run / name).unlink()
    if name in EXPORT:
        (run / name).write_text("mine")
        with pytest.raises(BadInput, match=f"run.dir: {run / name} is no folder"):
            RunFolder(run).open()
        (run / name).unlink()
    (tmp_path / "scratch").mkdir()
    (run / "checkpoints").symlink_to(
        tmp_path / "scratch"
    )  # a folder elsewhere is the user's own plan
    folder = RunFolder(run)
    folder.open()
    folder.close()


def test_what_is_written_whole_follows_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that others can write to: a link in the file's place is replaced, one in the
    temporary file's place is an error even where its name was guessed, and nothing half-written
    stays. Fails where a store or a report is written over somebody's file."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out.json").symlink_to(victim)
    write_atomic(tmp_path / "out.json", b"new")
    assert (
        victim.read_text() == "precious"
        and (tmp_path / "out.json").read_bytes() == b"new"
        and not (tmp_path / "out.json").is_symlink()
    )
    assert (
        tmp_path / "out.json"
    ).stat().st_mode & 0o777 == victim.stat().st_mode & 0o777  # as the user's umask has it
    (tmp_path / "rows.jsonl").symlink_to(victim)
    write_rows(tmp_path / "rows.jsonl", [{"a": 1}])
    assert (
        victim.read_text() == "precious" and (tmp_path / "rows.jsonl").read_bytes() == b'{"a": 1}\n'
    )
    (tmp_path / f"out.json.{os.getpid()}.part").symlink_to(victim)  # a name of before
    (tmp_path / "rows.jsonl.part").symlink_to(victim)
    write_atomic(tmp_path / "out.json", b"newer")
    write_rows(tmp_path / "rows.jsonl", [{"a": 2}])
    assert victim.read_text() == "precious" and len(list(tmp_path.glob("*.part"))) == 2
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / "out.json.guessed.part").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "out.json", b"newest")
    assert victim.read_text() == "precious" and (tmp_path / "out.json").read_bytes() == b"newer"
    with pytest.raises(ZeroDivisionError):
        write_rows(tmp_path / "rows.jsonl", ({"a": 1 / n} for n in (1, 0)))
    assert (tmp_path / "rows.jsonl").read_bytes() == b'{"a": 2}\n' and not list(
        tmp_path.glob("rows.jsonl.guessed*")
    )


def test_a_checkpoint_is_no_pickle(finished: Path) -> None:
    """Every file of a run is text, parquet or safetensors. Fails where something that runs when it
    is read is written."""
    suffixes = {
        path.suffix
        for path in (finished / "run").rglob("*")
        if path.is_file() and path.name not in ("lock", "latest")
    }
    assert suffixes <= {
        ".safetensors",
        ".json",
        ".jsonl",
        ".yaml",
        ".parquet",
        ".md",
        ".jinja",
        ".html",
    }
    (path,) = (finished / "run" / "checkpoints" / "step-6").glob("rank-0-*")
    header = path.read_bytes()
    assert "__metadata__" in json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "zephyr").rglob("*.py"), *ROOT.glob("train_*.py")]),
    ids=lambda p: p.name,
)
def test_no_code_is_loaded(path: Path) -> None:
    """No torch.load, no pickle, no eval, no trust in remote code. Fails for the first of these that
    is written here."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "marshal", "shelve", "joblib"} & {
                name.split(".")[0] for name in names
            }
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in (
                "torch.load",
                "eval",
                "exec",
                "yaml.load",
                "yaml.unsafe_load",
                "np.load",
                "numpy.load",
            ), called
            trust = [
                keyword.value for keyword in node.keywords if keyword.arg == "trust_remote_code"
            ]
            assert all(isinstance(value, ast.Constant) and value.value is False for value in trust)


def test_a_ledger_is_written_through_no_link(tmp_path: Path) -> None:
    """Fails where replies go into the file that somebody's link in the ledger's place leads to."""
    victim, path = tmp_path / "victim", tmp_path / "out.ledger.jsonl"
    victim.write_text("")
    for target in (victim, tmp_path / "nothing"):
        path.symlink_to(target)
        with pytest.raises(BadInput, match=f"ledger {path} is a link"):
            Ledger(path)
        assert victim.read_text() == "" and not (tmp_path / "nothing").exists()
        path.unlink()
    with Ledger(path):
        assert path.exists()
