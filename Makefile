# Two commands, each sets up what it needs on a fresh clone: Python 3.11 or newer, pip and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: coverage demo docs test package lint clean

demo: .venv/.installed
	$(BIN)/spectrim demo

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
	$(MAKE) docs
	$(MAKE) package

# the site, from docs/: site/index.html; a warning is an error
docs: .venv/.installed
	rm -rf site
	$(BIN)/sphinx-build -q -W --keep-going -E -d .venv/doctrees -c docs . site

# takes a quarter longer than the tests alone
coverage: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term

# the package as a user installs it: a wheel, a clean environment (torch is copied, which saves a minute), the demo's network from
# another folder
package: .venv/.installed
	rm -rf .package && mkdir .package
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w .package .
	$(PYTHON) -m venv .package/venv
	cp -R $(BIN)/../lib/python*/site-packages/torch $(BIN)/../lib/python*/site-packages/torchgen \
		$(BIN)/../lib/python*/site-packages/functorch $(BIN)/../lib/python*/site-packages/torch-*.dist-info \
		.package/venv/lib/python*/site-packages
	.package/venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt "$$(ls .package/*.whl)[report]"
	cd .package && OMP_NUM_THREADS=1 venv/bin/spectrim compress spectrim.demo:demo_model --data spectrim.demo:test_batches \
		--calibration spectrim.demo:calibration_batches --images 200 --methods ChannelSVD,SpatialSVD --keep 0.5 --out run
	test -s .package/run/report.html && rm -rf .package

lint: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

# torch first and alone: its plain version brings the CPU build where there is one
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,docs]"
	touch $@

clean:
	rm -rf .venv .package
