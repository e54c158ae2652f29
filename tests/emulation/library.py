"""An emulated library in use: schedules, errors, and the operators' way to it."""

import ctypes

# Kinds as in launch.cpp, with seeds.
IN_ORDER, REVERSED = (0, 0), (1, 0)
SCHEDULES = [IN_ORDER, REVERSED, (2, 1), (2, 2), (2, 3)]


class Library:
    def __init__(self, path):
        self.path = path
        self.c = ctypes.CDLL(str(path))
        self.c.emulation_error.restype = ctypes.c_char_p
        self.c.emulation_launches.restype = ctypes.c_uint64
        self.c.emulation_blocks.restype = ctypes.c_uint64
        self.c.emulation_set_schedule.argtypes = [ctypes.c_int, ctypes.c_uint64]
        self.c.emulation_set_schedule.restype = None

    @property
    def key(self):
        """The dispatch key of this library's operators, and of no other's."""
        self.c.emulation_key.restype = ctypes.c_char_p
        return self.c.emulation_key().decode()

    def schedule(self, kind, seed=0):
        """The order in which threads and blocks run from now on."""
        self.c.emulation_set_schedule(kind, seed)

    def scalars_on_host(self, value):
        """Whether tensors of no dimension pass for ones of the CPU from now on."""
        self.c.emulation_set_scalars_on_host(ctypes.c_bool(value))

    def two_devices(self, value):
        """Whether from now on tensors of an odd number of elements pass for ones of another device."""
        self.c.emulation_set_two_devices(ctypes.c_bool(value))

    @property
    def launches(self):
        """Kernels that have been launched so far."""
        return self.c.emulation_launches()

    @property
    def blocks(self):
        """Blocks that have been launched so far."""
        return self.c.emulation_blocks()

    def run(self, kernel, data, *, broken=False, blocks=1, threads=None, shared=None):
        """One of faults.cu, on a list of ints; the list after it, or RuntimeError."""
        values = (ctypes.c_int * len(data))(*data)
        threads = len(data) // blocks if threads is None else threads
        shared = ctypes.c_size_t(4 * threads if shared is None else shared)
        if self.c[f"{kernel}_kernel"](ctypes.c_bool(broken), blocks, threads, shared, values):
            raise RuntimeError(self.c.emulation_error().decode())
        return list(values)
