"""What an experiment may return and register, and what it is told when data is missing."""

import re

import numpy as np
import pytest

from attn.shared_eval.claims import Context, MissingData, Outcome, experiment


def context(tmp_path, data_root):
    return Context(tier="paper", seed=0, device=None, work_dir=tmp_path, data_root=data_root)


def test_an_outcome_turns_figures_into_floats():
    outcome = Outcome({"a": np.float32(0.5), "b": 3})
    assert outcome.figures == {"a": 0.5, "b": 3.0}
    assert all(type(value) is float for value in outcome.figures.values())


@pytest.mark.parametrize("name", ["not a name", "1st", "", "a-b"])
@pytest.mark.parametrize("where", ["figures", "arrays"])
def test_names_that_an_expectation_cannot_use_are_refused(where, name):
    with pytest.raises(ValueError, match=f"must be identifiers, got {name!r}"):
        Outcome(**({"figures": {}} | {where: {name: 1.0}}))


@pytest.mark.parametrize("value", ["high", None, np.zeros(2), [1.0]])
def test_a_figure_that_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match="figure 'a' must be one number, got"):
        Outcome({"a": value})


def test_an_experiment_keeps_the_name_and_gives_the_outcome():
    @experiment
    def recall(context):
        """Recall of pairs."""
        return Outcome({"accuracy": context.seed})

    assert (recall.name, recall.__doc__) == ("recall", "Recall of pairs.")
    assert recall(Context("mini", 3, None, None)).figures == {"accuracy": 3.0}


def test_an_experiment_that_returns_something_else_is_refused():
    @experiment
    def recall(context):
        return {"accuracy": 1.0}

    with pytest.raises(TypeError, match="experiment recall must return an Outcome, got dict"):
        recall(Context("mini", 0, None, None))


def test_a_plot_stays_a_function_and_is_registered_once():
    @experiment
    def recall(context):
        return Outcome({})

    @recall.plot("recall.png")
    def draw(outcomes):
        return len(outcomes)

    assert draw([1, 2]) == 2
    assert recall.plots == {"recall.png": draw}
    with pytest.raises(ValueError, match=re.escape("file_name must be new to the experiment, got 'recall.png' twice")):
        recall.plot("recall.png")


@pytest.mark.parametrize("name", ["recall", "Recall.png", "../recall.png", "recall.svg"])
def test_a_plot_has_the_name_of_a_png_file(name):
    with pytest.raises(ValueError, match=r"file_name must look like 'recall\.png', got"):
        experiment(lambda context: None).plot(name)


def test_missing_data_says_what_to_get_and_where_to_put_it(tmp_path):
    with pytest.raises(
        MissingData, match=r"needs wiki/test\.txt: download it, put it in a folder and pass --data-root"
    ):
        context(tmp_path, None).require("wiki/test.txt", "download it")
    with pytest.raises(
        MissingData, match=f"needs {tmp_path}/wiki/test.txt, which does not exist: download it and put it"
    ):
        context(tmp_path, tmp_path).require("wiki/test.txt", "download it")


def test_data_that_is_there_is_found(tmp_path):
    (tmp_path / "wiki").mkdir()
    assert context(tmp_path, tmp_path).require("wiki", "download it") == tmp_path / "wiki"
