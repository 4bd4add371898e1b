"""llama.cpp's own quantizer, as the wheel of cyllama has it, called as `llama-quantize` is:
`python -m grlo_lite.exporting.gguf_quantizing SOURCE FILE TYPE`.

It runs in a process of its own, for two builds of llama.cpp, this one and the runtime's, do not go into one.
"""

import sys

FILE_TYPES = {"Q4_K_M": 15}  # llama.cpp's LLAMA_FTYPE_MOSTLY_…


def main(source: str, file: str, kind: str) -> None:
    """Writes the GGUF `file`, quantized to `kind` from the f16 GGUF `source`."""
    from cyllama.llama.llama_cpp import (  # pyright: ignore[reportMissingImports]
        LlamaModelQuantizeParams,
        model_quantize,
    )

    settings = LlamaModelQuantizeParams()
    settings.ftype = FILE_TYPES[kind]
    model_quantize(source, file, settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
