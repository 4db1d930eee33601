#!/usr/bin/env bash
# everything that only a CUDA machine can answer, in one offline run of at most 9 minutes.
#
#   bench/run_gpu.sh [all|tests|sanitize|bench] [--dry-run]
#
# builds for the GPU at hand, then runs the GPU tests, compute-sanitizer on the self-test, and the benchmarks. Results go to $OUT
# (default gpu_out/): steps.json, env.json, junit.xml, sanitizer.json, bench.json, log.txt; each record is written when it is made, and
# a step that runs out of time says so and lets the next one start. The last lines on stdout are a short table.
#   --dry-run (or NEARLINEAR_DRY_RUN=1)   every step at smoke size on CPU with the installed package
#   PYTHON                                interpreter with torch, Triton and the build tools (default python3)
#   NEARLINEAR_COMMIT                     commit to record where the tree has no git folder
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-gpu_out}
DRY=${NEARLINEAR_DRY_RUN:-0}
WHAT=all
for argument in "$@"; do
  case $argument in
    all | tests | sanitize | bench) WHAT=$argument ;;
    --dry-run) DRY=1 ;;
    *) sed -n '2,12p' "$0" >&2; exit 2 ;;
  esac
done

TOTAL=540 # seconds for everything; the limits below add up to it
FAILED=0
STEPS="" TOOLS=""
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
rm -f "$OUT"/{steps,env,sanitizer,bench}.json "$OUT"/{junit.xml,log.txt}

# entry NAME STATUS SECONDS REASON: one JSON object
entry() { printf '{"name":"%s","status":"%s","seconds":%d,"reason":"%s"}' "$1" "$2" "$3" "${4//\"/\'}"; }

record() {
  STEPS+="${STEPS:+,}$(entry "$@")"
  printf '{"dry_run":%s,"steps":[%s]}\n' "$([ "$DRY" = 1 ] && echo true || echo false)" "$STEPS" > "$OUT/steps.json"
  printf '%-18s %-8s %4d s  %s\n' "$@"
}

# limited LIMIT COMMAND...: within its own limit and what is left of the total; sets STATUS, REASON and TOOK
limited() {
  local limit=$1 left=$((TOTAL - SECONDS)) start=$SECONDS rc
  shift
  limit=$((limit < left ? limit : left))
  STATUS=timeout REASON="no time left" TOOK=0
  [ "$limit" -gt 0 ] || return
  echo "== $*" >> "$OUT/log.txt"
  timeout -k 5 "$limit" "$@" >> "$OUT/log.txt" 2>&1 < /dev/null
  rc=$? TOOK=$((SECONDS - start))
  case $rc in
    0) STATUS=ok REASON="" ;;
    124 | 137) STATUS=timeout REASON="stopped after $limit s" ;;
    *) STATUS=failed REASON="exit code $rc, see log.txt" ;;
  esac
}

step() {
  local name=$1
  shift
  limited "$@"
  [ "$STATUS" = ok ] || FAILED=1
  record "$name" "$STATUS" "$TOOK" "$REASON"
}

wanted() { [ "$WHAT" = all ] || [ "$WHAT" = "$1" ]; }

nearlinear() { "$PYTHON" -m nearlinear "$@"; }
export -f nearlinear
export PYTHON

# the JSON first: it is wanted most where the self-test fails
self_test() { nearlinear env --json --device "$1" > "$2"; nearlinear env --device "$1"; }
export -f self_test

build() {
  nvidia-smi
  TORCH_CUDA_ARCH_LIST=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || return 1
  export TORCH_CUDA_ARCH_LIST NEARLINEAR_CUDA=1 MAX_JOBS="$(nproc)"
  "$PYTHON" -m pip install -q --no-build-isolation --no-deps .
}
export -f build

sanitize() {
  local tool
  for tool in memcheck racecheck; do
    if [ "$DRY" = 1 ]; then
      STATUS=skipped REASON="dry run: compute-sanitizer needs a GPU" TOOK=0
    elif ! command -v compute-sanitizer > /dev/null; then
      STATUS=skipped REASON="compute-sanitizer is not on PATH" TOOK=0
    else
      # torch's caching allocator would hide overruns inside its blocks
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited 45 compute-sanitizer --tool $tool --error-exitcode 9 "$PYTHON" -m nearlinear env --device cuda
    fi
    case $STATUS in ok | skipped) ;; *) FAILED=1 ;; esac
    record "sanitize $tool" "$STATUS" "$TOOK" "$REASON"
    TOOLS+="${TOOLS:+,}$(entry "$tool" "$STATUS" "$TOOK" "$REASON")"
    printf '{"tools":[%s]}\n' "$TOOLS" > "$OUT/sanitizer.json"
  done
}

gpu_tests() {
  # interpreter tests switch Triton to its interpreter for the whole process
  local common=(tests -q -m gpu -p no:cacheprovider --ignore-glob='tests/test_triton_*')
  if [ "$DRY" = 1 ]; then
    "$PYTHON" -m pytest "${common[@]}" --collect-only
  else
    "$PYTHON" -m pytest "${common[@]}" --timeout=60 --junitxml="$OUT/junit.xml"
  fi
}
export -f gpu_tests
export DRY OUT

DEVICE=cuda
if [ "$DRY" = 1 ]; then
  DEVICE=cpu
  record build skipped 0 "dry run: the installed package is used"
else
  step build 120 bash -c build
fi
step env 30 bash -c "self_test $DEVICE '$OUT/env.json'"
if [ "$STATUS" != ok ]; then
  tail -n 30 "$OUT/log.txt"
  echo "stopped: the package does not work here"
  exit 1
fi
step warm-up 30 "$PYTHON" -m nearlinear bench --smoke --quiet --device "$DEVICE" --baselines none

if wanted tests; then step tests 160 bash -c gpu_tests; fi
if wanted sanitize; then sanitize; fi
if wanted bench; then
  options=(--quiet --device "$DEVICE" --json "$OUT/bench.json")
  [ -f "$OUT/junit.xml" ] && options+=(--tests "$OUT/junit.xml")
  [ -n "${NEARLINEAR_COMMIT:-}" ] && options+=(--commit "$NEARLINEAR_COMMIT")
  if [ "$DRY" = 1 ]; then options+=(--smoke --baselines eager); else options+=(--seconds 2 --deadline 70); fi
  step bench 110 "$PYTHON" -m nearlinear bench "${options[@]}"
  [ -f "$OUT/bench.json" ] && nearlinear bench --from "$OUT/bench.json" --markdown
fi
[ -f "$OUT/junit.xml" ] && grep -o '<testsuite [^>]*' "$OUT/junit.xml" | grep -oE ' (errors|failures|skipped|tests)="[0-9]+"' | tr -d '\n' && echo
echo "$SECONDS s; results in $(basename "$OUT")"
exit $FAILED
