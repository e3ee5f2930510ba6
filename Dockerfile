# Training and the tests in a container. It has no weights and no data: mount them.
#   docker build -t zephyr .
#   docker run --rm -it --gpus all --shm-size=8g -v "$PWD/runs:/work/zephyr/runs" zephyr \
#     torchrun --nproc_per_node=8 train_dpo.py configs/zephyr-7b-beta/dpo.yaml
#   docker run --rm zephyr make test
# --shm-size: workers of the data pipeline and NCCL share memory, of which a container has 64 MB.
ARG BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04
FROM ${BASE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1

# A compiler: Triton compiles its launcher, DeepSpeed its communication through shared memory.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      build-essential ca-certificates git python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --shell /bin/bash zephyr \
 && install -d -o zephyr -g zephyr /work/zephyr
USER zephyr
WORKDIR /work/zephyr

# The packages first: a change of the code alone does not install them again.
COPY --chown=zephyr:zephyr Makefile setup.cfg constraints.txt pyproject.toml README.md ./
COPY --chown=zephyr:zephyr zephyr/__init__.py zephyr/__init__.py
RUN make .venv/.installed-test

# FLASH_ATTN: a wheel of flash-attn for this torch, Python and CUDA, for `hardware.attention: flash_attn`. Without it,
# `torch_varlen` is torch's own flash kernel. A build from source takes an hour or more.
ARG FLASH_ATTN=""
RUN if [ -n "${FLASH_ATTN}" ]; then .venv/bin/pip install --no-deps "${FLASH_ATTN}"; fi

COPY --chown=zephyr:zephyr . .
RUN touch .venv/.installed .venv/.installed-test && .venv/bin/zephyr --version
ENV PATH=/work/zephyr/.venv/bin:${PATH}
CMD ["zephyr", "--help"]
