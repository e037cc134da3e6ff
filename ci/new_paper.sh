#!/usr/bin/env bash
# Starts a paper's package in a copy of the workspace: its tests, types and style pass, and its claim is not run.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- | tar --extract --directory "$scratch"

cd "$scratch"
git init --quiet
uv run --locked nox -s new_paper -- sparse-mimicry feature_maps
uv run --locked nox -s tests -- sparse-mimicry --no-cov
uv run --locked nox -s lint types
uv run --locked nox -s reproduce-sparse-mimicry | tee reproduction.txt
grep -q "not run" reproduction.txt
