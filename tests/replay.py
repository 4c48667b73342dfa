#!/usr/bin/env python3
"""Replays exported audit logs, by the text at the head of billing/src/audit.rs alone.

    replay.py FILE

FILE has one JSON document a line (`ufbrowsers audit --export FILE`). Prints a JSON document with what each account has
and what its sessions came to by the month. Where a log is not intact it says so on stderr and exits with 1.
"""

import hashlib
import json
import sys
from collections import defaultdict
from datetime import datetime, timezone

NAMES = """seq at account actor kind session command key cause amount included retry overage
           balance_after included_after retry_after overage_after minutes ended""".split()
FIGURES = {"balance": "amount", "included": "included", "retry": "retry", "overage": "overage"}


class Broken(Exception):
    pass


def entry_hash(entry):
    fields = ["ufb-audit-1"] + ["" if entry[name] is None else str(entry[name]) for name in NAMES]
    encoded = b"".join(b"%d:%s," % (len(f.encode()), f.encode()) for f in fields)
    return hashlib.sha256(bytes.fromhex(entry["prev"]) + encoded).hexdigest()


class Account:
    def __init__(self):
        self.seq, self.head = 0, "0" * 64
        self.figures = dict.fromkeys(FIGURES, 0)
        self.open = {}
        self.months = defaultdict(lambda: dict.fromkeys(["sessions", "minutes", "included", "charged", "overage"], 0))

    def add(self, entry):
        if entry["seq"] != self.seq + 1:
            raise Broken(f"entry {self.seq + 1} is missing")
        if entry["prev"] != self.head:
            raise Broken(f"entry {entry['seq']} does not follow the one before it")
        if entry["hash"] != entry_hash(entry):
            raise Broken(f"entry {entry['seq']} does not match its hash")
        self.seq, self.head = entry["seq"], entry["hash"]
        for figure, difference in FIGURES.items():
            self.figures[figure] += entry[difference]
            if self.figures[figure] != entry[figure + "_after"]:
                raise Broken(f"entry {entry['seq']}: {figure} does not add up")
        self.follow(entry)

    def follow(self, entry):
        kind, session = entry["kind"], entry["session"]
        if kind == "held":
            if session in self.open:
                raise Broken(f"entry {entry['seq']}: {session} is open already")
            self.open[session] = [entry]
        elif kind == "extended":
            self.open[session].append(entry)
        elif kind in ("posted", "lost_refund"):
            self.count(self.open.pop(session), entry)
        elif kind == "voided":
            del self.open[session]

    def count(self, before, last):
        entries = before + [last]
        overage = sum(entry["overage"] for entry in before)
        month = self.months[datetime.fromtimestamp(last["ended"] // 1000, timezone.utc).strftime("%Y-%m")]
        month["sessions"] += 1
        month["minutes"] += last["minutes"]
        month["included"] -= sum(entry["included"] for entry in entries)
        month["charged"] += sum(entry["overage"] - entry["amount"] for entry in entries)
        month["overage"] += overage - min(overage, last["amount"] - last["overage"])

    def document(self):
        return {"entries": self.seq, "head": self.head, **self.figures, "open": len(self.open), "months": self.months}


def replay(lines):
    accounts = defaultdict(Account)
    for line in lines:
        entry = json.loads(line)
        try:
            accounts[entry["account"]].add(entry)
        except (Broken, KeyError) as fault:
            raise Broken(f"{entry.get('account')}: {fault}") from fault
    return {name: account.document() for name, account in sorted(accounts.items())}


def main():
    try:
        with open(sys.argv[1], encoding="utf-8") as lines:
            print(json.dumps(replay(lines), indent=2))
    except Broken as fault:
        sys.exit(f"error: {fault}")


if __name__ == "__main__":
    main()
