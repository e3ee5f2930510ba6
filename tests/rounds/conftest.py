"""A tiny policy that has two answers to each of a few prompts, one better than the other, so that
its samples get different scores; and rounds of it on forks that need no imports."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from forkserver import ForkServer
from runs import write_config
from transformers import AutoModelForCausalLM

from zephyr.chat import encode_messages
from zephyr.data.jsonl import write_rows
from zephyr.data.tokenizer import load_tokenizer
from zephyr.rounds.processes import Job, Launch
from zephyr.world.answerers import answer
from zephyr.world.facts import build_world
from zephyr.world.prompts import draw_prompts

SCRIPTS = {"zephyr.rounds.work": "zephyr/rounds/work.py"}


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight prompts of the embedded world that have an answer."""
    drawn = draw_prompts(build_world(0), "train", 40, 0)
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    write_rows(path, [prompt._asdict() for prompt in drawn if prompt.asked][:8])
    return path


@pytest.fixture(scope="session")
def talker(tiny: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, trained until it gives to each prompt one of two answers: the terse
    answerer's, or the evasive one's."""
    world = build_world(0)
    drawn = [prompt for prompt in draw_prompts(world, "train", 40, 0) if prompt.asked][:8]
    tokenizer = load_tokenizer(tiny)
    texts = []
    for prompt, name in itertools.product(drawn, ("terse", "evasive")):
        turns = [
            {"role": "user", "content": prompt.prompt},
            {"role": "assistant", "content": answer(name, prompt, world, 0)},
        ]
        texts.append(encode_messages(tokenizer, turns, template=tokenizer.chat_template))
    longest = max(len(text.ids) for text in texts)
    ids_BL = torch.tensor([text.ids + [0] * (longest - len(text.ids)) for text in texts])
    target_BL = torch.tensor(
        [text.is_target + [False] * (longest - len(text.ids)) for text in texts]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        optimizer = torch.optim.AdamW(lm.parameters(), lr=6e-3)
        for _ in range(45):
            logits = lm(ids_BL).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits[target_BL[:, 1:]], ids_BL[:, 1:][target_BL[:, 1:]]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    folder = tmp_path_factory.mktemp("talker") / "model"
    lm.generation_config.do_sample = True  # `transformers serve` samples only then
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def forked(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Runs the processes of a round as forks, each on its own rank."""
    cache = tmp_path_factory.mktemp("cache")

    def launch(job: Job) -> int:
        script = SCRIPTS.get(job.program, job.program)
        folder = tmp_path_factory.mktemp("said")
        environment = {"ZEPHYR_CACHE": str(cache)}
        root = Path(__file__).resolve().parents[2]
        ranks = 0 if job.processes == 1 else job.processes
        done = fork_server.run(
            list(job.arguments), environment, folder, 120, script=script, ranks=ranks, cwd=root
        )
        with job.log.open("a") as log:
            log.write(done.out + done.err)
        return done.code

    return launch


WriteRounds = Callable[..., Path]


@pytest.fixture
def write_rounds(talker: Path, prompts: Path, tmp_path: Path) -> WriteRounds:
    return rounds_writer(talker, prompts, tmp_path)


def rounds_writer(talker: Path, prompts: Path, folder: Path) -> WriteRounds:
    """A function that writes the YAML file of two rounds in a folder. Args: changes:
    group__key=value."""

    def write(**changes: object) -> Path:
        pairs = folder / "unused.jsonl"
        train = write_config(
            folder,
            talker,
            pairs,
            optim__epochs=1,
            optim__pairs_per_step=4,
            optim__warmup_fraction=0.0,
            run__preflight=False,
        )
        train = train.rename(folder / "train.yaml")
        tree = {
            "model": str(talker),
            "dir": str(folder / "rounds"),
            "rounds": 2,
            "prompts": {"sources": [str(prompts)]},
            "sampling": {"samples": 4, "max_new_tokens": 24, "batch": 8},
            "scoring": {"scorer": "world:judge@0", "judged_by": "aspects"},
            "train": {"config": str(train), "processes": 2},
        }
        for key, value in changes.items():
            group, _, leaf = key.rpartition("__")
            (tree.setdefault(group, {}) if group else tree)[leaf] = value
        path = folder / "rounds.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write
