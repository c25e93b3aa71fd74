"""Checks recorded traffic against its schemas: conformance.py MESSAGES_SCHEMA OPENAPI TRAFFIC.

TRAFFIC has one JSON object per line: a message ({"side": "client" or "server", "text": ...}) or a
response of the server API ({"call": "GET /v1/topics/{topic}", "status": ..., "body": ...}). Exits
with 0 if each matches its schema and every message type and every call was seen.
"""

import copy
import json
import sys

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

messages, openapi, traffic = (open(path, encoding="utf-8").read() for path in sys.argv[1:])
messages, openapi = json.loads(messages), json.loads(openapi)
traffic = [json.loads(line) for line in traffic.splitlines()]
faults = []

Draft202012Validator.check_schema(messages)
faults += [f"OpenAPI: {error.message} at {list(error.path)}" for error in OpenAPIV31SpecValidator(openapi).iter_errors()]


def validator(pointer):
    return Draft202012Validator({**messages, "anyOf": [{"$ref": f"#/$defs/{pointer}"}]})


sides = {side: validator(side) for side in ("client", "server")}
kinds = {name: validator(name) for name in messages["$defs"] if "." in name}
seen = set()
for entry in traffic:
    if "side" not in entry:
        continue
    message, side = json.loads(entry["text"]), entry["side"]
    faults += [f"{entry['text']}: {error.message}" for error in sides[side].iter_errors(message)]
    name = f"{side}.{message['type']}"
    name = name if name in kinds else f"{side}.raw"
    seen.add(name)
    if name not in kinds:
        continue
    faults += [f"{entry['text']} as {name}: {error.message}" for error in kinds[name].iter_errors(message)]
    # A message with a missing or changed field must not be valid.
    broken = copy.deepcopy(message)
    broken["type"] = 7
    if kinds[name].is_valid(broken):
        faults.append(f"{name} takes {json.dumps(broken)}")
    for key in list(message.get("data") or {}) if isinstance(message.get("data"), dict) and side == "server" else []:
        broken = copy.deepcopy(message)
        if key in ("message",) and name == "server.message" or name in ("server.echo", "server.raw"):
            continue
        broken["data"][key] = [None]
        if kinds[name].is_valid(broken):
            faults.append(f"{name} takes {json.dumps(broken)}")
# Streams in memory need no `position`.
faults += [f"no {name} was seen" for name in sorted(set(kinds) - seen - {"server.position"})]

calls = {
    f"{method.upper()} {path}": operation
    for path, item in openapi["paths"].items()
    for method, operation in item.items()
    if method in ("get", "post", "delete", "put", "patch")
}
answered, statuses = set(), set()
for entry in traffic:
    if "call" not in entry:
        continue
    call, status = entry["call"], str(entry["status"])
    operation = calls.get(call)
    if operation is None:
        faults.append(f"{call} is not described")
        continue
    response = operation["responses"].get(status)
    if response is None:
        faults.append(f"{call} answers {status}, which is not described: {entry['body']}")
        continue
    answered.add((call, status))
    if "content" not in response:
        if entry["body"]:
            faults.append(f"{call} answers {status} with a body")
        continue
    kind, content = next(iter(response["content"].items()))
    if not entry["type"].startswith(kind):
        faults.append(f"{call} answers {status} as {entry['type']}, described is {kind}")
    if kind != "application/json":
        continue
    schema = {**content["schema"], "components": openapi["components"]}
    errors = Draft202012Validator(schema).iter_errors(json.loads(entry["body"]))
    faults += [f"{call} {status} {entry['body']}: {error.message}" for error in errors]
for call, operation in calls.items():
    successes = [status for status in operation["responses"] if status.startswith("2")]
    faults += [f"{call} never answered {status}" for status in successes if (call, status) not in answered]

for fault in faults:
    print(fault)
print(f"{len(traffic)} messages and answers, {len(seen)} kinds, {len(answered)} answers of calls")
sys.exit(1 if faults else 0)
