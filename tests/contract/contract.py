"""Hold the simulator, and whoever talks to it, to the vendor's OpenAPI description.

`ContractRecorder` is ASGI middleware: it looks at every request and answer that passes and collects what the
description forbids. `simulator_under_contract` serves a simulator behind it.

The description is the vendor's own, corrected so that everything the documentation shows is allowed. It is
not part of this repository: it is looked for beside it, and without it nothing is checked.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import jsonschema_rs
import requests

from simulator import create_app, serve_in_thread

API = "/api/remap/1.2"
SPEC = Path(__file__).parents[2].parent / "shared" / "data" / "moysklad-openapi.json"

# Documented (md/_general.md, md/workbook/_workbook_attributes_crud.md), but absent from the description.
UNDESCRIBED = [
    ("GET", re.compile(r"/entity/\w+/metadata/attributes")),
    ("GET", re.compile(r"/entity/\w+/syncid/[^/]+")),
    ("DELETE", re.compile(r"/entity/\w+/syncid/[^/]+")),
    ("GET", re.compile(r"/context/employee")),
    ("POST", re.compile(r"/security/token")),
]
EMPTY_STATUSES = (414, 415)  # refused before anything could write a body
UNCHECKED_FAULTS = (
    "html", "truncate", "drip", "redirect", "wrong_json", "drop_before", "drop_after", "late", "timeout",
)  # fmt: skip


@cache
def load_spec() -> dict[str, Any] | None:
    """The description, or None where it does not lie beside the repository."""
    return json.loads(SPEC.read_text()) if SPEC.exists() else None


def json_schema(node: Any) -> Any:
    """OpenAPI 3.0 turned into JSON Schema: `nullable` becomes the type null."""
    if isinstance(node, list):
        return [json_schema(one) for one in node]
    if not isinstance(node, dict):
        return node
    result = {name: json_schema(value) for name, value in node.items() if name != "nullable"}
    if node.get("nullable") is not True:
        return result
    if "type" in result and "enum" not in result:
        return {**result, "type": [result["type"], "null"]}
    return {"anyOf": [result, {"type": "null"}]}


class Contract:
    """The description, asked about one request or answer at a time."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.components = json_schema(spec["components"])
        self.parameters = self.components["parameters"]
        self._amend(self.components["schemas"])
        self.operations: list[tuple[re.Pattern[str], str, dict[str, Any]]] = []
        for path, item in spec["paths"].items():
            pattern = re.compile(re.sub(r"\{\w+\}", "[^/]+", path))
            self.operations += [(pattern, method.upper(), json_schema(one)) for method, one in item.items()]
        # Literal paths first: "/entity/product/metadata" is no id.
        self.operations.sort(key=lambda one: one[0].pattern.count("[^/]+"))
        self.entities = self._entities(spec)
        self._validators: dict[str, Any] = {}

    def _amend(self, schemas: dict[str, Any]) -> None:
        """Where documentation and description disagree, both are right.

        md/dictionaries/_product.md shows the attributes of metadata as a collection that is not expanded.
        """
        attributes = schemas["metadata"]["properties"]
        collection = {"type": "object", "required": ["meta"]}
        attributes["attributes"] = {"anyOf": [attributes["attributes"], collection]}

    def _entities(self, spec: dict[str, Any]) -> dict[str, str]:
        """Which schema the objects of `/entity/{type}` have."""
        found = {"pricetype": "#/components/schemas/priceType"}
        for path, item in spec["paths"].items():
            match = re.fullmatch(r"/entity/(\w+)/\{id\}", path)
            if match and "get" in item:
                schema = item["get"]["responses"]["200"]["content"]["application/json"]["schema"]
                if "$ref" in schema:
                    found[match[1]] = schema["$ref"]
        return found

    def operation(self, method: str, path: str) -> dict[str, Any] | None:
        """The described operation, if there is one."""
        for pattern, verb, operation in self.operations:
            if verb == method and pattern.fullmatch(path):
                return operation
        return None

    # --- requests ---

    def request(self, method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Iterator[str]:
        """Everything the description forbids in a request."""
        operation = self.operation(method, path)
        if operation is None:
            if not any(verb == method and pattern.fullmatch(path) for verb, pattern in UNDESCRIBED):
                yield "the path and method are not described"
            return
        yield from self._parameters(operation, query, headers, bool(body))
        described = operation.get("requestBody")
        if described is None:
            if body:
                yield "a body where none is described"
            return
        try:
            value = json.loads(body)
        except ValueError:
            yield "the body is not JSON"
            return
        schema = described["content"]["application/json"]["schema"]
        yield from self._value(self._branch(schema, value), value)

    def _parameters(
        self, operation: dict[str, Any], query: str, headers: dict[str, str], has_body: bool
    ) -> Iterator[str]:
        listed = [self._resolved(one) for one in operation.get("parameters", ())]
        in_query = {one["name"]: one["schema"] for one in listed if one["in"] == "query"}
        for name, text in parse_qsl(query, keep_blank_values=True):
            schema = in_query.get(name)
            if schema is None:
                yield f"query parameter {name!r} is not described"
                continue
            value: Any = int(text) if schema.get("type") == "integer" and text.isdigit() else text
            yield from (f"query parameter {name!r}: {one}" for one in self._value(schema, value))
        for one in listed:
            name = one["name"].lower()
            if one["in"] == "header" and name in headers and (name != "content-type" or has_body):
                yield from (f"header {name}: {text}" for text in self._value(one["schema"], headers[name]))

    def _resolved(self, parameter: dict[str, Any]) -> dict[str, Any]:
        ref = parameter.get("$ref")
        return self.parameters[ref.rsplit("/", 1)[1]] if ref else parameter

    # --- answers ---

    def response(self, method: str, path: str, status: int, headers: dict[str, str], body: bytes) -> Iterator[str]:
        """Everything the description forbids in an answer."""
        if status in EMPTY_STATUSES and not body:
            return
        operation = self.operation(method, path)
        schema: Any = {"$ref": "#/components/schemas/errorOrArray"}
        if status < 400:
            if operation is None:
                return
            content = operation["responses"].get(str(status), {}).get("content")
            if content is None:
                if body:
                    yield "a body where none is described"
                return
            schema = content["application/json"]["schema"]
        if not headers.get("content-type", "").startswith("application/json"):
            yield f"content-type {headers.get('content-type')!r} is not JSON"
            return
        value = json.loads(body)
        kind = path.split("/")[2] if path.startswith("/entity/") else "pricetype" if "/pricetype" in path else ""
        if status >= 400 and isinstance(value, list):
            # A bulk request that failed in part: entities and errors in one array.
            schema = {"type": "array", "items": {"$ref": "#/components/schemas/BatchResponseEntity"}}
        yield from self._value(self._answer(self._branch(schema, value), kind, path), value)

    def _answer(self, schema: Any, kind: str, path: str) -> Any:
        """The described answer, made as strict as its entity where the description only says "an object"."""
        entity = self.entities.get(kind)
        if entity is None:
            return schema
        whole = {"allOf": [{"$ref": entity}, {"required": ["meta", "id", "name"]}]}
        if path.endswith("/delete"):
            whole = {"$ref": "#/components/schemas/deleteRowResult"}
        elif schema == {"$ref": entity}:
            return whole
        if schema.get("items") == {"$ref": "#/components/schemas/BatchResponseEntity"}:
            return {**schema, "items": {"anyOf": [whole, {"$ref": "#/components/schemas/error"}]}}
        name = schema.get("$ref", "").rsplit("/", 1)[-1]
        if path == f"/entity/{kind}" and name.endswith("List"):
            rows = {"rows": {"type": "array", "items": whole}}
            return {"allOf": [schema, {"required": ["context", "meta", "rows"], "properties": rows}]}
        return schema

    # --- values ---

    def _branch(self, schema: Any, value: Any) -> Any:
        """Of "an object or an array of them" the one that is meant, so that an error names its place."""
        for one in schema.get("oneOf", ()):
            if (one.get("type") == "array") == isinstance(value, list):
                return one
        return schema

    def _value(self, schema: Any, value: Any) -> Iterator[str]:
        key = json.dumps(schema, sort_keys=True)
        validator = self._validators.get(key)
        if validator is None:
            whole = {**schema, "components": self.components}
            validator = jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
            self._validators[key] = validator
        if validator.is_valid(value):
            return
        for index, error in enumerate(validator.iter_errors(value)):
            if index == 5:
                yield "… and more"
                return
            place = "/".join(str(part) for part in error.instance_path)
            yield f"at /{place}: {_short(error.message)}"


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:140]} … {text[-140:]}"


class ContractRecorder:
    """ASGI middleware that lets everything pass and remembers what should not have."""

    def __init__(self, app: Any, spec: dict[str, Any] | None) -> None:
        self.app = app
        self.contract = None if spec is None else Contract(spec)
        self.violations: list[str] = []
        self.checked_requests = 0
        self.checked_responses = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass one request through."""
        if self.contract is None or scope["type"] != "http" or not scope["path"].startswith(f"{API}/"):
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        asked: list[bytes] = []
        answered: list[dict[str, Any]] = []

        async def hear() -> Any:
            message = await receive()
            asked.append(message.get("body", b""))
            return message

        async def tell(message: Any) -> None:
            answered.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                # Before the client can see the answer: a test may look at `violations` as soon as it has it.
                self.check(scope, b"".join(asked), answered, state.get("fault"))
            await send(message)

        await self.app(scope, hear, tell)

    def check(self, scope: Any, asked: bytes, answered: list[dict[str, Any]], fault: str | None) -> None:
        """Judge one exchange; a refused request may be wrong, its answer may not."""
        contract = self.contract
        assert contract is not None
        method, path = scope["method"], scope["path"].removeprefix(API).rstrip("/")
        status = answered[0]["status"]
        line = f"{method} {path} → {status}"
        if status < 400 and (fault is None or fault == "delay"):
            self.checked_requests += 1
            query = scope["query_string"].decode()
            found = contract.request(method, path, query, _headers(scope), asked)
            self.violations += [f"request {line}: {text}" for text in found]
        if fault not in UNCHECKED_FAULTS:
            self.checked_responses += 1
            headers = _headers(answered[0])
            body = b"".join(one.get("body", b"") for one in answered[1:])
            if headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            found = contract.response(method, path, status, headers, body)
            self.violations += [f"answer {line}: {text}" for text in found]


def _headers(source: Any) -> dict[str, str]:
    return {name.decode().lower(): value.decode("latin-1") for name, value in source["headers"]}


class Contracted:
    """A served simulator: where it is, what it broke, and its control side."""

    def __init__(self, root: str, recorder: ContractRecorder, app: Any) -> None:
        self.root = root
        self.url = root + API
        self.recorder = recorder
        self.world = app.world
        self.session = requests.Session()
        self.session.trust_env = False

    @property
    def violations(self) -> list[str]:
        """What the contract forbids and was seen all the same."""
        return self.recorder.violations

    def control(self, method: str, path: str, /, **body: Any) -> Any:
        """One request to the control side, such as `control("POST", "/seed", account=…, products=100)`."""
        answer = self.session.request(method, f"{self.root}/_control{path}", json=body or None, timeout=120)
        if not answer.ok:
            raise requests.HTTPError(f"{method} {path} → {answer.status_code}: {answer.text}", response=answer)
        return answer.json()


@contextmanager
def simulator_under_contract(**options: Any) -> Iterator[Contracted]:
    """A simulator over real HTTP behind a recorder; `options` go to `create_app`."""
    app = create_app(**options)
    recorder = ContractRecorder(app, load_spec())
    with serve_in_thread(recorder) as root:
        contracted = Contracted(root, recorder, app)
        try:
            yield contracted
        finally:
            contracted.session.close()
