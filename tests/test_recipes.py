"""The shipped configs at the size of a test: each plans on a stand-in of its own model type and on
rows in the shape of its own data, and one of each new family trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from processes import ROOT, Launch
from published_rows import SETS
from runs import write_lines
from stand_ins import MODELS, stand_in

CONFIGS = [path for name in MODELS for path in sorted((ROOT / "configs" / name).glob("*.yaml"))]
NAMES = [str(path.relative_to(ROOT / "configs")) for path in CONFIGS]
ON_A_CPU = (
    "hardware.attention=sdpa",
    "hardware.dtype=float32",
    "hardware.deepspeed=configs/deepspeed/cpu.json",
    "run.wandb.mode=disabled",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stand_ins")
    return {name: stand_in(folder / name, name) for name in MODELS}


def local(path: Path, models: dict[str, Path], folder: Path, copies: int = 1) -> list[str]:
    """Overrides that replace what is published by what is here.

    The rows of each set are those of `SETS`, `copies` times. A template that the published model's
    tokenizer has, and the stand-in's has not, is Tulu 3's. All other keys stay.
    """
    tree, here = yaml.safe_load(path.read_text()), models[path.parent.name]
    data = []
    for source in tree["data"]["train"]:
        rows, _ = SETS[source.partition(":")[0]]
        lines = [{**row, "id": f"{i}-{j}"} for j in range(copies) for i, row in enumerate(rows)]
        data.append(str(write_lines(folder / f"{len(data)}.jsonl", lines)))
    files = f"[{','.join(data)}]"
    changes = [f"model={here}/model", f"tokenizer={here}/tokenizer", f"data.train={files}"]
    changes += [f"data.eval={files}"] if tree["data"]["eval"] else []
    changes += [f"run.dir={folder}/run"]
    changes += [f"reference.dir={folder}/reference"] if "beta" in tree else []
    if path.parent.name == "tulu3-8b":
        changes += ["chat_template=configs/tulu3-8b/tulu.jinja"]
    return [*changes, *ON_A_CPU]


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_a_shipped_config_plans(
    path: Path, models: dict[str, Path], launch: Launch, tmp_path: Path
) -> None:
    """Fails where a config does not pass its checks, its chat template or EOS does not serve the
    tokenizer, or a row in the shape of its data is not read."""
    script = "train_sft.py" if path.name.startswith("sft") else "train_dpo.py"
    done = launch(script, path, "--dry-run", *local(path, models, tmp_path))
    print(done.stdout, done.stderr)
    assert "plan: " in done.stdout
