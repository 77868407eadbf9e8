"""`python -m benchmarks NAME`: progress on stderr, and one JSON object as the last line of stdout."""

import importlib
import pkgutil
import sys

import benchmarks


def main() -> int:
    """Run the benchmark that the first argument names; the rest of the arguments are its own."""
    names = sorted(
        module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")
    )
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        came = sys.argv[1] if len(sys.argv) > 1 else "nothing"
        print(f"expected the name of a benchmark, got {came}; choose one of: {', '.join(names)}", file=sys.stderr)
        return 2
    importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
