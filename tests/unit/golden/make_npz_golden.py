"""Makes npz_*.npz beside this file: what numpy writes, and archives that must be refused.

usage: python3 make_npz_golden.py       needs numpy
Element i (in C order) of every good array is i * 0.5 - 3, in integers i.
"""
import io
import os
import zipfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))


def ramp(shape, dtype):
    i = np.arange(np.prod(shape, dtype=int))
    return (i if np.issubdtype(dtype, np.integer) else i * 0.5 - 3).astype(dtype).reshape(shape)


def npy(array, version=None):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=version)
    return out.getvalue()


def archive(name, entries):
    """Entries by hand, for what np.savez does not write; the date is fixed."""
    with zipfile.ZipFile(os.path.join(HERE, name), "w") as z:
        for key, data, method in entries:
            info = zipfile.ZipInfo(key, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = method
            z.writestr(info, data)


ARRAYS = {
    "half": ramp((7,), np.float16),
    "Transformer/encoderblock_0/kernel": ramp((3, 5), np.float32),
    "double": ramp((2, 3, 4), np.float64),
    "int": ramp((4, 2), np.int32),
    "long": ramp((9,), np.int64),
    "byte": ramp((11,), np.uint8),
    "fortran": np.asfortranarray(ramp((3, 4, 5), np.float32)),
    "fortran2": np.asfortranarray(ramp((6, 2), np.int64)),
    "scalar": ramp((), np.float32),
    "empty": ramp((0, 3), np.float32),
    "version2": ramp((2, 2), np.float32),
    "version3": ramp((2, 2), np.float32),
}
VERSIONS = {"version2": (2, 0), "version3": (3, 0)}

for file, method in (("npz_stored.npz", zipfile.ZIP_STORED),
                     ("npz_deflated.npz", zipfile.ZIP_DEFLATED)):
    archive(file, [(k + ".npy", npy(v, VERSIONS.get(k)), method) for k, v in ARRAYS.items()])

one = npy(ramp((3,), np.float32))
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
archive("npz_twice.npz", [("a.npy", one, STORED), ("b.npy", one, STORED), ("a.npy", one, STORED)])
archive("npz_text.npz", [("a.npy", one, STORED), ("readme.txt", b"hello", STORED)])
archive("npz_control.npz", [("a\n.npy", one, STORED)])
archive("npz_long.npz", [("a.npy", one + b"\0", STORED)])
archive("npz_bomb.npz", [("a.npy", npy(np.zeros(2 << 20, np.float32)), DEFLATED)])
archive("npz_pickle.npz", [("a.npy", npy(np.array([None, 1], dtype=object)), STORED)])
