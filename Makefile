# make demo    convert a stand-in graph and segment an image with it
# make test    prove the conversion against TensorFlow
# Both set up what is missing. Another interpreter: make PYTHON=python3.12 demo
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/installed-by-$(notdir $(PYTHON))
# pip's cache, where a home folder can hold one; without it pip may stop.
CACHE = $(shell d="$${XDG_CACHE_HOME:-$$HOME/.cache}/pip"; \
  mkdir -p "$$d" 2>/dev/null && [ -w "$$d" ] || echo --no-cache-dir)
PIP = $(PY) -m pip install --quiet --disable-pip-version-check $(CACHE)
STANDIN := build/standin_cityscapes
TOOLS := .venv-tools
UV := 0.13.9
PIP_AUDIT := 2.10.1
VERSIONS := 3.10 3.11 3.12 3.13

.PHONY: setup demo test test-fast test-all fuzz faults bench lint lock audit pictures clean

setup: $(INSTALLED)

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import platform as p, sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14) or p.system() + p.machine() != "Linuxx86_64")' 2>/dev/null || { \
	  echo "Python 3.10 to 3.13 on Linux x86_64 is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1) on $$(uname -sm): name another, as in 'make PYTHON=python3.12 demo'" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@awk '/^[A-Za-z]/ { first = /^(numpy|packaging|setuptools|wheel)==/ } first' $< > $(VENV)/first.txt
	$(PIP) --no-deps -r $(VENV)/first.txt
	CC=true LDSHARED=true $(PIP) --no-deps --no-build-isolation -r $<
	@touch $@

demo: $(INSTALLED) $(STANDIN).npz
	$(PY) demo.py --pretrained-model $(STANDIN).npz --input-size 513x1025 --force --output build/street_segmentation.png assets/street.png
	@echo
	@echo 'NOTE: these are stand-in weights, which only tell colours apart. Real ones:'
	@echo '  $(PY) demo.py image.jpg                  (downloads the Cityscapes model)'
	@echo '  $(PY) tf2npz.py cityscapes frozen_inference_graph.pb cityscapes.npz'
	@echo '  $(PY) demo.py --pretrained-model cityscapes.npz image.jpg'

$(STANDIN).pb: $(wildcard tests/fixture_*.py) | $(INSTALLED)
	@mkdir -p build
	$(PY) tests/fixture_weights.py cityscapes $@

$(STANDIN).npz: $(STANDIN).pb tf2npz.py
	$(PY) tf2npz.py cityscapes $< $@

test: $(INSTALLED)
	$(PY) -m pytest tests

test-fast: $(INSTALLED)
	$(PY) -m pytest tests -m 'not slow'

test-all:
	@for version in $(VERSIONS); do \
	  if python$$version -c '' 2>/dev/null; then \
	    echo "== Python $$version"; \
	    $(MAKE) PYTHON=python$$version VENV=.venv-$$version test-fast || exit 1; \
	  else echo "== Python $$version: no python$$version here, skipped"; fi; \
	done

bench: $(INSTALLED)
	$(PY) benchmarks/scripts.py
	$(PY) benchmarks/demo.py
	$(PY) benchmarks/evaluation.py
	$(PY) benchmarks/speed.py

fuzz: $(INSTALLED)
	FUZZ=20 $(PY) -m pytest tests/test_fuzz.py

faults: $(INSTALLED)
	FAULTS=100 $(PY) -m pytest tests/test_faults.py

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(VENV)/bin/lint-imports

LOCKED := --no-deps --generate-hashes --universal --python-version 3.10 \
  --no-header --no-annotate --quiet

lock:
	$(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet uv==$(UV)
	{ echo '# By `make lock`, from requirements.in. `make setup` installs it. By hand:'; \
	  echo '#   awk "/^[A-Za-z]/ { first = /^(numpy|packaging|setuptools|wheel)==/ } first" \'; \
	  echo '#     requirements.txt > first.txt && pip install -r first.txt'; \
	  echo '#   CC=true LDSHARED=true pip install --no-build-isolation \'; \
	  echo '#     -r requirements.txt'; \
	  echo '# CC=true skips a C extension of ChainerCV that is not used here.'; \
	  $(TOOLS)/bin/uv pip compile requirements.in $(LOCKED); \
	} > requirements.txt.new
	{ echo '# By `make lock`, from requirements-gpu.in.'; \
	  $(TOOLS)/bin/uv pip compile requirements-gpu.in $(LOCKED); \
	} > requirements-gpu.txt.new
	mv requirements.txt.new requirements.txt
	mv requirements-gpu.txt.new requirements-gpu.txt

audit:
	$(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet pip-audit==$(PIP_AUDIT)
	$(TOOLS)/bin/pip-audit -r requirements.txt -r requirements-gpu.txt --no-deps --disable-pip

pictures: $(INSTALLED)
	$(PY) assets/draw_street.py assets/street.png
	$(MAKE) demo
	$(PY) -c "from PIL import Image; Image.open('build/street_segmentation.png').quantize(256, 2).save('assets/demo.png', optimize=True)"

clean:
	rm -rf build .venv .venv-*
