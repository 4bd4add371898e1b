#!/usr/bin/env bash
# The first hour on a card: everything that benchmarks/results/README.md lists as missing, in order of worth.
#
#   benchmarks/first_hour.sh [FOLDER]             measure; a JSON a row in FOLDER (default: benchmarks/results/first_hour)
#   benchmarks/first_hour.sh --dry-run            print the commands
#   MINUTES=30 benchmarks/first_hour.sh           with less time: a row that does not fit in what is left is left out
#
# A row has its own minutes, and is ended when they are over. ROW.json says what was run, how it ended, how long it took
# and on which card; ROW.log what it printed; the benchmarks' own JSON lies in FOLDER/ROW. A row that has ended well is not
# run again, so the hour can be had in parts. Nothing is downloaded.
set -uo pipefail
cd "$(dirname "$0")/.."
dry=
if [ "${1-}" = --dry-run ]; then dry=1; shift; fi
folder=${1-benchmarks/results/first_hour}
card=$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
if [ -z "$dry" ]; then
  if [ -z "$card" ]; then
    echo "error: nvidia-smi sees no card; look at the commands with --dry-run" >&2
    exit 2
  fi
  mkdir -p "$folder"
fi
began=$SECONDS

row() { # NAME MINUTES COMMAND...
  local name=$1 minutes=$2 status start
  shift 2
  if [ -n "$dry" ]; then
    echo "$name, at most $minutes minutes: $*"
    return
  fi
  if grep -qs '"exit": 0' "$folder/$name.json"; then return; fi
  if ((SECONDS - began + minutes * 60 > ${MINUTES:-60} * 60)); then
    echo "$name: left out, $minutes minutes are not left"
    return
  fi
  echo "$name: $*"
  start=$SECONDS
  timeout --kill-after=30 "${minutes}m" "$@" >"$folder/$name.log" 2>&1
  status=$? # 124: its minutes were over
  python - "$folder/$name.json" "$name" "$status" $((SECONDS - start)) "$card" "$*" <<'PYTHON'
import json
import sys

path, name, status, seconds, card, command = sys.argv[1:]
row = {"row": name, "exit": int(status), "seconds": int(seconds), "card": card, "command": command}
with open(path, "w") as file:
    file.write(json.dumps(row, indent=1) + "\n")
PYTHON
  if ((status)); then
    echo "$name: ended with $status, see $folder/$name.log"
    tail -n 3 "$folder/$name.log"
  fi
}

shape() { # NAME MINUTES OPTIONS...: the full-shape benchmark, whose own JSON goes to a folder of that name
  row "$1" "$2" python benchmarks/full_shape.py "${@:3}" --out "$folder/$1"
}

# Does it run at all, and does it learn?
row doctor 2 python -m grlo_lite.doctor microcosm
row gpu_tests 12 python -m pytest -m gpu -n 0
# What it is worth: beside TRL and beside its plan, by the rates of this card
shape qwen3_4b_24gb 12 --steps 2 --probe
# Whether the plan's memory is the card's
shape longest_24gb 5 --longest
# Unsloth's path
shape unsloth 6 --only ours --steps 2 --backend unsloth --engine generate
# Where the time goes, and what each engine is worth
shape profile 5 --only ours --steps 2 --profile
shape compact 6 --only ours --steps 2 --engine compact
shape generate 6 --only ours --steps 2 --engine generate
# The smaller recipe
shape longest_16gb 5 --longest --shape qwen3-4b-16gb
shape qwen3_4b_16gb 12 --steps 2 --shape qwen3-4b-16gb --probe
