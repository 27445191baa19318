#!/bin/sh
# fetch_headers.sh FOLDER: unpack Debian's development packages of ONNX Runtime, nlohmann/json and stb into FOLDER.
#
# Nothing is installed, and the system's package lists do not change. The packages come from the Debian mirror that this
# machine uses, but from the first release that contains ONNX Runtime. DPT_DEBIAN_URI selects another mirror. Signatures
# are verified with Debian's keyring.
set -eu

suite=trixie
packages="libonnxruntime-dev nlohmann-json3-dev libstb-dev"
folder=$(mkdir -p "${1:?usage: fetch_headers.sh FOLDER}" && cd "$1" && pwd)

for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || { echo "fetch_headers.sh: $tool not found; this script needs Debian" >&2; exit 1; }
done
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -f "$keyring" ] || { echo "fetch_headers.sh: $keyring not found (package debian-archive-keyring)" >&2; exit 1; }

# The URI of this machine's Debian archive, not of its security archive: from deb822 files, else from one-line files.
uri=${DPT_DEBIAN_URI:-$(
    { sed -n 's/^URIs:[[:space:]]*//p' /etc/apt/sources.list.d/*.sources 2>/dev/null
      sed -n 's/^deb[[:space:]]\{1,\}\(\[[^]]*\][[:space:]]*\)\{0,1\}//p' \
          /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null
    } | tr ' ' '\n' | grep -E '^[a-z+]+://.*/debian/?$' | head -n 1 || true
)}
[ -n "$uri" ] || { echo "fetch_headers.sh: apt has no Debian source on this machine; set DPT_DEBIAN_URI" >&2; exit 1; }

work=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/packages"
printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$uri" "$suite" "$keyring" \
    >"$work/debian.sources"
: >"$work/status"

apt() {
    apt-get -qq -o Dir::Etc::sourcelist="$work/debian.sources" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State="$work/state" -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" \
        -o APT::Sandbox::User= -o APT::Get::List-Cleanup=false -o Acquire::Retries=3 "$@"
}

apt update
# shellcheck disable=SC2086 # one word per package
(cd "$work/packages" && apt download $packages)
for package in "$work"/packages/*.deb; do
    dpkg-deb -x "$package" "$folder"
done
touch "$folder/complete"
