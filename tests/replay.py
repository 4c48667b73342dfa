#!/usr/bin/env python3
"""Replays exported audit logs, by the text at the head of billing/src/audit.rs alone.

    replay.py FILE…

A FILE is an archive (`ufbrowsers archive seal`) or an exported log (`ufbrowsers audit --export FILE`); archives of one
account come in their order, and before its log; of two that begin with the same entry only the longer one counts. Prints a JSON document with
what each account has and what its sessions came to by the month. Where a file cannot be read, or a log or an archive is not
intact, it says which and where in one line on stderr, and exits with 1.
"""

import hashlib
import json
import sys
from collections import defaultdict
from datetime import datetime, timezone

NAMES = """seq at account actor kind session command key cause amount included retry overage
           balance_after included_after retry_after overage_after minutes ended""".split()
HEADER = ["format", "account", "first", "last", "prev", "hash", "opening", "closing"]
FIGURES = {"balance": "amount", "included": "included", "retry": "retry", "overage": "overage"}
AGAIN = "export the log again (`ufbrowsers audit --export FILE`), or take another copy of the archive"


class Broken(Exception):
    pass


def entry_hash(entry):
    fields = ["ufb-audit-1"] + ["" if entry[name] is None else str(entry[name]) for name in NAMES]
    encoded = b"".join(b"%d:%s," % (len(f.encode()), f.encode()) for f in fields)
    return hashlib.sha256(bytes.fromhex(entry["prev"]) + encoded).hexdigest()


class Taken:
    """What the entries of an open session come to."""

    def __init__(self, included=0, charged=0, overage=0):
        self.included, self.charged, self.overage = included, charged, overage

    def add(self, entry):
        self.included -= entry["included"]
        self.charged += entry["overage"] - entry["amount"]
        self.overage += entry["overage"]

    def word(self, session):
        return f"{session}:{self.included}:{self.charged}:{self.overage}"


class Account:
    def __init__(self):
        self.seq, self.head = 0, "0" * 64
        self.figures = dict.fromkeys(FIGURES, 0)
        self.open = {}
        self.archive = None
        self.months = defaultdict(lambda: dict.fromkeys(["sessions", "minutes", "included", "charged", "overage"], 0))

    def add(self, entry):
        if entry["kind"] == "opening_balance":
            return self.begin(entry)
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

    def begin(self, entry):
        """Takes up an opening balance, or passes over it where what it stands for was read."""
        name = f"the opening balance of entry {entry['seq']}"
        if entry["hash"] != entry_hash(entry):
            raise Broken(f"{name} does not match its hash")
        figures = {figure: entry[difference] for figure, difference in FIGURES.items()}
        if any(figures[figure] != entry[figure + "_after"] for figure in FIGURES):
            raise Broken(f"{name} does not add up")
        archive, *words = entry["cause"].split(" ")
        if self.seq == 0:
            self.seq, self.head, self.figures, self.archive = entry["seq"], entry["prev"], figures, archive
            for word in words:
                session, *taken = word.split(":")
                self.open[session] = Taken(*map(int, taken))
            return
        if (entry["seq"], entry["prev"]) != (self.seq, self.head):
            raise Broken(f"{name} does not follow entry {self.seq}")
        if figures != self.figures or words != [self.open[session].word(session) for session in sorted(self.open)]:
            raise Broken(f"{name} is not what the entries before it come to")
        if self.archive is not None and archive != self.archive:
            raise Broken(f"{name} was made from another archive")

    def follow(self, entry):
        kind, session = entry["kind"], entry["session"]
        if kind == "held":
            if session in self.open:
                raise Broken(f"entry {entry['seq']}: {session} is open already")
            self.open[session] = Taken()
        elif kind in ("extended", "posted", "lost_refund", "voided") and session not in self.open:
            raise Broken(f"entry {entry['seq']}: {session} is not open")
        if kind in ("held", "extended"):
            self.open[session].add(entry)
        elif kind in ("posted", "lost_refund"):
            self.count(self.open.pop(session), entry)
        elif kind == "voided":
            del self.open[session]

    def count(self, taken, last):
        overage = taken.overage
        taken.add(last)
        month = self.months[datetime.fromtimestamp(last["ended"] // 1000, timezone.utc).strftime("%Y-%m")]
        month["sessions"] += 1
        month["minutes"] += last["minutes"]
        month["included"] += taken.included
        month["charged"] += taken.charged
        month["overage"] += overage - min(overage, last["amount"] - last["overage"])

    def document(self):
        return {"entries": self.seq, "head": self.head, **self.figures, "open": len(self.open), "months": self.months}


def add_entry(accounts, place, entry):
    missing = [name for name in [*NAMES, "prev", "hash"] if name not in entry]
    if missing:
        raise Broken(f"{place}: no entry of an audit log, it has no {missing[0]}; {AGAIN}")
    if not isinstance(entry["account"], str):
        raise Broken(f"{place}: no entry of an audit log, its account is no text; {AGAIN}")
    try:
        accounts[entry["account"]].add(entry)
    except Broken as fault:
        raise Broken(f"{place}: {entry['account']}: {fault}") from fault
    except Exception as fault:  # A field of another type, then.
        raise Broken(f"{place}: no entry of an audit log ({fault}); {AGAIN}") from fault


def add_archive(accounts, name, lines, documents):
    (header, *entries, footer), digest = documents, hashlib.sha256(b"".join(lines[:-1])).hexdigest()
    if header["format"] != "ufb-archive-1" or footer != {"sha256": digest}:
        raise Broken(f"{name}: not an archive, or changed since; {AGAIN}")
    account, before = accounts[str(header["account"])], None
    for number, entry in enumerate(entries, 2):
        if entry.get("kind") != "opening_balance" and before is None:
            before = (account.seq + 1, account.head, dict(account.figures))
        add_entry(accounts, f"{name}, line {number}", entry)
    if before != (header["first"], header["prev"], header["opening"]):
        raise Broken(f"{name}: it does not begin as its first line says")
    if (account.seq, account.head, account.figures) != (header["last"], header["hash"], header["closing"]):
        raise Broken(f"{name}: it does not end as its first line says")
    account.archive = digest


def without_replaced(files):
    """What a longer archive that begins with the same entry stands for is left out, once it was found to be a part of that."""
    longest = {}
    for _, lines, _, begins in files:
        if begins and len(lines) >= len(longest.get(begins, [])):
            longest[begins] = lines
    for name, lines, documents, begins in files:
        whole = longest[begins] if begins else lines
        if len(lines) < len(whole):
            if lines[1:-1] != whole[1 : len(lines) - 1]:
                raise Broken(f"{name}: a longer archive begins with the same entry, and goes on otherwise")
            continue
        yield name, lines, documents, begins


def read(name):
    """Its lines, what they say, and of an archive with what it begins."""
    try:
        with open(name, "rb") as file:
            lines = file.readlines()
    except OSError as fault:
        raise Broken(f"{name}: {fault.strerror}; name archives and exported logs that are there") from fault
    documents = [parse(f"{name}, line {number}", line) for number, line in enumerate(lines, 1)]
    if not documents or "format" not in documents[0]:
        return name, lines, documents, None
    header = documents[0]
    missing = [field for field in HEADER if field not in header]
    if missing:
        raise Broken(f"{name}, line 1: no header of an archive, it has no {missing[0]}; {AGAIN}")
    if "sha256" not in documents[-1]:
        raise Broken(f"{name}, line {len(lines)}: the archive is cut off, its last line is no checksum; {AGAIN}")
    return name, lines, documents, (str(header["account"]), str(header["first"]))


def parse(place, line):
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise Broken(f"{place}: no JSON, or cut off; {AGAIN}") from fault
    if not isinstance(document, dict):
        raise Broken(f"{place}: no JSON object; {AGAIN}")
    return document


def replay(names):
    accounts = defaultdict(Account)
    for name, lines, documents, begins in without_replaced([read(name) for name in names]):
        if begins:
            add_archive(accounts, name, lines, documents)
        else:
            for number, entry in enumerate(documents, 1):
                add_entry(accounts, f"{name}, line {number}", entry)
    return {name: account.document() for name, account in sorted(accounts.items())}


def main():
    if len(sys.argv) == 1:
        sys.exit("error: name at least one FILE; the head of this program says what it may be")
    try:
        print(json.dumps(replay(sys.argv[1:]), indent=2))
    except Broken as fault:
        sys.exit(f"error: {fault}")


if __name__ == "__main__":
    main()
