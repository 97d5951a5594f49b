"""NNCodec 2.1.3 on a file of tensors; runs in its own environment, for it needs numpy < 2. `contest.py` calls it.

    python rival.py tensors.npz decoded.npz '{"qp": -32}'   prints one line of JSON

Times are CPU seconds of this process, of its encode and decode alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # after the number of threads is settled


def run(source: str, target: str, options: dict[str, object]) -> dict[str, object]:
    """Codes every array of `source`, writes what is decoded to `target`."""
    from nncodec.nn import decode, encode

    tensors = {name: np.float32(array) for name, array in np.load(source).items()}
    start = time.process_time()
    coded = encode(tensors, args={**options, "verbose": False})
    middle = time.process_time()
    decoded = decode(coded)
    end = time.process_time()
    np.savez(target, **decoded)
    return {"bytes": len(coded), "encode_s": middle - start, "decode_s": end - middle}


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        found = run(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
    print(json.dumps(found))
