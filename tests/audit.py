"""Known vulnerabilities of the pinned packages, by pip-audit: `python -m tests.audit`.

The exit status is 1 if a package has one. Where the database is out of reach, it says that nothing was checked.
"""

import json
import subprocess
import sys

from tests.pages import ROOT

ARGUMENTS = ["--requirement", "constraints.txt", "--no-deps", "--disable-pip", "--format", "json"]


def verdict(answer: dict) -> tuple[str, int]:
    """What pip-audit's answer comes to, and an exit status."""
    packages = answer["dependencies"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if len(unknown) == len(packages):
        return f"NOT RUN: the database knows none of {len(packages)} packages; it is out of reach.", 0
    found = [f"{one['name']}: {vuln['id']}" for one in packages for vuln in one.get("vulns", [])]
    lines = [*found, f"{len(packages) - len(unknown)} packages checked, {len(found)} vulnerabilities found."]
    return "\n".join([*lines, *([f"Not in the database: {', '.join(unknown)}."] if unknown else [])]), int(bool(found))


def main() -> int:
    """Ask pip-audit and print what it says."""
    asked = subprocess.run([sys.executable, "-m", "pip_audit", *ARGUMENTS], cwd=ROOT, capture_output=True, text=True)
    if not asked.stdout.startswith("{"):
        print(f"NOT RUN: pip-audit gave no answer.\n{asked.stderr.strip()[-500:]}", file=sys.stderr)
        return 0
    said, status = verdict(json.loads(asked.stdout))
    print(said, file=sys.stderr if said.startswith("NOT RUN") else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main())
