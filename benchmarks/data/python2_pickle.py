"""Pickles as Python 2 wrote CIFAR's: today's pickle cannot, it has other names for what is in them.

``str`` becomes a string of bytes, and an array is made by ``numpy.core.multiarray._reconstruct`` and then
gets its state. Byte for byte what cPickle of Python 2.7 writes with numpy 1.16, its memo included.
"""

import pickle
import struct

import numpy as np


def dumps(batch: dict[str, np.ndarray | list[int] | list[str] | str]) -> bytes:
    """Arrays are uint8; lists have from 2 to 1000 entries: others cPickle writes in other pieces."""
    writer = _Writer()
    writer.add(pickle.PROTO + b"\x02" + pickle.EMPTY_DICT)
    writer.remember()
    writer.add(pickle.MARK)
    for key, value in batch.items():
        writer.text(key)
        if isinstance(value, np.ndarray):
            writer.array(value)
        elif isinstance(value, str):
            writer.text(value)
        else:
            writer.list(value)
    writer.add(pickle.SETITEMS + pickle.STOP)
    return b"".join(writer.parts)


class _Writer:
    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.remembered = 0

    def add(self, part: bytes) -> None:
        self.parts.append(part)

    def remember(self) -> None:
        """Number what was written last, so that it could be named again."""
        self.remembered += 1
        small = self.remembered < 256
        code, form = (pickle.BINPUT, "<B") if small else (pickle.LONG_BINPUT, "<I")
        self.add(code + struct.pack(form, self.remembered))

    def text(self, value: str) -> None:
        self.add(_string(value.encode()))
        self.remember()

    def list(self, values: list[int] | list[str]) -> None:
        self.add(pickle.EMPTY_LIST)
        self.remember()
        self.add(pickle.MARK)
        for value in values:
            if isinstance(value, str):
                self.text(value)
            else:
                self.add(_integer(value))
        self.add(pickle.APPENDS)

    def array(self, value: np.ndarray) -> None:
        self.add(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")
        self.remember()
        self.add(pickle.GLOBAL + b"numpy\nndarray\n")
        self.remember()
        self.add(_integer(0) + pickle.TUPLE1 + _string(b"b") + pickle.TUPLE3 + pickle.REDUCE)
        self.remember()
        rows, columns = value.shape
        self.add(pickle.MARK + _integer(1) + _integer(rows) + _integer(columns) + pickle.TUPLE2)
        self.add(pickle.GLOBAL + b"numpy\ndtype\n")
        self.remember()
        self.add(_string(b"u1") + _integer(0) + _integer(1) + pickle.TUPLE3 + pickle.REDUCE)
        self.remember()
        state = [_integer(3), _string(b"|"), pickle.NONE * 3, _integer(-1) * 2, _integer(0)]
        self.add(pickle.MARK + b"".join(state) + pickle.TUPLE + pickle.BUILD)
        self.add(pickle.NEWFALSE + _string(value.astype(np.uint8).tobytes()) + pickle.TUPLE + pickle.BUILD)


def _integer(value: int) -> bytes:
    if 0 <= value < 256:
        return pickle.BININT1 + struct.pack("<B", value)
    if 0 <= value < 65536:
        return pickle.BININT2 + struct.pack("<H", value)
    return pickle.BININT + struct.pack("<i", value)


def _string(value: bytes) -> bytes:
    if len(value) < 256:
        return pickle.SHORT_BINSTRING + struct.pack("<B", len(value)) + value
    return pickle.BINSTRING + struct.pack("<i", len(value)) + value
