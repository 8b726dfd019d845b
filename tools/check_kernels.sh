#!/bin/sh
# Every op and every law on the GPU, at the tests' small sizes, under compute-sanitizer: memcheck (out of bounds,
# misaligned, leaked), racecheck (shared memory), initcheck (reads of memory that nothing wrote).
#
#   tools/check_kernels.sh build/cuda/ssm_tests [memcheck|racecheck|initcheck ...]
#
# SSM_KERNEL_FILTER chooses tests, SSM_KERNEL_SECONDS bounds one tool (default 1800). Exit code 0: all are clean.
set -u
tests=${1:?usage: tools/check_kernels.sh PATH/ssm_tests [TOOL ...]}
shift
[ $# -gt 0 ] || set -- memcheck racecheck initcheck
filter=${SSM_KERNEL_FILTER:-*EveryDevice*:Laws.*}
seconds=${SSM_KERNEL_SECONDS:-1800}
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
[ -x "$sanitizer" ] || { echo "compute-sanitizer is not installed; it comes with the CUDA toolkit" >&2; exit 2; }

bad=0
for tool in "$@"; do
  log=$(mktemp)
  # 99 is what the sanitizer returns for findings; the tests' own failures are 1.
  SSM_TEST_DEVICE=cuda timeout "$seconds" "$sanitizer" --tool "$tool" --error-exitcode 99 --print-limit 20 \
    "$tests" --gtest_filter="$filter" --gtest_brief=1 >"$log" 2>&1
  code=$?
  case $code in
    0) verdict=clean ;;
    1) verdict="tests failed" ;;
    99) verdict="findings" ;;
    124) verdict="not done after $seconds s" ;;
    *) verdict="exit code $code" ;;
  esac
  echo "$tool: $verdict; $(grep -E 'SUMMARY' "$log" | tail -1 | sed 's/=* *//')"
  if [ $code -ne 0 ]; then
    bad=1
    grep -v '^\[' "$log" | head -60
  elif ! grep -q 'PASSED  \] [1-9]' "$log"; then
    bad=1
    echo "$tool: no test ran" >&2
  fi
  rm -f "$log"
done
exit $bad
