import pytest
import torch

from seer_pipe.errors import UserError
from seer_pipe.export import recalibrate_batch_norm
from seer_pipe.models import build_trunk


def test_statistics_become_the_average_over_the_images():
    trunk = build_trunk("regnety_200mf").eval()
    trunk.stem[1].running_mean.fill_(7)
    weights = [p.clone() for p in trunk.parameters()]
    batches = list(torch.randn(3, 4, 3, 64, 64))
    recalibrate_batch_norm(trunk, batches)
    with torch.no_grad():
        outputs = [trunk.stem[0](batch) for batch in batches]
    mean = torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)
    variance = torch.stack([output.var((0, 2, 3)) for output in outputs]).mean(0)
    assert torch.allclose(trunk.stem[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(trunk.stem[1].running_var, variance, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(trunk.parameters(), weights, strict=True))
    assert not any(module.training for module in trunk.modules())
    assert trunk.stem[1].momentum == 0.1


def test_no_images_is_an_error():
    with pytest.raises(UserError, match="no images"):
        recalibrate_batch_norm(build_trunk("regnety_200mf"), [])
