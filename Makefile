# Every target sets up what it needs. PYTHON chooses the interpreter, ARGS adds options of the command.
PYTHON ?= python3
ARGS ?=
PICTURE ?= docs/engines.png
GPU_PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup bench bench-smoke bench-speed bench-ways bench-zoo audit race-data race-streaming race-engines probe-cores race-training race-recipes race-memory race-reports race-scale calibrate fuzz chaos gallery catalog gpu-check test test-gpu test-slow docs lint train report engines-picture clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready  ## virtual environment with everything (5.4 GB with the CUDA build of torch)

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "cnnbench needs Python 3.10 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

bench: .venv/ready  ## compare the four default networks on MNIST and CIFAR-10, about ten minutes on two cores, twenty on a GPU
	$(BIN)/cnnbench bench $(ARGS)

bench-smoke: .venv/ready  ## the same on small synthetic data, within a minute
	$(BIN)/cnnbench bench --config experiments/bench/smoke.yaml $(ARGS)

bench-speed: .venv/ready  ## costs and speed of the default grid alone, on a GPU where there is one, with records
	$(BIN)/cnnbench bench --measures complexity,speed $(ARGS)

bench-ways: .venv/ready  ## the default networks in every precision and mode of the device, with records; compiling takes most of a quarter of an hour
	$(BIN)/cnnbench speed LeNet5 VGG16 ResNet18 MobileNetV1 --precision all --mode all --records results/speed/ways-$$(date +%Y%m%d-%H%M%S).jsonl $(ARGS)

bench-zoo: .venv/ready  ## the whole zoo on CIFAR-10: 47 minutes on two cores, full trainings on a GPU
	$(BIN)/cnnbench bench --config experiments/bench/zoo$$($(BIN)/python -c 'import torch; print("-gpu" * torch.cuda.is_available())').yaml $(ARGS)

audit: .venv/ready  ## our counts beside fvcore, ptflops, torchinfo and torch's own, every difference explained
	$(BIN)/python -m cnnbench.verification.audit $(ARGS)

race-data: .venv/ready  ## images per second of our loader beside torchvision's and airbench's, two minutes
	$(BIN)/python -m cnnbench.verification.data $(ARGS)

race-streaming: .venv/ready  ## photos per second from the disk, beside torchvision's recipe and timm's loader, five minutes
	$(BIN)/python -m cnnbench.verification.streaming $(ARGS)

race-engines: .venv/ready  ## our latencies in engines beside those of the engines' own programs, 20 to 30 minutes
	$(BIN)/python -m cnnbench.verification.engines $(ARGS)

probe-cores: .venv/ready  ## do two processor cores keep their speed, or do other programs of the host slow them? a minute and a half
	$(BIN)/python -m cnnbench.verification.cores $(ARGS)

race-training: .venv/ready  ## what Lightning adds to a training step, beside a bare loop, five minutes
	$(BIN)/python -m cnnbench.verification.training $(ARGS)

race-recipes: .venv/ready  ## SpeedNet's recipes beside airbench's own trainings, on a CUDA GPU: ARGS="--goal 96"
	$(BIN)/python -m cnnbench.verification.recipes $(ARGS)

calibrate: .venv/ready  ## is the stopwatch right? against itself, a planted slowdown and the usual way; 12 to 25 minutes
	$(BIN)/python -m cnnbench.verification.calibrate $(ARGS)

race-memory: .venv/ready  ## the estimate of a training step's memory beside real steps, four minutes
	$(BIN)/python -m cnnbench.verification.memory $(ARGS)

race-reports: .venv/ready  ## seconds and memory of a report of 2,000 records, six minutes
	PYTHONPATH=tests $(BIN)/python -m campaigns.reports $(ARGS)

race-scale: .venv/ready  ## what a grid of up to 10,000 cells costs beside its trainings, and whether it was predicted; 20 minutes
	PYTHONPATH=tests $(BIN)/python -m campaigns.scale $(ARGS)

fuzz: .venv/ready  ## 2,280 damaged files and arguments, a table of verdicts, up to twenty minutes
	PYTHONPATH=tests $(BIN)/python -m campaigns.fuzz $(ARGS)

chaos: .venv/ready  ## kill bench and fit at random moments, go on, and compare with undisturbed runs
	PYTHONPATH=tests $(BIN)/python -m campaigns.chaos $(ARGS)

gallery: .venv/ready  ## one page of everything that a CNN does, about a minute; ARGS=--train trains a network first
	$(BIN)/cnnbench explain gallery $(ARGS)

catalog: .venv/ready  ## count the zoo again for `cnnbench list`, after a network or a record has changed
	$(BIN)/python -m cnnbench.catalog_update

# Each process gets a run of neighbours, which share fixtures and networks, and takes over from others when it is done.
test: .venv/ready  ## the tests, no network and no data needed
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

# Without the virtual environment, so that it runs where torch is and no index can be reached.
gpu-check:  ## does all GPU code work here, and are its numbers possible? at most eight minutes: GPU_PYTHON=python3
	$(GPU_PYTHON) -m cnnbench.verification.gpu $(ARGS)

# One process: tests that time a GPU or read its memory would disturb each other.
test-gpu: .venv/ready  ## the tests that need a CUDA GPU
	$(BIN)/python -m pytest -p no:xdist -m gpu $(ARGS)

test-slow: .venv/ready  ## the tests that take minutes: every network of torchvision, each of its stages measured
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow $(ARGS)

docs: .venv/ready  ## the documentation as a site in site/, with its links checked
	$(BIN)/python -m mkdocs build --strict --quiet $(ARGS)

lint: .venv/ready  ## style, types and the order of imports
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

train: .venv/ready  ## one training run: make train CONFIG=experiments/cifar10_resnet18.yaml
	$(BIN)/cnnbench fit --config $(or $(CONFIG),experiments/mnist_simplecnn.yaml) $(ARGS)

report: .venv/ready  ## the report again, from the records of the newest run or of RECORDS=...
	$(BIN)/cnnbench report $(or $(RECORDS),$(lastword $(sort $(wildcard results/bench/*)))) $(ARGS)

engines-picture: .venv/ready  ## latencies of networks by engine, from RECORDS=FILE into PICTURE (docs/engines.png)
	@test -n "$(RECORDS)" || { echo "name records of two engines or more: make $@ RECORDS=FILE"; exit 2; }
	$(BIN)/cnnbench report $(RECORDS) --out build/engines $(ARGS)
	cp build/engines/figures/engines.png $(PICTURE)

clean:  ## remove the environment and caches; results and data stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
