#!/bin/sh
# Makes what compose.yaml needs and a clone lacks: folders of yours, passwords, and the commit that the image is built of.
# sh docker/prepare.sh, before each build; what is there stays.
set -eu
umask 022
cd "$(dirname "$0")/.."

# The user in the containers is you, so that data/ can be read and is yours; for root, whoever called sudo, or 1000.
uid=$(id -u) gid=$(id -g)
if [ "$uid" -eq 0 ]; then
    uid=${SUDO_UID:-1000} gid=${SUDO_GID:-1000}
fi

# Docker would make them itself, as root.
mkdir -p data checkpoints

# The folder keeps others of this machine out. The files are readable, since users that they do not belong to read them in
# the containers.
mkdir -p docker/secrets
chmod 700 docker/secrets
for name in postgres-password dashboard-token; do
    file=docker/secrets/$name
    if [ ! -s "$file" ]; then
        od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "$file"
    fi
    chmod 444 "$file"
done

commit=
if [ -z "$(git status --porcelain -- LICENSE README.md constraints.txt docker experiments pyproject.toml setup.py vlatrack 2>&1)" ]; then
    commit=$(git rev-parse HEAD)
else
    echo "changes that are not committed (or no git): the image will name no commit" >&2
fi

# Other lines of docker/.env are yours: TORCH=torch==2.13.0+cpu, for example.
settings=docker/.env
touch "$settings"
others=$(grep -Ev '^(VLATRACK_UID|VLATRACK_GID|COMMIT)=' "$settings" || true)
printf '%s\n' ${others:+"$others"} "VLATRACK_UID=$uid" "VLATRACK_GID=$gid" "COMMIT=$commit" > "$settings"

if [ "$(id -u)" -eq 0 ]; then
    chown "$uid:$gid" data checkpoints "$settings"
    chown -R "$uid:$gid" docker/secrets
fi
