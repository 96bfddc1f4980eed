# Everything runs in a virtual environment of its own; `make test` and `make demo` set it up.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python

.PHONY: demo demo-dense app space test sanitize lint help notebooks docs dist versions clean

demo: $(VENV)/installed
	$(RUN) scripts/train.py --config models/resnet10s_fdconv.fashion_mnist.demo.yaml --output runs/demo --overwrite
	$(RUN) scripts/validate.py --model runs/demo --dataset fashion_mnist_sample
	$(RUN) scripts/predict.py --model runs/demo --sample 8

demo-dense: $(VENV)/installed
	$(RUN) scripts/segment.py --config models/resnet10s_fdconv.fashion_mnist.segment_canvases.yaml \
		--output runs/demo-segment --overwrite
	$(RUN) scripts/detect.py --config models/resnet10s_fdconv.fashion_mnist.detect_canvases.yaml \
		--output runs/demo-detect --overwrite
	@echo "Pictures of truth and prediction: runs/demo-segment/pictures.png, runs/demo-detect/pictures.png"

# The app of app/README.md; MODELS are models to offer besides the index, such as runs/mine.
app: $(VENV)/app
	$(RUN) app/app.py $(MODELS)

# Uploads what is committed as the Space SPACE, such as me/fdconv.
space: $(VENV)/installed
	@test -n "$(SPACE)" || { echo "name the Space: make space SPACE=me/fdconv"; exit 1; }
	rm -rf build/space
	mkdir -p build/space
	git archive HEAD app | tar -x -C build/space --strip-components 1
	git archive HEAD fdconv_zoo models LICENSE | tar -x -C build/space
	$(VENV)/bin/hf upload --repo-type space $(SPACE) build/space .

test: $(VENV)/installed
	$(RUN) -m pytest -n auto

# The tests of native code under GCC's sanitizers, whose runtime must be in the process before Python.
SANITIZED = CC="sh -c 'exec gcc \"\$$@\" -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all' gcc" \
	ASAN_OPTIONS=detect_leaks=0:handle_segv=0 OMP_NUM_THREADS=2 \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" $(RUN)

sanitize: $(VENV)/installed
	$(SANITIZED) -c 'from fdconv_zoo.ops import native; exit(native.problem())'
	$(SANITIZED) -m pytest tests/test_native_*.py

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/mypy

# The texts that `fdconv-zoo COMMAND --help` shows.
help: $(VENV)/installed
	$(RUN) scripts/write_help.py

# Runs the notebooks, and stores their outputs in them.
notebooks: $(VENV)/installed
	$(RUN) tests/run_notebooks.py

# The site of docs/, in site/. To read it: python3 -m http.server -d site
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# Wheel and sdist, checked as the package index checks them.
dist: $(VENV)/installed
	rm -rf dist
	$(RUN) -m pip install --quiet 'twine>=6'
	$(RUN) -m build
	$(RUN) -m twine check --strict dist/*

# Tests with the oldest and the newest libraries, each in a fresh environment: docs/versions.md.
versions: $(VENV)/installed
	$(RUN) -m pip install --quiet 'uv>=0.5'
	$(RUN) scripts/check_versions.py

clean:
	rm -rf $(VENV) runs dist site

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-compile --editable '.[dev]'
	$(RUN) -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, where pip uses one; a few packages have files that do not compile
	touch $@

$(VENV)/app: $(VENV)/installed
	$(RUN) -m pip install --quiet --editable '.[app]'
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(RUN) -m pip install --quiet --editable '.[docs]'
	touch $@
