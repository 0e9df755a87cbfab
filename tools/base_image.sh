#!/bin/sh
# Makes a root file system from Debian packages and writes it as a tar, to be given to `pybuild import`.
# Usage: tools/base_image.sh busybox|python OUT.tar
set -eu
kind=$1
out=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
root=$work/root
mkdir -m 755 "$root"

case $kind in
busybox)
    mkdir -p "$root/bin" "$root/dev" "$root/etc" "$root/proc" "$root/root" "$root/sys" "$root/tmp" "$root/usr/bin" "$root/usr/sbin" \
        "$root/sbin" "$root/var/tmp" "$root/home"
    chmod 1777 "$root/tmp" "$root/var/tmp"
    chmod 700 "$root/root"
    cp "$(command -v busybox)" "$root/bin/busybox"
    for applet in $(busybox --list); do
        [ "$applet" = busybox ] || ln "$root/bin/busybox" "$root/bin/$applet"
    done
    printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'daemon:x:1:1:daemon:/usr/sbin:/bin/false' \
        'www-data:x:33:33:www-data:/var/www:/bin/false' 'nobody:x:65534:65534:nobody:/home:/bin/false' >"$root/etc/passwd"
    printf '%s\n' 'root:x:0:' 'daemon:x:1:' 'staff:x:50:www-data' 'www-data:x:33:' 'nogroup:x:65534:' >"$root/etc/group"
    ;;
python)
    # The suite of this machine, so that its own package sources serve it.
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    debootstrap --variant=minbase --include=python3,python3-venv "$suite" "$root" >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        exit 1
    }
    rm -rf "$root/var/lib/apt/lists" "$root/var/cache/apt" "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/locale" \
        "$root/var/log"/*.log "$root/debootstrap"
    mkdir -p "$root/var/lib/apt/lists/partial" "$root/var/cache/apt/archives/partial"
    # What debootstrap copied from this machine is no part of an image.
    : >"$root/etc/resolv.conf"
    rm -f "$root/etc/hostname"
    ;;
*)
    echo "usage: $0 busybox|python OUT.tar" >&2
    exit 2
    ;;
esac
tar --sort=name --numeric-owner --owner=0 --group=0 --mtime=@0 -C "$root" -cf "$out" .
