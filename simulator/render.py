"""Metas, references and bytes: how stored entities become answers.

Stored references carry `BASE` in place of scheme, host and API path; it is replaced when an answer is
sent, so one stored text serves every address the simulator is reached by.
"""

from __future__ import annotations

import json
from typing import Any

BASE = "\ue000"  # a private-use character: no catalogue contains it
API = "/api/remap/1.2"
JSON = "application/json"

Json = dict[str, Any]

_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


def dumps(value: object) -> bytes:
    """Compact UTF-8 JSON, `BASE` still inside."""
    return _encode(value).encode()


def with_base(body: bytes, base: str) -> bytes:
    """`body` with every placeholder replaced by the address this request came to."""
    return body.replace(BASE.encode(), base.encode())


def entity_path(kind: str, key: str) -> str:
    """Where one object lives below the API base."""
    if kind == "pricetype":
        return f"/context/companysettings/pricetype/{key}"
    return f"/entity/{kind}/{key}"


def meta(kind: str, key: str) -> Json:
    """The `meta` of one object (md/_general.md "Метаданные")."""
    result: Json = {"href": BASE + entity_path(kind, key)}
    if kind != "pricetype":
        result["metadataHref"] = f"{BASE}/entity/{kind}/metadata"
    result["type"] = kind
    result["mediaType"] = JSON
    return result


def reference(kind: str, key: str) -> Json:
    """`{"meta": ...}`, the only form in which one object names another."""
    return {"meta": meta(kind, key)}


def collection_meta(path: str, kind: str, size: int = 0) -> Json:
    """The `meta` of a nested collection that is not expanded (images, files, attributes)."""
    return {
        "href": BASE + path,
        "type": kind,
        "mediaType": JSON,
        "size": size,
        "limit": 1000,
        "offset": 0,
    }
