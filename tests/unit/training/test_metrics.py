"""The metrics of a study, against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss, top_k_accuracy_score

from thawline.training import classification_metrics

CASES = {
    "all classes occur and are predicted": (np.arange(60) % 7, None),
    "a class occurs but is never predicted": (np.arange(60) % 7, 3),
    "a class neither occurs nor is predicted": (np.arange(60) % 6, 6),
    "a class is predicted but never occurs": (np.arange(60) % 6, None),
    "one class occurs": (np.zeros(60, np.int64), None),
}


@pytest.mark.parametrize("case", list(CASES))
def test_metrics_are_those_of_scikit_learn(case: str) -> None:
    truth, never = CASES[case]
    generator = torch.Generator().manual_seed(len(case))
    logits = torch.randn(60, 7, generator=generator)
    if never is not None:
        logits[:, never] = -20.0
    predicted = logits.argmax(1).numpy()
    measured = classification_metrics(logits, torch.from_numpy(truth))
    assert measured["accuracy"] == accuracy_score(truth, predicted)
    recalls = [np.mean(predicted[truth == each] == each) for each in np.unique(truth)]
    assert measured["balanced_accuracy"] == pytest.approx(np.mean(recalls), rel=1e-12)
    if set(predicted) <= set(truth):  # otherwise scikit-learn warns
        assert measured["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted), rel=1e-12)
    expected = f1_score(truth, predicted, average="macro", zero_division=0.0)
    assert measured["macro_f1"] == pytest.approx(expected, rel=1e-12)
    probabilities = logits.double().softmax(1).numpy()
    assert measured["loss"] == pytest.approx(log_loss(truth, probabilities, labels=range(7)), rel=1e-5)
    top5 = top_k_accuracy_score(truth, logits.numpy(), k=5, labels=range(7))
    assert measured["top5_accuracy"] == pytest.approx(top5, rel=1e-6)


def test_top_five_is_measured_only_where_it_says_something() -> None:
    assert "top5_accuracy" not in classification_metrics(torch.randn(8, 5), torch.arange(8) % 5)
