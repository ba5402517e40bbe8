#!/usr/bin/env python
"""Compares converted checkpoints with upstream's own numbers, case by case.

    python conversion/check_parity.py FOLDER [--case NAME ...] [--json FILE]

Each case holds model.pth, config.json, inputs.npz and expected.npz. Exit code 1 if one differs, 2 for bad input.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works in a clone that is not installed

from mortm_hf.conversion.parity import check_folder, table, write_rows
from mortm_hf.models.errors_mortm import ConversionError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--case", nargs="+", metavar="NAME", help="only these cases")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    args = parser.parse_args()
    try:
        rows = check_folder(args.folder, args.case)
    except ConversionError as error:
        print(f"check_parity: error: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    if args.json:
        write_rows(rows, args.json)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
