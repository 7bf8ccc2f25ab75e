#!/bin/sh
# File systems that the storage tests mount, servers that they ask, a vault for keys, and a browser that prints pages, where this machine lets us install them. Without them those tests
# are skipped, and the summary says which and why.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    missing=""
    command -v mkfs.vfat >/dev/null 2>&1 || missing="$missing dosfstools"
    command -v mkfs.btrfs >/dev/null 2>&1 || missing="$missing btrfs-progs"
    command -v mkfs.exfat >/dev/null 2>&1 || missing="$missing exfatprogs"
    command -v mount.exfat-fuse >/dev/null 2>&1 || missing="$missing exfat-fuse"
    command -v fusefat >/dev/null 2>&1 || missing="$missing fusefat"
    PATH="$PATH:/usr/sbin" command -v sshd >/dev/null 2>&1 || missing="$missing openssh-server"
    PATH="$PATH:/usr/sbin" command -v smbd >/dev/null 2>&1 || missing="$missing samba"
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
    command -v gbak >/dev/null 2>&1 && ls /usr/sbin/firebird >/dev/null 2>&1 || missing="$missing firebird3.0-server firebird3.0-utils"
    PATH="$PATH:/usr/sbin" command -v mariadbd >/dev/null 2>&1 && command -v mariadb-backup >/dev/null 2>&1 ||
        missing="$missing mariadb-server mariadb-backup mariadb-plugin-provider-lz4"
    command -v rclone >/dev/null 2>&1 || missing="$missing rclone"
    command -v gnome-keyring-daemon >/dev/null 2>&1 || missing="$missing gnome-keyring"
    command -v dbus-run-session >/dev/null 2>&1 || missing="$missing dbus dbus-daemon"
    for browser in chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable none; do
        command -v "$browser" >/dev/null 2>&1 && break
        [ "$browser" = none ] && missing="$missing chromium-headless-shell"
    done
    command -v setfattr >/dev/null 2>&1 || missing="$missing attr"
    if [ -n "$missing" ]; then
        echo "Installing$missing for the tests."
        # shellcheck disable=SC2086
        { apt-get update -qq && apt-get install -y -qq $missing; } >/dev/null 2>&1 || echo "Could not install$missing."
    fi
fi
# Azurite, Azure's emulator, in the build folder.
if command -v npm >/dev/null 2>&1; then
    if [ ! -e build/node/node_modules/azurite ]; then
        echo "Installing azurite for the tests."
        npm install --prefix build/node --no-audit --no-fund azurite@3 >/dev/null 2>&1 || echo "Could not install azurite."
    fi
else
    echo "Without npm, tests of Azure are skipped."
fi
exit 0
