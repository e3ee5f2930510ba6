"""A policy sharded over all ranks by DeepSpeed ZeRO-3.

With `shards.py` the only code that knows deepspeed, and with `zephyr.model.sequence` the only code
that knows torch.distributed.

`engine(batch)` is one forward of a micro-batch *through the DeepSpeed engine*. Through `.module` or
a child of it, ZeRO-3 silently keeps only the last micro-batch's gradient.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeVar, cast, overload

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from zephyr import hub, progress
from zephyr.config import BadInput, ConfigError, Hardware, Optim, SFTOptim
from zephyr.packing import PackedBatch, SequenceGroup, share_of_row
from zephyr.training import shards
from zephyr.training.deepspeed_settings import (
    GradientDtype,
    Json,
    deepspeed_settings,
    gradient_dtype,
    read_deepspeed,
    slow_settings,
)
from zephyr.training.deepspeed_types import DeepSpeedEngine, LanguageModel, Policy
from zephyr.training.heartbeat import Heartbeat
from zephyr.training.optimizers import make_optimizer

T = TypeVar("T")
# Ranks of one start may come so long after each other.
START_TIMEOUT = timedelta(minutes=30)
# Collectives of Python objects wait for work on the host of any length: the heartbeat ends the run
# where a rank is lost.
HOST_TIMEOUT = timedelta(days=30)


class LoadPolicy(Protocol):
    """A function that makes the policy, see `zephyr.model.load.load_policy`."""

    def __call__(
        self,
        *,
        init: AbstractContextManager[object],
        write: Callable[[nn.Parameter, Callable[[], Tensor]], None],
    ) -> nn.Module:
        """Make the parameters inside `init`, then fill each with `write(parameter, read)`."""


class WholeTensor(Protocol):
    """A tensor made of whole parameters, see `zephyr.model.adapter.Exported`."""

    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> Sequence[nn.Parameter]: ...
    @property
    def combine(self) -> Callable[[Sequence[Tensor]], Tensor]: ...


class FillPolicy(Protocol):
    """A function that fills a decoder, see `zephyr.model.load.replace_weights`."""

    def __call__(
        self,
        lm: LanguageModel,
        *,
        write: Callable[[nn.Parameter, Callable[[], Tensor]], None],
    ) -> None:
        """Fill each parameter with `write(parameter, read)`."""


class Engine:
    """Owns the process group, the device, and (after `initialize`) the sharded policy with its
    optimizer."""

    # set by `initialize`
    engine: DeepSpeedEngine
    gradient_dtype: str  # in which gradients of micro-batches are summed: float32 or bfloat16

    def __init__(self, hardware: Hardware, seed: int) -> None:
        """Start the process group: NCCL on GPUs, else gloo.

        Raises: ConfigError for DeepSpeed settings that are refused.
        """
        use_expandable_segments()
        self.hardware = hardware
        self.settings = read_deepspeed(hardware.deepspeed)
        gradient_dtype(hardware, self.settings, ranks=1, micro_batches=None)  # raises
        self.own_environment = single_process_rendezvous()
        use_cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
        if not use_cuda:
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if use_cuda:
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu")
            # DeepSpeed would build this op with a C++ compiler, and crash where there is none.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "nccl" if use_cuda else "gloo"
        deepspeed.init_distributed(backend, timeout=START_TIMEOUT, verbose=False)
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self.set_sequence_parallel(hardware.sequence_parallel)
        settings = self.deepspeed_config(Optim(), "float32")
        try:
            deepspeed.DeepSpeedConfig(settings)
        except Exception as error:  # of pydantic, or whatever a value of the wrong type causes
            raise ConfigError(f"hardware.deepspeed: {hardware.deepspeed}: {error}") from None
        for warning in slow_settings(self.settings, ranks=self.world_size, device=self.device.type):
            self.warn(f"{hardware.deepspeed}: {warning}")
        self.start_heartbeat()
        torch.manual_seed(seed)
        self.stop_requested = False  # by a signal to this rank

    def start_heartbeat(self) -> None:
        """Make the groups beside DeepSpeed's, learn which ranks share a node, and tell the others
        from now on that this rank is alive."""
        # Python objects travel over gloo, so that they never wait for collectives of the GPU.
        self.host_group = torch.distributed.new_group(backend="gloo", timeout=HOST_TIMEOUT)
        self.hosts = self.all_gather(socket.gethostname())  # of each rank
        # Containers may share a name: torchrun's number of the node tells them apart.
        nodes = self.all_gather((socket.gethostname(), os.environ.get("GROUP_RANK")))
        self.first_of_node = nodes.index(nodes[self.rank])  # the lowest rank of this node
        self.num_nodes = len(set(nodes))
        seconds = self.hardware.collective_timeout_seconds
        set_timeout(torch.distributed.group.WORLD, seconds)
        self.heartbeat = Heartbeat(seconds, self.hosts) if self.world_size > 1 else None

    def set_sequence_parallel(self, size: int) -> None:
        """Let so many adjacent ranks compute each row together. A collective, before `initialize`.

        Raises: ConfigError: the size does not divide the number of ranks.
        """
        self.sequence = sequence_group(size, self.hardware.collective_timeout_seconds)
        # These ranks have the same examples: to the plan they are one.
        self.data_rank, self.data_world_size = self.rank // size, self.world_size // size
        # One of them counts the row in sums over all ranks.
        self.counts_rows = self.rank % size == 0

    def close(self) -> None:
        """Leave the process group, so that this process can start another engine."""
        import deepspeed

        if self.heartbeat is not None:
            self.heartbeat.close()
        if torch.distributed.is_initialized():
            # Not torch's own: DeepSpeed keeps groups of its own, and would use them again.
            deepspeed.comm.destroy_process_group()
        for name in self.own_environment:
            os.environ.pop(name, None)

    # -- ranks ------------------------------------------------------------------------------------

    def local_rank0_first(self, make: Callable[[], T]) -> T:
        """`make()` on the first rank of each node, then on the others, which find its caches and
        ask no hub.

        Raises: BadInput of any rank on all.
        """
        first = self.rank == self.first_of_node
        mine = self.on_all_ranks(make if first else None)
        with contextlib.nullcontext() if first else hub.offline():
            others = self.on_all_ranks(make if not first else None)
        return cast(T, mine if first else others)  # the one that called `make`

    def require_same(self, what: str, value: object) -> None:
        """Compare a value with rank 0's. A collective. Raises: BadInput, naming a host with
        another."""
        values = self.all_gather(value)
        for host, other in zip(self.hosts, values):
            if other != values[0]:
                raise BadInput(
                    f"{what} on host {host} is not that on host {self.hosts[0]}, expected the same "
                    f"files on every node: {other} there, {values[0]} on {self.hosts[0]}"
                )

    @overload
    def on_all_ranks(self, make: Callable[[], T]) -> T: ...

    @overload
    def on_all_ranks(self, make: Callable[[], T] | None) -> T | None: ...

    def on_all_ranks(self, make: Callable[[], T] | None) -> T | None:
        """`make()` on the ranks where it is given. A collective.

        Raises: on every rank the BadInput of any rank; a file that the system refuses is BadInput
        too.
        """
        result: T | None = None
        own: BadInput | None = None
        try:
            result = make() if make else None
        except BadInput as error:
            own = error
        except OSError as error:
            own = BadInput(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        messages = self.all_gather("" if own is None else str(own))
        complaints = [(host, message) for host, message in zip(self.hosts, messages) if message]
        if complaints:
            host, message = complaints[0]
            raise own or BadInput(f"on host {host}: {message}" if self.num_nodes > 1 else message)
        return result

    def on_rank0(self, make: Callable[[], T]) -> T:
        """`make()` on rank 0 only; its value, or the BadInput it raised, on every rank."""
        result = self.on_all_ranks(make if self.rank == 0 else None)
        return cast(T, self.broadcast(result))  # rank 0's, which called `make`

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
        """Write a line to standard error, on rank 0, above the progress bar; none with --quiet."""
        if self.rank == 0:
            progress.info(text)

    def warn(self, text: str) -> None:
        """Write `warning: ` and the text to standard error, on rank 0, also with --quiet."""
        if self.rank == 0:
            progress.warn(text)

    def print(self, text: str) -> None:
        """Write the result of a dry run to standard output, on rank 0."""
        if self.rank == 0:
            print(text, flush=True)

    def all_reduce(self, totals: Tensor) -> Tensor:
        """The tensor summed over all ranks, on the device."""
        torch.distributed.all_reduce(totals)
        return totals

    # -- the policy -------------------------------------------------------------------------------

    def initialize(
        self, load: LoadPolicy, optim: Optim | SFTOptim, *, micro_batches: int | None = None
    ) -> None:
        """Load the policy under `zero.Init` (no rank holds all of it), with its optimizer.

        The optimizer updates float32 weights.
        Args: load: is given how parameters are made and filled. micro_batches: the most of a step
        on one rank, which decides `gradient_dtype`; None: not known.
        Raises: the BadInput of `load`, on every rank; ConfigError where `hardware.gather` does not
        serve the model.
        """
        import deepspeed

        self.gradient_dtype, reason = self.choose_gradient_dtype(micro_batches)
        self.log(f"gradients are summed in {self.gradient_dtype}: {reason}")
        settings = self.deepspeed_config(optim, self.gradient_dtype)
        loaded = self.on_all_ranks(lambda: load(init=zero_init(settings), write=fill_partition))
        move_buffers(loaded, self.device)
        if self.sequence is not None:
            require_divided_heads(cast(Policy, loaded), self.sequence.size)
            cast(Policy, loaded).sequence = self.sequence
        if self.hardware.gather == "layer":
            deepspeed.utils.set_z3_leaf_modules(loaded, decoder_layers(loaded))
        policy = cast(Policy, loaded)  # zero.Init partitioned its parameters
        # Only matrices decay, as in Hugging Face's trainer. ds_shape is the shape before
        # partitioning.
        trained = [p for p in policy.parameters() if p.requires_grad]
        matrices = [p for p in trained if len(p.ds_shape) > 1]
        vectors = [p for p in trained if len(p.ds_shape) <= 1]
        groups = [
            {"params": matrices, "weight_decay": optim.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = make_optimizer(groups, optim)
        self.engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)
        # DeepSpeed makes a group of its own, with torch's default.
        set_timeout(
            self.engine.optimizer.dp_process_group, self.hardware.collective_timeout_seconds
        )

    def fill_policy(self, load: FillPolicy) -> None:
        """Give the parameters other values; the optimizer's own weights and state do not change.

        For values that are needed for a while: an update makes the parameters from the optimizer's
        weights. A collective. Raises: the BadInput of `load`, on every rank.
        """
        self.engine.optimizer._partition_all_parameters()  # no module keeps a gathered old value
        shards.forget_second_copies(self.policy.parameters())
        self.on_all_ranks(lambda: load(self.policy.lm, write=fill_partition))

    def choose_gradient_dtype(self, micro_batches: int | None) -> GradientDtype:
        """See `zephyr.training.deepspeed_settings.gradient_dtype`."""
        return gradient_dtype(
            self.hardware, self.settings, ranks=self.world_size, micro_batches=micro_batches
        )

    def deepspeed_config(self, optim: Optim | SFTOptim, gradients_in: str) -> Json:
        """See `zephyr.training.deepspeed_settings.deepspeed_settings`."""
        return deepspeed_settings(
            self.settings,
            hardware=self.hardware,
            optim=optim,
            gradients_in=gradients_in,
            ranks=self.world_size,
        )

    @property
    def policy(self) -> Policy:
        """The module, for its config and names. Forward goes through the engine itself."""
        return self.engine.module

    def place(self, batch: PackedBatch) -> PackedBatch:
        """A whole row becomes what this rank computes of it, on the device: all of it, or its share
        where `hardware.sequence_parallel` is more than 1."""
        if self.sequence is not None:
            batch = share_of_row(batch, self.sequence.rank, self.sequence.size)
        return batch.to(self.device)

    def __call__(self, batch: PackedBatch, *, collision: bool = False) -> Tensor:
        """log p of each target of a micro-batch, float32 [T]; with `collision` [2, T], see
        `zephyr.model.policy.Policy`. Of a share (`place`): of all targets of its row."""
        return self.engine(batch, collision=True) if collision else self.engine(batch)

    def train(self, mode: bool = True) -> None:
        """Set the policy to training, or to evaluation."""
        self.engine.train(mode)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch's share of the step's loss.

        ZeRO averages gradients over ranks, and the loss is a sum over ranks, hence the factor.
        Args: last: whether it is the last of this rank's micro-batches of the step.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.world_size)

    def step(self, lr: float) -> Tensor:
        """One update at learning rate `lr`.

        Returns: the gradient's global L2 norm before clipping, float64 on the device. Where it is
        not finite, DeepSpeed leaves the parameters as they were.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float64, device=self.device)

    def discard_gradient(self) -> float:
        """Discard the gradient and the optimizer's state: a step at rate 0 moves no weight.

        Returns: the gradient's global norm.
        """
        norm = float(self.step(0.0))
        self.engine.optimizer.optimizer.state.clear()
        return norm

    def update_and_weight_sq_norms(self, lr: float) -> Tensor:
        """Sums of squares over this rank's shard, float64 [2]: of the last update and the weights.

        Args: lr: the rate of that update.
        """
        return shards.update_and_weight_sq_norms(self.engine.optimizer, lr).to(self.device)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole policy; quantised matrices are none."""
        return sum(p.ds_numel for p in self.policy.lm.parameters())

    @property
    def num_trained_parameters(self) -> int:
        """Parameters that the optimizer updates."""
        return sum(p.ds_numel for p in self.policy.lm.parameters() if p.requires_grad)

    @property
    def num_adapter_parameters(self) -> int:
        """Parameters of adapters beside frozen layers; 0: all parameters are trained."""
        trained = self.num_trained_parameters
        return trained if trained < self.num_parameters else 0

    @property
    def num_layer_parameters(self) -> int:
        """Weights outside embedding and output layer, quantised ones too, without adapters."""
        quantized = sum(getattr(m, "quantized_weights", 0) for m in self.policy.lm.modules())
        return quantized + sum(
            p.ds_numel
            for name, p in self.policy.lm.named_parameters()
            if not any(part in name for part in ("embed_tokens", "lm_head", ".lora_"))
        )

    def non_finite_parameters(self) -> list[str]:
        """Names of the parameters with a value that is not finite. A collective.

        Each rank reads its own part.
        """
        mine = set()
        for name, parameter in self.policy.lm.named_parameters():
            held = parameter.ds_tensor.view(-1)
            # The last rank's part is padded with whatever was in memory.
            own = held[: max(parameter.ds_numel - self.rank * len(held), 0)]
            if not own.isfinite().all():
                mine.add(name)
        found: set[str] = set().union(*self.all_gather(mine))
        return [name for name, _ in self.policy.lm.named_parameters() if name in found]

    def full_tensors(self, wanted: Iterable[WholeTensor]) -> Iterator[tuple[str, Tensor]]:
        """Tensors made of whole parameters, which are gathered for one at a time. A collective.

        Yields: (name, values): whole on the CPU of rank 0, empty on other ranks.
        """
        import deepspeed

        for tensor in wanted:
            gather = deepspeed.zero.GatheredParameters(list(tensor.parameters))
            with gather if tensor.parameters else contextlib.nullcontext():
                if self.rank == 0:
                    values = [p.detach().cpu().clone() for p in tensor.parameters]
                    yield tensor.name, tensor.combine(values)
                else:
                    yield tensor.name, torch.empty(0)

    def save_state(self, folder: Path) -> None:
        """Write this rank's shard of master weights and optimizer state, as safetensors."""
        shards.save_shards(self.live_shards(0), folder, self.rank)

    def load_state(self, folder: Path, step: int) -> None:
        """Load what any number of ranks wrote with `save_state` after `step` updates.

        A collective. Raises: BadInput for a shard that is missing or of another size.
        """
        self.on_all_ranks(lambda: shards.load_shards(self.live_shards(step), folder))
        shards.refresh_parameters(self.engine.optimizer)

    def live_shards(self, steps: int) -> Iterator[shards.Shard]:
        """This rank's shards, see `shards.live_shards`."""
        names = {parameter: name for name, parameter in self.policy.named_parameters()}
        return shards.live_shards(self.engine.optimizer, names, self.rank, steps)

    def peak_memory_bytes(self) -> int:
        """The most memory this rank held: of its GPU, or of its process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def free_memory_bytes(self) -> int:
        """Memory that this rank can still take: of its GPU, or its share of the machine's."""
        if self.device.type == "cuda":
            reserved = torch.cuda.memory_reserved(self.device)
            unused = reserved - torch.cuda.memory_allocated(self.device)
            return torch.cuda.mem_get_info(self.device)[0] + unused
        import psutil  # type: ignore[import-untyped]  # its stubs are another package

        available: int = psutil.virtual_memory().available
        return available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def sequence_group(size: int, timeout_seconds: float) -> SequenceGroup | None:
    """The ranks beside this one that compute its rows with it; None: size is 1. A collective.

    Groups are of adjacent ranks, so that they lie within a node where their size divides its ranks.
    Raises: ConfigError: the size does not divide the number of ranks.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if ranks % size:
        raise ConfigError(
            f"hardware.sequence_parallel: expected a divisor of the {ranks} ranks, got {size}"
        )
    if size == 1:
        return None
    blocks = [list(range(first, first + size)) for first in range(0, ranks, size)]
    timeout = timedelta(seconds=timeout_seconds)
    # Every rank makes all of them.
    groups = [torch.distributed.new_group(block, timeout=timeout) for block in blocks]
    return SequenceGroup(groups[rank // size], rank % size, size)


def require_divided_heads(policy: Policy, ranks: int) -> None:
    """Check that so many ranks can share the model's attention heads. Raises: ConfigError."""
    heads: int | None = getattr(policy.lm.config, "num_attention_heads", None)
    if heads is not None and heads % ranks:
        raise ConfigError(
            f"hardware.sequence_parallel: expected a divisor of the model's {heads} attention "
            f"heads, got {ranks}"
        )


@contextlib.contextmanager
def zero_init(settings: Json) -> Iterator[None]:
    """DeepSpeed's `zero.Init` without two of its side effects.

    It replaces torch.arange, which would round the rotary frequencies to bfloat16. And it leaves a
    wrapped `_apply` in torch's modules, which would partition every module that later moves to
    another device or dtype.
    """
    import deepspeed

    arange, applies = torch.arange, own_applies(nn.Module)
    try:
        with deepspeed.zero.Init(config_dict_or_path=settings):
            torch.arange = arange
            yield
    finally:
        for kind, apply in applies.items():
            kind._apply = apply  # type: ignore[method-assign]  # the original is put back


def decoder_layers(policy: nn.Module) -> list[type[nn.Module]]:
    """The classes of the decoder layers: those that transformers recomputes as a whole.

    Raises: ConfigError: the decoder has none.
    """
    kinds = {type(m) for m in policy.modules() if isinstance(m, GradientCheckpointingLayer)}
    if not kinds:
        raise ConfigError(
            "hardware.gather: layer needs decoder layers that transformers marks as such, which "
            "this model does not have; set it to module"
        )
    return sorted(kinds, key=lambda kind: kind.__name__)


def move_buffers(policy: nn.Module, device: torch.device) -> None:
    """Move buffers (the frequencies of rotary positions) to the device, in their own dtype.

    `zero.Init` leaves them on the CPU, and transformers would copy them in every forward.
    """
    for module in policy.modules():
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            setattr(module, name, buffer.to(device))


def own_applies(kind: type[nn.Module]) -> dict[type[nn.Module], Callable[..., nn.Module]]:
    """The `_apply` of a class of modules and of its subclasses, where they define their own."""
    found = {kind: vars(kind)["_apply"]} if "_apply" in vars(kind) else {}
    for below in kind.__subclasses__():
        found |= own_applies(below)
    return found


def fill_partition(parameter: nn.Parameter, read: Callable[[], Tensor]) -> None:
    """Fill a partitioned parameter: rank 0 reads the tensor, each rank keeps its part."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
        if torch.distributed.get_rank() == 0:
            parameter.copy_(read())


def set_timeout(group: torch.distributed.ProcessGroup | None, seconds: float) -> None:
    """Set the time-out of a group's collectives."""
    timeout = timedelta(seconds=seconds)
    if hasattr(torch.distributed, "set_timeout"):  # torch 2.15, which warns of the private one
        torch.distributed.set_timeout(timeout, group)
    else:
        torch.distributed.distributed_c10d._set_pg_timeout(timeout, group)


def use_expandable_segments() -> None:
    """Let torch grow a GPU's segments of memory instead of reserving new ones beside them.

    Micro-batches have different lengths, which would leave gaps that no later tensor fits into.
    Torch reads the variable when CUDA starts; afterwards this does nothing. A user's own setting,
    under any of torch's names, stays.
    """
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    if not any(name in os.environ for name in names):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def single_process_rendezvous() -> list[str]:
    """Set the variables that torchrun sets, for a plain `python train_dpo.py`.

    Returns: the names of those that were set here.
    """
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
