# shellcheck shell=bash
# Sourced by run, test, lint and lock: the virtual environment and what has to be in it.
#
# The environment is .venv beside this folder. Its stamp says what was installed last: "run" or "dev" (which holds all
# of "run"), and a fingerprint of the lock files, the project's metadata and the interpreter. While the stamp is
# right, nothing is done, so that a second start costs nothing and needs no network.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
stamp=$venv/tricast-stamp
# Questions and notices of pip and apt-get have nobody to answer them here.
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 DEBIAN_FRONTEND=noninteractive

say() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
}

fail() {
    say "$@"
    exit 1
}

# The servers that packages bring are for the tests, which start their own. This is asked whether a package may start
# its service (invoke-rc.d(8)); 101 forbids it.
service_policy=/usr/sbin/policy-rc.d

# Runs a command, in which packages are installed and no service is started. A policy that is there already stands.
without_services() {
    if [[ -e $service_policy ]]; then
        "$@"
        return
    fi
    (
        trap 'rm -f "$service_policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$service_policy"
        chmod 755 "$service_policy"
        "$@"
    )
}

# Whether a program is there: has_program NAME. Servers are in sbin, which is not on the PATH of every user.
has_program() {
    (
        PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
        command -v "$1" >/dev/null
    )
}

# Installs a Debian package: install_package NAME REASON. Ends with the command to run where that takes somebody else.
install_package() {
    if ! command -v apt-get >/dev/null; then
        fail "$2: install what your system calls $1, then run this again"
    elif [[ $(id -u) != 0 ]]; then
        fail "$2: run this once as root: apt-get install $1"
    fi
    say "$2: installing $1"
    if ! { apt-get update -qq && without_services apt-get install -y -qq --no-install-recommends "$1"; } \
        </dev/null >/dev/null; then
        fail "apt-get could not install $1"
    fi
}

# A server that the tests start themselves: require_server PROGRAM PACKAGE REASON. The system's service of that name is
# not for us to start.
require_server() {
    has_program "$1" && return
    install_package "$2" "$3"
    if command -v systemctl >/dev/null; then
        systemctl --quiet disable "$2" || say "the service $2 may start at the next boot"
    fi
}

# Prints the first Python on the PATH that is new enough.
find_python() {
    local candidate found=""
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        command -v "$candidate" >/dev/null || continue
        found=${found:-$("$candidate" --version 2>&1)}
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "Python 3.11 or later is needed, found ${found:-no python3}"
}

make_venv() {
    local python
    python=$(find_python)
    # Debian's python3 comes without the part that puts pip into an environment.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        install_package python3-venv "$("$python" --version) cannot make virtual environments"
    fi
    say "making the virtual environment .venv"
    "$python" -m venv --clear "$venv" || fail "$python -m venv could not make $venv"
}

# Prints what the environment was made from; nothing where there is no working environment.
fingerprint() {
    "$venv/bin/python" - "$root" <<'PYTHON' 2>/dev/null
import hashlib, pathlib, sys
import pip  # a system upgrade can leave the interpreter of an environment without its packages
root, prefix = pathlib.Path(sys.argv[1]), pathlib.Path(sys.prefix)
if f"{prefix}/bin/" not in (prefix / "bin" / "pip").read_text():
    sys.exit("the folder was moved, and the programs in an environment name their interpreter by its full path")
files = [root / name for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock")]
parts = [sys.version.encode(), *(file.read_bytes() for file in files)]
print(hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest())
PYTHON
}

# Makes .venv hold what is needed, if it does not yet: install_locked run|dev.
install_locked() {
    local wanted=$1 lock=requirements.lock print
    [[ $wanted == run ]] || lock=requirements-dev.lock
    print=$(fingerprint) || print=""
    case $(cat "$stamp" 2>/dev/null) in
        "$wanted $print" | "dev $print") return ;;
    esac
    if [[ -z $print ]]; then
        make_venv
        print=$(fingerprint) || fail "the new environment $venv does not work"
    fi
    say "installing the locked dependencies of $lock"
    rm -f "$stamp"
    "$venv/bin/python" -m pip install --quiet --require-hashes --requirement "$root/$lock" ||
        fail "pip could not install $lock"
    "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable "$root" ||
        fail "pip could not install the project"
    printf '%s %s\n' "$wanted" "$print" >"$stamp"
}

# As install_locked, one at a time: two scripts that start together must not both fill the environment.
prepare() {
    (
        flock 9
        install_locked "$1"
    ) 9<"${BASH_SOURCE[0]}"
}
