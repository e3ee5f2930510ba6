"""The shipped configs at the size of a test: each reads rows in the shape of its own data on a
stand-in of its own model, plans and trains there, and says what README.md says of it."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from processes import ROOT, Launch
from published_rows import SETS
from runs import records, write_lines
from safetensors.torch import load_file
from stand_ins import MODELS, stand_in
from torch import Tensor
from transformers import AutoModelForCausalLM

import train_dpo
from zephyr import config as configs
from zephyr.chat import EncodedPair
from zephyr.cli import main
from zephyr.config import DPOConfig, SFTConfig
from zephyr.costs.work import read_model
from zephyr.data.encode import load_pairs, load_texts
from zephyr.data.tokenizer import prepare_tokenizer, read_tokenizer, resolve_chat_template
from zephyr.model.load import load_policy, require_runnable
from zephyr.packing import collate_pairs

CONFIGS = [path for name in MODELS for path in sorted((ROOT / "configs" / name).glob("*.yaml"))]
NAMES = [str(path.relative_to(ROOT / "configs")) for path in CONFIGS]
ON_A_CPU = (
    "hardware.attention=sdpa",
    "hardware.dtype=float32",
    "hardware.deepspeed=configs/deepspeed/cpu.json",
    "run.wandb.mode=disabled",
)
# What ends an answer, by the folder of configs/ and the file; else by the folder alone.
ENDS = {
    "zephyr-7b-beta": "</s>",
    "handbook-a": "</s>",
    "handbook-b": "</s>",
    "mistral-orpo": "</s>",
    "tulu3-8b": "<|end_of_text|>",
    "olmo3-7b/dpo.yaml": "<|endoftext|>",
    "olmo3-7b": "<|im_end|>",
    "llama3-8b": "<|eot_id|>",
    "qwen3-0.6b": "<|im_end|>",
    "qwen3-4b": "<|im_end|>",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stand_ins")
    return {name: stand_in(folder / name, name) for name in MODELS}


def rows_of(tree: Mapping[str, object]) -> list[dict[str, object]]:
    """The rows in the shapes of the sets that `data.train` names."""
    return [row for source in tree["data"]["train"] for row in SETS[source.partition(":")[0]][0]]


def local(path: Path, models: Mapping[str, Path], folder: Path, copies: int = 1) -> list[str]:
    """Overrides that replace what is published by what is here; all other keys stay.

    Each row stands there `copies` times. The template that Tulu 3's SFT model has, and its stand-in
    has not, is the one that trained it.
    """
    tree, here = yaml.safe_load(path.read_text()), models[path.parent.name]
    rows = [{**row, "id": f"{i}-{j}"} for j in range(copies) for i, row in enumerate(rows_of(tree))]
    data = write_lines(folder / "rows.jsonl", rows)
    changes = [f"model={here}/model", f"tokenizer={here}/tokenizer", f"data.train={data}"]
    changes += [f"data.eval={data}"] if tree["data"]["eval"] else []
    changes += [f"run.dir={folder}/run"]
    changes += [f"reference.dir={folder}/reference"] if "beta" in tree else []
    if path.parent.name == "tulu3-8b":
        changes += ["chat_template=configs/tulu3-8b/tulu.jinja"]
    return [*changes, *ON_A_CPU]


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_a_shipped_config_reads_its_data(
    path: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    """Fails where a config does not pass its checks, its template or EOS does not serve the
    tokenizer, a row in the shape of its data is not read, or a pair of full length does not fit
    into a micro-batch."""
    tree = yaml.safe_load(path.read_text())
    kind = DPOConfig if "beta" in tree else SFTConfig
    config = configs.load(kind, str(path), local(path, models, tmp_path))
    (train_dpo.check if kind is DPOConfig else require_runnable)(config)
    tokenizer = read_tokenizer(config.tokenizer)
    chosen = resolve_chat_template(tokenizer, config.chat_template)
    prepare_tokenizer(tokenizer, chosen, config.eos_token)
    data = config.data
    common = {"max_tokens": data.max_tokens, "on_bad_row": data.on_bad_row, "cache_dir": None}
    if kind is DPOConfig:
        common |= {"truncation": data.truncation, "encoding": data.encoding}
        examples, _ = load_pairs(
            data.train, tokenizer, max_prompt_tokens=data.max_prompt_tokens, **common
        )
        answers = [pair.chosen_ids for pair in examples] + [pair.rejected_ids for pair in examples]
        longest = 2 * data.max_tokens
    else:
        examples, _ = load_texts(data.train, tokenizer, targets=data.targets, **common)
        answers = [[i for i, t in zip(text.ids, text.is_target) if t] for text in examples]
        longest = data.max_tokens
    assert len(examples) == sum(SETS[s.partition(":")[0]][1] for s in tree["data"]["train"])
    end = ENDS.get(f"{path.parent.name}/{path.name}") or ENDS[path.parent.name]
    texts = [tokenizer.decode(answer) for answer in answers]
    assert all(text.rstrip().endswith(end) for text in texts), texts
    assert all("The sky is" in text or "four" in text for text in texts), texts
    assert longest <= config.hardware.tokens_per_micro_batch


def test_the_rows_are_read_as_they_stand(tmp_path: Path, models: dict[str, Path]) -> None:
    """The prompt of a pair with several turns is all of them but the last answer. Fails where a
    shape drops or doubles a turn."""
    source = "allenai/Dolci-Instruct-DPO"
    rows = [{**row, "id": str(i)} for i, row in enumerate(SETS[source][0])]
    data = str(write_lines(tmp_path / "rows.jsonl", rows))
    tokenizer = prepare_tokenizer(read_tokenizer(str(models["olmo3-7b"] / "tokenizer")), "model")
    pairs, _ = load_pairs([data], tokenizer)
    prompts = [tokenizer.decode(pair.prompt_ids) for pair in pairs]
    turns = [[turn["content"] for turn in row["chosen"][:-1]] for row in SETS[source][0]]
    for prompt, words in zip(prompts, turns):
        assert [prompt.count(text) for text in words] == [1] * len(words)
        assert prompt.count("<|im_start|>") == len(words) + 2  # the system turn, the answer
    assert [tokenizer.decode(pair.rejected_ids) for pair in pairs] == [
        row["rejected"][-1]["content"] + "<|endoftext|>" for row in SETS[source][0]
    ]


@pytest.mark.parametrize("name", ["tulu3-8b", "olmo3-7b", "qwen3-0.6b"])
def test_packed_equals_plain(name: str, models: dict[str, Path]) -> None:
    """Log-probs of packed pairs against transformers' eager forward of each sequence, to 1e-5 nats
    in float32. The rows are longer than the window and than the length of pretraining. Fails where
    a layer gets another kind of attention or of rotary embedding, or a norm stands elsewhere."""
    draw = random.Random(0)
    pairs = [
        EncodedPair(str(i), *([draw.randrange(3, 384) for _ in range(n)] for n in lengths))
        for i, lengths in enumerate([(4, 2, 5), (20, 40, 7), (1, 30, 1), (9, 3, 25)])
    ]
    folder = models[name] / "model"
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()

    @torch.no_grad()
    def alone(prompt: list[int], response: list[int]) -> Tensor:
        ids_N = torch.tensor(prompt + response)
        logits_NV = plain(input_ids=ids_N[None], use_cache=False).logits[0].float()
        logp_TV = logits_NV.log_softmax(-1)[len(prompt) - 1 : -1]
        return logp_TV.gather(-1, ids_N[len(prompt) :, None]).squeeze(-1)

    expected = [alone(pair.prompt_ids, pair.chosen_ids) for pair in pairs]
    expected += [alone(pair.prompt_ids, pair.rejected_ids) for pair in pairs]
    policy = load_policy(folder, max_tokens=64)
    with torch.no_grad():
        found = policy(collate_pairs(pairs, range(4)))
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)
    if name == "olmo3-7b":
        kinds = {"sliding_attention", "full_attention"}
        assert set(plain.config.layer_types) == kinds == set(plain.config.rope_parameters)


@pytest.mark.parametrize(
    "shape,parameters,in_layers",
    [
        ("mistral-7b", "7.24", None),
        ("llama-3-8b", "8.03", None),
        ("llama-3.1-8b", "8.03", None),
        ("olmo-3-7b", "7.30", None),
        ("qwen3-0.6b", "0.60", "0.44"),  # its card: 0.6B, 0.44B without the embedding
        ("qwen3-4b", "4.02", "3.63"),  # its card: 4.0B, 3.6B
    ],
)
def test_a_shape_has_the_size_of_its_model(
    shape: str, parameters: str, in_layers: str | None
) -> None:
    """Billions of parameters, as published. Fails where a value of the config.json is wrong, which
    predictions of memory would be too."""
    model = read_model(str(ROOT / "configs" / "shapes" / shape), None)
    assert f"{model.parameters / 1e9:.2f}" == parameters
    assert in_layers is None or f"{model.num_layer_parameters / 1e9:.2f}" == in_layers


# A dry run of the script takes seconds: one in `make test`, all in `make test-long`.
QUICK = ("olmo3-7b/dpo.yaml",)
DRY_RUNS = [
    pytest.param(path, id=name, marks=() if name in QUICK else pytest.mark.long)
    for path, name in zip(CONFIGS, NAMES)
]


@pytest.mark.parametrize("path", DRY_RUNS)
def test_a_dry_run_of_a_shipped_config(
    path: Path, models: dict[str, Path], launch: Launch, tmp_path: Path
) -> None:
    """The script itself, up to the predicted cost. Fails where a shipped config stops before."""
    tree = yaml.safe_load(path.read_text())
    script = "train_dpo.py" if "beta" in tree else "train_sft.py"
    # One row fills no window of 2,048 tokens.
    joined = tree["data"].get("packing") == "constant_length"
    less = ["data.max_tokens=16"] if joined else []
    done = launch(script, path, "--dry-run", *local(path, models, tmp_path), *less)
    assert f"plan: {tree['optim']['epochs']} steps" in done.stdout and "peak GB" in done.stdout
    assert not (tmp_path / "run").exists()


TRAINED = ("tulu3-8b/dpo", "olmo3-7b/dpo", "olmo3-7b/sft", "llama3-8b/simpo", "qwen3-0.6b/dpo")
TRAINED += ("qwen3-0.6b/sft", "mistral-orpo/orpo")


@pytest.mark.long
@pytest.mark.parametrize("name", TRAINED)
def test_two_steps_on_two_ranks(
    name: str, models: dict[str, Path], launch: Launch, tmp_path: Path
) -> None:
    """ZeRO-3 on the family's stand-in. Fails where a layer of the family does not train there, or a
    loss does not begin where its reference or its absence puts it."""
    path = ROOT / "configs" / f"{name}.yaml"
    tree = yaml.safe_load(path.read_text())
    steps = ["optim.warmup_fraction=0.0", "optim.schedule=constant", "optim.lr_peak=1e-3"]
    if "beta" in tree:
        read = sum(SETS[source.partition(":")[0]][1] for source in tree["data"]["train"])
        script, copies = "train_dpo.py", 4
        steps += ["optim.epochs=1", f"optim.pairs_per_step={2 * read}"]
    else:
        script, copies = "train_sft.py", 6
        steps += ["optim.epochs=1", "optim.windows_per_step=2", "data.max_tokens=128"]
    launch(script, path, *local(path, models, tmp_path, copies), *steps, ranks=2)
    found = records(tmp_path / "run")
    assert len(found) >= 2 and all(math.isfinite(record["loss"]) for record in found)
    assert found[-1]["loss"] < found[0]["loss"]
    if tree.get("loss") == "sigmoid_norm":
        assert abs(found[0]["loss"] - math.log(2)) < 1e-6
    family = json.loads((tmp_path / "run/model/config.json").read_text())["model_type"]
    before = json.loads((models[path.parent.name] / "model/config.json").read_text())["model_type"]
    trained = load_file(tmp_path / "run/model/model.safetensors")
    start = load_file(models[path.parent.name] / "model/model.safetensors")
    assert family == before and trained.keys() == start.keys()
    assert all(not torch.equal(trained[key], start[key]) for key in start)


def readme_rows() -> dict[str, list[str]]:
    """File -> the cells behind it, of the tables of recipes in configs/README.md."""
    text = (ROOT / "configs" / "README.md").read_text()
    lines = text.partition("## Recipes")[2].partition("## Every key")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    links = {row[1]: row[2:] for row in rows if len(row) > 2 and row[1].startswith("[")}
    return {link[1:].partition("]")[0]: cells for link, cells in links.items()}


def number(value: float) -> str:
    """As the table writes it: 5, 0.1, 5e-7."""
    return f"{value:g}".replace("e-0", "e-")


def expected_cells(tree: Mapping[str, object]) -> list[str]:
    """The cells of a config between its file and its data."""
    data, optim = tree["data"], tree["optim"]
    schedule = f"{optim['schedule']}, {number(optim['warmup_fraction'])}"
    if "beta" not in tree:
        batch = str(optim["windows_per_step"])
        first = [f"`{data['targets']}`", number(optim["lr_peak"]), schedule]
        return [*first, str(data["max_tokens"]), batch, str(optim["epochs"])]
    loss = tree["loss"] if isinstance(tree["loss"], dict) else {"name": tree["loss"]}
    settings = [f", {key} {number(value)}" for key, value in loss.items() if key != "name"]
    tokens = f"{data['max_tokens']} ({data['max_prompt_tokens']})"
    first = [f"`{loss['name']}`" + "".join(settings), number(tree["beta"])]
    second = [number(optim["lr_peak"]), schedule, tokens, str(optim["pairs_per_step"])]
    return [*first, *second, str(optim["epochs"])]


def test_the_readme_says_what_the_configs_say() -> None:
    """Fails where a number of the table and of the file differ, or a recipe is in one of them
    alone."""
    rows = readme_rows()
    assert set(rows) == set(NAMES) and len(rows) >= 18
    for name, path in zip(NAMES, CONFIGS):
        tree = yaml.safe_load(path.read_text())
        assert rows[name][:-1] == expected_cells(tree), name
        optim = tree["optim"]
        clips = 0.0 if name.startswith("handbook-") else 1.0
        assert optim["grad_clip"] == clips and optim["weight_decay"] == 0.0, name


PREDICTED = re.compile(r"(\d+) x ([\w-]+) ([\d.]+) GB, ([\d.]+) s a step")


@pytest.mark.long
@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_a_config_says_what_zephyr_plan_predicts(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory to 2 %, time to 5 %, on two layouts. Fails where a prediction at the top of a file is
    of another version of the file or of the planner."""
    text = path.read_text()
    found = PREDICTED.findall(text.partition("\nmodel:")[0])
    assert len(found) == 2 and "not measured" in text.partition("\nmodel:")[0]
    shape, _ = MODELS[path.parent.name]
    assert f"for shapes/{shape} and" in text
    lengths = "ultrafeedback" if "beta" in yaml.safe_load(text) else "ultrachat"
    options = ["--quiet", "--json", "--lengths", lengths, "data.limit=8192"]
    for gpus, device, gigabytes, seconds in found:
        layout = ["--gpus", gpus, "--device", device, f"model=configs/shapes/{shape}"]
        assert main(["plan", str(path.relative_to(ROOT)), *layout, *options]) == 0
        predicted = json.loads(capsys.readouterr().out)["config"]
        assert predicted["fits"] == "yes"
        assert predicted["peak GB"] == pytest.approx(float(gigabytes), rel=0.02)
        assert predicted["step s"] == pytest.approx(float(seconds), rel=0.05)
