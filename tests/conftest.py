"""What the tests share: a tiny model, the real data where it is, and the real scripts as
processes."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault(
    "DS_ACCELERATOR", "cpu"
)  # one machine with or without a GPU; tests/gpu sets its own
if os.environ["DS_ACCELERATOR"] == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels run on the CPU, one by one
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from forkserver import ForkServer  # noqa: E402
from processes import ROOT, Launch, free_port  # noqa: E402
from proxy import Proxy, Server  # noqa: E402

# No test is timed: a machine may be busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _no_rendezvous_left() -> Iterator[None]:
    """An engine of this process sets torchrun's variables; what is left of them would send every
    later process to its port."""
    yield
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    left = {name: os.environ.pop(name) for name in names if name in os.environ}
    if left:
        warnings.warn(f"these tests left {left} in the environment", stacklevel=1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Mistral with its tokenizer, as a Hugging Face folder."""
    from tiny import tiny_model

    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("ZEPHYR_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"the real data are not at {folder}; name their folder in ZEPHYR_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """The training scripts as forks of a process that has all imports done."""
    made = ForkServer()
    yield made
    made.close()


@pytest.fixture(scope="session")
def launch(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Run a training script: `launch("train_dpo.py", "config.yaml", "key=value", ranks=2)`; ranks
    0: plain python.

    torchrun=True: as users do it, by a new interpreter, under torchrun where there are ranks; else
    by forks that need no imports."""
    cache = tmp_path_factory.mktemp("cache")

    def run(
        script: str,
        *arguments: str | Path,
        ranks: int = 0,
        check: bool = True,
        timeout: float = 300,
        torchrun: bool = False,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        variables = {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "ZEPHYR_CACHE": str(cache),
            **environment,
        }
        texts = [str(argument) for argument in arguments]
        if torchrun:
            launcher = (
                [
                    "-m",
                    "torch.distributed.run",
                    f"--nproc_per_node={ranks}",
                    f"--master_port={free_port()}",
                ]
                if ranks
                else []
            )
            result = subprocess.run(
                [sys.executable, *launcher, str(ROOT / script), *texts],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=timeout,
                env={**os.environ, **variables},
            )
        else:
            done = fork_server.run(
                texts,
                variables,
                tmp_path_factory.mktemp("said"),
                timeout,
                script=script,
                ranks=ranks,
                cwd=ROOT,
            )
            result = subprocess.CompletedProcess([script, *texts], *done)
        assert not check or result.returncode == 0, (
            f"{script} {arguments}\n{result.stdout[-2000:]}\n{result.stderr[-6000:]}"
        )
        return result

    return run


@pytest.fixture(scope="session")
def finished(tiny: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two ranks: 20 pairs, 2 epochs, 3 steps each (the last of 4 pairs),
    checkpoints every 2 steps."""
    from runs import rows, write_config, write_lines

    folder = tmp_path_factory.mktemp("finished")
    data = write_lines(folder / "pairs.jsonl", rows(20))
    config = write_config(
        folder, tiny, data, data__eval=[str(data)], run__save_every=2, run__eval_every=3
    )
    launch("train_dpo.py", config, ranks=2, torchrun=True)
    return folder


@pytest.fixture(scope="session")
def undisturbed(finished: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 steps on two ranks that nothing disturbs, preflight included."""
    from runs import LONG

    run = tmp_path_factory.mktemp("undisturbed") / "run"
    launch(
        "train_dpo.py",
        finished / "config.yaml",
        f"run.dir={run}",
        *LONG,
        "run.preflight=off",
        ranks=2,
    )
    return run


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`transformers serve` with a tiny model, once for all tests; they skip where its libraries are
    absent."""
    for library in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(
            library, reason=f"{library} is absent, without which there is no server to ask"
        )
    from proxy import serving
    from tiny import tiny_model

    from zephyr.data.tokenizer import load_tokenizer

    folder = tiny_model(tmp_path_factory.mktemp("served") / "tiny")
    load_tokenizer(folder).save_pretrained(folder)
    with serving(folder) as running:
        yield running


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy of its own for each test, in front of the server."""
    between = Proxy(server)
    yield between
    between.close()


@pytest.fixture(scope="module")
def version_4() -> Path:
    folder = Path(os.environ.get("ZEPHYR_TRANSFORMERS4") or TESTS.parent / ".venv-transformers4")
    if not (folder / "transformers").is_dir():
        pytest.skip(
            f"transformers 4.57 is not in {folder}; `make test-long` puts it there, "
            "ZEPHYR_TRANSFORMERS4 names another folder"
        )
    return folder
