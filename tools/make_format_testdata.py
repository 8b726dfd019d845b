"""Makes src/formats/testdata: tiny files as PyTorch, NumPy and safetensors write them, some of them bad on purpose.

    python tools/make_format_testdata.py src/formats/testdata

Needs torch, numpy and safetensors; their versions are written to MADE_BY.txt beside the files. The tests know the
values: tensor number k of a file holds k, k + 1, k + 2, ... unless said otherwise here.
"""
import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import safetensors
import safetensors.torch
import torch


def counted(first, shape, dtype=torch.float32):
    count = int(np.prod(shape))
    return torch.arange(first, first + count, dtype=torch.float64).reshape(shape).to(dtype)


def rezip(source, target, edit=lambda name, data: data, method=zipfile.ZIP_STORED):
    """A copy of a torch.save archive, members edited; loses the 64-byte alignment, which readers must survive."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for member in old.namelist():
            name, data = member, edit(member.split("/", 1)[1], old.read(member))
            entry = zipfile.ZipInfo(name)
            entry.compress_type = method
            new.writestr(entry, data)


class CallsSystem:
    def __reduce__(self):
        return os.system, ("exit 1",)


def main(folder):
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)

    dtypes = OrderedDict(
        f64=counted(0, (2, 3), torch.float64), f32=counted(1, (3,)), bf16=counted(2, (2, 2), torch.bfloat16),
        f16=counted(3, (5,), torch.float16), i64=counted(4, (2,), torch.int64), i32=counted(5, (1, 2, 1, 3), torch.int32),
        scalar=torch.tensor(6.0), empty=torch.zeros(0, 4))
    torch.save(dtypes, "dtypes.bin")
    torch.save(dtypes, "protocol4.bin", pickle_protocol=4)
    torch.save(dtypes, "protocol5.bin", pickle_protocol=5)
    # Tagged with a GPU, and members no longer aligned.
    rezip("dtypes.bin", "cuda.bin",
          lambda name, data: data.replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0") if name == "data.pkl" else data)
    rezip("dtypes.bin", "compressed.bin", method=zipfile.ZIP_DEFLATED)
    rezip("dtypes.bin", "big_endian.bin", lambda name, data: b"big" if name == "byteorder" else data)

    base = counted(0, (4, 6))
    torch.save({"base": base, "transposed": base.t(), "tied": base, "tail": base[2:, 1:6:2], "row": base[1],
                "expanded": base[3, 5].expand(2, 3), "bias": torch.nn.Parameter(counted(1, (2,)))}, "views.bin")
    weights = {"weight": counted(1, (2, 2)), "bias": counted(2, (2,))}
    torch.save({"epoch": 3, "lr": 0.5, "big": 1 << 80, "name": "run", "history": [1, (2, 3), None, True, False],
                "optimizer": {"momentum": counted(9, (2,))}, "state_dict": weights}, "nested.bin")
    torch.save({"ours": weights}, "nested_other.bin")
    torch.save({"a": weights, "b": {"weight": counted(1, (1,))}}, "nested_twice.bin")
    torch.save(weights, "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"mask": torch.ones(3, dtype=torch.bool)}, "bool.bin")
    torch.save({"deep": torch.zeros(1, 1, 1, 1, 2)}, "rank5.bin")
    torch.save([1, 2], "list.bin")
    torch.save({"epoch": 1}, "no_tensors.bin")
    torch.save({"weight": counted(0, (2,)), "hook": CallsSystem()}, "calls_system.bin")
    with open("bare_pickle.bin", "wb") as file:
        pickle.dump({"hook": CallsSystem()}, file)

    safetensors.torch.save_file(dict(dtypes), "dtypes.safetensors", {"format": "pt"})
    os.chmod("dtypes.safetensors", 0o644)
    np.save("fortran.npy", np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)))
    np.save("bytes.npy", np.array([[0, 255], [7, 128]], np.uint8))
    with open("version2.npy", "wb") as file:
        np.lib.format.write_array(file, np.arange(3, dtype=np.int16) - 1, version=(2, 0))
    with open("version3.npy", "wb") as file:
        np.lib.format.write_array(file, np.array([0.5, -2], np.float16), version=(3, 0))

    with open("MADE_BY.txt", "w") as file:
        file.write(f"python tools/make_format_testdata.py src/formats/testdata\ntorch {torch.__version__}, "
                   f"numpy {np.__version__}, safetensors {safetensors.__version__}\n")


main(sys.argv[1])
