"""Whether the CUDA kernels are in use, and one of them gives what the reference does."""

import sys

import torch

import ausam_ext
from ausam_ext import ops, reference


def main() -> None:
    backend = ausam_ext.backends()["cuda"]
    if backend.kernels != "compiled":
        sys.exit(f"the CUDA kernels are not loaded: {backend.reason}")
    loss, perturbed = torch.rand(2, 1000)
    result = ops.dlp(loss.cuda(), perturbed.cuda()).cpu()
    if not torch.equal(result, reference.dlp(loss, perturbed)):
        sys.exit("the CUDA kernels are wrong: dlp gives another result than the reference")
    print("the CUDA kernels are loaded")


if __name__ == "__main__":
    main()
