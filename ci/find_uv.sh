# Sourced: puts uv on the PATH, and installs it below .nox, which git ignores, where the machine has none.
_tools="$PWD/.nox/uv"
export PATH="$PATH:$_tools/bin:$HOME/.local/bin"
if ! uv --version >/dev/null 2>&1; then
    echo "installing uv into $_tools"
    { python3 -m venv "$_tools" && "$_tools/bin/python" -m pip install --quiet uv; } ||
        python3 -m pip install --quiet --target "$_tools" uv ||
        { echo "uv is missing and could not be installed: see https://docs.astral.sh/uv/getting-started/installation" >&2; false; }
fi && uv --version
