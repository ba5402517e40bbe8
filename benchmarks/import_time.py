"""Time of `import mortm_hf` beside `import transformers`, each in fresh interpreters, interleaved; median of N.

    python benchmarks/import_time.py [--repeats 7]

`names` also touches the Auto classes afterwards, which is when our classes are loaded and registered.
Exit status 1 if `import mortm_hf` takes twice the time of `import transformers` or more.
"""

import argparse
import statistics
import subprocess
import sys
import time


CASES = {
    "transformers": "import transformers",
    "mortm_hf": "import mortm_hf",
    "both": "import transformers, mortm_hf",
    "transformers names": "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "both names": "import mortm_hf; from transformers import AutoModelForCausalLM, AutoTokenizer",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    seconds = {name: [] for name in CASES}
    for _ in range(repeats):
        for name, code in CASES.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"{name:20s} {value:6.2f} s  {value / median['transformers']:5.2f} x import transformers")
    return int(median["mortm_hf"] >= 2 * median["transformers"])


if __name__ == "__main__":
    sys.exit(main())
