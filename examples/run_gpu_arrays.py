"""Frames that are on the GPU already: arrays in and out by DLPack, without a copy through host memory.

    python examples/run_gpu_arrays.py engines/best_model

Needs an NVIDIA GPU, a PyTorch with CUDA (CuPy and others work the same way) and a backend on the GPU. Exits with
status 2 if one of them is missing. This example has not been run on a GPU by the project yet.
"""

import sys

from dpt_deploy.cli import exit_on_error


def main(folder: str) -> int:
    try:
        import torch
    except ImportError:
        print("this example needs PyTorch", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("this example needs an NVIDIA GPU and a PyTorch with CUDA", file=sys.stderr)
        return 2

    import dpt_deploy
    from dpt_deploy import backends

    with dpt_deploy.load(folder) as runtime:
        print(runtime.reason)
        if backends.get(runtime.backend).device != "gpu":
            print("no backend can run this bundle on the GPU: the reasons are above", file=sys.stderr)
            return 2
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            frame = torch.randint(0, 256, (1, 720, 1280, 3), dtype=torch.uint8, device="cuda")
            # Only depth is asked for. On this stream the input is ready and the output will be.
            outputs = runtime.session.run({"frame": frame}, ["depth"], stream=stream.cuda_stream)
            depth = torch.from_dlpack(outputs["depth"])  # float32 (1, 720, 1280) [m], the same memory
            print(f"depth on {depth.device}: {tuple(depth.shape)}, mean {depth.mean().item():.2f} m")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/run_gpu_arrays.py BUNDLE")
    with exit_on_error():
        sys.exit(main(sys.argv[1]))
