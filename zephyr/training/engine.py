"""A policy spread over all ranks by DeepSpeed ZeRO-3: the only file that knows deepspeed and
torch.distributed.

`engine(batch)` is one forward of a micro-batch *through the DeepSpeed engine*: through `.module` or
a child of it, ZeRO-3 silently keeps only the last micro-batch's gradient."""

import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import ContextManager, Protocol, TypeVar

import torch
from torch import Tensor, nn

import zephyr
from zephyr.config import BadInput, ConfigError, Hardware, Optim, SFTOptim
from zephyr.packing import PackedBatch
from zephyr.training import shards

T = TypeVar("T")
Json = dict[str, object]

# DeepSpeed's own keys that belong to the YAML, and the YAML key that decides
DECIDED_BY_YAML = {
    "train_batch_size": "optim.pairs_per_step",
    "train_micro_batch_size_per_gpu": "hardware.tokens_per_micro_batch",
    "gradient_accumulation_steps": "hardware.tokens_per_micro_batch",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "gradient_clipping": "optim.grad_clip",
    "bf16": "hardware.dtype",
    "fp16": "hardware.dtype",
    "amp": "hardware.dtype",
    "activation_checkpointing": "hardware.activation_checkpointing",
}


def read_deepspeed(path: str) -> Json:
    """The DeepSpeed JSON of `hardware.deepspeed`, looked for from the working folder, then beside
    the package.

    Raises: ConfigError where it is absent, no JSON, not ZeRO-3, or holds what the YAML decides."""
    found = next(
        (p for p in (Path(path), Path(zephyr.__file__).parents[1] / path) if os.path.isfile(p)),
        None,
    )
    if found is None:
        raise ConfigError(f"hardware.deepspeed: no such file: {path}")
    try:
        settings = json.loads(found.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"hardware.deepspeed: {path} is not JSON: {error}") from None
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") != 3:
        raise ConfigError(
            f"hardware.deepspeed: {path}: zero_optimization.stage 3 is wanted, got {zero!r}"
        )
    for key, owner in DECIDED_BY_YAML.items():
        if key in settings:
            raise ConfigError(
                f"hardware.deepspeed: {path} sets {key}; the YAML's {owner} decides that"
            )
    return settings


class LoadPolicy(Protocol):
    def __call__(
        self,
        *,
        init: ContextManager[object],
        write: Callable[[nn.Parameter, Callable[[], Tensor]], None],
    ) -> nn.Module:
        """Make the parameters inside `init`, fill each by `write(parameter, read)`."""


class Engine:
    """Owns the process group, the device, and (after `initialize`) the sharded policy with its
    optimiser."""

    def __init__(self, hardware: Hardware, seed: int) -> None:
        self.hardware = hardware
        self.settings = read_deepspeed(hardware.deepspeed)
        self.own_environment = single_process_rendezvous()
        use_cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
        if not use_cuda:
            os.environ["DS_ACCELERATOR"] = "cpu"
        self.device = (
            torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_cuda else torch.device("cpu")
        )
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if use_cuda:
            torch.cuda.set_device(self.device)
        else:  # DeepSpeed would build an op with a C++ compiler, and crash without one
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(
            "nccl" if use_cuda else "gloo", timeout=timedelta(minutes=30), verbose=False
        )
        self.rank, self.world_size = (
            torch.distributed.get_rank(),
            torch.distributed.get_world_size(),
        )
        try:
            checked = deepspeed.DeepSpeedConfig(self.deepspeed_config(Optim()))
            deepspeed.runtime.engine.DtypeEnum(checked.grad_accum_dtype)
        except (
            Exception
        ) as error:  # pydantic's, and any that a value of the wrong type brings about
            raise ConfigError(f"hardware.deepspeed: {hardware.deepspeed}: {error}") from None
        # Objects and host numbers travel over gloo, so that they never queue behind collectives of
        # the GPU.
        self.host_group = torch.distributed.new_group(backend="gloo") if use_cuda else None
        torch.manual_seed(seed)
        self.engine: nn.Module | None = None
        self.stop_requested = False  # by a signal to this rank

    def close(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name in self.own_environment:
            os.environ.pop(name, None)

    # -- ranks
    # ------------------------------------------------------------------------------------------------------------

    def local_rank0_first(self, make: Callable[[], T]) -> T:
        """`make()` on the first rank of each node, then on the others, which find its caches; bad
        input of any is raised on all."""
        first = os.environ["LOCAL_RANK"] == "0"
        mine = self.on_all_ranks(make if first else None)
        others = self.on_all_ranks(make if not first else None)
        return mine if first else others

    def on_all_ranks(self, make: Callable[[], T] | None) -> T | None:
        """`make()` where given; then every rank raises the BadInput of whichever had one, or a file
        that the system refused."""
        result, own = None, None
        try:
            result = make() if make else None
        except BadInput as error:
            own = error
        except OSError as error:
            own = BadInput(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        complaints = [complaint for complaint in self.all_gather(own and str(own)) if complaint]
        if complaints:
            raise own or BadInput(complaints[0])
        return result

    def on_rank0(self, make: Callable[[], T]) -> T:
        """`make()` on rank 0 alone; its value, or the BadInput it raised, on every rank."""
        return self.broadcast(self.on_all_ranks(make if self.rank == 0 else None))

    def all_gather(self, value: T) -> list[T]:
        """A picklable value of every rank, on every rank."""
        values: list[T] = [value] * self.world_size
        torch.distributed.all_gather_object(values, value, group=self.host_group)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's picklable value on every rank."""
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0, group=self.host_group)
        return values[0]

    def barrier(self) -> None:
        torch.distributed.barrier(group=self.host_group)

    def log(self, text: str) -> None:
        """A line on standard error, from rank 0, above the progress bar."""
        if self.rank == 0:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)

    def all_reduce(self, totals: Tensor) -> Tensor:
        """The tensor summed over all ranks, on the device."""
        torch.distributed.all_reduce(totals)
        return totals

    # -- the policy
    # -------------------------------------------------------------------------------------------------------

    def initialize(self, load: LoadPolicy, optim: Optim | SFTOptim) -> None:
        """Build the policy under `zero.Init` (no rank holds the whole) and wrap it with AdamW on
        fp32 master weights.

        Args: load: called with how parameters are made and filled. Raises: the BadInput of `load`,
        on every rank."""
        import deepspeed

        settings = self.deepspeed_config(optim)
        policy = self.on_all_ranks(lambda: load(init=zero_init(settings), write=fill_partition))
        # Decay pulls matrices alone, as Hugging Face's trainer does; ds_shape is the shape before
        # partitioning.
        matrices = [p for p in policy.parameters() if len(p.ds_shape) > 1]
        vectors = [p for p in policy.parameters() if len(p.ds_shape) <= 1]
        groups = [
            {"params": matrices, "weight_decay": optim.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=optim.adam_betas, eps=1e-8, fused=True)
        self.engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)

    def deepspeed_config(self, optim: Optim | SFTOptim) -> Json:
        """The JSON completed by the YAML; clipping and accumulation dtype always: DeepSpeed's
        defaults are 1.0 and the model's dtype."""
        return {
            "data_types": {"grad_accum_dtype": "fp32"},
            **self.settings,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": optim.grad_clip,
            "steps_per_print": 10**9,
            "bf16": {"enabled": self.hardware.dtype == "bfloat16"},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }

    @property
    def policy(self) -> nn.Module:
        """The module, for its config and names; forward goes through the engine itself."""
        return self.engine.module

    def __call__(self, batch: PackedBatch) -> Tensor:
        return self.engine(batch)

    def train(self, mode: bool = True) -> None:
        self.engine.train(mode)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Gradients of a micro-batch's share of the step's loss; `last`: of this rank's
        micro-batches of the step.

        ZeRO averages over ranks and the loss is a sum over them, hence the factor."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.world_size)

    def step(self, lr: float) -> Tensor:
        """One AdamW update at learning rate `lr`; returns the gradient's global L2 norm before
        clipping, float64 on the device.

        A norm that is not finite is returned, and DeepSpeed leaves the parameters as they were."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        return torch.as_tensor(
            self.engine.get_global_grad_norm(), dtype=torch.float64, device=self.device
        )

    def discard_gradient(self) -> float:
        """The gradient's global norm, and the gradient gone: a step at rate 0 moves nothing, and
        Adam starts anew."""
        norm = float(self.step(0.0))
        self.engine.optimizer.optimizer.state.clear()
        return norm

    def update_and_weight_sq_norms(self, lr: float) -> Tensor:
        """Sums of squares, float64 [2], over this rank's shard: of the last update, made at rate
        `lr`, and of the float32 weights."""
        return shards.update_and_weight_sq_norms(self.engine.optimizer, lr).to(self.device)

    def parameter_bytes(self) -> list[tuple[str, int]]:
        """Name and bytes of each whole parameter, in the order of `full_parameters`."""
        return [
            (name, p.ds_numel * p.element_size()) for name, p in self.policy.lm.named_parameters()
        ]

    @property
    def num_parameters(self) -> int:
        return sum(p.ds_numel for p in self.policy.lm.parameters())

    @property
    def num_layer_parameters(self) -> int:
        """Parameters outside embedding and output layer."""
        return sum(
            p.ds_numel
            for name, p in self.policy.lm.named_parameters()
            if "embed_tokens" not in name and "lm_head" not in name
        )

    def non_finite_parameters(self) -> list[str]:
        """Names of the parameters that hold a value that is not finite; each rank looks at its own
        part. A collective."""

        def part(parameter: nn.Parameter) -> Tensor:
            held = parameter.ds_tensor.view(
                -1
            )  # of the last rank, padded by whatever was in memory
            return held[: max(parameter.ds_numel - self.rank * len(held), 0)]

        mine = {
            name for name, p in self.policy.lm.named_parameters() if not part(p).isfinite().all()
        }
        found = set().union(*self.all_gather(mine))
        return [name for name, _ in self.policy.lm.named_parameters() if name in found]

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter by name, gathered one at a time: whole on the CPU of rank 0, empty
        elsewhere. A collective."""
        import deepspeed

        for name, parameter in self.policy.lm.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                yield name, parameter.detach().cpu().clone() if self.rank == 0 else torch.empty(0)

    def save_state(self, folder: Path) -> None:
        """This rank's shard of master weights and moments, as safetensors."""
        shards.save_shards(self.live_shards(0), folder, self.rank)

    def load_state(self, folder: Path, step: int) -> None:
        """What any number of ranks wrote with `save_state` after `step` updates. A collective.
        Raises: BadInput."""
        self.on_all_ranks(lambda: shards.load_shards(self.live_shards(step), folder))
        shards.refresh_parameters(self.engine.optimizer)

    def live_shards(self, adam_step: int) -> Iterator[shards.Shard]:
        names = {parameter: name for name, parameter in self.policy.named_parameters()}
        return shards.live_shards(self.engine.optimizer, names, self.rank, adam_step)

    def peak_memory_bytes(self) -> int:
        """The most memory this rank held: of its GPU, or of its process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def free_memory_bytes(self) -> int:
        """What this rank can still take: of its GPU, or of this rank's share of the machine."""
        if self.device.type == "cuda":
            held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(
                self.device
            )
            return torch.cuda.mem_get_info(self.device)[0] + held
        import psutil

        return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextlib.contextmanager
def zero_init(settings: Json) -> Iterator[None]:
    """DeepSpeed's `zero.Init`, with torch.arange left alone: it would round the rotary frequencies
    to bfloat16.

    It leaves a wrapped `_apply` behind in torch's modules, which would partition what later moves
    to another device or dtype; that is taken back."""
    import deepspeed

    arange, applies = torch.arange, own_applies(nn.Module)
    try:
        with deepspeed.zero.Init(config_dict_or_path=settings):
            torch.arange = arange
            yield
    finally:
        for kind, apply in applies.items():
            kind._apply = apply


def own_applies(kind: type[nn.Module]) -> dict[type[nn.Module], Callable[..., nn.Module]]:
    """The `_apply` of a kind of module and of all kinds below it that define one of their own."""
    found = {kind: vars(kind)["_apply"]} if "_apply" in vars(kind) else {}
    for below in kind.__subclasses__():
        found |= own_applies(below)
    return found


def fill_partition(parameter: nn.Parameter, read: Callable[[], Tensor]) -> None:
    """Fill a partitioned parameter: rank 0 reads the tensor, every rank keeps its part."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
        if torch.distributed.get_rank() == 0:
            parameter.copy_(read())


def single_process_rendezvous() -> list[str]:
    """Set the variables that torchrun would, for a plain `python train_dpo.py`; returns the names
    of those set."""
    if "RANK" in os.environ:
        return []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    os.environ.update(variables)
    return list(variables)
