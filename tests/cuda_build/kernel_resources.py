"""What a thread and a block of every CUDA kernel take, and how many of them a multiprocessor holds, as ptxas
says and NVIDIA's occupancy calculator counts: kernel_resources.txt, which test_cuda_build.py compares.

`python tests/cuda_build/kernel_resources.py` records anew. Needs nvcc, and no GPU.
"""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

# Not by the path, on which the package of the source tree would hide the installed one.
_ROOT = Path(__file__).parents[2]
_spec = spec_from_file_location("build_cuda", _ROOT / "build_tools" / "cuda.py")
build_cuda = module_from_spec(_spec)
_spec.loader.exec_module(build_cuda)

RECORD = Path(__file__).with_suffix(".txt")
TARGET = "0x020b000000000000"
SOURCES = sorted((_ROOT / "csrc" / "cuda").glob("*.cu"))
STRICT = ["-Werror=all-warnings", "-Xcompiler=-Werror"]

# Threads of a block and bytes of its shared memory, in the largest launch: expressions of csrc/cuda.
LAUNCHES = {
    "dlp_kernel": ("kAdlpThreads", "0"),
    "update_in_order": ("kOrderedThreads", "sizeof(Search)"),
    "update_by_atomics": ("kAdlpThreads", "0"),
    "sample_rows": ("kBlockRow / kEach", "sizeof(RowMemory)"),
    "load_scores": ("kPartThreads", "sizeof(LargeMemory)"),
    "make_keys": ("kPartThreads", "sizeof(LargeMemory)"),
    "narrow": ("kPartThreads", "sizeof(LargeMemory)"),
    "choose": ("kPartThreads", "sizeof(LargeMemory)"),
    "weigh_rows": ("32 * kMaxWarps", "sizeof(WeighMemory)"),
    "mark_kept": ("kPartThreads", "sizeof(PartMemory)"),
    "find_largest": ("kPartThreads", "sizeof(PartMemory)"),
    "weigh": ("kPartThreads", "sizeof(PartMemory)"),
    "permute_kernel": ("kPermuteThreads", "0"),
    "sliced_variance_kernel": ("32 * kMaxWarps", "0"),
    "squared_norms": ("kListThreads", "kSumBytes"),
    "finish_norm": ("kListThreads", "kSumBytes"),
    "ascend": ("kListThreads", "0"),
    "copy_bytes": ("kListThreads", "0"),
    "capture": ("kListThreads", "kSumBytes"),
    "finish_norms": ("kListThreads", "kSumBytes"),
    "bound": ("kListThreads", "kSumBytes"),
    "reuse": ("kListThreads", "0"),
}


class Multiprocessor(NamedTuple):
    """Limits of an architecture: NVIDIA's CUDA Programming Guide, "Compute Capabilities"; blocks as in
    cuda_occupancy.h. All have 65,536 registers, dealt out to a warp by 256."""

    threads: int
    blocks: int
    shared: int  # KiB
    reserved: int = 1024  # bytes of shared memory that a block takes beside its own
    unit: int = 128  # in which shared memory is dealt out

    def occupancy(self, threads, registers, shared):
        """Per cent of the threads that it could hold."""
        warps = threads // 32
        # Each of four partitions has a quarter of the registers, and warps of its own.
        by_registers = 4 * (65536 // 4 // (-(-registers * 32 // 256) * 256)) // warps
        by_shared = self.shared * 1024 // (-(-(shared + self.reserved) // self.unit) * self.unit or 1)
        blocks = min(self.threads // threads, self.blocks, by_registers, by_shared)
        return 100 * blocks * threads // self.threads


_AMPERE_SMALL = Multiprocessor(1536, 16, 100)
_HOPPER = Multiprocessor(2048, 32, 228)
_BLACKWELL_SMALL = Multiprocessor(1536, 24, 100)
LIMITS = {
    "7.5": Multiprocessor(1024, 16, 64, reserved=0, unit=256),
    "8.0": Multiprocessor(2048, 32, 164),
    "8.6": _AMPERE_SMALL,
    "8.7": Multiprocessor(1536, 16, 164),
    "8.8": _AMPERE_SMALL,  # in the calculator only
    "8.9": Multiprocessor(1536, 24, 100),
    "9.0": _HOPPER,
    "10.0": _HOPPER,
    "10.3": _HOPPER,
    "11.0": Multiprocessor(1536, 24, 228),
    "12.0": _BLACKWELL_SMALL,
    "12.1": _BLACKWELL_SMALL,
}

_PTXAS = re.compile(
    r"Compiling entry function '(\w+)' for '\w+'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


def succeed(command, **options):
    done = subprocess.run(
        [str(part) for part in command],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


def plain(name):
    """A kernel's name as it is written."""
    name = succeed(["c++filt", name]).strip()
    return re.sub(r"^void |ausam::cuda::|c10::|\(anonymous namespace\)::", "", name).partition("(")[0]


def intermediate(toolkit, folder):
    """PTX of all kernels, with the launches' sizes as variables."""
    source = build_cuda.one_source(folder, SOURCES)
    lines = ["namespace ausam::cuda {"]
    for kernel, sizes in LAUNCHES.items():
        for what, size in zip(("threads", "shared"), sizes, strict=True):
            lines.append(f'extern "C" __device__ const unsigned {what}_of_{kernel} = {size};')
    sized = folder / "sized.cu"
    sized.write_text(source.read_text() + "\n".join([*lines, "}"]))
    command = build_cuda.command(toolkit, ["7.5"], TARGET)
    command[-1] = "-arch=compute_75"
    succeed([*command, *STRICT, "-ptx", sized, "-o", folder / "kernels.ptx"])
    return (folder / "kernels.ptx").read_text()


def launch_of(kernel, ptx):
    """Threads and shared memory of a block."""
    kernel = kernel.partition("<")[0]
    assert kernel in LAUNCHES, (
        f"{kernel}: tests/cuda_build/kernel_resources.py does not say how it is launched"
    )
    return [
        int(re.search(rf"{what}_of_{kernel}(?: = (\d+))?;", ptx)[1] or 0) for what in ("threads", "shared")
    ]


def registers(toolkit, folder, arch):
    """Registers of a thread of every kernel, none of which may keep data in local memory."""
    source = build_cuda.one_source(folder, SOURCES)
    command = build_cuda.command(toolkit, [arch], TARGET)
    # To device code only: what the host compiles is the same for all.
    report = succeed([*command, *STRICT, "-Xptxas=-v", "-cubin", source, "-o", folder / f"{arch}.cubin"])
    found = _PTXAS.findall(report)
    assert len(found) == report.count("Compiling entry function") > 0, report[-4000:]
    by_kernel = {}
    for name, *numbers in found:
        stack, stores, loads, used = map(int, numbers)
        assert (stack, stores, loads) == (0, 0, 0), f"{plain(name)} on {arch} keeps data in local memory"
        by_kernel[plain(name)] = used
    return by_kernel


def measure(toolkit, ptx, folder):
    """What the record holds."""
    archs = [f"{major}.{minor}" for major, minor in sorted(toolkit.known()) if (major, minor) >= (7, 5)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        used = dict(zip(archs, pool.map(lambda a: registers(toolkit, folder, a), archs), strict=True))
    known = [a for a in archs if a in LIMITS]
    lines = [
        f"nvcc {toolkit.version}. Registers of a thread / per cent of a multiprocessor's threads",
        " ".join([f"{'kernel':32} threads shared", *(f"{'sm_' + a.replace('.', ''):>7}" for a in known)]),
    ]
    for kernel in sorted(used[archs[0]]):
        threads, shared = launch_of(kernel, ptx)
        cells = []
        for arch in archs:
            count = used[arch][kernel]
            assert count * threads <= 65536, f"{kernel} on {arch}: no block of {threads} threads"
            if arch in LIMITS:
                percent = LIMITS[arch].occupancy(threads, count, shared)
                cells.append(f"{f'{count}/{percent}':>7}")
        lines.append(" ".join([f"{kernel:32} {threads:7} {shared:6}", *cells]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        nvcc, at = build_cuda.find_toolkit(), Path(temporary)
        RECORD.write_text(measure(nvcc, intermediate(nvcc, at), at))
    print(RECORD.read_text())
