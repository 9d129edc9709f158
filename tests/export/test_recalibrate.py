import pytest
import torch
from torch import nn

from seer_pipe.errors import UserError
from seer_pipe.export import recalibrate_batch_norm
from seer_pipe.models import build_trunk


def test_statistics_become_those_of_all_images():
    """Also where batches differ in size and in level."""
    trunk = build_trunk("regnety_200mf").eval()
    trunk.stem[1].running_mean.fill_(7)
    weights = [p.clone() for p in trunk.parameters()]
    batches = [5 + torch.randn(4, 3, 64, 64), torch.randn(3, 3, 64, 64)]
    recalibrate_batch_norm(trunk, batches)
    with torch.no_grad():
        outputs = torch.cat([trunk.stem[0](batch) for batch in batches]).double()
    torch.testing.assert_close(trunk.stem[1].running_mean.double(), outputs.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        trunk.stem[1].running_var.double(), outputs.var((0, 2, 3), correction=0), atol=0, rtol=1e-4
    )
    assert all(torch.equal(a, b) for a, b in zip(trunk.parameters(), weights, strict=True))
    assert not any(module.training for module in trunk.modules())
    assert trunk.stem[1].momentum == 0.1


def test_evaluation_then_gives_what_training_gave():
    """With one batch, exactly: ten layers on maps of one pixel, where n/(n-1) would add up to half as much again."""
    torch.manual_seed(0)
    blocks = [layer for _ in range(10) for layer in (nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())]
    net = nn.Sequential(*blocks)
    images = torch.randn(6, 8, 1, 1)
    trained = net.train()(images)
    recalibrate_batch_norm(net, [images])
    torch.testing.assert_close(net.eval()(images), trained, atol=1e-4, rtol=1e-4)


def test_without_batchnorm_no_image_is_looked_at():
    trunk = build_trunk("regnety_200mf", norm="layer")
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    recalibrate_batch_norm(trunk, (pytest.fail("an image was asked for") for _ in range(1)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())


def test_no_images_is_an_error():
    with pytest.raises(UserError, match="no images"):
        recalibrate_batch_norm(build_trunk("regnety_200mf"), [])
