"""A config is right, or refused in one line that names key, value and what was expected, before any
model is loaded; and each of its keys is documented."""

import os
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from zephyr import config as configs
from zephyr.cli import main
from zephyr.config import (
    ConfigError,
    DataSource,
    DPOConfig,
    SFTConfig,
    expand_variables,
)

ROOT = Path(__file__).resolve().parents[1]
MINIMAL = {"model": "m", "data": {"train": ["d.jsonl"]}}


def load(tmp_path: Path, tree: object, *overrides: str, kind: type = DPOConfig) -> DPOConfig:
    path = tmp_path / "c.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return configs.load(kind, str(path), overrides)


def test_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    """Fails where a default drifts from the paper's recipe that the documentation promises."""
    config = load(tmp_path, MINIMAL)
    assert (
        config.beta,
        config.loss,
        config.optim.lr_peak,
        config.optim.epochs,
        config.optim.pairs_per_step,
    ) == (0.1, "sigmoid", 5e-7, 3, 32)
    assert (config.data.max_tokens, config.data.max_prompt_tokens, config.optim.weight_decay) == (
        1024,
        512,
        0.0,
    )
    sft = load(tmp_path, MINIMAL, kind=SFTConfig)
    assert (sft.data.max_tokens, sft.optim.windows_per_step, sft.data.targets) == (
        2048,
        512,
        "assistant",
    )
    assert (sft.optim.lr_peak, sft.optim.schedule, sft.optim.epochs) == (2e-5, "cosine", 1)
    assert (config.run.keep, config.run.save_every, config.run.seed) == (2, 100, 42)
    assert load(tmp_path, MINIMAL, "run.seed=1", kind=SFTConfig).run.dir == "runs/sft"


def test_overrides_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where an override is ignored, loses its type, or a $VARIABLE of a path stays as it
    is."""
    monkeypatch.setenv("DATA", "/d")
    config = load(
        tmp_path,
        MINIMAL,
        "beta=0.5",
        "data.train=[$DATA/a.jsonl, b]",
        "run.wandb.mode=disabled",
        "optim.adam_betas=[0.8, 0.95]",
        "data.limit=null",
    )
    assert (
        config.beta == 0.5
        and config.data.train == ("/d/a.jsonl", "b")
        and config.run.wandb.mode == "disabled"
    )
    assert config.optim.adam_betas == (0.8, 0.95)
    of_paths = (
        "model",
        "tokenizer",
        "chat_template",
        "data.train",
        "data.eval",
        "reference.dir",
        "hardware.deepspeed",
        "samples.prompts",
        "samples.judge",
        "run.dir",
    )
    for key in of_paths:
        value = attrgetter(key)(load(tmp_path, MINIMAL, f"{key}=$DATA/x"))
        assert value in ("/d/x", ("/d/x",)), key


def test_what_people_type_is_taken(tmp_path: Path) -> None:
    """YAML 1.1 takes 5e-7 for a text, and one path need not be a list: each was the first error of
    a new user. `columns` is written key by key over its default, null."""
    config = load(
        tmp_path,
        {**MINIMAL, "optim": {"lr_peak": "5e-7", "warmup_fraction": "1E-1"}},
        "data.train=d.jsonl",
        "beta=1e-2",
        "data.columns.prompt=question",
        "data.columns.context=null",
    )
    assert (config.optim.lr_peak, config.optim.warmup_fraction, config.beta) == (5e-7, 0.1, 0.01)
    assert config.data.train == ("d.jsonl",) and config.data.columns == {
        "prompt": "question",
        "context": None,
    }
    assert load(tmp_path, configs.to_yaml(config)) == config
    assert load(
        tmp_path,
        {"model": "m", "data": {"train": "d.jsonl", "columns": None}},
        "data.columns.prompt=q",
    ).data.columns == {"prompt": "q"}


@pytest.mark.parametrize(
    "override,message",
    [
        ("optim.lr=1", r"optim\.lr: unknown key; the nearest valid key is optim\.lr_peak"),
        ("learning_rate=1", r"learning_rate: unknown key"),
        (
            "optim.windows_per_step=8",
            r"optim\.windows_per_step: unknown key \(a key of train_sft\.py\); the nearest valid "
            r"key is optim\.pairs_per_step",
        ),
        ("run.wandb.beta=1", r"run\.wandb\.beta: unknown key; "),
        ("lr_peak=1", r"lr_peak: unknown key; the nearest valid key is optim\.lr_peak"),
        ("optim.lr_peak=5e-7x", r"optim\.lr_peak: expected a finite number, got '5e-7x'"),
        ("optim.lr_peak=1e999", r"optim\.lr_peak: expected a finite number, got inf"),
        ("beta=-1", r"beta: expected a number > 0, got -1"),
        ("beta=.nan", r"beta: expected a finite number, got nan"),
        (f"beta={10**400}", r"beta: expected a finite number"),
        ("beta=true", r"beta: expected a finite number, got True"),
        ("label_smoothing=0.5", r"label_smoothing: expected 0 <= number < 0\.5"),
        ("optim.epochs=1.5", r"optim\.epochs: expected an integer, got 1\.5"),
        ("optim=3", r"optim: expected a group of keys, got 3"),
        (
            "model.x=1",
            r"model is not a group of keys, it is 'm'; override it whole, as model=\{KEY",
        ),
        (
            "optim.schedule=step",
            r"optim\.schedule: expected one of linear, cosine, constant, got 'step'",
        ),
        ("optim.adam_betas=[0.9]", r"optim\.adam_betas: expected a list of 2"),
        ("data.train={a: b}", r"data\.train: expected a list, got {'a': 'b'}"),
        ("optim.adam_betas=0.9", r"optim\.adam_betas: expected a list of 2, got 0\.9"),
        ("data.columns=question", r"data\.columns: expected a group of names, got 'question'"),
        ("data.columns.prompt=3", r"data\.columns\.prompt: expected a string, got 3"),
        ("data.train=[]", r"data\.train: expected a list of at least one path"),
        ("data.train=null", r"data\.train: expected a list of at least one path"),
        ("data.train=[3]", r"data\.train\[0\]: expected a string or a group of keys, got 3"),
        (
            "data.max_prompt_tokens=1024",
            r"data\.max_prompt_tokens: expected less than data\.max_tokens",
        ),
        (
            "hardware.attention=eager",
            r"hardware\.attention: expected one of flash_attn, torch_varlen, sdpa",
        ),
        ("run.resume=no", r"run\.resume: expected one of auto, never, force, got False"),
        ("beta", r"override 'beta': expected key\.sub=value"),
        ("beta.x=1", r"beta: expected a finite number|group of keys"),
        ("beta=[", r"override 'beta=\[': the value is not YAML"),
        (
            "hardware.activation_checkpointing=1",
            "expected one of true, false, mlp, elementwise, got 1",
        ),
        ("optim.epochs=true", r"optim\.epochs: expected an integer, got True"),
        ("run.dir=''", r"run\.dir: expected a string, got ''"),
        ('model="a\\nb"', r"model: expected a string, got 'a\\nb'"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, override: str, message: str) -> None:
    """Fails where a wrong value would be taken, guessed, or reported without its key."""
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, MINIMAL, override)
    assert "\n" not in str(caught.value)


COUNTS = (
    "optim.epochs",
    "optim.pairs_per_step",
    "run.log_every",
    "run.eval_every",
    "run.save_every",
    "run.keep",
    "samples.max_new_tokens",
)
OUTSIDE = {
    "beta=0": "a number > 0",
    "optim.lr_peak=0": "a number > 0",
    "optim.weight_decay=-0.1": "a number >= 0",
    "optim.grad_clip=-0.1": "a number >= 0",
    "label_smoothing=-0.1": "0 <= number < 0.5",
    "optim.warmup_fraction=1": "0 <= number < 1",
    "optim.adam_betas=[0.9, 1]": "a list of two of 0 <= number < 1",
    "optim.adam_betas=[-0.1, 0.9]": "a list of two of 0 <= number < 1",
    "data.limit=0": "null or 1 <= integer",
    "run.seed=-1": "0 <= integer",
    "data.max_tokens=1": "2 <= integer",
    "data.max_prompt_tokens=1": "2 <= integer",
    "hardware.tokens_per_micro_batch=1": "2 <= integer",
    **{f"{key}=0": "1 <= integer" for key in COUNTS},
}


def test_sources_may_be_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a group loses its limit or weight on the way from the command line to the run
    folder's config.yaml and back, or its path keeps a variable that a string would not."""
    monkeypatch.setenv("DATA", "/d")
    given = "data.train=[a.jsonl, {path: $DATA/b.jsonl, limit: 100, weight: 2}]"
    config = load(tmp_path, MINIMAL, given, "data.eval=[{path: c}]")
    assert config.data.train == ("a.jsonl", DataSource("/d/b.jsonl", 100, 2.0))
    assert config.data.eval == (DataSource("c"),)
    written = configs.to_yaml(config)
    assert load(tmp_path, written) == config
    raw = yaml.safe_load(written)["data"]["train"]  # as the commands on a run folder read it
    assert [configs.read_source(entry) for entry in raw] == [
        DataSource("a.jsonl"),
        DataSource("/d/b.jsonl", 100, 2.0),
    ]
    assert configs.source_paths(raw) == configs.source_paths(config.data.train)
    sft = load(tmp_path, MINIMAL, "data.train=[{path: b, limit: 1}]", kind=SFTConfig)
    assert sft.data.train == (DataSource("b", 1),)


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ("{path: b, limit: 0}", r"limit: expected null or 1 <= integer < 2\*\*63, got 0"),
        ("{path: b, limit: many}", r"limit: expected an integer, got 'many'"),
        ("{path: b, weight: 0}", r"weight: expected a number > 0, got 0.0; to leave b out, take"),
        ("{path: b, weight: .inf}", r"weight: expected a finite number, got inf"),
        (
            "{path: b, lmit: 3}",
            r"lmit: unknown key; the nearest valid key is data.train\[1\].limit",
        ),
        ("{limit: 3}", r"path: missing; it is required"),
        ("{path: 3}", r"path: expected a string, got 3"),
        ("{path: $HF_TOKEN/b}", r"path: the variable '\$HF_TOKEN' is not among"),
    ],
)
def test_what_is_wrong_with_a_group_is_named(tmp_path: Path, entry: str, error: str) -> None:
    """Fails where a value that means nothing is taken, or the error names the whole list."""
    with pytest.raises(ConfigError, match=rf"^data\.train\[1\]\.{error}"):
        load(tmp_path, MINIMAL, f"data.train=[a, {entry}]")


def test_sft_takes_no_weight_of_a_source(tmp_path: Path) -> None:
    """Fails where train_sft.py accepts a weight that its loss would ignore."""
    with pytest.raises(
        ConfigError, match=r"data\.eval\[0\]\.weight: expected 1, got 2.0: train_sft"
    ):
        load(tmp_path, MINIMAL, "data.eval=[{path: b, weight: 2}]", kind=SFTConfig)


@pytest.mark.parametrize("override", OUTSIDE)
def test_the_first_value_outside_a_range_is_refused(tmp_path: Path, override: str) -> None:
    """Fails where a limit is one off, or a key is in no range: a run with 0 epochs or steps."""
    with pytest.raises(
        ConfigError, match=f"^{override.split('=')[0]}: expected {OUTSIDE[override]}"
    ):
        load(tmp_path, MINIMAL, override)


def test_the_last_values_inside_their_ranges_are_taken(tmp_path: Path) -> None:
    """Fails where what switches a thing off (no decay, no clipping, no warm-up) is refused."""
    small = ("optim.weight_decay=0", "optim.grad_clip=0", "label_smoothing=0", "run.seed=0")
    small += ("optim.warmup_fraction=0", "optim.adam_betas=[0, 0]", "data.limit=1")
    small += ("data.max_prompt_tokens=2", "data.max_tokens=3", "hardware.tokens_per_micro_batch=2")
    config = load(tmp_path, MINIMAL, *small, *(f"{key}=1" for key in COUNTS))
    assert (config.optim.grad_clip, config.run.keep, config.data.limit) == (0.0, 1, 1)
    assert load(tmp_path, MINIMAL, "data.max_tokens=8", kind=SFTConfig).data.max_tokens == 8


def test_a_long_message_keeps_its_end() -> None:
    """Where it says what is wanted. Fails where an error of a megabyte is cut to what was found."""
    said = str(configs.BadInput(f"key: {'x' * 2000}\nis wanted to be short"))
    assert said.startswith("key: xxx") and said.endswith("xxx is wanted to be short")
    assert len(said) <= 600 and str(configs.BadInput("x" * 600)) == "x" * 600


@pytest.mark.parametrize(
    "text,message",
    [
        ("model: m", r"data\.train: missing|data: missing"),
        ("data: {train: [d]}", "model: missing"),
        ("- 1", "a mapping of keys"),
        ("a: [", "not YAML"),
        ("", "a mapping of keys"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    """Fails where a file that is no config gives a traceback."""
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)
    with pytest.raises(ConfigError, match="No such file"):
        configs.load(DPOConfig, str(tmp_path / "nowhere.yaml"))


def test_dpo_keys_are_no_sft_keys(tmp_path: Path) -> None:
    """Fails where a key that would do nothing is accepted."""
    for tree in ({**MINIMAL, "beta": 0.1}, {**MINIMAL, "optim": {"pairs_per_step": 8}}):
        with pytest.raises(ConfigError, match="unknown key"):
            load(tmp_path, tree, kind=SFTConfig)


# tests/rounds has those of `zephyr rounds`
SHIPPED = sorted(
    {*ROOT.glob("configs/*/*.yaml"), *ROOT.glob("configs/*/losses/*.yaml")}
    - {*ROOT.glob("configs/*/rounds*.yaml"), *ROOT.glob("configs/cluster/*.yaml")}
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_configs_load_write_every_key_and_read_back(path: Path, tmp_path: Path) -> None:
    """Fails where a shipped file has a wrong or missing key, or the resolved config differs from
    the file it came from."""
    tree = yaml.safe_load(path.read_text())
    kind = DPOConfig if "beta" in tree else SFTConfig
    config = configs.load(kind, str(path))

    def leaves(node: dict[str, object], prefix: str = "") -> set[str]:
        return {
            k
            for key, value in node.items()
            for k in (
                leaves(value, f"{prefix}{key}.")
                if isinstance(value, dict) and prefix + key != "loss"
                else {prefix + key}
            )
        }

    other = (
        {"data.targets"}
        if kind is DPOConfig
        else {
            "data.max_prompt_tokens",
            "data.truncation",
            "data.encoding",
            "hardware.prefix_sharing",
        }
    )
    # What only the other script reads may be left out; a group that is null has no keys below it.
    absent = {key for key in configs.keys(kind, "") if configs.is_absent(config, key)}
    groups = ("adapter", "published")
    group = {name for name in groups if getattr(config, name) is not None}
    assert leaves(tree) | other | absent | group == set(configs.keys(kind, "")) | other
    assert load(tmp_path, configs.to_yaml(config), kind=kind) == config


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda children: (
            st.lists(children, max_size=3)
            | st.dictionaries(st.text(max_size=8), children, max_size=3)
        ),
        max_leaves=10,
    ),
    st.sampled_from(["model", "data", "optim", "run", "hardware", "beta", "x", ""]),
)
def test_any_tree_is_a_config_or_a_config_error(value: object, key: str) -> None:
    """Fails where some shape of YAML raises anything but a one-line ConfigError."""
    try:
        configs.check(configs.build(DPOConfig, {**MINIMAL, key: value}, ""))
    except ConfigError as error:
        assert str(error)


@pytest.mark.parametrize("key", ["data.eval=null", "data.eval=", "data.eval=[]"])
def test_null_is_no_evaluation(tmp_path: Path, key: str) -> None:
    """`data.limit=null` is no limit: a list was wanted of `data.eval=null`."""
    assert load(tmp_path, MINIMAL, key).data.eval == ()


def test_a_dollar_in_a_name_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file called so is that file, with its split too; else `$X` is a variable. Fails where good
    input is refused, or a variable of another's choice becomes a folder."""
    (tmp_path / "a$b.jsonl").write_text("")
    monkeypatch.setenv("SCRATCH", "/scratch")
    for text in (f"{tmp_path}/a$b.jsonl", f"{tmp_path}/a$b.jsonl:train"):
        assert expand_variables(text, "data.train") == text
    assert expand_variables("$SCRATCH/a", "data.train") == "/scratch/a"
    with pytest.raises(ConfigError, match="data.train: the variable '.b' is not among"):
        expand_variables(f"{tmp_path}/c$b.jsonl", "data.train")


def test_variables_in_a_commands_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where a command makes a folder called `$SCRATCH`, or asks an endpoint at
    `https://$HF_TOKEN/v1`."""
    path = tmp_path / "options.yaml"
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    path.write_text("runs: [$SCRATCH/run]\nout: $SCRATCH/page.txt")
    assert main(["report", "--config", str(path)]) == 2
    assert f"got {tmp_path}/page.txt" in capsys.readouterr().err
    path.write_text("out: $HF_TOKEN/rows.jsonl")
    assert main(["report", "--config", str(path)]) == 2
    expected = "options.yaml: out: the variable 'HF_TOKEN' is not among"
    assert expected in capsys.readouterr().err.replace("$", "")


KINDS = {"train_dpo.py": DPOConfig, "train_sft.py": SFTConfig}


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_every_key_is_documented(kind: type) -> None:
    """Fails where a field has no text below it, or one that says nothing, and where the
    documentation lists other keys than the config has."""
    described = list(configs.describe_keys(kind))
    assert [key.name for key in described] == list(configs.keys(kind, ""))
    for key in described:
        assert len(key.meaning.split()) >= 3 and key.meaning.endswith("."), key
        assert key.type and key.default, key


def test_a_key_without_a_meaning_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a new field without documentation is listed with an empty meaning."""
    without = {k: v for k, v in configs.field_docstrings().items() if k != ("Run", "keep")}
    monkeypatch.setattr(configs, "field_docstrings", lambda _: without)
    with pytest.raises(LookupError, match=r"Run\.keep: write its meaning"):
        list(configs.describe_keys(DPOConfig))


def test_documented_types_and_defaults() -> None:
    """Fails where the documentation says another type or default than the dataclass, one of each
    kind."""
    described = {key.name: key for key in configs.describe_keys(DPOConfig)}
    expected = {
        "model": ("a string", "required"),
        "tokenizer": ("a string or null", "null"),
        "beta": ("a number > 0", "0.1"),
        "data.eval": ("a list of strings or groups", "[]"),
        "data.limit": ("null or 1 <= integer < 2**63", "null"),
        "data.columns": ("a group of names or null", "null"),
        "optim.lr_peak": ("a number > 0", "5.0e-7"),
        "optim.adam_betas": ("a list of two of 0 <= number < 1", "[0.9, 0.999]"),
        "hardware.prefix_sharing": ("true or false", "true"),
        "hardware.activation_checkpointing": ("one of true, false, mlp, elementwise", "true"),
        "run.dir": ("a string", "runs/dpo"),
    }
    for name, (type_of, default) in expected.items():
        assert (described[name].type, described[name].default) == (type_of, default)
    sft = {key.name: key for key in configs.describe_keys(SFTConfig)}
    assert sft["data.max_tokens"].default == "2048" and "window" in sft["data.max_tokens"].meaning
    assert sft["data.limit"].meaning == described["data.limit"].meaning


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_documented_defaults_are_valid_values(tmp_path: Path, kind: type) -> None:
    """Fails where a default, copied from the documentation into a YAML file, is refused or is not
    the default."""
    described = [key for key in configs.describe_keys(kind) if key.default != "required"]
    optional = [f"{key.name}." for key in described if key.type == "a group of keys or null"]
    described = [key for key in described if not key.name.startswith(tuple(optional))]
    assert optional == ["adapter.", "published."]
    overrides = [f"{key.name}={key.default}" for key in described]
    assert load(tmp_path, MINIMAL, *overrides, kind=kind) == load(tmp_path, MINIMAL, kind=kind)


def test_the_readme_lists_the_keys_of_the_dataclasses() -> None:
    """Fails where zephyr/config.py was changed without `make configs-readme`."""
    _, mark, tables = (ROOT / "configs" / "README.md").read_text().partition(configs.README_MARK)
    assert mark and tables.strip() == configs.keys_as_markdown().strip()
    for key in (*configs.keys(DPOConfig, ""), *configs.keys(SFTConfig, "")):
        assert tables.count(f"| `{key}` |") == 1, key


def test_the_readme_is_written_below_its_mark(tmp_path: Path) -> None:
    """Fails where text that a person wrote is lost, or old tables stay."""
    path = tmp_path / "README.md"
    path.write_text(f"# Words\n\n{configs.README_MARK}\nold table\n")
    configs.write_readme(path)
    assert path.read_text() == f"# Words\n\n{configs.README_MARK}\n{configs.keys_as_markdown()}"
    path.write_text("# Words\n")
    with pytest.raises(configs.BadInput, match="expected the line <!-- keys"):
        configs.write_readme(path)


@pytest.mark.parametrize("script", KINDS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected CONFIG.yaml"),
        (("c.yaml", "--beta"), "unknown option"),
        (("missing.yaml",), "config missing.yaml: No such file"),
        (("configs/tiny/world.yaml", "--dry-run"), "config configs/tiny/world.yaml: No such"),
        (("configs/tiny/{}.yaml", "nonsense=1"), "nonsense: unknown key"),
        (("configs/tiny/{}.yaml", "run.seed=-1", "--dry-run"), "run.seed: expected 0 <= integer"),
    ],
)
def test_wrong_arguments_are_told_before_torch_is_imported(
    script: str, arguments: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error and code 2, printed by local rank 0. Fails where a typing error
    takes the seconds of the imports, or every rank prints it."""
    stage = script.removeprefix("train_").removesuffix(".py")
    line = [argument.format(stage) for argument in arguments]
    for local_rank, printed in (("0", True), ("1", False)):
        code = (
            "import runpy, sys\n"
            f"sys.argv = {[script, *line]!r}\n"
            "try:\n"
            f"    runpy.run_path({script!r}, run_name='__main__')\n"
            "finally:\n"
            "    assert 'torch' not in sys.modules\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOCAL_RANK": local_rank}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment)
        shown = capfd.readouterr()
        assert (done.returncode, shown.out) == (2, ""), shown.err
        if printed:
            assert shown.err.startswith(f"error: {message}") and shown.err.count("\n") == 1
        else:
            assert shown.err == ""


def test_a_key_with_a_dot_is_not_of_the_other_script(tmp_path: Path) -> None:
    """`optim.lr_peak: 1` in a file is one key with a dot. Fails where the error says that another
    script has this key."""
    with pytest.raises(ConfigError, match=r"optim\.lr_peak: unknown key; "):
        load(tmp_path, {**MINIMAL, "optim.lr_peak": 1})


def test_the_losses_are_documented() -> None:
    """Fails where the meaning of the key `loss` names a loss that does not exist. A loss that was
    just added is skipped by name until it is documented."""
    from zephyr.losses import LOSSES

    meaning = next(key.meaning for key in configs.describe_keys(DPOConfig) if key.name == "loss")
    quoted = set(re.findall("`([a-z_]+)`", meaning)) - {"label_smoothing"}
    assert len(quoted) >= 10 and quoted <= set(LOSSES)
    if undocumented := LOSSES.keys() - quoted:
        pytest.skip(f"add {', '.join(undocumented)} to the meaning of `loss` in zephyr/config.py")


@pytest.mark.parametrize("script", KINDS)
def test_help_of_the_scripts(script: str) -> None:
    """Every key with type, default and meaning, before torch is imported. Fails where a key is
    missing, or help takes the seconds of a training run's imports."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, 'x.yaml', '--help']\n"
        "try:\n"
        f"    runpy.run_path({script!r}, run_name='__main__')\n"
        "finally:\n"
        "    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr.split()[-1] == "False", done.stderr
    words = " ".join(done.stdout.split())
    assert f"torchrun --nproc_per_node=8 {script}" in words and "--dry-run" in words
    for key in configs.describe_keys(KINDS[script]):
        assert f" {key.name} ({key.type}; {key.default}) {key.meaning}" in words, key.name
    assert all(len(line) <= 110 for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "path", "overrides"),
    [
        ("c.yaml", "c.yaml", ""),
        ("c.yaml beta=1 data.limit=2", "c.yaml", "beta=1 data.limit=2"),
        ("beta=1 c.yaml data.limit=2", "c.yaml", "beta=1 data.limit=2"),
        ("beta=1 data.limit=2 c.yaml", "c.yaml", "beta=1 data.limit=2"),
        ("beta=1 runs/lr=1/c.yaml", "runs/lr=1/c.yaml", "beta=1"),
        ("run.dir=runs/x c.yaml", "c.yaml", "run.dir=runs/x"),
        ("c.yaml beta", "c.yaml", "beta"),  # which `set_key` refuses by name
        ("c.yaml =0.1", "c.yaml", "=0.1"),
    ],
)
def test_overrides_stand_anywhere(arguments: str, path: str, overrides: str) -> None:
    """Fails where an override before the file is taken for the file, or their order is lost."""
    assert configs.split_arguments(arguments.split()) == (path, overrides.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "c.yaml --beta=1",
            "unknown option '--beta=1': expected --dry-run, --quiet or --help; a config key",
        ),
        ("beta=1", "no config file among the arguments 'beta=1'"),
        (
            "",
            r"expected CONFIG\.yaml \[key\.sub=value \.\.\.\] \[--dry-run\] \[--quiet\], "
            "got no config",
        ),
    ],
)
def test_arguments_that_are_no_override(arguments: str, message: str) -> None:
    """Fails where an option that does not exist is ignored, or a missing file is a traceback."""
    with pytest.raises(ConfigError, match=message):
        configs.split_arguments(arguments.split())
