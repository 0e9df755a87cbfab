#!/bin/sh
# The main job on real input: base image, build, build again, push to a real registry, pull into an empty store, run.
# Needs no Docker Hub: the base image is made from Debian packages. Run it through `make demo`.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
work=${PYBUILD_DEMO_DIR:-$(mktemp -d)}
mkdir -p "$work"
registry_pid=""
finish() {
    [ -z "$registry_pid" ] || kill "$registry_pid" 2>/dev/null || true
    [ -n "${PYBUILD_DEMO_DIR:-}" ] || rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

bold="" blue="" plain=""
[ ! -t 1 ] || { bold=$(printf '\033[1m') blue=$(printf '\033[36m') plain=$(printf '\033[0m'); }
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
run() {
    printf '%s$ %s%s\n' "$blue" "$*" "$plain"
    "$@"
}
export PYBUILD_ROOT="$work/store" DOCKER_CONFIG="$work/docker"
mkdir -p "$DOCKER_CONFIG"

say "A base image from Debian packages (on a machine with internet, python:3-slim does)"
[ -s "$work/base.tar" ] || tools/base_image.sh python "$work/base.tar"
run pybuild import "$work/base.tar" debian-python:latest

say "The application's dependencies as wheels, so that the build needs no index"
context="$work/webapp"
rm -rf "$context" && cp -R examples/webapp "$context"
.venv/bin/python -m pip download -q --disable-pip-version-check --no-deps -d "$context/wheels" -r examples/webapp/requirements.txt
ls "$context/wheels"

say "Build: four stages, the dependency and the asset stage in parallel"
run pybuild build --progress=plain --build-arg BASE=debian-python --build-arg PIP_NO_INDEX=1 -t webapp:demo "$context"

say "Build again: nothing runs"
run pybuild build --progress=plain --build-arg BASE=debian-python --build-arg PIP_NO_INDEX=1 -t webapp:demo "$context"

say "Edit the application: the dependencies stay cached"
sed -i 's/Hello from a container/Hello from an edited container/' "$context/app/__main__.py"
run pybuild build --progress=plain --build-arg BASE=debian-python --build-arg PIP_NO_INDEX=1 -t webapp:demo "$context"
run pybuild why
run pybuild images
run pybuild history webapp:demo

say "Push to a real registry, on loopback"
port=$(.venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: "127.0.0.1:%s"}\n' \
    "$work/registry" "$port" >"$work/registry.yml"
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry_pid=$!
for _ in 1 2 3 4 5 6 7 8 9 10; do
    .venv/bin/python -c "import socket; socket.create_connection(('127.0.0.1', $port), 1)" 2>/dev/null && break
    sleep 0.3
done
run pybuild tag webapp:demo "127.0.0.1:$port/webapp:demo"
run pybuild push "127.0.0.1:$port/webapp:demo"

say "Pull it back into an empty store, and run it"
export PYBUILD_ROOT="$work/other-store"
run pybuild pull "127.0.0.1:$port/webapp:demo"
run pybuild run "127.0.0.1:$port/webapp:demo" --once
printf '\nAll done.\n'
