#!/bin/sh
# Install libfluidsynth if it is missing: by apt on Debian and Ubuntu (with sudo only where needed), by brew on macOS.
set -eu
PYTHON=${PYTHON:-python3}

found() {
    "$PYTHON" - <<'PY'
import os, sys
from ctypes.util import find_library

names = ("fluidsynth", "fluidsynth-3", "libfluidsynth", "libfluidsynth-3", "libfluidsynth-2", "libfluidsynth-1")
brew = os.path.join(os.environ.get("HOMEBREW_PREFIX", "/opt/homebrew"), "lib", "libfluidsynth.dylib")
sys.exit(not (any(map(find_library, names)) or os.path.exists(brew)))
PY
}

found && exit 0
if command -v apt-get >/dev/null; then
    sudo=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { echo "error: libfluidsynth is missing: ask an administrator for apt install libfluidsynth3" >&2; exit 2; }
        sudo=sudo
    fi
    $sudo apt-get update -qq || true
    $sudo apt-get install -y -qq --no-install-recommends libfluidsynth3 || $sudo apt-get install -y -qq --no-install-recommends libfluidsynth2
elif command -v brew >/dev/null; then
    brew install fluid-synth
else
    echo "error: libfluidsynth is missing: install FluidSynth with your system's package manager (Fedora: dnf install fluidsynth-libs; Arch: pacman -S fluidsynth)" >&2
    exit 2
fi
found || { echo "error: libfluidsynth was installed but cannot be found by $PYTHON: is it of the same architecture?" >&2; exit 2; }
