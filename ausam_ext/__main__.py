"""``python -m ausam_ext``: what a bug report needs."""

import platform

import torch

from . import __version__, backends


def main() -> None:
    print(f"ausam_ext {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{platform.platform()}, {torch.get_num_threads()} threads")
    for device, backend in backends().items():
        print(f"{device}: {backend.kernels} kernels" + (f" ({backend.reason})" if backend.reason else ""))
    try:
        from . import _C
    except ImportError:
        return
    print(f"built with {_C.compiler} and torch {_C.built_with_torch}, for torch {_C.target_torch} and later")


if __name__ == "__main__":
    main()
