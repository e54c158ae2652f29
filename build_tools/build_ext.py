"""setuptools' build_ext, which compiles: torch's for the CPU kernels, nvcc without it for the CUDA kernels.

What came of CUDA is compiled into the CPU library, whose facts `python -m ausam_ext` prints. If no CUDA
kernels can be built, only the CPU library is installed, unless FORCE_CUDA=1 asks for both.
"""

import os
import re
import sys
from pathlib import Path

from torch.utils.cpp_extension import BuildExtension

from build_tools import cuda


class BuildExt(BuildExtension):
    def build_extensions(self):
        cpu_library, cuda_library = self.extensions
        self.extensions = [cpu_library]  # torch would insist on the CUDA that it is built with
        out = Path(self.get_ext_fullpath(cuda_library.name))
        facts = dict.fromkeys(("BUILT_WITH_CUDA", "CUDA_ARCHS", "NO_CUDA"), "")
        try:
            cuda.check_wanted()
            target = dict(cpu_library.define_macros)["TORCH_TARGET_VERSION"]
            made = cuda.build(out, cuda_library.sources, Path(self.build_temp) / "cuda", target)
            facts["BUILT_WITH_CUDA"], facts["CUDA_ARCHS"] = made
        except cuda.Unfit as unfit:
            if os.environ.get("FORCE_CUDA") == "1":
                sys.exit(
                    f"ausam_ext: FORCE_CUDA=1 was set, and the CUDA kernels cannot be built: {unfit}. "
                    "Without FORCE_CUDA it installs without them."
                )
            facts["NO_CUDA"] = str(unfit)
            print(f"ausam_ext: {unfit}. Installing without CUDA kernels.", file=sys.stderr)
            out.unlink(missing_ok=True)  # an earlier build's
        facts["SCHEMAS"] = cuda.schemas()
        cpu_library.define_macros += [(f"AUSAM_{name}", _literal(text)) for name, text in facts.items()]
        super().build_extensions()
        if out.exists():
            self.extensions.append(cuda_library)  # setuptools installs those that it finds here


def _literal(text: str) -> str:
    """A C++ string that survives the shell and ninja."""
    return '"' + re.sub(r"[^ -~]|[\"\\$`]", "'", text) + '"'
