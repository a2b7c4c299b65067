#!/bin/sh
# finish.sh ROOT RECIPES: turn a fresh Debian tree into the root filesystem of a sandbox.
# What belongs to the machine that builds (mirrors, credentials, names) goes, and the files
# that the engine mounts over are left empty.
set -eu
root=$1
recipes=$2

install -m 0755 "$recipes/apk" "$root/usr/local/bin/apk"

chroot "$root" dpkg-divert --local --rename --quiet --add \
    --divert /usr/sbin/update-ca-certificates.debian /usr/sbin/update-ca-certificates
install -m 0755 "$recipes/update-ca-certificates" "$root/usr/sbin/update-ca-certificates"

echo 'debconf debconf/frontend select Noninteractive' | chroot "$root" debconf-set-selections

# A package that brings a service must not start it: there is no init to own it.
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/usr/sbin/policy-rc.d"

# What is promised must start, or the build fails here.
for program in node npm npx python3 pip git curl xz; do
    chroot "$root" "$program" --version > /dev/null
done
chroot "$root" apk info -e nodejs npm python3 py3-pip git curl > /dev/null

rm -rf "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/auth.conf "$root"/etc/apt/auth.conf.d/* \
    "$root"/etc/apt/preferences.d/* "$root"/etc/apt/apt.conf.d/99mmdebstrap \
    "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
install -m 0644 "$recipes/guest-apt.conf" "$root/etc/apt/apt.conf.d/90mags"
install -m 0644 "$recipes/guest-dpkg.cfg" "$root/etc/dpkg/dpkg.cfg.d/mags"

rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/* "$root"/tmp/* \
    "$root"/var/tmp/* "$root"/var/cache/ldconfig/* "$root"/var/cache/debconf/*-old \
    "$root"/var/lib/dpkg/*-old "$root"/dev/* "$root"/run/* "$root"/root/.cache
find "$root/usr/share/doc" -type d -empty -delete
mkdir -p "$root/var/lib/apt/lists/partial" "$root/var/cache/apt/archives/partial" \
    "$root/run/lock" "$root/run/mags" "$root/uploads" "$root/usr/local/etc"
chmod 1777 "$root/run/lock"
ln -sfn ../proc/self/mounts "$root/etc/mtab"

for file in etc/hostname etc/hosts etc/resolv.conf etc/machine-id etc/pip.conf \
    etc/apt/sources.list usr/local/etc/npmrc; do
    rm -f "$root/$file"
    : > "$root/$file"
    chmod 0644 "$root/$file"
done
rm -f "$root/var/lib/dbus/machine-id"
