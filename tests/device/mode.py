"""The kernels of another device as a backend of tests that make their tensors on the CPU."""

import warnings
from contextlib import contextmanager

import torch
from emulation.mode import UNORDERED_VISITS, assert_same
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only


@contextmanager
def no_synchronisation(device):
    """On CUDA, whatever waits for the device within the block raises ``RuntimeError``."""
    if torch.device(device).type != "cuda":
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class DeviceKernels(TorchDispatchMode):
    """Sends each call of an operator to ``device``, twice, and brings back what it changed.

    Tensors travel with the whole memory that they are views of, so that strides, offsets and sharing stay.
    Both calls have to give the same bits, and nothing may change but what the schema says. A scale for
    ``psf_reuse_`` stays on the host in the second call.
    """

    def __init__(self, device, synchronising=True):
        super().__init__()
        self.device = device
        self.synchronising = synchronising

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        call = (args, kwargs or {})
        if func.namespace != "ausam_ext" or not any(map(on_cpu, tree_flatten(call)[0])):
            return func(*call[0], **call[1])
        with torch.no_grad():
            first, second = (self.run(func, call, host) for host in (False, True))
            exact = not (func.__name__.startswith("adlp_update_") and args[2].numel() >= UNORDERED_VISITS)
            for a, b in zip(tree_flatten(first)[0], tree_flatten(second)[0], strict=True):
                if isinstance(a, torch.Tensor):
                    assert_same(a, b, exact or not a.is_floating_point())
            result, changed = first
            for given, value in zip(written(func, call), changed, strict=True):
                given.copy_(value)
            return result

    def run(self, func, call, host_scalar):
        """Result and changed arguments of one call, on the CPU."""
        memory = {}
        moved = tree_map_only(torch.Tensor, lambda t: self.move(t, memory), call)
        if host_scalar and func.__name__.startswith("psf_reuse_"):
            moved = ((*moved[0][:2], call[0][2]), moved[1])
        if self.synchronising:
            result = func(*moved[0], **moved[1])
        else:
            with no_synchronisation(self.device):
                result = func(*moved[0], **moved[1])
        result = tree_map_only(torch.Tensor, lambda t: t.cpu(), result)
        changed = [t.cpu() for t in written(func, moved)]
        self.assert_nothing_else_changed(written(func, moved), memory)
        return result, changed

    def move(self, t, memory):
        if not on_cpu(t):
            return t
        before = t.untyped_storage()
        if before.data_ptr() not in memory or before.nbytes() == 0:
            flat = torch.tensor([], dtype=torch.uint8).set_(before)
            memory[before.data_ptr()] = (flat, flat.clone() if self.device == "cpu" else flat.to(self.device))
        there = memory[before.data_ptr()][1].untyped_storage()
        return torch.tensor([], dtype=t.dtype, device=self.device).set_(
            there, t.storage_offset(), t.size(), t.stride()
        )

    @staticmethod
    def assert_nothing_else_changed(changed, memory):
        for before, after in memory.values():
            free = torch.zeros(before.numel(), dtype=torch.bool)
            for t in changed:
                if t.untyped_storage().data_ptr() == after.untyped_storage().data_ptr() and t.numel():
                    size = t.element_size()
                    places = torch.arange(before.numel() // size).as_strided(
                        t.size(), t.stride(), t.storage_offset()
                    )
                    free[: before.numel() // size * size].view(-1, size)[places.flatten()] = True
            same = before == after.cpu()
            assert (same | free).all(), "memory was changed that is no part of a changed argument"


def on_cpu(x):
    plain = type(x) in (torch.Tensor, torch.nn.Parameter)
    return plain and x.device.type == "cpu" and x.layout == torch.strided


def written(func, call):
    """The tensors of the arguments that the schema of ``func`` says it changes."""
    args, kwargs = call
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [t for t in tree_flatten(value)[0] if isinstance(t, torch.Tensor)]
    return found
