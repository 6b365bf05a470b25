"""Makes mobilestylegan_reference.json: what OpenVINO itself computes from the published MobileStyleGAN files.

OpenVINO is needed only here, in an environment of its own:

    python -m venv /tmp/openvino && /tmp/openvino/bin/pip install openvino numpy
    /tmp/openvino/bin/python tests/stages/networks/openvino_reference.py IR_DIRECTORY > \\
        tests/stages/networks/mobilestylegan_reference.json

Its CPU plug-in may calculate in bfloat16 by default, which differs visibly; float32 is asked for.
"""

import json
import sys
from pathlib import Path

import numpy as np
import openvino

SEED = 7
GRID = np.arange(64, 1024, 128)

core = openvino.Core()
directory, options = Path(sys.argv[1]), {"INFERENCE_PRECISION_HINT": "f32"}
mapping = core.compile_model(directory / "MappingNetwork.xml", "CPU", options)
synthesis = core.compile_model(directory / "SynthesisNetwork.xml", "CPU", options)

z = np.random.default_rng(SEED).standard_normal((2, 512), dtype=np.float32)
w = np.concatenate([mapping(row[None])[0] for row in z])
image = np.concatenate([synthesis(row[None])[0] for row in w])
reference = {
    "openvino": openvino.__version__,
    "z": f"numpy.random.default_rng({SEED}).standard_normal((2, 512), dtype=float32)",
    "w": "the first 8 of 512 values of each latent",
    "pixels": "rows and columns 64, 192, ..., 960 of each 1024 x 1024 picture: (2, 3, 8, 8), white is 1, black is -1",
    "seed": SEED,
    "grid": GRID.tolist(),
    "w_values": np.round(w[:, :8].astype(float), 6).tolist(),
    "pixel_values": np.round(image[:, :, GRID][:, :, :, GRID].astype(float), 6).tolist(),
}
print(json.dumps(reference))
