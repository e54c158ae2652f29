"""``python -m ausam_ext``: what a bug report needs."""

import platform
from importlib import import_module

import torch

from . import __version__, backends


def main() -> None:
    print(f"ausam_ext {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"{platform.platform()}, {torch.get_num_threads()} threads, {', '.join(gpus) or 'no GPU'}")
    for device, backend in backends().items():
        print(f"{device}: {backend.kernels} kernels" + (f" ({backend.reason})" if backend.reason else ""))
    if backends()["cpu"].kernels == "reference":
        return  # to import the library would register its kernels
    build = import_module("._C", __package__)
    cuda = f", CUDA {build.built_with_cuda} for {build.cuda_archs}" if build.built_with_cuda else ""
    print(
        f"built with {build.compiler}{cuda} and torch {build.built_with_torch}, "
        f"runs with {build.target_torch} and later"
    )


if __name__ == "__main__":
    main()
