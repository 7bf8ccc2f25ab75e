"""python -m tests.model            lists cases and mutants
python -m tests.model all        runs all that are not nightly; `nightly` runs those too. A line for each, as a table
python -m tests.model CODE ...   runs these, and prints the shortest way to what goes wrong"""

from __future__ import annotations

import sys
import time

from tests.model.everything import CASES, MUTANTS, build
from tests.model.explore import explore


def main(wanted: list[str]) -> int:
    if not wanted:
        print(__doc__)
        for code in [*CASES, *MUTANTS]:
            print(f"{code:22} {build(code).title}")
        return 0
    codes = wanted
    if wanted in (["all"], ["nightly"]):
        codes = [*CASES, *MUTANTS]
    bad = 0
    for code in codes:
        if code not in CASES and code not in MUTANTS:
            print(f"There is no case {code}.")
            return 2
        case = build(code)
        if case.nightly and wanted == ["all"] and not case.expects:
            continue
        begun = time.process_time()
        found = explore(case)
        spent = time.process_time() - begun
        as_expected = found.wrong.startswith(case.expects) if case.expects else not found.wrong
        bad += not as_expected
        said = "" if as_expected else "   NOT AS EXPECTED"
        result = found.wrong.split(":")[0] or "safe"
        print(f"| {code} | {case.title} | {result} | {found.states:,} |{spent:6.1f} s{said}", flush=True)
        if codes == wanted and found.wrong:
            print(found.wrong)
            for number, line in enumerate(found.trace, 1):
                print(f"{number:5} {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
