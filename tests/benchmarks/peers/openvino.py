"""Make OpenVINO's INT8 network of the same weights, to be run by the bare processes in place of ours.

python -m tests.benchmarks.peers.openvino SPEC.yaml FILE

Calibrated by NNCF on as many photographs as the job's own. Needs stint[openvino].
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np


def main() -> None:
    from jobs.measure.bench_images import photographs
    from jobs.plan.job import Job
    from jobs.spec.load import load_spec
    from workers.host.cpu import isa_class
    from workers.image.resize import decode_into
    from workers.model.load import load_model
    from workers.quantize.runtime import make_int8

    spec, file = sys.argv[1:]
    model = load_model(Job.open(load_spec(spec, []), writing=False).bundle_request().model)
    pictures = photographs(32, quality=95)
    side = model.preprocess.crop_px
    crops_NHWC = np.empty((len(pictures), side, side, 3), np.uint8)
    for picture, crop_HWC in zip(pictures, crops_NHWC, strict=True):
        decode_into(picture, model.preprocess, crop_HWC)
    artifact = make_int8("openvino", model, crops_NHWC, isa_class(), 1)
    Path(file).write_bytes(artifact.data)
    Path(f"{file}.json").write_text(json.dumps(asdict(artifact.info)))


if __name__ == "__main__":
    main()
