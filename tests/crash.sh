#!/usr/bin/env bash
# What furt keeps, at full length: power cuts, 200 times kill -9 under registrations without pause,
# 100,000 registrations of the same thing. CI runs the same tests shorter. Takes about half an hour;
# the tests with a full disk and with strace need root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export FURT_POWER_CUT_SCRIPTS=${FURT_POWER_CUT_SCRIPTS:-100}
export FURT_KILLS=${FURT_KILLS:-200}
export FURT_RENEWALS=${FURT_RENEWALS:-100000}
export FURT_CHANGES=${FURT_CHANGES:-20000}

cargo test --locked -p furt-control-plane --lib store:: -- --nocapture
cargo test --locked --test e2e durability:: -- --nocapture --test-threads=1
