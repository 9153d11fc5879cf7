#!/bin/sh
# Run a command as a container with a read-only root would: read_only_root.sh ROOT USER TMPFS PATH... -- COMMAND...
# Needs root. ROOT is an empty folder, USER a number; of the machine the command sees the PATHs and the system's folders,
# all read-only, and it may write to /tmp only, if TMPFS is 1. Signals reach the command, which is process 1.
set -e
if [ "$ROOT_IS_PRIVATE" != 1 ]; then
    ROOT_IS_PRIVATE=1 exec unshare --mount --pid --fork --kill-child=KILL --propagation private sh "$0" "$@"
fi
root=$1 user=$2 tmpfs=$3
shift 3
mount -t tmpfs -o mode=755 tmpfs "$root"
mkdir "$root/tmp" && if [ "$tmpfs" = 1 ]; then mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"; fi
show() { # the same path in the new root, through folders that everybody may enter
    if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root${1%/*}" && touch "$root$1"; fi
    mount --rbind "$1" "$root$1"
}
for folder in /usr /lib /lib64 /bin /etc /dev; do if [ -e "$folder" ]; then show "$folder"; fi; done
while [ "$1" != -- ]; do show "$1" && mount -o remount,bind,ro "$root$1" && shift; done
shift
mkdir "$root/proc" && mount -t proc proc "$root/proc"
for folder in "$root" "$root/usr" "$root/etc"; do mount -o remount,bind,ro "$folder"; done
exec chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --bounding-set=-all -- "$@"
