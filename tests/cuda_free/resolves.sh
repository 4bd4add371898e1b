#!/usr/bin/env bash
# tests/cuda_free/resolves.sh PYTHON: what `pip install -c requirements-gpu.lock '.[app,gpu]'` comes to there, nothing installed.
# Fails unless it comes to an Unsloth from 2026.10.9 on, and to exactly the versions of the lock.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$1" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --dry-run --report "$folder/report.json" -c requirements-gpu.lock '.[app,gpu]' >"$folder/log" 2>&1 ||
  { tail -n 20 "$folder/log"; exit 1; }
"$folder/venv/bin/python" - "$folder/report.json" requirements-gpu.lock <<'PYTHON'
import json
import sys

found = {row["metadata"]["name"]: row["metadata"]["version"] for row in json.load(open(sys.argv[1]))["install"]}
locked = dict(line.strip().split("==") for line in open(sys.argv[2]) if "==" in line and not line.startswith("#"))
found.pop("grlo-lite")
unsloth = tuple(map(int, found["unsloth"].split(".")[:3]))
assert unsloth >= (2026, 10, 9), f"Unsloth {found['unsloth']}: the lock keeps a newer one out"
other = {name: (version, locked.get(name)) for name, version in found.items() if version.split("+")[0] != locked.get(name)}
assert not other, f"not as locked: {other}; make requirements-gpu.lock again"
print(f"'.[app,gpu]' resolves on Python {sys.version.split()[0]}: {len(found)} packages, Unsloth {found['unsloth']}")
PYTHON
