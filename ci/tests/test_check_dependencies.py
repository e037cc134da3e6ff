"""Members' imports of one another against what they declare."""

import pytest
from check_dependencies import check_members


@pytest.mark.parametrize(
    ("name", "dependencies", "source", "expected"),
    [
        ("attn-act", ["attn-shared-eval[models]>=0.1"], "from attn.shared_eval.claims import experiment", None),
        ("attn-act", [], "import attn.act.schedule\nfrom attn import act\nfrom . import other", None),
        (
            "attn-act",
            [],
            "from attn.shared_eval import claims",
            "attn-act imports attn-shared-eval, but does not declare it",
        ),
        (
            "attn-act",
            [],
            "from attn import core_kernels",
            "attn-act imports attn-core-kernels, but does not declare it",
        ),
        (
            "attn-act",
            [],
            "def f():\n    import attn.core_kernels.replace",
            "attn-core-kernels, but does not declare it",
        ),
        ("attn-act", ["attn-core-kernels"], "import torch", "declares attn-core-kernels, but does not import it"),
        ("attn-act", ["attn-s2-attention"], "import attn.s2_attention", "attn-act must not import attn-s2-attention"),
        ("attn-core-kernels", ["attn-shared-eval"], "import attn.shared_eval", "must not import attn-shared-eval"),
    ],
)
def test_members_declare_what_they_import_and_point_downwards(tmp_path, name, dependencies, source, expected):
    module = tmp_path / "src/attn/package/module.py"
    module.parent.mkdir(parents=True)
    module.write_text(source)
    problems = check_members(tmp_path, {"name": name, "dependencies": dependencies})
    if expected is None:
        assert problems == []
    else:
        assert len(problems) == 1
        assert expected in problems[0]


def test_extras_declare_too(tmp_path):
    module = tmp_path / "src/module.py"
    module.parent.mkdir()
    module.write_text("import attn.core_kernels")
    project = {"name": "attn-shared-eval", "optional-dependencies": {"kernels": ["attn-core-kernels"]}}
    assert check_members(tmp_path, project) == []
