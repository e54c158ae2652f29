"""The ADLP table: means over visits, losses that are not finite, and what it refuses."""

import pytest
import torch

from ausam_ext import ADLP, AUSAMBatchSampler


def test_mean_over_visits(backend):
    adlp = ADLP(5)
    adlp.update(torch.tensor([0, 3]), torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.0]))
    adlp.update(torch.tensor([3, 3]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, float("inf")]))
    assert adlp.count.tolist() == [1, 0, 0, 2, 0] and adlp.total.tolist() == [0.5, 0, 0, 3.0, 0]
    mean = adlp.mean()
    assert (
        mean.dtype == torch.float32 and mean[[0, 3]].tolist() == [0.5, 1.5] and mean[[1, 2, 4]].isnan().all()
    )
    assert torch.equal(adlp.mean(torch.tensor([[3, 0]], dtype=torch.int32)), torch.tensor([[1.5, 0.5]]))
    assert len(adlp) == 5 and repr(adlp) == "ADLP(5, device='cpu')"


NAN, INF = float("nan"), float("inf")


class Faulty:
    """A batch of 40 samples: 0 and 1 never have a finite loss, 2 has a DLP of 0, and all others one above."""

    def __init__(self, faulty=(NAN, INF)):
        self.adlp = ADLP(40)
        self.batches = AUSAMBatchSampler(self.adlp, 40, warmup_epochs=0)
        self.loss = torch.zeros(40)
        self.loss[:2] = torch.tensor(faulty)
        self.perturbed = torch.linspace(1, 2, 40).index_fill(0, torch.tensor([2]), 0)
        self.drawn = torch.zeros(40)

    def visit(self, index):
        self.drawn[index] += 1
        self.adlp.update(index, self.loss[index], self.perturbed[index])

    def epoch(self, epoch, way):
        self.batches.set_epoch(epoch)
        if way == "plan":
            (row,) = self.batches
            self.visit(torch.tensor(row))
        else:
            index = torch.randperm(40, generator=torch.Generator().manual_seed(epoch))
            self.visit(index[self.batches.select(index)])


@pytest.mark.parametrize("way", ["plan", "select"])
def test_a_sample_whose_loss_is_never_finite_is_drawn_at_the_lowest_rate(backend, way):
    run, epochs = Faulty(), 1000
    for epoch in range(epochs):
        run.epoch(epoch, way)
    rate = run.drawn / epochs
    assert (rate[:2] - rate[2]).abs().max() < 5 * (2 * 0.13 * 0.87 / epochs) ** 0.5  # five standard errors
    assert rate[2] < 0.2 and rate[3:].min() > 0.4
    assert run.adlp.tried.tolist() == [1, 1] + [0] * 38
    assert run.adlp.count[:2].tolist() == [0, 0] and run.adlp.mean()[:2].isnan().all()


@pytest.mark.parametrize("way", ["plan", "select"])
def test_a_sample_whose_loss_becomes_finite_is_as_any_other(backend, way):
    """Drawn as one of DLP 0 until then, and afterwards as if its first visit had been that one."""
    run, twin = Faulty(), Faulty((0.0, 0.0))
    twin.perturbed[:2] = 0
    for epoch in range(40):
        if epoch == 20:
            for each in (run, twin):
                each.loss[:2], each.perturbed[:2] = 0, 3
                each.adlp.count[:2] = each.adlp.total[:2] = 0  # those of the twin's visits before
                each.visit(torch.tensor([0, 1]))
        run.epoch(epoch, way)
        twin.epoch(epoch, way)
        assert torch.equal(run.drawn, twin.drawn)
    assert run.adlp.mean()[:2].tolist() == [3, 3] and run.drawn[:2].min() > 10


def test_a_sample_that_was_never_tried_still_counts_as_the_highest(backend):
    adlp = ADLP(4)
    adlp.update(torch.tensor([0, 1]), torch.tensor([0.0, NAN]), torch.ones(2))
    index, noise = torch.arange(4), torch.ones(4)
    kept = [adlp.sample(index, k, s_min=0.1, s_max=1.0, noise=noise).tolist() for k in (3, 4)]
    assert kept == [[0, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize("skip", [False, True])
def test_an_overflow_of_the_gradients_marks_only_samples_whose_own_loss_failed(backend, skip):
    """Which may be why they overflowed, and would be drawn at the highest rate from then on."""
    adlp = ADLP(4)
    loss, loss_perturbed = torch.tensor([NAN, 0.0, 1.0]), torch.tensor([1.0, 2.0, INF])
    adlp.update(torch.tensor([0, 1, 2]), loss, loss_perturbed, skip=torch.tensor(skip))
    assert adlp.tried.tolist() == [1, 0, 0, 0] and adlp.count.tolist() == [0, int(not skip), 0, 0]
    with pytest.raises(IndexError):
        adlp.update(torch.tensor([1, 4]), loss[:2], loss_perturbed[:2], skip=torch.tensor(skip))
    assert adlp.tried.tolist() == [1, 0, 0, 0]


def test_losses_of_a_graph_leave_no_graph(backend):
    adlp = ADLP(3)
    loss = torch.ones(2, requires_grad=True)
    adlp.update(torch.tensor([0, 1]), loss * 2, loss * 3)
    assert not adlp.total.requires_grad and adlp.total.tolist() == [1, 1, 0]


def test_an_index_outside_is_an_error_before_anything_is_written(backend):
    adlp = ADLP(3)
    with pytest.raises(IndexError, match="index: 3 is outside the table of 3 samples"):
        adlp.update(torch.tensor([0, 3]), torch.zeros(2), torch.ones(2))
    with pytest.raises(IndexError, match="-1"):
        adlp.mean(torch.tensor([-1]))
    assert adlp.count.sum() == 0 and adlp.total.sum() == 0


def test_counted_indices_are_reported_once_at_the_next_check(backend):
    """What a table on CUDA does, where raising at once would be a synchronisation."""
    adlp = ADLP(3)
    adlp._invalid = torch.zeros((), dtype=torch.int32)
    adlp.update(torch.tensor([0, 3, -1]), torch.zeros(3), torch.ones(3))
    assert adlp.count.tolist() == [1, 0, 0]
    with pytest.raises(IndexError, match="2 entries"):
        adlp.state_dict()
    adlp.state_dict()


def test_a_mean_of_a_sample_outside_is_nan_and_counted(backend):
    """Where raising at once would be a synchronisation; never read, which on CUDA would end the process."""
    adlp = ADLP(3)
    adlp._invalid = torch.zeros((), dtype=torch.int32)
    adlp.update(torch.tensor([0]), torch.zeros(1), torch.ones(1))
    assert adlp.mean(torch.tensor([0, 3, -1])).nan_to_num(7.0).tolist() == [1.0, 7.0, 7.0]
    with pytest.raises(IndexError, match="2 entries"):
        adlp.check()


@pytest.mark.parametrize(("skip", "error"), [(True, TypeError), (torch.tensor([True]), ValueError)])
def test_bad_skip(skip, error):
    adlp = ADLP(3)
    with pytest.raises(error, match="skip: "):
        adlp.update(torch.tensor([0]), torch.zeros(1), torch.ones(1), skip=skip)
    assert adlp.count.sum() == 0


@pytest.mark.parametrize(
    ("index", "error"),
    [([0], TypeError), (torch.tensor([0.0]), TypeError), (torch.tensor([[0]]), ValueError)],
)
def test_bad_index(index, error):
    with pytest.raises(error, match="index"):
        ADLP(3).update(index, torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_bad_size(n, error):
    with pytest.raises(error, match=f"num_samples: .*{n}"):
        ADLP(n)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (torch.rand(4), r"loss: .*shape \(3,\), got \(4,\).*another batch"),
        (torch.rand(()), r'loss: .*got \(\).*reduction="none"'),
        (torch.rand(1), r'loss: .*got \(1,\).*reduction="none"'),
        (torch.rand(3, 5), r'loss: .*got \(3, 5\).*reduction="none"'),
    ],
)
@pytest.mark.parametrize("skip", [None, torch.tensor(False)])
def test_losses_of_another_batch_or_means(backend, losses, message, skip):
    adlp = ADLP(9)
    with pytest.raises(ValueError, match=message):
        adlp.update(torch.tensor([1, 2, 3]), losses, losses + 1, skip=skip)
    assert adlp.count.sum() == 0


def test_the_same_losses_twice():
    """Every DLP would be 0, and every choice uniform."""
    adlp, loss = ADLP(9), torch.rand(3)
    with pytest.raises(ValueError, match=r"loss_perturbed: expected the losses at w \+ epsilon"):
        adlp.update(torch.tensor([1, 2, 3]), loss, loss)
    assert adlp.count.sum() == 0


@pytest.mark.parametrize("again", [torch.Tensor.detach, lambda t: t.view(3), lambda t: t[:]])
def test_the_same_memory_twice(again):
    """A closure that writes each pass's losses to one buffer."""
    adlp, loss = ADLP(9), torch.rand(3)
    with pytest.raises(ValueError, match=r"loss_perturbed: .*in its memory.*clone\(\)"):
        adlp.update(torch.tensor([1, 2, 3]), loss, again(loss))
    assert adlp.count.sum() == 0
    both = torch.rand(2, 3)
    adlp.update(torch.tensor([1, 2, 3]), both[0], both[1])
    adlp.update(torch.tensor([1, 2, 3]), *both.t().contiguous().unbind(1))  # strided, from one storage
    adlp.update(torch.tensor([], dtype=torch.int64), torch.rand(0), torch.rand(0))
    assert adlp.count.sum() == 6


def test_a_compiled_update_compares_no_addresses():
    adlp = ADLP(9)
    compiled = torch.compile(adlp.update, fullgraph=True, backend="eager")
    compiled(torch.tensor([1, 2, 3]), torch.zeros(3), torch.ones(3))
    assert adlp.mean(torch.arange(1, 4)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("skip", [None, torch.tensor(False)])
def test_no_second_losses(skip):
    """What VSAM.backward gives for a step with one pass."""
    with pytest.raises(TypeError, match=r"loss_perturbed: .*got None"):
        ADLP(9).update(torch.tensor([1]), torch.rand(1), None, skip=skip)


def test_a_step_of_one_pass_is_not_recorded():
    """vSAM and AUSAM together: the second losses are None in such a step."""
    adlp, index = ADLP(4), torch.arange(2)
    with pytest.raises(TypeError, match=r"loss_perturbed: .*got None: this step took one pass; call update"):
        adlp.update(index, torch.ones(2), None)
    assert adlp.count.sum() == 0
