#!/bin/sh
# The demonstration component: not firmware. Installs two small files under /var/lib/carena-demo and nothing else.
set -eu
umask 022
target=/var/lib/carena-demo
made=no
[ -d "$target" ] || { mkdir "$target"; made=yes; }
undo() {
    rm -f "$target/firmware.bin.new" "$target/version.new"
    if [ "$made" = yes ]; then rm -rf "$target"; fi
}
trap undo EXIT
printf 'demonstration image 1.2.0: this is not firmware\n' > "$target/firmware.bin.new"
printf '1.2.0\n' > "$target/version.new"
mv "$target/firmware.bin.new" "$target/firmware.bin"
mv "$target/version.new" "$target/version"
trap - EXIT
echo "carena-demo 1.2.0 installed"
