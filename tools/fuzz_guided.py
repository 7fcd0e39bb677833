"""Let libFuzzer look for inputs that take new branches of a reader's Python code.

    pip install atheris
    python tools/fuzz_guided.py pickle --runs 100000

The readers, their first inputs and what counts as a finding are those of fuzz_readers.py.  A
finding ends the run with a traceback; its input lies in --out, beside the corpus that has grown.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["colorseg"]):
    from fuzz_readers import finding, readers


def main() -> None:
    """Ends the process itself, as libFuzzer does."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("reader")
    add("--runs", type=int, default=100_000)
    add("--seconds", type=float, default=5, help="that one input may take")
    add("--megabytes", type=float, default=300, help="of memory that one input may take")
    add("--out", type=Path, default=Path("fuzz-guided"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    known = readers(Path(tempfile.mkdtemp()))
    if args.reader not in known:
        parser.error(f"there is no reader {args.reader}, but {', '.join(known)}")
    seeds, read = known[args.reader]
    corpus = args.out / args.reader
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def take(content: bytes) -> None:
        if wrong := finding(read, content, args):
            raise RuntimeError(wrong)

    options = [f"-runs={args.runs}", f"-artifact_prefix={args.out}/", "-rss_limit_mb=8192"]
    atheris.Setup([sys.argv[0], *options, "-max_len=100000", str(corpus)], take)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
