#!/usr/bin/env python3
"""Writes furt.conf for one mode of the proxy lab to standard output. Python 3 stdlib only.

The routes become static routes of furt.conf, all to one backend, all with a permission, so every
request pays for key check, permission and routing. Shipped defaults stand, but for these:
  log_requests = false       the lab's other proxies run with their access logs off
  registration_rate          the lab registers more often than services do
"""
import argparse, hashlib, sys
from pathlib import Path

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--mode", required=True, choices=["plain", "gateway", "routes", "apply"])
ap.add_argument("--routes", required=True, help="a pattern a line")
ap.add_argument("--keys", required=True, help="a key a line")
ap.add_argument("--backend", required=True, help="host:port that every route goes to")
ap.add_argument("--listen", required=True, help="host:port of the public listener; the internal one takes the next port")
ap.add_argument("--workers", required=True, type=int)
ap.add_argument("--dir", required=True, help="holds the state")
args = ap.parse_args()

lines = lambda path: [line for line in Path(path).read_text().splitlines() if line]
host, port = args.listen.rsplit(":", 1)
out = [
    f"[server]\nhost = {host}\nport = {port}\nworkers = {args.workers}\nstate_dir = {args.dir}/furt-state",
    "log_requests = false",
]
if args.mode == "gateway":
    out.append("add_headers = X-Frame-Options: DENY")
out.append(f"\n[gateway]\nlisten = {host}:{int(port) + 1}\nregistration_rate = 100000/s\n")

if args.mode == "apply":
    out.append(f'[service "newcomer"]\npermissions = lab:*\nupstreams = {args.backend.rsplit(":", 1)[0]}\n')

for number, pattern in enumerate(lines(args.routes)):
    out.append(f'[route "r{number:05d}"]\nmethods = *\npath = {pattern}\nurl = http://{args.backend}\npermission = lab:get\n')

# Keys travel as digests: the lab's are shorter than what furt takes in clear.
for number, key in enumerate(lines(args.keys)):
    out.append(f'[api_key "lab-{number:04d}"]\nkey_sha256 = {hashlib.sha256(key.encode()).hexdigest()}\npermissions = lab:*')
    if args.mode == "gateway":
        out.append("rate_limit = 1000000/s")
    out.append("")

sys.stdout.write("\n".join(out))
