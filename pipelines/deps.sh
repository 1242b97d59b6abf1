#!/bin/sh
# deps.sh - the Debian and Ubuntu packages that dt is built from; installs what is missing.
# DEPS=skip leaves the system alone.
set -eu

packages='
    gcc g++ make git pkg-config
    libcjson-dev libtomlplusplus-dev libarchive-dev libxxhash-dev libpcre2-dev libutf8proc-dev
    libpng-dev libjpeg-dev libwebp-dev libdeflate-dev
    libavformat-dev libavcodec-dev libavfilter-dev libavutil-dev libswscale-dev
    libcairo2-dev libpango1.0-dev
    libprotobuf-c-dev protobuf-c-compiler libprotobuf-dev
    libsentencepiece-dev libdnnl-dev liblapacke-dev
    libcmocka-dev mandoc
'

[ "${DEPS-}" != skip ] || exit 0

if ! command -v dpkg-query >/dev/null; then
    echo "deps: this is no Debian; needed, by their Debian names:" $packages >&2
    exit 0
fi

missing=
for p in $packages; do
    # a virtual package (pkg-config is one of pkgconf in newer releases) is there if something provides it
    dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Provides}\n' 2>/dev/null |
        awk -v p="$p" '$1 == "ii" { for (i = 2; i <= NF; i++) { sub(/,$/, "", $i); if ($i == p) found = 1 } }
                       END { exit !found }' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

echo "deps: installing$missing" >&2
as_root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "deps: neither root nor sudo: install them, or set DEPS=skip" >&2; exit 1; }
    as_root=sudo
fi
$as_root apt-get update -qq
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing
