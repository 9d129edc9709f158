"""DINO against the published algorithm written out in float64, its schedules and freeze, and what it calls ill."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.dino.objective import Dino, DinoHead, DinoOutput
from seer_pipe.objectives.dino.settings import DinoSettings
from seer_pipe.objectives.momentum import MomentumOutput
from seer_pipe.objectives.settings import Momentum, Setup
from seer_pipe.train.health import Signs
from tests.objectives.moments import at
from tests.train.helpers import small

CROPS, BATCH, WIDTH, DIM, OUTPUTS, TOTAL = 4, 12, 10, 6, 20, 10**6
VIEWS = small("unused", views={"crops": [{"count": CROPS, "size": 16, "scale": [0.3, 1]}]}).views


def build(**settings: Any) -> Dino:
    chosen = DinoSettings(name="dino", outputs=OUTPUTS, **settings)
    torch.manual_seed(1)
    head = DinoHead([WIDTH, 16, DIM], OUTPUTS, batch_norm=False).double()
    return Dino(head, chosen, Setup(VIEWS, 0, 100, torch.device("cpu"), BATCH))


class Reference:
    """As published: lists of crops, a weight-normalised last layer of length 1, the centre moved after the loss."""

    def __init__(self, head: DinoHead) -> None:
        linear = nn.Linear(DIM, OUTPUTS, bias=False).double()
        linear.weight.data.copy_(head.last.weight.data)
        self.last = weight_norm(linear)
        self.last.parametrizations.weight.original0.data.fill_(1)
        self.centre = torch.zeros(OUTPUTS, dtype=torch.float64)

    def outputs(self, projected: Tensor) -> list[Tensor]:
        found: list[Tensor] = [self.last(crop / crop.norm(dim=1, keepdim=True)) for crop in projected]
        return found

    def loss(self, student: list[Tensor], teacher: list[Tensor], temperature: float) -> Tensor:
        terms = []
        for a, out in enumerate(teacher):
            q = torch.exp((out - self.centre) / temperature)
            q = (q / q.sum(dim=1, keepdim=True)).detach()
            for v, scores in enumerate(student):
                if v != a:
                    log_p = scores / 0.1 - torch.logsumexp(scores / 0.1, dim=1, keepdim=True)
                    terms.append(-(q * log_p).sum(dim=1).mean())
        self.centre = 0.9 * self.centre + 0.1 * torch.cat(teacher).mean(dim=0).detach()
        return torch.stack(terms).mean()


def test_loss_gradients_and_centre_equal_the_published_algorithm_over_steps() -> None:
    dino = build(teacher_temperature=0.07, teacher_warmup_images=4 * BATCH)
    dino.centre = dino.centre.double()
    published = Reference(dino.head)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        moment = at(step * BATCH)
        rows, others = (torch.randn(n * BATCH, WIDTH, generator=generator).double() for n in (CROPS, 2))
        rows.requires_grad_()
        loss, _ = dino.loss(MomentumOutput(dino.head(rows), dino.head(others)), moment)

        project = [dino.head.projection(x).unflatten(0, (-1, BATCH)) for x in (rows, others)]
        student, teacher = map(published.outputs, project)
        expected = published.loss(student, teacher, 0.04 + 0.03 * min(1.0, step / 4))
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(dino.centre, published.centre, rtol=1e-12, atol=1e-14)

        mine = torch.autograd.grad(loss, [rows, dino.head.last.weight])
        theirs = torch.autograd.grad(expected, [rows, published.last.parametrizations.weight.original1])
        for one, other in zip(mine, theirs, strict=True):
            assert one.abs().max() > 1e-4
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_last_layer_does_not_move_while_frozen_whatever_decays() -> None:
    dino = build(freeze_images=2 * BATCH)
    optimizer = torch.optim.SGD(dino.head.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    weights = [dino.head.last.weight.detach().clone()]
    for step in range(3):
        rows = torch.randn(CROPS * BATCH, WIDTH).double()
        loss, _ = dino.loss(MomentumOutput(dino.head(rows), dino.head(rows[: 2 * BATCH])), at(step * BATCH))
        optimizer.zero_grad()
        loss.backward()
        dino.after_backward(at(step * BATCH))
        optimizer.step()
        weights.append(dino.head.last.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert not torch.allclose(weights[0], weights[3])


def test_the_teacher_trails_by_images_and_stands_at_the_end() -> None:
    dino = build(momentum=Momentum(start=0.99, batch=4 * BATCH))
    assert dino.momentum(Moment(0, TOTAL)) ** 4 == pytest.approx(0.99)
    assert dino.momentum(Moment(TOTAL, TOTAL)) == 1
    assert dino.settings.derived(BATCH)["first_momentum"] == dino.momentum(Moment(0, TOTAL))
    assert dino.settings.knows_its_end
    assert not DinoSettings(name="dino", momentum=Momentum(start=0.99, end=0.99)).knows_its_end


def warned(scores: Tensor, teacher: Tensor) -> list[str]:
    """What is said of a run whose steps give these outputs."""
    dino = build()
    signs, said = Signs(dino.settings.signs()), []
    for _ in range(Signs.PATIENCE):
        z = nn.functional.normalize(torch.randn(CROPS * BATCH, DIM), dim=1)
        outputs = MomentumOutput(DinoOutput(z, scores), DinoOutput(z[: 2 * BATCH], teacher))
        _, metrics = dino.loss(outputs, at(0), log=True)
        said += signs.look({name: float(value) for name, value in metrics.items()}, settled=True)
    return said


def test_both_collapses_are_told_and_health_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    varied = torch.randn(CROPS * BATCH, OUTPUTS, generator=generator)
    assert warned(varied, varied[: 2 * BATCH]) == []
    (uniform,) = warned(torch.ones(CROPS * BATCH, OUTPUTS), varied[: 2 * BATCH])
    assert uniform.startswith("the loss is 2.996, and ln K = 2.996 where predictions are uniform; predictions are")
    column = torch.zeros(2 * BATCH, OUTPUTS)
    column[:, 3] = 5.0
    (one,) = warned(varied, column)
    assert one.startswith("the entropy of the mean target is 0.00 of at most 3.00; one output wins everywhere")


def test_what_looks_wrong_is_told_and_another_size_is_refused() -> None:
    odd = DinoSettings(name="dino", freeze_images=100, teacher_warmup_images=100, teacher_temperature=0.1)
    config = small("unused")
    found = "\n".join(odd.problems(config, 100))
    assert "never moves" in found
    assert "warms up to the end" in found
    assert "above 0.07 training was found to be unstable" in found
    assert DinoSettings(name="dino").problems(config, 100) == []
    with pytest.raises(UserError, match=r"DINO's centre is \[3\], this run's \[20\]"):
        build().load_state_dict({"centre": torch.zeros(3)})
    with pytest.raises(UserError, match=r"objective\.targets names crop 4 of 2"):
        small("unused", views={"crops": [{"count": 2, "size": 16, "scale": [0.3, 1]}]},
              objective={"name": "dino", "targets": [0, 4]})  # fmt: skip
