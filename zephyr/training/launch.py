"""A command line becomes a run: config, engine, exit code, `status.json`. What both training scripts start with."""
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from zephyr import config as configs
from zephyr.config import BadInput, C, ConfigError
from zephyr.training.engine import Engine

BAD_INPUT = 2


def launch(kind: type[C], check: Callable[[C], None], train: Callable[[Engine, C, bool], None], usage: str,
           argv: Sequence[str]) -> int:
    """Run `train(engine, config, dry_run)` for `CONFIG.yaml [key.sub=value ...] [--dry-run]`; returns the exit code.

    Bad input is one line on standard error and code 2. Args: check: raises it for what needs no process group."""
    if not argv or {"-h", "--help"} & set(argv):
        print(usage)
        return 0 if argv else BAD_INPUT
    dry_run = "--dry-run" in argv
    path, *overrides = [a for a in argv if a != "--dry-run"]
    is_rank0 = os.environ.get("RANK", "0") == "0"
    engine, run_dir = None, None
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|transformers|deepspeed")
    try:
        config = configs.load(kind, path, overrides)
        run_dir = None if dry_run else Path(config.run.dir)
        check(config)
        engine = Engine(config.hardware, config.run.seed)
        if run_dir and is_rank0:
            open_run(run_dir, config)
        train(engine, config, dry_run)
    except BadInput as error:
        if is_rank0:
            print(f"error: {error}", file=sys.stderr)
            write_status(run_dir, BAD_INPUT, str(error))
        return BAD_INPUT
    except BaseException as error:
        if is_rank0:
            write_status(run_dir, 1, "".join(traceback.format_exception_only(error)).strip())
        raise
    finally:
        if engine:
            engine.close()
    if is_rank0:
        write_status(run_dir, 0, "finished")
    return 0


def encoding_resources() -> dict[str, object]:
    """Where encoded rows are kept (`$ZEPHYR_CACHE`, else ~/.cache/zephyr) and how many processes make them."""
    return {"cache_dir": Path(os.environ.get("ZEPHYR_CACHE") or Path.home() / ".cache" / "zephyr"), "workers": os.cpu_count() or 1}


def open_run(run_dir: Path, config: configs.DPOConfig | configs.SFTConfig) -> None:
    """Make the run folder with the resolved config in it."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(configs.to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"run.dir: {run_dir} can't be written: {error.strerror}") from None


def write_status(run_dir: Path | None, code: int, message: str) -> None:
    """`status.json`: the exit code and message, which torchrun hides."""
    if run_dir is None:
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    part = run_dir / "status.json.part"
    part.write_text(json.dumps({"code": code, "message": message}) + "\n", encoding="utf-8")
    os.replace(part, run_dir / "status.json")
