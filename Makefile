# make demo    convert a stand-in graph and segment an image with it
# make test    prove the conversion against TensorFlow
# Both install what they need. Another interpreter: make PYTHON=python3.12 demo
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/installed-by-$(notdir $(PYTHON))
INSTALLED_DEV := $(INSTALLED)-dev
STANDIN := build/standin_cityscapes
TOOLS := .venv-tools
PIP_AUDIT := 2.10.1
VERSIONS := 3.11 3.12 3.13 3.14

# A cache, where a home folder can hold one; without it pip and uv may stop.
CACHE = $(shell d="$${XDG_CACHE_HOME:-$$HOME/.cache}"; \
  mkdir -p "$$d/pip" "$$d/uv" 2>/dev/null && [ -w "$$d/pip" ] \
  && [ -w "$$d/uv" ] || echo --no-cache)
# A mirror that pip is set to; uv reads no setting of pip's.
INDEX = $$($(PY) -m pip config list | \
  sed -n "s/^[^=]*\.index-url='\(.*\)'$$/--default-index \1/p" | tail -n 1)
UV = $(VENV)/bin/uv pip install --python $(PY) --quiet $(CACHE) $(INDEX) \
  --system-certs --no-deps --require-hashes --compile-bytecode

.PHONY: setup setup-dev setup-gpu demo test test-fast test-all fuzz faults \
  bench scores lint lock audit pictures clean

define SUPPORTED
import platform as p, sys
number = lambda text: tuple(map(int, text.split(".")[:2]))
system = p.system() + p.machine()
sys.exit(not ((3, 11, 4) <= sys.version_info < (3, 15) and (
    system == "Linuxx86_64"
    or system == "Linuxaarch64" and number(p.libc_ver()[1]) >= (2, 35)
    or system == "Darwinarm64" and number(p.mac_ver()[0]) >= (14, 0))))
endef
export SUPPORTED

setup: $(INSTALLED)

$(INSTALLED): requirements.txt requirements-uv.txt
	@$(PYTHON) -c "$$SUPPORTED" 2>/dev/null || { \
	  echo "Python 3.11.4 to 3.14 is needed, on Linux (x86_64, or aarch64 with glibc 2.35) or macOS 14 (arm64), and $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1) on $$(uname -sm): name another, as in 'make PYTHON=python3.12 demo'" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check \
	  $(CACHE:--no-cache=--no-cache-dir) --no-deps -r requirements-uv.txt
	$(UV) -r requirements.txt
	@touch $@

setup-dev: $(INSTALLED_DEV)

$(INSTALLED_DEV): requirements-dev.txt $(INSTALLED)
	$(UV) -r requirements-dev.txt
	@touch $@

setup-gpu: $(INSTALLED)
	@[ "$$(uname -s)" = Linux ] || { \
	  echo "CuPy has wheels for Linux, and none for $$(uname -s)" >&2; exit 1; }
	$(UV) -r requirements-gpu.txt

demo: $(INSTALLED) $(STANDIN).npz
	$(PY) demo.py --pretrained-model $(STANDIN).npz --input-size 513x1025 --output-stride 16 --force --output build/street_segmentation.png assets/street.png
	@echo
	@echo 'NOTE: these are stand-in weights, which only tell colours apart. Real ones:'
	@echo '  $(PY) demo.py image.jpg                  (downloads the Cityscapes model)'
	@echo '  $(PY) tf2npz.py cityscapes frozen_inference_graph.pb cityscapes.npz'
	@echo '  $(PY) demo.py --pretrained-model cityscapes.npz image.jpg'

$(STANDIN).pb: $(wildcard tests/fixture_*.py) | $(INSTALLED)
	@mkdir -p build
	$(PY) tests/fixture_weights.py cityscapes $@

$(STANDIN).npz: $(STANDIN).pb tf2npz.py
	$(PY) tf2npz.py cityscapes $< $@ --force

# Two processes; each computes on one thread, as more would wait for another.
# Large pages of memory take the kernel less time (glibc 2.35 and later).
TWO = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(PY) -m pytest -n 2

test: $(INSTALLED_DEV)
	$(TWO) tests

test-fast: $(INSTALLED_DEV)
	$(TWO) tests -m 'not slow'

test-all:
	@for version in $(VERSIONS); do \
	  if python$$version -c '' 2>/dev/null; then \
	    echo "== Python $$version"; \
	    $(MAKE) PYTHON=python$$version VENV=.venv-$$version \
	      $(if $(FULL),test,test-fast) || exit 1; \
	  else echo "== Python $$version: no python$$version here, skipped"; fi; \
	done

bench: $(INSTALLED_DEV)
	$(PY) benchmarks/commands.py
	$(PY) benchmarks/speed.py

# The README's scores, of real models and data: make scores OPTIONS='--gpu 0'
scores: $(INSTALLED)
	$(PY) benchmarks/scores.py $(OPTIONS)

fuzz: $(INSTALLED_DEV)
	FUZZ=20 $(PY) -m pytest tests/test_fuzz.py

faults: $(INSTALLED_DEV)
	FAULTS=100 $(PY) -m pytest tests/test_faults.py

lint: $(INSTALLED_DEV)
	$(PY) -m ruff check .
	$(VENV)/bin/lint-imports

LISTS := requirements requirements-dev requirements-gpu requirements-uv
FIRST = $(shell grep -E '^(numpy|packaging|setuptools|wheel)==' requirements.in)

lock:
	$(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet -r requirements-uv.in
	for list in $(LISTS); do \
	  { echo "# By \`make lock\`, from $$list.in."; \
	    [ $$list != requirements ] || printf '# %s\n' \
	      "\`make setup\` installs it. Without make, with uv:" \
	      '  uv pip install --no-deps --require-hashes -r requirements.txt' \
	      'and with pip:' \
	      '  pip install $(FIRST)' \
	      '  CC=true LDSHARED=true pip install --no-build-isolation \' \
	      '    --no-deps -r requirements.txt' \
	      'CC=true skips a C extension of ChainerCV that is not used here.'; \
	    $(TOOLS)/bin/uv pip compile $$list.in --no-deps --generate-hashes \
	      --universal --python-version 3.11 --no-header --no-annotate \
	      --quiet; \
	  } > $$list.txt.new && mv $$list.txt.new $$list.txt || exit 1; \
	done

audit:
	$(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet pip-audit==$(PIP_AUDIT)
	$(TOOLS)/bin/pip-audit $(LISTS:%=-r %.txt) --no-deps --disable-pip

pictures: $(INSTALLED)
	$(MAKE) demo
	cp build/street_segmentation.png assets/demo.png

clean:
	rm -rf build .venv .venv-*
