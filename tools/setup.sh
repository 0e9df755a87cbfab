#!/bin/sh
# Makes .venv with pybuild and its test tools, and installs the Debian packages that the demo and the tests use.
# Usage: tools/setup.sh [demo|test]
set -eu
cd "$(dirname "$0")/.."
purpose=${1:-test}

demo_packages="busybox-static debootstrap docker-registry python3-venv git uidmap ca-certificates"
test_packages="$demo_packages skopeo crun podman buildah apache2-utils openssl xz-utils bzip2 zstd attr libcap2-bin openssh-client docker-compose libseccomp2 procps util-linux"
[ "$purpose" = demo ] && packages=$demo_packages || packages=$test_packages

if command -v apt-get >/dev/null 2>&1; then
    missing=""
    for package in $packages; do
        dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
    done
    if [ -n "$missing" ]; then
        if [ "$(id -u)" = 0 ]; then
            echo "Installing Debian packages:$missing"
            export DEBIAN_FRONTEND=noninteractive
            apt-get update -q >/dev/null
            # No service may start by itself: the tests and the demo start their own registry, on loopback.
            policy=/usr/sbin/policy-rc.d
            if [ ! -e $policy ]; then
                printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && trap 'rm -f /usr/sbin/policy-rc.d' EXIT
            fi
            # shellcheck disable=SC2086  # a list of words on purpose
            apt-get install -q -y --no-install-recommends $missing >/dev/null
        else
            echo "Not root: these Debian packages are missing, what needs them is skipped:$missing" >&2
        fi
    fi
fi

# The public description of the Engine API, for a test: one file of a package that would bring hundreds of others if it were installed.
api=.venv/engine-api
fetch_api_description() (
    temporary=$(mktemp -d) && trap 'rm -rf "$temporary"' EXIT
    here=$PWD && cd "$temporary" && apt-get download -q golang-github-docker-docker-dev >/dev/null 2>&1 && dpkg-deb -x ./*.deb tree
    mkdir -p "$here/$api" && cp tree/usr/share/gocode/src/github.com/docker/docker/api/swagger.yaml "$here/$api/"
)

# A docker command that builds by BuildKit's protocol, by itself or with its plugin: taken out of the packages, one of which would start a daemon.
tools=.test-tools
if [ "$purpose" = test ] && [ ! -x $tools/docker ] && command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1; then
    scratch=$(mktemp -d)
    fetch() { (cd "$scratch" && apt-get download -q "$1" >/dev/null 2>&1 && dpkg-deb -x "$1"_*.deb .); }
    if { fetch docker-cli || fetch docker.io; } && [ -x "$scratch/usr/bin/docker" ]; then
        mkdir -p $tools && cp "$scratch/usr/bin/docker" $tools/docker
        plugin=$scratch/usr/libexec/docker/cli-plugins/docker-buildx
        fetch docker-buildx && [ -x "$plugin" ] && cp "$plugin" $tools/docker-buildx
    else
        echo "No docker command from Debian: what needs it is skipped" >&2
    fi
    rm -rf "$scratch"
fi

python=$(command -v python3.11 || command -v python3)
if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv
fi
stamp=.venv/.installed-$purpose
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    extras=""
    [ "$purpose" = test ] && extras="[test]"
    .venv/bin/python -m pip install -q --disable-pip-version-check -e ".$extras"
    touch "$stamp"
fi
tools/link_packages.sh
if [ "$purpose" = test ] && [ ! -e $api/swagger.yaml ] && command -v apt-get >/dev/null 2>&1; then
    fetch_api_description || echo "The description of the Engine API can't be fetched: the test that needs it is skipped." >&2
fi
# Some machines set PYTHONDONTWRITEBYTECODE, and then compile all of it again at every start.
.venv/bin/python -m compileall -q src/pybuild parser layers builder registry_client daemon
