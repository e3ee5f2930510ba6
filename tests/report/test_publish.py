"""`zephyr push` against a stand-in for the Hub: what arrives, what is refused, what breaks off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stand_in import TOKEN, Answer, Hub, hub
from huggingface_hub import ModelCard, constants, snapshot_download
from processes import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from zephyr.cli import main
from zephyr.report.card import base_model
from zephyr.report.publish import stale_files

CARD = "---\nlibrary_name: transformers\ntags:\n- zephyr\n- dpo\n---\n\n# dpo\n"
REPO = "me/zephyr-tiny"


@pytest.fixture(scope="module")
def export(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose model/ has three shards."""
    run = tmp_path_factory.mktemp("export") / "run"
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.save_pretrained(run / "model", max_shard_size="200KB")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(run / "model")
    (run / "model" / "README.md").write_text(CARD, encoding="utf-8")
    assert len(list((run / "model").glob("model-*.safetensors"))) > 2
    return run


@pytest.fixture
def run(export: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    return Path(shutil.copytree(export, tmp_path / "run"))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in that this process takes for the Hub."""
    with hub() as made:
        template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


def local_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_arrives_is_the_export(
    run: Path, stand_in: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where a file is lost or changed on its way, a second push changes anything, or the
    branch, the tags or the privacy asked for are not those of the repository."""
    tags = ["--license", "apache-2.0", "--base-model", "org/base", "--dataset", "org/pairs"]
    assert main(["push", str(run), REPO, "--private", *tags]) == 0
    first = capsys.readouterr()
    assert f"{stand_in.url}/{REPO}/commit/" in first.out and "warning" not in first.err
    here, there = local_files(run / "model"), stand_in.files(REPO)
    assert stand_in.repositories[REPO].private
    assert {**there, "README.md": b""} == {**here, "README.md": b""}
    data = ModelCard(there["README.md"].decode()).data.to_dict()
    assert (data["license"], data["base_model"], data["datasets"]) == (
        *("apache-2.0", "org/base"),
        ["org/pairs"],
    )
    assert data["tags"] == ["zephyr", "dpo"] and b"# dpo" in there["README.md"]

    assert main(["push", str(run), REPO, "--private", *tags, "--revision", "beta"]) == 0
    branches = stand_in.repositories[REPO].branches
    assert branches["beta"] == branches["main"], "the same files made another commit"
    back = Path(snapshot_download(REPO, local_dir=tmp_path / "back"))
    assert {n: (back / n).read_bytes() for n in there} == there


def test_another_model_replaces_the_weights(run: Path, stand_in: Hub) -> None:
    """Fails where shards of an earlier model stay, which transformers would load in place of the
    new ones, or where files that are not weights of a model are removed."""
    assert main(["push", str(run), REPO]) == 0
    kept = {".gitattributes": b"*", "model-q4.gguf": b"GGUF", "notes/old.safetensors": b"1"}
    stand_in.repositories[REPO].commit("main", {**stand_in.files(REPO), **kept})
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    for path in (run / "model").glob("model*"):
        path.unlink()
    model.save_pretrained(run / "model")
    assert main(["push", str(run / "model"), REPO]) == 0
    assert stand_in.files(REPO) == {**local_files(run / "model"), **kept}
    assert stale_files(["adapter_config.json", "config.json"], []) == ["adapter_config.json"]


def damaged(run: Path, how: str) -> None:
    """Leave the export as an interruption, or a copy that broke off, would."""
    model = run / "model"
    shard = sorted(model.glob("model-*"))[1]
    if how == "cut shard":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif how == "lost shard":
        shard.unlink()
    elif how == "other shard":
        shutil.copyfile(sorted(model.glob("model-*"))[0], shard)
    elif how == "cut index":
        index = model / "model.safetensors.index.json"
        index.write_text(index.read_text()[:-20])
    elif how == "lost index":
        (model / "model.safetensors.index.json").unlink()
    elif how == "cut tokenizer":
        (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text()[:-20])
    elif how == "half written":
        (run / "model.part").mkdir()
    elif how == "card":
        (model / "README.md").write_text("---\n- a list\n---\n")
    elif how == "base":
        (model / "README.md").write_text("---\nbase_model: runs/sft/model\n---\n")
    else:
        (model / how).unlink()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("cut shard", "not a whole safetensors file"),
        ("lost shard", "model-00002-of-"),
        ("other shard", "not those of model.safetensors.index.json"),
        ("cut index", "expected a weight_map"),
        ("lost index", "model.safetensors is missing"),
        ("cut tokenizer", "tokenizer.json: not whole JSON"),
        ("half written", "interrupted: start the run again"),
        ("card", "no YAML mapping"),
        ("base", "expected NAMESPACE/NAME"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("config.json", "config.json is missing"),
    ],
)
def test_what_is_not_whole_is_refused(
    run: Path, stand_in: Hub, how: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where a folder that others could not load is uploaded, or a part of it."""
    damaged(run, how)
    assert main(["push", str(run), REPO]) == 2
    assert expected in capsys.readouterr().err
    assert not stand_in.repositories


def test_a_dry_run_lists_and_sends_nothing(
    run: Path, stand_in: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where --dry-run needs a token or the Hub, or prints other sizes than the files'."""
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(run), REPO, "--dry-run"]) == 0
    said = capsys.readouterr()
    sizes = {line.split()[1]: line.split()[0] for line in said.out.splitlines()[:-1]}
    here = local_files(run / "model")
    assert sizes == {name: f"{len(content):,}" for name, content in here.items()}
    assert said.out.splitlines()[-1].split()[0] == f"{sum(map(len, here.values())):,}"
    assert "no license" in said.err and "no base model" in said.err
    assert not stand_in.asked


def test_what_the_hub_refuses_is_one_line(
    run: Path, stand_in: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No token, a wrong one, a public repository for --private, a header that the Hub refuses, and
    no network. Fails where one is a traceback, uploads, or does not say what to do."""

    def refused(*options: str) -> str:
        assert main(["push", str(run), REPO, *options]) == 2
        assert not any(method == "PUT" for method, _ in stand_in.asked)
        return capsys.readouterr().err.splitlines()[-1]

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "401" in (said := refused()) and "hf auth whoami" in said and "hf_wrong" not in said
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(run / "no token"))
    assert "hf auth login" in refused()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    stand_in.before = lambda method, path: (
        Answer({"errors": [{"message": '"license" must be one of'}]}, 400)
        if path == "/api/validate-yaml"
        else None
    )
    assert '"license" must be one of' in refused("--license", "mine")
    assert "is there already and is public" in refused("--private")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused()
    assert main(["push", str(run), "a/b/c"]) == 2 and "REPO_ID" in capsys.readouterr().err


def test_a_push_that_was_killed_goes_on(run: Path, stand_in: Hub) -> None:
    """The process is killed while the Hub waits for its second large file. Fails where the
    repository then shows a part of the model, or the next push sends the first file again."""
    second, may_end = threading.Event(), threading.Event()
    lock, puts = threading.Lock(), []

    def hold(method: str, path: str) -> Answer | None:
        with lock:
            puts.extend([path] * (method == "PUT"))
            if method != "PUT" or len(puts) == 1:
                return None
        second.set()
        may_end.wait(30)
        return Answer({}, 503)

    stand_in.before = hold
    environment = {**os.environ, **stand_in.environment(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "zephyr", "push", str(run), REPO]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        assert second.wait(60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert stand_in.files(REPO) == {}
    stand_in.before = lambda method, path: None
    may_end.set()
    arrived = set(stand_in.objects)
    asked = len(stand_in.asked)
    assert arrived
    assert main(["push", str(run), REPO]) == 0
    sent = {path.rpartition("/")[2] for method, path in stand_in.asked[asked:] if method == "PUT"}
    shards = len(list((run / "model").glob("*.safetensors")))
    assert not sent & arrived and len(sent) == shards - len(arrived)
    assert stand_in.files(REPO) == local_files(run / "model")


def test_a_lost_connection_says_to_run_it_again(
    run: Path, stand_in: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where storage that refuses a file, as after its address expired, is a traceback."""
    stand_in.before = lambda method, _: Answer({}, 403) if method == "PUT" else None
    assert main(["push", str(run), REPO]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "broke off" in said and "run the command again" in said
    assert stand_in.files(REPO) == {}


def test_an_adapter_names_its_base(
    tmp_path: Path, run: Path, stand_in: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where an adapter is published whose base is a folder of this machine, without a
    warning, or where --base-model does not reach its configuration."""
    adapter = run / "adapter"
    adapter.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "README.md"):
        shutil.copyfile(run / "model" / name, adapter / name)
    settings = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": str(tmp_path / "base")}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    assert main(["push", str(run), REPO, "--adapter"]) == 2
    assert "adapter_model.safetensors is missing" in capsys.readouterr().err
    shutil.copyfile(next((run / "model").glob("model-*")), adapter / "adapter_model.safetensors")
    assert main(["push", str(run), REPO, "--adapter", "--dry-run"]) == 0
    assert "a folder of this machine" in capsys.readouterr().err
    assert main(["push", str(run), REPO, "--adapter", "--base-model", "org/base"]) == 0
    there = json.loads(stand_in.files(REPO)["adapter_config.json"])
    assert there == settings | {"base_model_name_or_path": "org/base"}
    assert "config.json" not in stand_in.files(REPO)


def test_the_base_of_a_base_is_named(tmp_path: Path) -> None:
    """dDPO starts from the folder that dSFT wrote, whose card names the hub model. Fails where the
    card of dDPO names none, or a header that is no mapping ends the run."""
    card = tmp_path / "README.md"
    card.write_text("---\nbase_model: org/base\n---\n# sft\n")
    assert base_model(str(tmp_path)) == "org/base"
    assert base_model("org/other") == "org/other"
    for text in (
        "---\n- x\n---\n",
        "---\nbase_model: /a/b\n---\n",
        "# no header",
        "---\n: {\n---\n",
    ):
        card.write_text(text)
        assert base_model(str(tmp_path)) is None
    card.unlink()
    assert base_model(str(tmp_path)) is None
