"""Multi-head softmax attention on in-context linear regression: what it learns, and how (He et al., 2025)."""

from attn.icl_regression.circuits import Circuits, layer_circuits
from attn.icl_regression.estimators import (
    debiased_gradient_descent,
    gradient_descent,
    preconditioned_gradient_descent,
    ridge,
    risks,
    softmax_heads,
    split_prompts,
)
from attn.icl_regression.model import LinearICL, MultiHeadICL, SideBySide
from attn.icl_regression.patterns import (
    MultiTaskReport,
    PatternReport,
    multi_task_report,
    pattern_report,
    scales,
)
from attn.icl_regression.task import LinearRegressionTask, MultiTaskRegression, Prompts, random_stream
from attn.icl_regression.theory import (
    bayes_risk_limit,
    best_mu,
    best_preconditioner,
    best_step,
    gradient_descent_risk,
    gradient_descent_risk_limit,
    gradient_flow,
    reduced_loss,
    single_head_optimum,
)

__all__ = [
    "Circuits",
    "LinearICL",
    "LinearRegressionTask",
    "MultiHeadICL",
    "MultiTaskRegression",
    "MultiTaskReport",
    "PatternReport",
    "Prompts",
    "SideBySide",
    "bayes_risk_limit",
    "best_mu",
    "best_preconditioner",
    "best_step",
    "debiased_gradient_descent",
    "gradient_descent",
    "gradient_descent_risk",
    "gradient_descent_risk_limit",
    "gradient_flow",
    "layer_circuits",
    "multi_task_report",
    "pattern_report",
    "preconditioned_gradient_descent",
    "random_stream",
    "reduced_loss",
    "ridge",
    "risks",
    "scales",
    "single_head_optimum",
    "softmax_heads",
    "split_prompts",
]
