# The two commands of the README, and what CI runs. Everything lives in .venv; nothing else needs to be installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Threads that wait by spinning make small networks several times slower as soon as anything else uses a core.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint types docs check examples pictures paper faults long-run gpu bench bench-quick package clean

demo: $(STAMP)
	$(BIN)/python examples/digits.py

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/sphinx-build -W --keep-going -n -q -E docs docs/_build/html

# Long campaigns, whose tables are in docs/reliability.md; CI runs a few runs of each inside `make test`.
faults: $(STAMP)
	$(BIN)/python -m tests.campaigns.faults --runs 210 --workers 2

long-run: $(STAMP)
	$(BIN)/python -W ignore -m tests.campaigns.long_run --steps 20000
	$(BIN)/python -W ignore -m tests.campaigns.long_run --steps 20000 --precision 64-true

gpu: $(STAMP)
	$(BIN)/python -m tests.gpu.check

# Ratios beside peers, whose tables are in docs/benchmarks.md; the quick mode checks that they run and are exact.
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -W ignore -m benchmarks --output runs/benchmarks.json

bench-quick: $(STAMP)
	$(BIN)/python -W ignore -m benchmarks --quick --output runs/benchmarks_quick.json
	$(BIN)/python -W ignore -m benchmarks.communication --quick

# The wheel in an environment that holds nothing else; archives that have passed are left in dist/.
package: $(STAMP)
	$(BIN)/python -m tests.packaging.check --dist dist

# The pictures of the documentation, from runs of this moment; the second command needs Chromium.
pictures: $(STAMP)
	rm -rf runs/gallery
	$(BIN)/python -W ignore examples/gallery.py --pictures docs/images/gallery
	$(BIN)/python -m docs.screenshots runs/gallery/healthy docs/images/tensorboard \
	    --shots custom_scalars images text --width 1200

# The studies behind docs/paper.md: what is missing is measured, for hours; STUDIES="energies meshes" chooses.
paper: $(STAMP)
	$(BIN)/python -W ignore -m examples.paper $(STUDIES)

# Every example on reduced settings: that it runs, not what it finds.
REDUCED := runs/reduced
ONE_EPOCH := --trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1 --trainer.default_root_dir ../$(REDUCED)
examples: $(STAMP)
	$(BIN)/python examples/plain_pytorch.py --num-steps 20
	$(BIN)/python examples/existing_trainer.py --max-epochs 1 --num-train 200 --root $(REDUCED)
	$(BIN)/python examples/leaky_transformer.py --max-epochs 1 --num-train 200 --root $(REDUCED)
	$(BIN)/python examples/teacher.py --max-epochs 20 --scheme adaptive
	$(BIN)/python examples/digits.py --max-epochs 2 --width 32 --num-layers 8 --root $(REDUCED)
	$(BIN)/python examples/subclass.py --max-epochs 1 --width 32 --num-layers 8
	$(BIN)/python examples/gallery.py --max-epochs 20 --width 16 --root $(REDUCED)/gallery --pictures $(REDUCED)/pictures
	rm -rf $(REDUCED)/paper
	$(BIN)/python -W ignore -m examples.paper --reduced
	cd examples && for name in digits teacher subclass leaky_transformer; do \
	    $(abspath $(BIN))/lightning-leaky fit --config $$name.yaml $(ONE_EPOCH) || exit 1; done

check: test lint types docs examples

# torch comes first and alone: its CPU build is named in the constraints, and a later resolution must not replace it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

# Not runs and lightning_logs: they hold logs of whoever works here.
clean:
	rm -rf $(VENV) docs/_build dist
