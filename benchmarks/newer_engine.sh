#!/usr/bin/env bash
# Unpacks the docker engine of a newer Debian release into a folder, for peers that need it; it runs beside this
# machine's own runc, and nothing is installed. Packages come from the Debian mirror of this machine's apt settings.
#   benchmarks/newer_engine.sh DIR    then put DIR/bin in front of PATH and set DOCKER_CONFIG=DIR/config
set -euo pipefail
dir="$(mkdir -p "${1:?usage: $0 DIR}" && cd "$1" && pwd)"
suite=trixie
packages=(docker.io docker-cli docker-compose containerd)
[ ! -e "$dir/bin" ] || exit 0

site="$(apt-get indextargets --format '$(SITE) $(ORIGIN) $(LABEL)' | awk '$2 == "Debian" && $3 == "Debian" { print $1; exit }')"
[ -n "$site" ] || { echo "newer_engine: apt knows no Debian mirror" >&2; exit 1; }
apt="$(mktemp -d)"
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt"/{lists,archives}/partial "$apt/parts" "$dir/config/cli-plugins"
touch "$apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $suite main" >"$apt/sources.list"
options=(-qq -o "Dir::State=$apt" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt" -o APT::Sandbox::User=root
  -o "Dir::Etc::sourcelist=$apt/sources.list" -o "Dir::Etc::sourceparts=$apt/parts" -o "Dir::Etc::preferencesparts=$apt/parts")
apt-get "${options[@]}" update
(cd "$apt/archives" && apt-get "${options[@]}" download "${packages[@]}")

for deb in "$apt"/archives/*.deb; do dpkg-deb -x "$deb" "$dir/root"; done
for plugin in "$dir"/root/usr/libexec/docker/cli-plugins/*; do ln -sf "$plugin" "$dir/config/cli-plugins/"; done
mkdir "$dir/bin.part"
ln -s "$dir"/root/usr/bin/* "$dir"/root/usr/sbin/* "$dir/bin.part/"
mv "$dir/bin.part" "$dir/bin"
