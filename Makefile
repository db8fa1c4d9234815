# The two commands of the README, and what CI runs. Everything lives in .venv; nothing else needs to be installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Stamps: what the demo and the fast tests need, and beside it what everything else needs.
TEST := $(VENV)/.test
STAMP := $(VENV)/.dev

# Threads that wait by spinning make small networks several times slower as soon as anything else uses a core.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-all matrix audit lint types docs check examples pictures paper layers adapting faults long-run gpu bench bench-quick \
    package release-check clean

demo: $(TEST)
	$(BIN)/python examples/digits.py

test: $(TEST)
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist worksteal

# The slow tests two at a time, because some start processes of their own; properties again, with more examples.
test-all: test $(STAMP)
	$(BIN)/python -m pytest -m "slow or hypothesis" --hypothesis-profile thorough -n 2 --dist loadscope

# The wheel and the fast tests on each Python at hand, with the pinned, the oldest and the newest versions: an hour.
# CELLS="--only '3.13-*'" chooses; CELLS=--other is what CI runs, the newest Python that is not this one.
matrix: $(TEST)
	$(BIN)/python -m tests.matrix $(CELLS)

audit: $(STAMP)
	$(BIN)/python -m tests.audit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/zizmor --offline --quiet .github

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/sphinx-build -W --keep-going -n -q -E docs docs/_build/html

# Long campaigns, whose tables are in docs/reliability.md; CI runs a few runs of each inside `make test`.
faults: $(STAMP)
	$(BIN)/python -m tests.campaigns.faults --runs 300 --workers 2

long-run: $(STAMP)
	$(BIN)/python -W ignore -m tests.campaigns.long_run --steps 20000
	$(BIN)/python -W ignore -m tests.campaigns.long_run --steps 20000 --precision 64-true

# On a machine with a GPU, by the Python that has torch there; GPU_ARGS="--device cpu --reduced" rehearses it.
gpu:
	$(PYTHON) -W ignore -m tests.gpu $(GPU_ARGS)

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

# That, and before it the version, the changelog, the working tree and the tag; CONTRIBUTING.md says what to do by hand.
release-check: $(STAMP)
	$(BIN)/python -m tests.packaging.release --dist dist

# The pictures of the documentation, from code and runs of this moment; the last command needs Chromium.
pictures: $(STAMP)
	$(BIN)/python -m docs.rooms
	rm -rf runs/gallery
	$(BIN)/python -W ignore examples/gallery.py --pictures docs/images/gallery
	$(BIN)/python -m docs.screenshots runs/gallery/healthy docs/images/tensorboard \
	    --shots custom_scalars images text --width 1200

# The studies behind docs/paper.md: what is missing is measured, for hours; STUDIES="energies meshes" chooses.
paper: $(STAMP)
	$(BIN)/python -W ignore -m examples.paper $(STUDIES)

# The study behind docs/layers.md, likewise.
layers: $(STAMP)
	$(BIN)/python -W ignore -m examples.layers

# The study of adapting without a leak, likewise.
adapting: $(STAMP)
	$(BIN)/python -W ignore -m examples.adapting

# Every example on reduced settings: that it runs, not what it finds.
REDUCED := runs/reduced
ONE_EPOCH := --trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1 --trainer.default_root_dir ../$(REDUCED)
examples: $(STAMP)
	$(BIN)/python examples/plain_pytorch.py --num-steps 20
	$(BIN)/python examples/existing_trainer.py --max-epochs 1 --num-train 200 --root $(REDUCED)
	$(BIN)/python examples/leaky_transformer.py --max-epochs 1 --num-train 200 --root $(REDUCED)
	$(BIN)/python examples/teacher.py --max-epochs 20 --scheme adaptive
	$(BIN)/python examples/digits.py --max-epochs 2 --width 32 --num-layers 8 --root $(REDUCED)
	$(BIN)/python examples/fabric_loop.py --num-epochs 25
	$(BIN)/python examples/hugging_face_trainer.py --max-steps 20
	$(BIN)/python examples/subclass.py --max-epochs 1 --width 32 --num-layers 8
	$(BIN)/python examples/gallery.py --max-epochs 20 --width 16 --root $(REDUCED)/gallery --pictures $(REDUCED)/pictures
	rm -rf $(REDUCED)/paper $(REDUCED)/layers $(REDUCED)/adapting
	$(BIN)/python -W ignore -m examples.paper --reduced
	$(BIN)/python -W ignore -m examples.layers --reduced
	$(BIN)/python -W ignore -m examples.adapting --reduced
	cd examples && for name in subclass leaky_transformer; do \
	    $(abspath $(BIN))/lightning-leaky fit --config $$name.yaml $(ONE_EPOCH) || exit 1; done

check: test-all lint types docs examples

# torch comes first and alone: its CPU build is named in the constraints, and a later resolution must not replace it.
$(TEST): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || { \
	    echo "PYTHON must be Python 3.11 or later with its venv module, got $(PYTHON): try make PYTHON=python3.12."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

# timm comes alone: a torchvision that is not of the same build as torch keeps torchmetrics from being imported.
$(STAMP): $(TEST)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps timm
	touch $@

# Not runs and lightning_logs: they hold logs of whoever works here.
clean:
	rm -rf $(VENV) docs/_build dist
