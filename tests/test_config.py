"""A config is right or refused in one line that names key, value and what was wanted, before any
model is touched."""

from operator import attrgetter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from zephyr import config as configs
from zephyr.cli import main
from zephyr.config import ConfigError, DPOConfig, SFTConfig, expand_variables

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
        ("lr_peak=1", r"lr_peak: unknown key; the nearest valid key is optim\.lr_peak"),
        ("optim.lr_peak=5e-7x", r"optim\.lr_peak: a finite number is wanted, got '5e-7x'"),
        ("optim.lr_peak=1e999", r"optim\.lr_peak: a finite number is wanted, got inf"),
        ("beta=-1", r"beta: a number > 0 is wanted, got -1"),
        ("beta=.nan", r"beta: a finite number is wanted, got nan"),
        (f"beta={10**400}", r"beta: a finite number is wanted"),
        ("beta=true", r"beta: a finite number is wanted, got True"),
        ("label_smoothing=0.5", r"label_smoothing: 0 <= number < 0\.5"),
        ("optim.epochs=1.5", r"optim\.epochs: an integer is wanted, got 1\.5"),
        ("optim=3", r"optim: a group of keys is wanted, got 3"),
        (
            "optim.schedule=step",
            r"optim\.schedule: one of linear, cosine, constant is wanted, got 'step'",
        ),
        ("optim.adam_betas=[0.9]", r"optim\.adam_betas: a list of 2 is wanted"),
        ("data.train={a: b}", r"data\.train: a list is wanted, got {'a': 'b'}"),
        ("optim.adam_betas=0.9", r"optim\.adam_betas: a list of 2 is wanted, got 0\.9"),
        ("data.columns=question", r"data\.columns: a group of names is wanted, got 'question'"),
        ("data.columns.prompt=3", r"data\.columns\.prompt: a text is wanted, got 3"),
        ("data.train=[]", r"data\.train: at least one path"),
        ("data.train=null", r"data\.train: at least one path"),
        ("data.train=[3]", r"data\.train\[0\]: a text is wanted, got 3"),
        ("data.max_prompt_tokens=1024", r"data\.max_prompt_tokens: less than data\.max_tokens"),
        (
            "hardware.attention=eager",
            r"hardware\.attention: one of flash_attn, torch_varlen, sdpa is wanted",
        ),
        ("run.resume=no", r"run\.resume: one of auto, never, force is wanted, got False"),
        ("beta", r"override 'beta': key\.sub=value is wanted"),
        ("beta.x=1", r"beta: a finite number is wanted|group of keys"),
        ("beta=[", r"override 'beta=\[': the value is not YAML"),
        ("hardware.activation_checkpointing=1", "one of true, false, mlp is wanted, got 1"),
        ("optim.epochs=true", r"optim\.epochs: an integer is wanted, got True"),
        ("run.dir=''", r"run\.dir: a text is wanted, got ''"),
        ('model="a\\nb"', r"model: a text is wanted, got 'a\\nb'"),
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
    "optim.adam_betas=[0.9, 1]": "two of 0 <= number < 1",
    "optim.adam_betas=[-0.1, 0.9]": "two of 0 <= number < 1",
    "data.limit=0": "null or 1 <= integer",
    "run.seed=-1": "0 <= integer",
    "data.max_tokens=1": "2 <= integer",
    "data.max_prompt_tokens=1": "2 <= integer",
    "hardware.tokens_per_micro_batch=1": "2 <= integer",
    **{f"{key}=0": "1 <= integer" for key in COUNTS},
}


@pytest.mark.parametrize("override", OUTSIDE)
def test_the_first_value_outside_a_range_is_refused(tmp_path: Path, override: str) -> None:
    """Fails where a limit is one off, or a key is in no range: a run with 0 epochs or steps."""
    with pytest.raises(ConfigError, match=f"^{override.split('=')[0]}: {OUTSIDE[override]}"):
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


SHIPPED = sorted(ROOT.glob("configs/*/*.yaml"))


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
                leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
            )
        }

    other = (
        {"data.targets"}
        if kind is DPOConfig
        else {"data.max_prompt_tokens", "data.truncation", "hardware.prefix_sharing"}
    )
    assert (
        leaves(tree) | other == set(configs.keys(kind, "")) | other
    )  # what only the other script reads may be left out
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
