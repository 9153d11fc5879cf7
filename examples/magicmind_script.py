"""A program of your own for the vendor's SDK: build an image tower and run it. It does not import clipmlu.

    clipmlu lower demo --for mlu -o demo-onnx
    clipmlu emulate -- python examples/magicmind_script.py demo-onnx        # on this CPU, on the emulated SDK
    python3.7 examples/magicmind_script.py demo-onnx                        # with a card, in the vendor's container

Every call here is in public scripts of the vendor (docs/magicmind-api.md, section 2). Unlike these it checks each Status: a refused call
would otherwise show up later, or not at all.
"""

import os
import sys

import magicmind.python.runtime as mm
import numpy as np
from magicmind.python.runtime.parser import Parser


def check(status, call):
    """End the program if the SDK refuses a call."""
    if not status.ok():
        sys.exit(f"{call}: {status}")


def build(onnx, configuration):
    """Parse an ONNX file and compile it; the configuration is the JSON file that 'clipmlu lower' wrote beside it."""
    network = mm.Network()
    check(Parser(mm.ModelKind.kOnnx).parse(network, onnx), "parse")
    config = mm.BuilderConfig()
    check(config.parse_from_file(configuration), "parse_from_file")
    model = mm.Builder().build_model("image", network, config)
    if model is None:
        sys.exit("build_model: failed; the SDK's log has the reason")
    return model


def run(model, pixels):
    """Compute one batch on card 0 and return the first output."""
    device = mm.Device()
    device.id = 0
    check(device.active(), "active")
    context = model.create_i_engine().create_i_context()
    queue = device.create_queue()
    inputs = context.create_inputs()
    check(inputs[0].from_numpy(pixels), "from_numpy")
    inputs[0].to(device)
    outputs = []
    check(context.enqueue(inputs, outputs, queue), "enqueue")
    check(queue.sync(), "sync")
    return np.array(outputs[0].asnumpy())  # a copy: how long the SDK's array lives is not documented


def main(folder):
    """Build, run a batch of noise, and print facts about the embeddings."""
    model = build(os.path.join(folder, "image.onnx"), os.path.join(folder, "image.build.json"))
    shape = model.get_input_dimensions()[0].GetDims()
    pixels = np.random.RandomState(0).rand(4, *shape[1:]).astype(np.float32)
    embeddings = run(model, pixels)
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    print(f"input {shape}, output {embeddings.shape}, lengths {lengths.min():.4f} to {lengths.max():.4f}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER_OF_CLIPMLU_LOWER")
    sys.exit(main(sys.argv[1]))
