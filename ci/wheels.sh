#!/usr/bin/env bash
# Builds the wheels of attn-hedgehog and of the workspace members that it needs, installs them with the locked versions of
# everything else into an empty environment outside the workspace, and converts a model there.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

uv export --quiet --locked --package attn-hedgehog --no-emit-workspace --no-default-groups --output-file "$scratch/locked.txt"
for member in attn-core-kernels attn-shared-eval attn-hedgehog; do
    uv build --quiet --package "$member" --wheel --out-dir "$scratch/wheels"
done

cd "$scratch"
uv venv --quiet --python "$(cd "$root" && uv python find)" empty
uv pip install --quiet --python empty --requirement locked.txt
uv pip install --quiet --python empty --no-deps wheels/*.whl
uv pip check --python empty
empty/bin/python -I -W error::DeprecationWarning:attn "$root/ci/convert_installed.py"
