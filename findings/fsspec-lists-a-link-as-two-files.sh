#!/usr/bin/env bash
# fsspec 2026.9.0, LocalFileSystem.
#
# One would guess that what a listing says of a file is what `info` says of it: the two are compared to see whether a file
# has changed. Of a symbolic link `ls` and `find` give the size of its target and the time of the link itself, with the
# type `other`; `info` gives size and time of the target, with the type `file`. `find`, which gives files, gives a link
# to a folder as one of them and does not look into it, and a link that leads nowhere as a file of zero bytes. So a cache
# of links (the hub's, DVC's, git-annex's) is a folder whose files differ from themselves at every look.
#
# Seen:
#   ls   link.jpg: other, 5 bytes, time of the link
#   info link.jpg: file, 5 bytes, time of the target
#   find: a.jpg, dead.jpg, folder, link.jpg, real/b.jpg
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet fsspec==2026.9.0

mkdir -p "$work/data/real"
printf 12345 | tee "$work/data/a.jpg" >"$work/data/real/b.jpg"
touch -d @1000 "$work/data/a.jpg"
ln -s a.jpg "$work/data/link.jpg"
ln -s nothing "$work/data/dead.jpg"
ln -s real "$work/data/folder"

cat >"$work/look.py" <<'PY'
import os
import sys

import fsspec

folder, fs = sys.argv[1], fsspec.filesystem("file")


def told(info):
    whose = "target" if info["mtime"] == 1000 else "link"
    return f"{info['type']}, {info['size']} bytes, time of the {whose}"


listed = {os.path.basename(info["name"]): info for info in fs.ls(folder, detail=True)}
print("ls   link.jpg:", told(listed["link.jpg"]))
print("info link.jpg:", told(fs.info(f"{folder}/link.jpg")))
print("find:", ", ".join(sorted(os.path.relpath(path, folder) for path in fs.find(folder))))
PY

seen=$("$work/venv/bin/python" "$work/look.py" "$work/data")
echo "$seen"
[ "$seen" = "ls   link.jpg: other, 5 bytes, time of the link
info link.jpg: file, 5 bytes, time of the target
find: a.jpg, dead.jpg, folder, link.jpg, real/b.jpg" ]
