# Sourced: finds uv, and installs it below .nox, which git ignores, where the machine has none that works.
_tools="$PWD/.nox/uv"
if ! uv --version 2>/dev/null; then
    export PATH="$_tools/bin:$HOME/.local/bin:$PATH"
    uv --version 2>/dev/null ||
        { echo "installing uv into $_tools" && python3 -m venv "$_tools" && "$_tools/bin/python" -m pip install --quiet uv; } ||
        python3 -m pip install --quiet --target "$_tools" uv
    uv --version || { echo "uv is missing: see https://docs.astral.sh/uv/getting-started/installation" >&2; false; }
fi
