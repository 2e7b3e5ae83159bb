# `make demo` runs the main job in some six minutes, `make test` the tests; both make .venv and install first.

PYTHON ?= python3
# The models here are so small that a second thread gains nothing, and costs much when the machine has other work.
export OMP_NUM_THREADS ?= 1
DEMO = .venv/bin/gradmem-bench run --task kv_small --max-positions 8 --output runs/demo \
	--method full_kv --method gradmem --method mean_pool --method rmt --method truncated_text \
	--method no_memory \
	--set gradmem.inner_steps=2 --set gradmem.inner_learning_rate=4 \
	--set gradmem.training.tuned_trials=14 --set rmt.training.tuned_trials=10

.PHONY: demo test lint

demo: .venv/installed
	$(DEMO)

test: .venv/installed
	.venv/bin/pytest --numprocesses 2 --dist worksteal

lint: .venv/installed
	.venv/bin/ruff check .

# torch comes first and pinned, so that nothing installed after it can bring another build of it in.
.venv/installed: pyproject.toml constraints.txt
	@echo "Installing into .venv; the first time takes minutes, since torch is large."
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
