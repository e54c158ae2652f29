"""peft: the adapters' weights are those of a SAM written out; nothing else moves or is kept."""

import pytest
import torch

from ausam_ext import SAM, VSAM

# get_peft_model of peft 0.21.2 asks the model for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def made(example):
    torch.manual_seed(0)
    model = example.make_model().eval()  # no dropout
    return model, *example.make_data(64)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def test_adapters_are_those_of_a_sam_written_out(example, made):
    model, ids, labels = made
    frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    example.train(model, SAM(model, rho=0.05), ids, labels, epochs=3)
    ours = [p.detach().clone() for p in trained(model)]
    assert all(map(torch.equal, frozen, [p for p in model.parameters() if not p.requires_grad]))

    model.load_state_dict(state)
    params = trained(model)
    optimizer = torch.optim.AdamW(params, lr=1e-2)
    for _ in range(3):
        for x, y in zip(ids.split(32), labels.split(32), strict=True):
            grads = torch.autograd.grad(model(input_ids=x, labels=y).loss, params)
            norm = torch.cat([g.flatten() for g in grads]).norm()
            weights = [p.detach().clone() for p in params]
            with torch.no_grad():
                for p, g in zip(params, grads, strict=True):
                    p.add_(g, alpha=float(0.05 / norm))
            grads = torch.autograd.grad(model(input_ids=x, labels=y).loss, params)
            with torch.no_grad():
                for p, w, g in zip(params, weights, grads, strict=True):
                    p.copy_(w)
                    p.grad = g
            optimizer.step()
    torch.testing.assert_close(ours, params, rtol=1e-4, atol=1e-5)


def test_the_state_of_vsam_is_of_the_size_of_the_adapters(example, made):
    model, ids, labels = made
    vsam = VSAM(model, warmup_steps=2)
    example.train(model, vsam, ids, labels, epochs=4)
    kept = sum(t.numel() for t in vsam.state_dict()["psf"])
    assert kept == sum(p.numel() for p in trained(model)) < 0.1 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("when", ["before get_peft_model", "before add_adapter"])
def test_a_sam_that_was_made_too_early_says_so(example, made, when):
    from peft import LoraConfig, get_peft_model

    model, ids, labels = made
    if when == "before get_peft_model":
        bert = example.make_bert()
        sam = SAM(bert)
        model = get_peft_model(bert, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"]))
    else:
        sam = SAM(model)
        model.add_adapter("second", LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
        model.set_adapter("second")
    with pytest.raises(RuntimeError, match="other parameters"):
        example.train(model, sam, ids, labels, epochs=1)
