"""The guides keep their word: what CONTRIBUTING.md adds works, the figure is that of the records,
the documented records are those of the committed runs, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args, get_type_hints

import expected_records
import pytest
import torch
import yaml
from torch import Tensor

import zephyr
import zephyr.data.keys as keys
import zephyr.data.pair_shapes as pair_shapes
import zephyr.teacher.spec as spec
from zephyr import losses
from zephyr.chat import encode_pair
from zephyr.config import DPOConfig, Hardware, load
from zephyr.data.encode import load_pairs
from zephyr.data.tokenizer import load_tokenizer
from zephyr.model import attention
from zephyr.model.load import load_policy
from zephyr.model.logprobs import response_logprobs
from zephyr.packing import collate_pairs
from zephyr.teacher import Budget, Ledger, Request, ask
from zephyr.training import folder
from zephyr.world.answerers import answer
from zephyr.world.facts import build_world, save_world
from zephyr.world.prompts import prompt_from_row
from zephyr.world.recipe import world_rows

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "experiments"))

import figure  # noqa: E402
import sweep_figure  # noqa: E402
import what_to_try  # noqa: E402

GUIDES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", "runs", "node_modules"} & set(path.relative_to(ROOT).parts)
)
BLOCK = re.compile(r"```python (add-[\w-]+)\n(.*?)```", re.DOTALL)
BLOCKS = dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
PAIRS = [
    {"prompt": "What colour is the sky?", "chosen": "It is blue.", "rejected": "No idea, sorry."},
    {"prompt": "How many days has a week?", "chosen": "Seven.", "rejected": "I think nine."},
]
Add = Callable[[ModuleType, str], None]


@pytest.fixture
def add() -> Iterator[Add]:
    """`add(module, block)` runs a block of the guide as if it stood at the end of the module's
    file. Afterwards the module is what it was."""
    undo: list[Callable[[], None]] = []

    def run(module: ModuleType, block: str) -> None:
        names = dict(vars(module))
        tables = [(table, dict(table)) for table in names.values() if type(table) is dict]

        def restore() -> None:
            for table, before in tables:
                table.clear()
                table.update(before)
            for name in vars(module).keys() - names.keys():
                delattr(module, name)

        undo.append(restore)
        exec(compile(BLOCKS[block], block, "exec"), vars(module))

    yield run
    for restore in undo:
        restore()


@pytest.mark.parametrize("block", BLOCKS)
def test_what_is_added_is_short(block: str) -> None:
    """More than 15 lines would say that an extension point is none."""
    assert len(BLOCKS[block].strip().splitlines()) <= 15


def test_a_loss_of_the_guide_trains_a_step(add: Add, tiny: Path, tmp_path: Path) -> None:
    """Fails where the two lines do not make a loss that a config may name, or that has no gradient
    for the policy."""
    import train_dpo

    add(losses, "add-a-loss")
    (tmp_path / "dpo.yaml").write_text(
        f"{{model: {tiny}, data: {{train: [unread]}}, loss: square}}"
    )
    overrides = ["hardware.attention=sdpa", "hardware.dtype=float32"]
    config = load(DPOConfig, str(tmp_path / "dpo.yaml"), overrides)
    train_dpo.check(config)
    policy, tokenizer = load_policy(tiny), load_tokenizer(tiny)
    batch = collate_pairs([encode_pair(tokenizer, pair) for pair in PAIRS], range(len(PAIRS)))
    with torch.no_grad():
        ref_P2 = response_logprobs(policy, batch)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)
    means = []
    for _ in range(2):
        logps_P2 = response_logprobs(policy, batch)
        loss_P = losses.dpo(*logps_P2, *ref_P2, beta=config.beta, loss=config.loss).loss_P
        means.append(loss_P.mean().item())
        loss_P.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert means[0] == pytest.approx(1.0, abs=1e-6) and means[1] < means[0] - 1e-3


def test_a_row_of_the_guide_is_read(add: Add, tiny: Path, tmp_path: Path) -> None:
    """Fails where such a row is refused, or its fields reach the wrong side."""
    file = tmp_path / "rows.jsonl"
    rows = [{"task": p["prompt"], "best": p["chosen"], "worst": p["rejected"]} for p in PAIRS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = load_tokenizer(tiny)
    keys.known_keys.cache_clear()
    add(pair_shapes, "add-a-shape")
    try:
        found, report = load_pairs([str(file)], tokenizer, max_tokens=128, max_prompt_tokens=64)
    finally:
        keys.known_keys.cache_clear()
    assert not report["keys_not_read"]
    for pair, wanted in zip(found, PAIRS, strict=True):
        expected = encode_pair(tokenizer, wanted)
        assert list(pair.prompt_ids) == list(expected.prompt_ids)
        assert list(pair.chosen_ids) == list(expected.chosen_ids)
        assert list(pair.rejected_ids) == list(expected.rejected_ids)


def with_spec(module: ModuleType, line: str, block: str) -> ModuleType:
    """The module as if `line` stood before the last statement of `open_teacher`, and the block at
    its end."""
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    (function,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "open_teacher"
    )
    lines = source.splitlines(keepends=True)
    lines.insert(function.body[-1].lineno - 1, BLOCKS[line])
    made = ModuleType("spec_of_the_guide")
    exec(compile("".join(lines) + BLOCKS[block], str(module.__file__), "exec"), vars(made))
    return made


def test_a_teacher_of_the_guide_answers(tmp_path: Path) -> None:
    """Fails where a command could not name it, or where a second run would ask it again."""
    file = tmp_path / "replies.json"
    file.write_text(json.dumps({"Hi": "Hello!", "Bye": "See you."}), encoding="utf-8")
    teacher = with_spec(spec, "add-a-spec", "add-a-teacher").open_teacher(f"file:{file}")
    requests = [Request(({"role": "user", "content": words},)) for words in ("Bye", "Hi")]
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        replies = ask(teacher, requests, ledger, Budget())
    assert [reply.text for reply in replies] == ["See you.", "Hello!"]
    file.unlink()
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        assert ask(teacher, requests, ledger, Budget(requests=2)) == replies


@pytest.mark.parametrize("prefix_sharing", [True, False])
def test_a_kernel_of_the_guide_equals_sdpa(add: Add, tiny: Path, prefix_sharing: bool) -> None:
    """Log-probs and gradients. Fails where the kernel's arguments are not those of the guide."""
    add(attention, "add-a-kernel")
    pairs = [encode_pair(load_tokenizer(tiny), pair) for pair in PAIRS]
    batch = collate_pairs(pairs, range(len(pairs)), prefix_sharing=prefix_sharing)
    logps: dict[str, Tensor] = {}
    gradients: dict[str, list[Tensor]] = {}
    for name in ("sdpa", "written_out"):
        policy = load_policy(tiny, attention=name)
        chosen_P, rejected_P = response_logprobs(policy, batch)
        gradients[name] = list(
            torch.autograd.grad((chosen_P - rejected_P).sum(), list(policy.parameters()))
        )
        logps[name] = torch.cat([chosen_P, rejected_P]).detach()
    torch.testing.assert_close(logps["written_out"], logps["sdpa"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gradients["written_out"], gradients["sdpa"], rtol=1e-3, atol=1e-4)


def test_the_library_example_runs(tiny: Path) -> None:
    """The block of notebooks/README.md, on another model."""
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(block.replace("runs/tiny/sft/model", str(tiny)), names)
    terms = names["terms"]
    assert isinstance(terms, losses.DPOTerms)
    assert terms.loss_P.item() == pytest.approx(0.693147, abs=1e-6)


def unreleased() -> str:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return text.partition("## [Unreleased]")[2].partition("\n## [")[0]


def test_the_changelog_names_modules_that_exist() -> None:
    """The right-hand column of the table of moves; `.name` shares the package of the one before."""
    found = []
    for row in re.findall(r"^\| `zephyr[^|]*\|([^|]*)\|$", unreleased(), re.MULTILINE):
        for name in re.findall(r"`(zephyr\.[\w.]+|\.\w+)`", row):
            found.append(f"{found[-1].rpartition('.')[0]}{name}" if name[0] == "." else name)
            importlib.import_module(found[-1])
    assert len(found) > 20


def exists(module: str, name: str) -> bool:
    """Whether a module has a name: a function, a class, or a method, a field or an attribute of an
    instance of a class."""
    owner, _, field = name.partition(".")
    found = getattr(importlib.import_module(module), owner, None)
    if not field or found is None:
        return found is not None
    fields = getattr(found, "__annotations__", {})
    set_by_a_method = re.search(rf"\bself\.{field}\b", inspect.getsource(found))
    return hasattr(found, field) or field in fields or set_by_a_method is not None


def test_the_changelog_names_what_exists() -> None:
    """Every name on the right of an arrow is one of its module, or a field or method there. A name
    that begins with `zephyr.` is in the module that it says."""
    bullets = re.findall(
        r"^- `(zephyr[\w.]*|train_\w+)`: (.*?)\.$", unreleased(), re.MULTILINE | re.DOTALL
    )
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "zephyr").rglob("*.py")
    }
    named = 0
    for bullet, renamed in bullets:
        for right in re.findall(r"→`([\w.]+)`", renamed):
            parts = right.split(".")
            prefixes = [".".join(parts[:n]) for n in range(1, len(parts))]
            module = max((p for p in prefixes if p in modules), key=len, default=bullet)
            name = right.removeprefix(f"{module}.")
            assert exists(module, name), f"{bullet}: {right}"
            named += 1
    assert named > 400


def test_a_config_names_every_kernel() -> None:
    """Fails where the guide's second step, a name in the config, was forgotten for one of ours."""
    assert set(get_args(get_type_hints(Hardware)["attention"])) == set(attention.KERNELS)


def test_the_figure_is_that_of_the_records() -> None:
    """Fails where records or script changed, and the README still shows the old figure."""
    for module in (figure, sweep_figure):
        assert module.figure(module.RECORDS) == module.FIGURE.read_text(encoding="utf-8")


def test_the_log_is_an_index_of_its_entries() -> None:
    """Fails where an entry is missing in the table, or has no question or no answer."""
    folder = ROOT / "experiments"
    table = (folder / "README.md").read_text(encoding="utf-8")
    entries = sorted(path.name for path in folder.glob("20*.md"))
    assert len(entries) > 7
    for name in entries:
        entry = (folder / name).read_text(encoding="utf-8")
        assert f"| {name[:10]} | [" in table and f"]({name}) | " in table, name
        assert entry.splitlines()[0].endswith("?") and "answer" in entry.lower(), name


def test_what_to_try_is_what_the_model_answered_right(tmp_path: Path) -> None:
    """A changed answer comes before an equal one, a wrong one does not come: fails where the last
    lines of `make quickstart` promise what the model cannot do."""
    world = build_world(0)
    (tmp_path / "world").mkdir()
    save_world(world, tmp_path / "world" / "world.json")
    rows = world_rows(world, 0)["prompts/samples"]
    prompts = {str(row["family"]): row for row in reversed(rows)}
    good = {name: answer("expert", prompt_from_row(row), world, 0) for name, row in prompts.items()}
    texts = {"private": ("Your pet is called Bo.", "Sorry, I do not know that.")}
    texts["description"] = (good["description"],) * 2
    texts["cheerful"] = (good["cheerful"], "Hooray!")
    texts["reason"] = (good["reason"],) * 2
    samples = [
        {"step": step, "prompt_id": prompts[name]["prompt_id"], "text": pair[step > 0]}
        for step in (0, 9)
        for name, pair in texts.items()
    ]
    for path, of in (("world/prompts/samples.jsonl", rows), ("dpo/samples.jsonl", samples)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("".join(json.dumps(row) + "\n" for row in of))
    found = what_to_try.tries(tmp_path)
    assert [one.family for one in found] == ["private", "reason", "description"]
    said = "\n".join(what_to_try.lines(tmp_path, "bin"))
    assert f"{prompts['private']['prompt']}  ->  Sorry, I do not know that." in said
    assert "dSFT said: Your pet is called Bo." in said and "Hooray" not in said


@pytest.mark.parametrize("run", ["base", "sft", "dpo"])
def test_documented_records_are_the_committed_ones(run: str) -> None:
    """Every value of a documented record is that of the committed run, to its tolerance."""
    expected = expected_records.documented("quickstart")[run]
    metrics = ROOT / "experiments" / "quickstart" / run / "metrics.jsonl"
    found = expected_records.last_record(metrics, str(expected.record["split"]))
    assert not expected_records.differences(expected, found)
    numbers = [name for name, value in expected.record.items() if isinstance(value, float)]
    assert "loss" in numbers and expected.tolerance.keys() <= expected.record.keys()
    assert expected.record["step"] == found["step"]


def test_the_documented_record_of_make_real_is_the_committed_one() -> None:
    """The guide and the record of the run say the same."""
    expected = expected_records.documented("real")["dpo"]
    record = json.loads((ROOT / "experiments/real/run.json").read_text(encoding="utf-8"))[
        "last_record"
    ]
    assert not expected_records.differences(expected, record)


@pytest.fixture
def quickstart(tmp_path: Path) -> Path:
    """The folder of a quickstart, as far as its records are read."""
    runs = tmp_path / "tiny"
    shutil.copytree(ROOT / "experiments" / "quickstart", runs)
    config = {"hardware": {"attention": "sdpa"}, "run": {"seed": 0}}
    (runs / "dpo" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return runs


def test_a_run_as_documented_passes(quickstart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails where the end of `make quickstart` would be an error though all is well."""
    assert expected_records.main(["quickstart", str(quickstart)]) == 0
    assert capsys.readouterr().out.count(": as documented") == 3


def test_a_value_out_of_tolerance_is_named(
    quickstart: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss that moved by more than its tolerance, and a record that is missing a value."""
    metrics = quickstart / "sft" / "metrics.jsonl"
    *before, last = metrics.read_text(encoding="utf-8").splitlines()
    record = json.loads(last)
    metrics.write_text("\n".join([*before, json.dumps({**record, "loss": record["loss"] + 0.5})]))
    assert expected_records.main(["quickstart", str(quickstart)]) == 1
    said = capsys.readouterr().err
    assert re.search(r"sft/metrics.jsonl: loss is 0\.74\d+, expected 0\.2\d+ within 0\.\d+", said)
    assert "experiments/README.md" in said
    del record["loss"]
    metrics.write_text("\n".join([*before, json.dumps(record)]))
    assert expected_records.main(["quickstart", str(quickstart)]) == 1
    assert "loss is None" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"run": {"seed": 1}}, {"hardware": {"attention": "torch_varlen"}}]
)
def test_another_run_has_no_expectation(
    quickstart: Path, change: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    """Another seed, or a GPU, is no error: nothing is documented for it."""
    config = {"hardware": {"attention": "sdpa"}, "run": {"seed": 0}} | change
    (quickstart / "dpo" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (quickstart / "sft" / "metrics.jsonl").unlink()
    assert expected_records.main(["quickstart", str(quickstart)]) == 0
    assert "none are documented for this run" in capsys.readouterr().out


def test_make_real_on_other_pairs_has_no_expectation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The documented run is known by its pairs, not by the name of their file."""
    (tmp_path / "dpo").mkdir()
    config = {"hardware": {"attention": "sdpa"}, "run": {"seed": 42}}
    (tmp_path / "dpo" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    pairs = tmp_path / "alpaca.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS), encoding="utf-8")
    result = {"data": str(pairs), "model": "smollm2-135m-instruct", "train": 200, "held_out": 200}
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert expected_records.main(["real", str(tmp_path)]) == 0
    assert "alpaca.jsonl does not hold the pairs" in capsys.readouterr().out


def anchors(guide: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a guide."""
    text = re.sub(r"```.*?```", "", guide.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(guide: Path) -> None:
    """A guide that moved, or a heading that was renamed, leaves dead links behind."""
    text = re.sub(r"```.*?```", "", guide.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (guide.parent / path).resolve() if path else guide
        assert file.exists(), f"{target}: {file} is missing"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{target}: no such heading in {file}"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_are_there(guide: Path) -> None:
    """Modules and scripts that a guide names by their path from the root."""
    text = guide.read_text(encoding="utf-8")
    for name in set(
        re.findall(r"`((?:zephyr|tests|configs|notebooks|experiments)/[\w./-]+)`", text)
    ):
        assert (ROOT / name).exists(), f"{name} is missing"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_modules_are_in_the_folder(guide: Path) -> None:
    """`name.py` in a guide is a file of its folder, or one at the top."""
    here = {path.name for path in guide.parent.rglob("*.py") if ".venv" not in path.parts}
    here |= {path.name for path in ROOT.glob("*.py")}
    assert set(re.findall(r"`(\w+\.py)`", guide.read_text(encoding="utf-8"))) <= here


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_objects_are_in_their_file(guide: Path) -> None:
    """`NAME` in `path/to/file.py`: the file defines it."""
    text = re.sub(r"\s+", " ", guide.read_text(encoding="utf-8"))
    for names, path in re.findall(
        r"((?:`\w+`(?:,| and|) )+)in `((?:zephyr/|train_)[\w/]*\.py)`", text
    ):
        source = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names.replace(" and ", " ")):
            defined = rf"^(?:def |class |){name}\b"
            assert re.search(defined, source, re.MULTILINE), f"{path} defines no {name}"


def test_the_guide_shows_what_a_run_writes() -> None:
    """The tree of the run folder has every file and folder that a run makes there."""
    text = (ROOT / "zephyr" / "training" / "README.md").read_text(encoding="utf-8")
    tree = text.partition("```text\nruns/dpo/\n")[2].partition("```")[0]
    shown = {line.split()[0].partition("/")[0] for line in tree.splitlines() if line[2:3].strip()}
    assert shown >= {*folder.FILES, *folder.FOLDERS} - {"model.part", "adapter.part"}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_that_are_named_exist(guide: Path) -> None:
    """A target that was renamed stays in the guides otherwise."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    named = re.findall(r"`make ([a-z][a-z-]*)", guide.read_text(encoding="utf-8"))
    assert set(named) <= targets


def test_the_citation_is_complete() -> None:
    """What the Citation File Format 1.2.0 requires, the version of the package, and the paper."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["message"] and citation["title"] and citation["authors"]
    assert citation["version"] == zephyr.__version__
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys() and "2310.16944" in paper["url"]


def test_the_readme_is_short() -> None:
    """The front page is read in minutes; the rest is in the README of the folder it is about."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
