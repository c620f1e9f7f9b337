"""Run the benchmark jobs one after the other, each in a process of its own, and write results.md.

Run: python benchmarks/suite.py [--quick] [--threads N] [--only NAME ...]
(after pip install ".[bench]"; or: make bench, make bench-quick)

With ``--only`` the results of the other jobs stay as they are. Data that are not generated come from the folder named
by the environment variable SKLM_DATA; a job that does not find its own is skipped.
"""

import subprocess
import sys
import time

from harness import HERE, JOBS, arguments, folder


def main():
    parser = arguments()
    parser.add_argument("--only", nargs="+", choices=JOBS, default=JOBS, metavar="NAME", help=f"of: {', '.join(JOBS)}")
    options = parser.parse_args()
    start = time.perf_counter()
    for name in options.only:
        print(f"--- {name}", flush=True)
        command = [sys.executable, str(HERE / f"{name}.py"), "--threads", str(options.threads)]
        command += ["--quick"] if options.quick else []
        if subprocess.run(command, check=False).returncode:  # noqa: S603
            print(f"{name}: failed, see above", flush=True)
    report = folder(options.quick) / "results.md"
    print(f"--- {time.perf_counter() - start:.0f} s; the report is {report.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
