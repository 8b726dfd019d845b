# shellcheck shell=sh disable=SC2034
# The one list of Debian packages, and the one function that installs them. Sourced by ./quickstart and ./run_tests;
# POSIX sh, needs nothing but dpkg and apt.

# A package and why, one a line; here-documents, so that a line may hold any sign.
build_packages=$(
  cat <<'LIST'
g++                  compiles the library and the program
cmake                describes the build
ninja-build          runs the build
libhwy-dev           Highway: portable SIMD, instructions chosen when the program runs
libopenblas-dev      matrix products on the CPU
libkissfft-dev       kissfft: Fourier transforms on the CPU (BSD licence; FFTW's would bind the program)
nlohmann-json3-dev   reads and writes JSON
libedit-dev          edits the line of `ssm generate --interactive` (BSD licence; GNU readline would bind the program)
libpcre2-dev         PCRE2: the regular expressions of tokenizer files
libutf8proc-dev      utf8proc: Unicode normal forms
libsentencepiece-dev reads SentencePiece tokenizers
libeigen3-dev        Eigen: dense linear algebra of small continuous systems (headers alone)
LIST
)
test_packages=$(
  cat <<'LIST'
libgtest-dev         GoogleTest: the test program
libsndfile1-dev      reads and writes the recordings of examples/denoise
LIST
)

say() { printf '%s\n' "$*"; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

installed() {
  test "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed
}

# install_packages LIST: installs those of LIST that are missing, saying which and why; nothing if all are there.
install_packages() {
  command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
    fail "dpkg-query and apt-get not found: this script sets up Debian 12. Elsewhere install what tools/packages.sh" \
      "lists and follow docs/building.md"
  missing=''
  reasons=''
  while read -r package reason; do
    if test -n "$package" && ! installed "$package"; then
      missing="$missing $package"
      reasons="$reasons$(printf '  %-20s %s' "$package" "$reason")
"
    fi
  done <<LIST
$1
LIST
  test -n "$missing" || return 0

  as_root=''
  if test "$(id -u)" != 0; then
    command -v sudo >/dev/null ||
      fail "missing packages:$missing. You are not root and sudo is not installed: as root, run" \
        "'apt-get install --no-install-recommends$missing', then this script again"
    as_root=sudo
  fi
  say "Installing from Debian (apt-get${as_root:+, with sudo}):"
  printf '%s' "$reasons"

  # `env` because sudo passes no variables on. Package lists may be absent (fresh machine) or older than the archive:
  # they are refreshed when the first try fails, and only then. A source of the user's that cannot be refreshed is no
  # reason to stop; apt's words about it are kept for the case that the second try fails too.
  log=$(mktemp)
  apt_install="$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends$missing"
  # shellcheck disable=SC2086  # words
  if ! quietly "$log" $apt_install; then
    quietly "$log.update" $as_root apt-get update -q -o Acquire::Retries=2 || true
    if ! quietly "$log" $apt_install; then
      { grep '^[EW]:' "$log.update" | head -n 5; tail -n 10 "$log"; } >&2
      rm -f "$log" "$log.update"
      fail "apt-get could not install:$missing (its last words are above). It needs the network once; without it," \
        "install them another way and run this again"
    fi
  fi
  rm -f "$log" "$log.update"
}

# quietly LOG COMMAND...: runs the command with its output in LOG; on a terminal its last line shows, redrawn in place.
quietly() {
  quiet_log=$1
  shift
  {
    code=0
    "$@" </dev/null 2>&1 || code=$?
    echo "$code" >"$quiet_log.status"
  } | tee "$quiet_log" | if test -t 1; then
    while IFS= read -r line; do printf '\r\033[K%.79s' "$line"; done
    printf '\r\033[K'
  else
    cat >/dev/null
  fi
  read -r code <"$quiet_log.status"
  rm -f "$quiet_log.status"
  return "$code"
}

# build PRESET LOG: configures and builds.
build() {
  mkdir -p "$(dirname "$2")"
  say "Building (preset $1) ..."
  started=$(date +%s)
  if ! quietly "$2" cmake --preset "$1" || ! quietly "$2" cmake --build --preset "$1"; then
    # From the first failed step on; the last lines when it was no step that failed.
    { grep -m 1 -A 30 -E '^FAILED|^CMake Error' "$2" || tail -n 30 "$2"; } >&2
    fail "the build failed; the whole log is in $2"
  fi
  say "Built in $(($(date +%s) - started)) s."
}
