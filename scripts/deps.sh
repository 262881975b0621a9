#!/usr/bin/env bash
# Installs the Debian packages graft needs and lacks. Says what it will do; asks only if not root.
# usage: scripts/deps.sh [build] [test] [ecosystem]     default: build
set -eu
build="gcc make pkg-config libmicrohttpd-dev libjansson-dev libsqlite3-dev libssl-dev libpcre2-dev
       libutf8proc-dev libopenblas-dev libarchive-dev curl jq"
test="libcmocka-dev libcurl4-openssl-dev"
ecosystem="python3 python3-venv nodejs npm"
want=
for group in "${@:-build}"; do
    case $group in
        build | test | ecosystem) want="$want ${!group}" ;;
        *) echo "deps.sh: no group '$group'" >&2 && exit 2 ;;
    esac
done
missing=
for package in $want; do
    # A tool that came another way (node from elsewhere, say) is as good as its package.
    case $package in
        gcc | make | curl | jq | pkg-config | npm) command -v "$package" >/dev/null && continue ;;
        nodejs) command -v node >/dev/null && continue ;;
        python3) command -v python3 >/dev/null && continue ;;
        python3-venv) python3 -c 'import venv, ensurepip' 2>/dev/null && continue ;;
    esac
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok' || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
echo "graft needs these Debian packages:$missing"
if [ "$(id -u)" = 0 ]; then
    sudo=
else
    sudo=sudo
    read -r -p "Install them with sudo apt-get? [Y/n] " answer
    case $answer in n* | N*) echo "Not installed; graft cannot be built without them." >&2 && exit 1 ;; esac
fi
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
# shellcheck disable=SC2086
$sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
