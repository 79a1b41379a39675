#!/usr/bin/env bash
# kubernetes 37.0.1 (the official Python client), kubernetes.dynamic.DynamicClient.
#
# One would guess that a new process asks the API server which kinds it has. It asks only the first time: the answer
# is kept in a file of the temporary folder, named after the server's address, with no age and no account of the user.
# A later process takes a kind from that file although the server at the address has it no more (another cluster behind
# the same port-forward, a CRD that was removed). The questions carry no time limit either: `_request_timeout` of a
# call is not that of the discovery before it. Naming kinds by hand (Resource objects) avoids both.
#
# Seen:
#   the first process finds: Widget
#   files left: osrcp-<md5 of the address>.json
#   the server has now: nothing; the second process finds: Widget
#   with the file removed: ResourceNotFoundError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'kubernetes==37.0.1'
export TMPDIR="$work/tmp" NO_PROXY=127.0.0.1
mkdir "$TMPDIR"

cat >"$work/server.py" <<'PY'
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KINDS = Path(sys.argv[1])  # the names of the kinds that the server has, one a line


class Api(BaseHTTPRequestHandler):
    def do_GET(self):
        kinds = KINDS.read_text().split()
        group = {"name": "example.org", "versions": [{"groupVersion": "example.org/v1", "version": "v1"}]}
        group["preferredVersion"] = group["versions"][0]
        resources = [
            {"name": f"{k.lower()}s", "singularName": "", "namespaced": True, "kind": k, "verbs": ["get"]} for k in kinds
        ]
        answers = {
            "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
            "/api": {"kind": "APIVersions", "versions": []},
            "/apis": {"kind": "APIGroupList", "groups": [group] if kinds else []},
            "/apis/example.org/v1": {"kind": "APIResourceList", "resources": resources},
        }
        answer = answers.get(self.path.rstrip("/"))
        body = json.dumps(answer or {"kind": "Status", "code": 404}).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
print(server.server_address[1], flush=True)
server.serve_forever()
PY

cat >"$work/client.py" <<'PY'
import sys

from kubernetes.client import ApiClient, Configuration
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ResourceNotFoundError

client = DynamicClient(ApiClient(Configuration(host=f"http://127.0.0.1:{sys.argv[1]}")))
try:
    print(client.resources.get(api_version="example.org/v1", kind="Widget").kind)
except ResourceNotFoundError:
    print("ResourceNotFoundError")
PY

echo Widget >"$work/kinds"
"$work/venv/bin/python" "$work/server.py" "$work/kinds" >"$work/port" &
server=$!
trap 'kill "$server"; rm -rf "$work"' EXIT
until [ -s "$work/port" ]; do sleep 0.1; done
port=$(cat "$work/port")
ask() { "$work/venv/bin/python" "$work/client.py" "$port"; }

first=$(ask)
echo "the first process finds: $first"
files=$(ls "$TMPDIR")
echo "files left: $files"
: >"$work/kinds"
second=$(ask)
echo "the server has now: nothing; the second process finds: $second"
rm -f "$TMPDIR"/osrcp-*.json
third=$(ask)
echo "with the file removed: $third"
[ "$first" = Widget ] && [[ "$files" == osrcp-*.json ]] && [ "$second" = Widget ] && [ "$third" = ResourceNotFoundError ]
