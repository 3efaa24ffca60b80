#!/usr/bin/env bash
# Tries the provider of keys "aws-kms" with an emulator of AWS KMS: moto, from PyPI, in a venv of its own below target/tools. It is started on this
# machine alone, a key is made in it, and the test that has one wrapped and unwrapped is run; what is given is given to cargo-nextest
# (`scripts/kms.sh --release`).
set -euo pipefail
cd "$(dirname "$0")/.."
place=${REPLICATOR_MOTO:-target/tools/moto}
port=5917
if [ ! -x "$place/bin/moto_server" ]; then
    echo "kms: installing moto into $place (once; it takes some minutes)"
    python3 -m venv "$place"
    "$place/bin/pip" install --quiet 'moto[server,kms]==5.2.5'
fi
log=$(mktemp)
"$place/bin/moto_server" -H 127.0.0.1 -p "$port" >"$log" 2>&1 &
emulator=$!
trap 'kill "$emulator" 2>/dev/null; rm -f "$log"' EXIT
# It is asked until it answers, for a minute at most.
key=$("$place/bin/python3" - "$port" <<'PYTHON'
import json, sys, time, urllib.request

request = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/", data=b"{}", headers={
    "Content-Type": "application/x-amz-json-1.1",
    "X-Amz-Target": "TrentService.CreateKey",
    # By the scope it knows which of AWS's services is asked; it verifies no signature.
    "Authorization": "AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/kms/aws4_request, SignedHeaders=host, Signature=0",
})
until = time.monotonic() + 60
while True:
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            print(json.load(answer)["KeyMetadata"]["KeyId"])
            break
    except OSError as error:
        if time.monotonic() > until:
            sys.exit(f"kms: the emulator does not answer: {error}")
        time.sleep(0.2)
PYTHON
)
REPLICATOR_TEST_KMS="$port/$key" cargo nextest run --locked --workspace "$@" -E 'test(/an_emulator_wraps_and_unwraps/)' --no-capture
